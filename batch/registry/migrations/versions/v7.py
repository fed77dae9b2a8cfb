"""Lists stay fast in front of a million runs that have ended.

A run has the name of its process beside it, so that the newest runs of one are found by an index;
entries of the audit say whether they are sealed. Columns are added with defaults, and a trigger
fills the first one for programs of version 6 that have the registry open and go on. What these seal
is noted by the next `reconcile` of this version.

Nodes say which kinds they serve, in a table of their own.
"""

from collections.abc import Sequence as Several

import sqlalchemy as sa
from alembic import op

revision = "7"
down_revision: str | None = "6"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None

_SQLITE = """
CREATE TRIGGER run_process AFTER INSERT ON run WHEN NEW.process = '' BEGIN
    UPDATE run SET process = (SELECT process FROM instance WHERE instance.id = NEW.instance_id)
    WHERE id = NEW.id;
END
"""
_POSTGRESQL = """
CREATE FUNCTION run_process() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.process := (SELECT process FROM instance WHERE instance.id = NEW.instance_id);
    RETURN NEW;
END $$;
CREATE TRIGGER run_process BEFORE INSERT ON run FOR EACH ROW WHEN (NEW.process = '')
    EXECUTE FUNCTION run_process()
"""
_INDEXES = {
    "run": (
        ("process", "submitted_at", "id"),
        ("process", "status", "submitted_at", "id"),
        ("status", "submitted_at", "id"),
    ),
    "request": (
        ("kind", "sequence"),
        ("kind", "state", "sequence"),
        ("kind", "requester", "sequence"),
        ("requester", "state", "sequence"),
    ),
    "audit": (("kind", "sequence"),),
}
_PARTIAL = (
    ("ix_run_expiring", "run", "results_expire_at", "results_expired_at IS NULL"),
    ("ix_event_unsealed", "event", "sequence", "NOT sealed"),
    ("ix_audit_unsealed", "audit", "sequence", "NOT sealed"),
    ("ix_request_error", "request", "sequence", "error IS NOT NULL"),
)


def upgrade() -> None:
    """Add the columns, fill them, and make the indexes."""
    op.add_column("run", sa.Column("process", sa.Text, nullable=False, server_default=""))
    op.execute(
        "UPDATE run SET process = (SELECT process FROM instance WHERE instance.id = instance_id)"
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute(_SQLITE if is_sqlite else _POSTGRESQL)
    for source in ("event", "audit"):
        sealed = sa.Column("sealed", sa.Boolean, nullable=False, server_default=sa.false())
        op.add_column(source, sealed)
        entry = sa.table(source, sa.column("sequence"), sa.column("sealed"))
        link = sa.table("audit_link", sa.column("source"), sa.column("sequence"))
        known = sa.select(link.c.sequence).where(link.c.source == source)
        op.execute(sa.update(entry).where(entry.c.sequence.in_(known)).values(sealed=True))
    op.drop_index("ix_run_status", "run")
    for table, indexes in _INDEXES.items():
        for columns in indexes:
            op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))
    for name, table, column, condition in _PARTIAL:
        where = sa.text(condition)
        op.create_index(name, table, [column], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "node",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("kinds", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
    )
    # Beginnings of ids are looked for, whatever the order of words is in the database's language.
    if not is_sqlite:
        op.create_index("ix_run_id", "run", ["id"], postgresql_ops={"id": "text_pattern_ops"})


def downgrade() -> None:
    """Drop all of it: the process of a run is its instance's, and hashes stay."""
    op.drop_table("node")
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    if not is_sqlite:
        op.drop_index("ix_run_id", "run")
    for name, table, _, _ in _PARTIAL:
        op.drop_index(name, table)
    for table, indexes in _INDEXES.items():
        for columns in indexes:
            op.drop_index(f"ix_{table}_{'_'.join(columns)}", table)
    op.create_index("ix_run_status", "run", ["status"])
    if is_sqlite:
        op.execute("DROP TRIGGER run_process")
    else:
        op.execute("DROP TRIGGER run_process ON run")
        op.execute("DROP FUNCTION run_process")
    op.drop_column("run", "process")
    for source in ("event", "audit"):
        op.drop_column(source, "sealed")
