"""The first tables: topics, messages, cursors, the stream, leases, consumers and their inboxes.

On PostgreSQL messages are partitioned by their due time, with a default partition, and the stream
by position; `store.partitions` makes the other partitions.
"""

from collections.abc import Sequence as Several

from alembic import op

revision = "1"
down_revision: str | None = None
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None

POSTGRESQL = """
CREATE SEQUENCE ledgerbeam_message_id;
CREATE TABLE ledgerbeam_message (
    id bigint NOT NULL DEFAULT nextval('ledgerbeam_message_id'),
    due bigint NOT NULL,
    written xid8 NOT NULL DEFAULT pg_current_xact_id(),
    topic smallint NOT NULL,
    lane smallint NOT NULL,
    bucket smallint NOT NULL,
    state smallint NOT NULL DEFAULT 0,
    version smallint NOT NULL,
    customer text NOT NULL,
    key text,
    payload text NOT NULL,
    local text
) PARTITION BY RANGE (due);
CREATE INDEX ledgerbeam_message_due ON ledgerbeam_message (topic, lane, due, id);
CREATE INDEX ledgerbeam_message_written ON ledgerbeam_message (written, due);
CREATE INDEX ledgerbeam_message_key ON ledgerbeam_message (topic, key) WHERE key IS NOT NULL;
CREATE INDEX ledgerbeam_message_local ON ledgerbeam_message (due) WHERE local IS NOT NULL;
CREATE TABLE ledgerbeam_message_default PARTITION OF ledgerbeam_message DEFAULT;
CREATE SEQUENCE ledgerbeam_stream_position;
CREATE TABLE ledgerbeam_stream (
    position bigint NOT NULL DEFAULT nextval('ledgerbeam_stream_position'),
    message_id bigint NOT NULL,
    due bigint NOT NULL,
    posted_at bigint NOT NULL,
    topic smallint NOT NULL,
    bucket smallint NOT NULL,
    version smallint NOT NULL,
    customer text NOT NULL,
    key text,
    payload text NOT NULL,
    PRIMARY KEY (position)
) PARTITION BY RANGE (position);
CREATE INDEX ledgerbeam_stream_bucket ON ledgerbeam_stream (topic, bucket, position)
"""

SQLITE = """
CREATE TABLE ledgerbeam_message (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    due bigint NOT NULL,
    topic smallint NOT NULL,
    lane smallint NOT NULL,
    bucket smallint NOT NULL,
    state smallint NOT NULL DEFAULT 0,
    version smallint NOT NULL,
    customer text NOT NULL,
    key text,
    payload text NOT NULL,
    local text
);
CREATE INDEX ledgerbeam_message_due ON ledgerbeam_message (topic, lane, due, id);
CREATE INDEX ledgerbeam_message_key ON ledgerbeam_message (topic, key) WHERE key IS NOT NULL;
CREATE INDEX ledgerbeam_message_local ON ledgerbeam_message (due) WHERE local IS NOT NULL;
CREATE TABLE ledgerbeam_stream (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    message_id bigint NOT NULL,
    due bigint NOT NULL,
    posted_at bigint NOT NULL,
    topic smallint NOT NULL,
    bucket smallint NOT NULL,
    version smallint NOT NULL,
    customer text NOT NULL,
    key text,
    payload text NOT NULL
);
CREATE INDEX ledgerbeam_stream_bucket ON ledgerbeam_stream (topic, bucket, position)
"""

BOTH = """
CREATE TABLE ledgerbeam_topic (
    id smallint PRIMARY KEY,
    name text NOT NULL UNIQUE,
    customer text NOT NULL,
    rate double precision
);
CREATE TABLE ledgerbeam_cursor (
    topic smallint NOT NULL,
    lane smallint NOT NULL,
    epoch bigint NOT NULL,
    due bigint NOT NULL,
    id bigint NOT NULL,
    snapshot text NOT NULL,
    sweep_due bigint,
    sweep_id bigint,
    sweep_snapshot text,
    sweep_to bigint,
    position bigint NOT NULL,
    PRIMARY KEY (topic, lane)
);
CREATE TABLE ledgerbeam_held (
    message_id bigint PRIMARY KEY,
    topic smallint NOT NULL,
    lane smallint NOT NULL,
    due bigint NOT NULL
);
CREATE TABLE ledgerbeam_lease (
    work text NOT NULL,
    unit smallint NOT NULL,
    owner text,
    epoch bigint NOT NULL,
    expires_at bigint NOT NULL,
    PRIMARY KEY (work, unit)
);
CREATE TABLE ledgerbeam_member (
    work text NOT NULL,
    owner text NOT NULL,
    expires_at bigint NOT NULL,
    PRIMARY KEY (work, owner)
);
CREATE TABLE ledgerbeam_consumer (
    id smallint PRIMARY KEY,
    name text NOT NULL UNIQUE,
    topic smallint NOT NULL,
    first bigint NOT NULL,
    paused boolean NOT NULL,
    rate double precision
);
CREATE TABLE ledgerbeam_progress (
    consumer smallint NOT NULL,
    bucket smallint NOT NULL,
    epoch bigint NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (consumer, bucket)
);
CREATE TABLE ledgerbeam_inbox (
    consumer smallint NOT NULL,
    message_id bigint NOT NULL,
    handled_at bigint NOT NULL,
    PRIMARY KEY (consumer, message_id)
);
CREATE TABLE ledgerbeam_parked (
    consumer smallint NOT NULL,
    position bigint NOT NULL,
    message_id bigint NOT NULL,
    bucket smallint NOT NULL,
    customer text NOT NULL,
    tries smallint NOT NULL,
    next_try_at bigint NOT NULL,
    dead_at bigint,
    error text,
    code text,
    PRIMARY KEY (consumer, position)
);
CREATE INDEX ledgerbeam_parked_alive ON ledgerbeam_parked (consumer, bucket, position)
    WHERE dead_at IS NULL
"""


def upgrade() -> None:
    """Make the tables."""
    own = POSTGRESQL if op.get_context().dialect.name == "postgresql" else SQLITE
    for statement in f"{own};{BOTH}".split(";"):
        op.execute(statement)
