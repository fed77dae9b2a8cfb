"""The launcher that was started for a run, and hasn't come yet, is on record.

Columns are added that may be empty: programs of version 3 that have the registry open go on. What
they start isn't in the columns, so that one launcher more may be started, which ends by itself.
"""

from collections.abc import Sequence as Several

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision: str | None = "3"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None


def upgrade() -> None:
    """Add the columns, which are empty: nobody waits for a launcher longer than for a lease."""
    op.add_column("run", sa.Column("launcher_started_at", sa.DateTime(timezone=True)))
    op.add_column("run", sa.Column("launcher_process", sa.Text))


def downgrade() -> None:
    """Drop the columns, which hold nothing that is needed again."""
    op.drop_column("run", "launcher_process")
    op.drop_column("run", "launcher_started_at")
