"""The tables of messages, in the database of those who send or handle them.

Moments are whole microseconds since 1970 in UTC: `to_timestamp(due / 1e6)` shows them in
PostgreSQL. Migrations make the tables; on PostgreSQL `message` and `stream` are partitioned.
"""

import sqlalchemy as sa

HEAD = "4"
"""The migration that gives these tables."""

VERSION_TABLE = "ledgerbeam_messages_version"

PENDING, CANCELED, MOVED = 0, 1, 2
"""States of a message in `MESSAGE`. One that was posted stays pending: the cursor has passed it."""

metadata = sa.MetaData()
_big, _small = sa.BigInteger(), sa.SmallInteger()

TOPIC = sa.Table(
    "ledgerbeam_topic",
    metadata,
    sa.Column("id", _small, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("customer", sa.Text, nullable=False),
    sa.Column("rate", sa.Float),
    sa.Column("retention", sa.Integer),
)
"""Topics: the field of their messages that names the customer, messages a second at most, and days
for which messages stay at least after they were posted."""

MESSAGE = sa.Table(
    "ledgerbeam_message",
    metadata,
    sa.Column("id", _big, nullable=False),
    sa.Column("topic", _small, nullable=False),
    sa.Column("lane", _small, nullable=False),
    sa.Column("bucket", _small, nullable=False),
    sa.Column("state", _small, nullable=False),
    sa.Column("version", _small, nullable=False),
    sa.Column("due", _big, nullable=False),
    sa.Column("customer", sa.Text, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("local", sa.Text),
)
"""Messages as they were scheduled. On PostgreSQL a further column, `written`, has the transaction
by which a row came; SQLite has one writer at a time, so that ids follow the order of commits."""

CURSOR = sa.Table(
    "ledgerbeam_cursor",
    metadata,
    sa.Column("topic", _small, primary_key=True),
    sa.Column("lane", _small, primary_key=True),
    sa.Column("epoch", _big, nullable=False),
    sa.Column("due", _big, nullable=False),
    sa.Column("id", _big, nullable=False),
    sa.Column("snapshot", sa.Text, nullable=False),
    sa.Column("sweep_due", _big),
    sa.Column("sweep_id", _big),
    sa.Column("sweep_snapshot", sa.Text),
    sa.Column("sweep_to", _big),
    sa.Column("position", _big, nullable=False),
)
"""How far a topic is posted, lane by lane; see `scheduler.sweep`. `position` is the last of them in
the stream."""

HELD = sa.Table(
    "ledgerbeam_held",
    metadata,
    sa.Column("message_id", _big, primary_key=True),
    sa.Column("topic", _small, nullable=False),
    sa.Column("lane", _small, nullable=False),
    sa.Column("due", _big, nullable=False),
)
"""Messages that a sender's open transaction was about to cancel or to move when they were due."""

STREAM = sa.Table(
    "ledgerbeam_stream",
    metadata,
    sa.Column("position", _big, primary_key=True),
    sa.Column("message_id", _big, nullable=False),
    sa.Column("topic", _small, nullable=False),
    sa.Column("bucket", _small, nullable=False),
    sa.Column("version", _small, nullable=False),
    sa.Column("due", _big, nullable=False),
    sa.Column("posted_at", _big, nullable=False),
    sa.Column("customer", sa.Text, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("payload", sa.Text, nullable=False),
)
"""The stream: what has been posted, never changed. Positions of a lane are in order of commit."""

LEASE = sa.Table(
    "ledgerbeam_lease",
    metadata,
    sa.Column("work", sa.Text, primary_key=True),
    sa.Column("unit", _small, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("epoch", _big, nullable=False),
    sa.Column("expires_at", _big, nullable=False),
)
"""Who works on which lane or bucket. The epoch grows whenever it changes hands."""

MEMBER = sa.Table(
    "ledgerbeam_member",
    metadata,
    sa.Column("work", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("expires_at", _big, nullable=False),
)
"""Processes that share the units of some work."""

CONSUMER = sa.Table(
    "ledgerbeam_consumer",
    metadata,
    sa.Column("id", _small, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("topic", _small, nullable=False),
    sa.Column("first", _big, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("rate", sa.Float),
    sa.Column("last", _big),
)
"""Consumers; each handles what stands in the stream behind the position `first`.

One that only runs on Beam have handled ends with the position `last`; of one that handled what
doesn't stand in this stream, both are 0.
"""

PROGRESS = sa.Table(
    "ledgerbeam_progress",
    metadata,
    sa.Column("consumer", _small, primary_key=True),
    sa.Column("bucket", _small, primary_key=True),
    sa.Column("epoch", _big, nullable=False),
    sa.Column("position", _big, nullable=False),
)
"""How far a consumer has come in each bucket."""

INBOX = sa.Table(
    "ledgerbeam_inbox",
    metadata,
    sa.Column("consumer", _small, primary_key=True),
    sa.Column("message_id", _big, primary_key=True),
    sa.Column("handled_at", _big, nullable=False),
    sa.Column("rule", _small),
    sa.Column("move", sa.Integer),
    sa.Column("run", sa.Integer),
)
"""The messages that a consumer has handled, committed together with what it did.

`rule` is the number of the rule by which it did that. Where a rollout has given the customer the
new rule, `move` is the last entry of the rollout at that time. `run` is the run on Beam that did
it; empty if it was one of the consumer's own processes.
"""

PARKED = sa.Table(
    "ledgerbeam_parked",
    metadata,
    sa.Column("consumer", _small, primary_key=True),
    sa.Column("position", _big, primary_key=True),
    sa.Column("message_id", _big, nullable=False),
    sa.Column("bucket", _small, nullable=False),
    sa.Column("customer", sa.Text, nullable=False),
    sa.Column("tries", _small, nullable=False),
    sa.Column("next_try_at", _big, nullable=False),
    sa.Column("dead_at", _big),
    sa.Column("error", sa.Text),
    sa.Column("code", sa.Text),
    sa.Column("rule", _small),
    sa.Column("move", sa.Integer),
)
"""Messages that failed, those of the same customer that wait behind them, and dead letters.

`rule` and `move` are those of the last try, as in `INBOX`.
"""

ROLLOUT = sa.Table(
    "ledgerbeam_rollout",
    metadata,
    sa.Column("consumer", _small, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", _big, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("rule", _small, nullable=False),
    sa.Column("old_rule", _small, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("asked", sa.Text),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("handled", _big),
    sa.Column("failed", _big),
    sa.Column("forced", sa.Boolean, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
)
"""What was done to the rollouts of a consumer, never changed. The last entry says how it stands: a
move and its entry are one row."""

RUN = sa.Table(
    "ledgerbeam_run",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("consumer", _small, nullable=False),
    sa.Column("instance", sa.Text, nullable=False, unique=True),
    sa.Column("began_at", _big, nullable=False),
)
"""Runs on Beam that handle messages for a consumer, by the URI of their instance."""

ARCHIVE = sa.Table(
    "ledgerbeam_archive",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("begun_at", _big, nullable=False),
    sa.Column("archived_at", _big),
    sa.Column("messages", _big),
)
"""Batches of the stream that were moved to files; without `archived_at`, one that was begun."""

ARCHIVED = sa.Table(
    "ledgerbeam_archived",
    metadata,
    sa.Column("archive", sa.Integer, primary_key=True),
    sa.Column("topic", _small, primary_key=True),
    sa.Column("day", _big, primary_key=True),
    sa.Column("consumer", _small, primary_key=True),
    sa.Column("posted", _big, nullable=False),
    sa.Column("canceled", _big, nullable=False),
    sa.Column("moved", _big, nullable=False),
    sa.Column("handled", _big, nullable=False),
)
"""What a batch has taken out of the books, by topic, day of due time, and consumer: 0 for the
topic itself."""

ERASURE = sa.Table(
    "ledgerbeam_erasure",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", _big, nullable=False),
    sa.Column("customer", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("messages", _big, nullable=False),
    sa.Column("canceled", _big, nullable=False),
    sa.Column("archived", _big),
)
"""Customers whose payloads were erased. `archived` counts those in archives; empty until that is
done."""

SINK = sa.Table(
    "ledgerbeam_sink",
    metadata,
    sa.Column("consumer", _small, primary_key=True),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("definition", sa.Text, nullable=False),
)
"""Sinks: consumers that post to outside streams. `source` stands for this database in the ids of
messages; `definition` is JSON, with secrets as references."""

REMOVAL = sa.Table(
    "ledgerbeam_removal",
    metadata,
    sa.Column("id", _small, primary_key=True),
    sa.Column("at", _big, nullable=False),
    sa.Column("consumer", sa.Text, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("forced", sa.Boolean, nullable=False),
    sa.Column("handled", _big, nullable=False),
    sa.Column("dead", _big, nullable=False),
    sa.Column("unhandled", _big, nullable=False),
    sa.Column("examples", sa.Text, nullable=False),
)
"""Consumers that were removed, by the number that each had. `examples` are numbers of messages that
it had not handled."""

CALL = sa.Table(
    "ledgerbeam_call",
    metadata,
    sa.Column("caller", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("answer", sa.Text),
    sa.Column("expires_at", _big, nullable=False),
)
"""Calls over REST that named an `Idempotency-Key`, with what they were answered."""
