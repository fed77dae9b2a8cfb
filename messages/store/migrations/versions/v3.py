"""Runs on Beam, archives, erased payloads; sinks, and calls over REST that may be repeated.

On PostgreSQL the stream gets a default partition, for what stays behind when the partition of its
position is archived.
"""

from collections.abc import Sequence as Several

from alembic import op

revision = "3"
down_revision: str | None = "2"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None

POSTGRESQL = """
CREATE TABLE ledgerbeam_stream_default PARTITION OF ledgerbeam_stream DEFAULT;
CREATE INDEX ledgerbeam_stream_posted ON ledgerbeam_stream USING brin (posted_at)
"""

BOTH = """
ALTER TABLE ledgerbeam_topic ADD COLUMN retention integer;
ALTER TABLE ledgerbeam_consumer ADD COLUMN last bigint;
ALTER TABLE ledgerbeam_inbox ADD COLUMN run integer;
CREATE TABLE ledgerbeam_run (
    id integer PRIMARY KEY,
    consumer smallint NOT NULL,
    instance text NOT NULL UNIQUE,
    began_at bigint NOT NULL
);
CREATE TABLE ledgerbeam_archive (
    number integer PRIMARY KEY,
    uri text NOT NULL,
    begun_at bigint NOT NULL,
    archived_at bigint,
    messages bigint
);
CREATE TABLE ledgerbeam_archived (
    archive integer NOT NULL,
    topic smallint NOT NULL,
    day bigint NOT NULL,
    consumer smallint NOT NULL,
    posted bigint NOT NULL,
    canceled bigint NOT NULL,
    moved bigint NOT NULL,
    handled bigint NOT NULL,
    PRIMARY KEY (archive, topic, day, consumer)
);
CREATE TABLE ledgerbeam_erasure (
    number integer PRIMARY KEY,
    at bigint NOT NULL,
    customer text NOT NULL,
    who text NOT NULL,
    why text NOT NULL,
    messages bigint NOT NULL,
    canceled bigint NOT NULL,
    archived bigint
);
CREATE TABLE ledgerbeam_sink (
    consumer smallint PRIMARY KEY,
    source text NOT NULL,
    definition text NOT NULL
);
CREATE TABLE ledgerbeam_call (
    caller text NOT NULL,
    key text NOT NULL,
    fingerprint text NOT NULL,
    answer text,
    expires_at bigint NOT NULL,
    PRIMARY KEY (caller, key)
);
CREATE INDEX ledgerbeam_call_expires ON ledgerbeam_call (expires_at)
"""


def upgrade() -> None:
    """Make the tables, and add the columns."""
    is_postgresql = op.get_context().dialect.name == "postgresql"
    for statement in (f"{POSTGRESQL};{BOTH}" if is_postgresql else BOTH).split(";"):
        op.execute(statement)
