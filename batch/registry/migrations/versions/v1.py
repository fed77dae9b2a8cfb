"""Definitions, instances, runs, attempts, events, and the legal moves of a run's status."""

from collections.abc import Sequence as Several
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision: str | None = None
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None

LEGAL_MOVES = (
    ("INITIATED", "EXECUTING"),
    ("INITIATED", "PAUSED"),
    ("INITIATED", "CANCELED"),
    ("INITIATED", "FAILURE"),
    ("EXECUTING", "PAUSED"),
    ("EXECUTING", "CANCELING"),
    ("EXECUTING", "SUCCESS"),
    ("EXECUTING", "FAILURE"),
    ("PAUSED", "EXECUTING"),
    ("PAUSED", "CANCELING"),
    ("PAUSED", "SUCCESS"),
    ("PAUSED", "FAILURE"),
    ("CANCELING", "CANCELED"),
    ("CANCELING", "SUCCESS"),
    ("CANCELING", "FAILURE"),
    ("FAILURE", "EXECUTING"),
    ("CANCELED", "EXECUTING"),
)


def upgrade() -> None:
    """Make the tables."""
    word = sa.String(16)
    time = sa.DateTime(timezone=True)
    sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

    def column(name: str, type_: Any, *others: Any, **options: Any) -> sa.Column[Any]:
        return sa.Column(name, type_, *others, **{"nullable": False, **options})

    moves = op.create_table(
        "legal_move",
        column("from_status", word, primary_key=True),
        column("to_status", word, primary_key=True),
    )
    op.bulk_insert(moves, [{"from_status": old, "to_status": new} for old, new in LEGAL_MOVES])
    op.create_table(
        "definition",
        column("id", sa.Integer, primary_key=True),
        column("process", sa.Text),
        column("code_version", sa.Text),
        column("parameters_schema", sa.JSON),
        column("first_seen_at", time),
        column("last_seen_at", time),
        sa.UniqueConstraint("process", "code_version"),
    )
    op.create_table(
        "instance",
        column("id", sa.Integer, primary_key=True),
        column("process", sa.Text),
        column("name", sa.Text),
        column("identity", sa.JSON),
        column("business_date", sa.Date),
        sa.UniqueConstraint("process", "name"),
    )
    op.create_table(
        "event",
        column("sequence", sequence, primary_key=True),
        column("run_id", sa.Text),
        column("attempt", sa.Integer, nullable=True),
        column("at", time),
        column("who", sa.Text),
        column("type", sa.Text),
        column("from_status", word, nullable=True),
        column("to_status", word, nullable=True),
        column("follows", sequence, nullable=True),
        column("why", sa.Text),
        column("detail", sa.JSON),
        column("delivered", sa.Boolean),
        # SQLite takes it here, PostgreSQL once the other table is there.
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], deferrable=True, initially="DEFERRED", use_alter=True
        ),
        sa.ForeignKeyConstraint(
            ["from_status", "to_status"], ["legal_move.from_status", "legal_move.to_status"]
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "follows", "from_status"],
            ["event.run_id", "event.sequence", "event.to_status"],
        ),
        sa.UniqueConstraint("run_id", "sequence", "to_status"),
        sa.UniqueConstraint("run_id", "follows"),
        sa.CheckConstraint(
            "(to_status IS NULL AND from_status IS NULL AND follows IS NULL) OR "
            "(to_status = 'INITIATED' AND from_status IS NULL AND follows IS NULL) OR "
            "(to_status IS NOT NULL AND from_status IS NOT NULL AND follows IS NOT NULL)",
            name="move",
        ),
    )
    beginning = sa.text("follows IS NULL AND to_status IS NOT NULL")
    op.create_index(
        "ux_event_beginning",
        "event",
        ["run_id"],
        unique=True,
        sqlite_where=beginning,
        postgresql_where=beginning,
    )
    undelivered = sa.text("NOT delivered")
    op.create_index(
        "ix_event_undelivered",
        "event",
        ["sequence"],
        sqlite_where=undelivered,
        postgresql_where=undelivered,
    )
    op.create_table(
        "run",
        column("id", sa.Text, primary_key=True),
        column("instance_id", sa.Integer, sa.ForeignKey("instance.id")),
        column("definition_id", sa.Integer, sa.ForeignKey("definition.id")),
        column("run_number", sa.Integer),
        column("status", word),
        column("last_move", sequence),
        column("parameters", sa.JSON),
        column("output", sa.Text),
        column("uri", sa.Text),
        column("beam_flags", sa.JSON),
        column("reason", sa.Text),
        column("submitted_by", sa.Text),
        column("submitted_at", time),
        column("must_start_by", time, nullable=True),
        column("must_finish_by", time, nullable=True),
        column("results_expire_at", time, nullable=True),
        column("results_expired_at", time, nullable=True),
        column("error", sa.Text, nullable=True),
        column("options", sa.JSON),
        sa.UniqueConstraint("instance_id", "run_number"),
        sa.ForeignKeyConstraint(
            ["id", "last_move", "status"], ["event.run_id", "event.sequence", "event.to_status"]
        ),
        sa.CheckConstraint("run_number >= 1", name="run_number"),
    )
    op.create_index("ix_run_submitted_at_id", "run", ["submitted_at", "id"])
    op.create_index("ix_run_status", "run", ["status"])
    if op.get_bind().dialect.name == "postgresql":
        op.create_foreign_key(
            "fk_event_run_id",
            "event",
            "run",
            ["run_id"],
            ["id"],
            deferrable=True,
            initially="DEFERRED",
        )
    op.create_table(
        "attempt",
        column("run_id", sa.Text, sa.ForeignKey("run.id"), primary_key=True),
        column("number", sa.Integer, primary_key=True, autoincrement=False),
        column("launcher", sa.Text),
        column("lease_until", time),
        column("deadline", time),
        column("runner", sa.Text),
        column("job_id", sa.Text, nullable=True),
        column("kind", word),
        column("started_at", time),
        column("ended_at", time, nullable=True),
        column("outcome", word, nullable=True),
        column("error", sa.Text, nullable=True),
        sa.CheckConstraint("number >= 1", name="number"),
        sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended"),
    )
    live = sa.text("ended_at IS NULL")
    op.create_index(
        "ux_attempt_live",
        "attempt",
        ["run_id"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
