"""Rollouts, and by which rule a message was handled or has failed.

Of the inbox's rows only those by a new rule are in the index, and they alone have a `move`.
"""

from collections.abc import Sequence as Several

from alembic import op

revision = "2"
down_revision: str | None = "1"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None

STATEMENTS = """
CREATE TABLE ledgerbeam_rollout (
    consumer smallint NOT NULL,
    number integer NOT NULL,
    at bigint NOT NULL,
    what text NOT NULL,
    rule smallint NOT NULL,
    old_rule smallint NOT NULL,
    stage text NOT NULL,
    asked text,
    who text NOT NULL,
    why text NOT NULL,
    handled bigint,
    failed bigint,
    forced boolean NOT NULL,
    plan text NOT NULL,
    PRIMARY KEY (consumer, number)
);
ALTER TABLE ledgerbeam_inbox ADD COLUMN rule smallint;
ALTER TABLE ledgerbeam_inbox ADD COLUMN move integer;
CREATE INDEX ledgerbeam_inbox_move ON ledgerbeam_inbox (consumer, move) WHERE move IS NOT NULL;
ALTER TABLE ledgerbeam_parked ADD COLUMN rule smallint;
ALTER TABLE ledgerbeam_parked ADD COLUMN move integer
"""


def upgrade() -> None:
    """Make the table, and add the columns."""
    for statement in STATEMENTS.split(";"):
        op.execute(statement)
