"""Why a run's next attempt is made is a column of the run; it had to be found among its events.

A program of version 1 that has the registry open goes on: the column has a default, and events
are recorded as before. What it is asked to retry or to restart meanwhile isn't in the column, so
that the next attempt is of the kind asked for before.
"""

from collections.abc import Sequence as Several

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision: str | None = "1"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None


def upgrade() -> None:
    """Add the column, and fill it from the events."""
    column = sa.Column("next_kind", sa.String(16), nullable=False, server_default="first")
    op.add_column("run", column)
    run = sa.table("run", sa.column("id", sa.Text), sa.column("next_kind", sa.String))
    event = sa.table(
        "event",
        sa.column("sequence", sa.BigInteger),
        sa.column("run_id", sa.Text),
        sa.column("type", sa.Text),
        sa.column("to_status", sa.String),
        sa.column("detail", sa.JSON),
    )
    asked = event.c.detail["kind"].as_string()
    is_lost = sa.and_(event.c.type == "attempt_ended", event.c.to_status.is_(None))
    last = (
        sa.select(sa.case((is_lost, "reconcile"), else_=asked))
        .where(
            event.c.run_id == run.c.id,
            sa.or_(is_lost, sa.and_(event.c.type == "status", asked.is_not(None))),
        )
        .order_by(event.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )
    op.execute(run.update().values(next_kind=sa.func.coalesce(last, "first")))
