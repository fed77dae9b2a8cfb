"""A request has the trace that it belongs to.

A column is added that may be empty: programs of version 5 that have the registry open go on, and
what they store belongs to no trace.
"""

from collections.abc import Sequence as Several

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision: str | None = "5"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None


def upgrade() -> None:
    """Add the column, which is empty."""
    op.add_column("request", sa.Column("traceparent", sa.Text))


def downgrade() -> None:
    """Drop the column: traces of what has ended are elsewhere."""
    op.drop_column("request", "traceparent")
