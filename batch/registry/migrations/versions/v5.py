"""Entries of the audit are sealed by hashes that follow from each other.

A table is added: programs of version 4 that have the registry open go on, and what they record is
sealed by those of this version.
"""

from collections.abc import Sequence as Several

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision: str | None = "4"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None

_Sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the table, which is empty: the next `reconcile` seals what is there."""
    op.create_table(
        "audit_link",
        sa.Column("number", _Sequence, nullable=False, autoincrement=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("sequence", _Sequence, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit_link"),
        sa.UniqueConstraint("source", "sequence", name="uq_audit_link_source_sequence"),
    )


def downgrade() -> None:
    """Drop the table: entries stay, and may be sealed anew."""
    op.drop_table("audit_link")
