"""Consumers that were removed."""

from collections.abc import Sequence as Several

from alembic import op

revision = "4"
down_revision: str | None = "3"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None


def upgrade() -> None:
    """Make the table."""
    op.execute("""
        CREATE TABLE ledgerbeam_removal (
            id smallint PRIMARY KEY,
            at bigint NOT NULL,
            consumer text NOT NULL,
            topic text NOT NULL,
            who text NOT NULL,
            why text NOT NULL,
            forced boolean NOT NULL,
            handled bigint NOT NULL,
            dead bigint NOT NULL,
            unhandled bigint NOT NULL,
            examples text NOT NULL
        )""")
