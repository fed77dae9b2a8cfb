"""What a service keeps of actions on many, of what nodes answer at once, and of traces.

Tables are added, a column with a default, and one that may be empty: programs of version 5 that
have the registry open go on, and what they store belongs to no trace. `service/store/tables.py`
says what each table is for.
"""

from collections.abc import Sequence as Several
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision: str | None = "5"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None


def upgrade() -> None:
    """Make the tables, and add the columns: routers fill it when they publish their kinds again."""
    word = sa.String(16)
    time = sa.DateTime(timezone=True)
    json = sa.JSON(none_as_null=True)
    sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

    def column(name: str, type_: Any, *others: Any, **options: Any) -> sa.Column[Any]:
        return sa.Column(name, type_, *others, **{"nullable": False, **options})

    op.add_column("kind", column("approvals", json, server_default="[]"))
    op.add_column("request", sa.Column("traceparent", sa.Text))
    op.create_table(
        "bulk",
        column("sequence", sequence, primary_key=True),
        column("id", sa.Text),
        column("of", word),
        column("verb", word),
        column("filter", json),
        column("why", sa.Text),
        column("requester", sa.Text),
        column("kinds", json),
        column("state", word),
        column("asked_at", time),
        column("approved_by", sa.Text, nullable=True),
        column("ended_at", time, nullable=True),
        column("key", sa.Text, nullable=True),
        column("fingerprint", sa.Text),
        column("version", sa.Integer),
        sa.UniqueConstraint("id"),
    )
    op.create_index("ix_bulk_state_sequence", "bulk", ["state", "sequence"])
    op.create_index("ix_bulk_requester_key", "bulk", ["requester", "key"])
    op.create_table(
        "bulk_target",
        column("bulk", sequence, primary_key=True, autoincrement=False),
        column("number", sa.Integer, primary_key=True, autoincrement=False),
        column("id", sa.Text),
        column("kind", sa.Text),
        column("name", sa.Text),
        column("seen", sequence),
        column("state", word),
        column("done_at", time, nullable=True),
        column("request_id", sa.Text, nullable=True),
        column("told", sa.Text, nullable=True),
        sa.ForeignKeyConstraint(["bulk"], ["bulk.sequence"]),
    )
    op.create_index("ix_bulk_target_bulk_state_number", "bulk_target", ["bulk", "state", "number"])
    op.create_table(
        "errand",
        column("sequence", sequence, primary_key=True),
        column("id", sa.Text),
        column("what", word),
        column("kind", sa.Text),
        column("host", sa.Text, nullable=True),
        column("given", json),
        column("requester", sa.Text),
        column("why", sa.Text),
        column("asked_at", time),
        column("deadline", time),
        column("node", sa.Text, nullable=True),
        column("answered_at", time, nullable=True),
        column("answer", json, nullable=True),
        column("code", sa.Text, nullable=True),
        column("error", sa.Text, nullable=True),
        column("key", sa.Text, nullable=True),
        column("fingerprint", sa.Text),
        column("expires_at", time),
        sa.UniqueConstraint("id"),
    )
    op.create_index("ix_errand_node_sequence", "errand", ["node", "sequence"])
    op.create_index("ix_errand_requester_key", "errand", ["requester", "key"])
    op.create_index("ix_errand_expires_at", "errand", ["expires_at"])


def downgrade() -> None:
    """Drop them; what actions have done stays, and stands in the audit."""
    for table in ("errand", "bulk_target", "bulk"):
        op.drop_table(table)
    op.drop_column("kind", "approvals")
    op.drop_column("request", "traceparent")
