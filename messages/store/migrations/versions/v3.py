"""Sinks, and calls over REST that may be repeated."""

from collections.abc import Sequence as Several

from alembic import op

revision = "3"
down_revision: str | None = "2"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None

STATEMENTS = """
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
    """Make the tables."""
    for statement in STATEMENTS.split(";"):
        op.execute(statement)
