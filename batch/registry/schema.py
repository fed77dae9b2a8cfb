"""The registry's tables. What a database can refuse by itself, it refuses.

The moves of a run's status are a chain: each event that moves a run names the move before it
(`follows`), begins where that one ended, and is one of `legal_move`. The run points to its last
move, and has the status to which that led. So no illegal move can be recorded, none can be left
out, two can't follow the same one, and a status doesn't change without its event.
"""

import datetime
import functools
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from ledgerbeam.batch.model.run import AttemptKind, AttemptOutcome
from ledgerbeam.batch.model.status import RunStatus

HEAD = "8"
"""The migration that gives these tables. Kept here, so that Alembic is imported only to migrate."""


class UtcDateTime(sa.TypeDecorator[datetime.datetime]):
    """Aware datetimes, which come back in UTC; SQLite knows none, and keeps them without zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        """To UTC, without a zone where the database has none."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        value = value.astimezone(datetime.UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        """To UTC."""
        if value is None:
            return None
        aware = value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value
        return aware.astimezone(datetime.UTC)


class Prose(sa.TypeDecorator[str]):
    """Text from anywhere: what no database takes (NUL, half surrogates) is written as escapes."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Escape what the database would reject."""
        return None if value is None else storable(value)


def storable(text: str) -> str:
    """A text with what no database takes as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def one_of(kind: type[StrEnum]) -> sa.Enum:
    """A column of the values of an enumeration, stored as text."""
    return sa.Enum(
        kind,
        native_enum=False,
        length=16,
        values_callable=lambda kind: [item.value for item in kind],
    )


metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only where the column is a plain INTEGER.
Sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Json: sa.JSON = sa.JSON(none_as_null=True)


def _column(name: str, type_: Any, *others: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, *others, **{"nullable": False, **options})


legal_move = sa.Table(
    "legal_move",
    metadata,
    _column("from_status", one_of(RunStatus), primary_key=True),
    _column("to_status", one_of(RunStatus), primary_key=True),
)

definition = sa.Table(
    "definition",
    metadata,
    _column("id", sa.Integer, primary_key=True),
    _column("process", Prose),
    _column("code_version", sa.Text),
    _column("parameters_schema", Json),
    _column("first_seen_at", UtcDateTime),
    _column("last_seen_at", UtcDateTime),
    sa.UniqueConstraint("process", "code_version"),
)

instance = sa.Table(
    "instance",
    metadata,
    _column("id", sa.Integer, primary_key=True),
    _column("process", Prose),
    _column("name", Prose),
    _column("identity", Json),
    _column("business_date", sa.Date),
    sa.UniqueConstraint("process", "name"),
)

run = sa.Table(
    "run",
    metadata,
    _column("id", Prose, primary_key=True),
    _column("instance_id", sa.Integer, sa.ForeignKey("instance.id")),
    _column("definition_id", sa.Integer, sa.ForeignKey("definition.id")),
    _column("run_number", sa.Integer),
    _column("status", one_of(RunStatus)),
    _column("last_move", Sequence),
    _column("parameters", Json),
    _column("output", sa.Text),
    _column("uri", sa.Text),
    _column("beam_flags", Json),
    _column("reason", Prose),
    _column("submitted_by", Prose),
    _column("submitted_at", UtcDateTime),
    _column("must_start_by", UtcDateTime, nullable=True),
    _column("must_finish_by", UtcDateTime, nullable=True),
    _column("results_expire_at", UtcDateTime, nullable=True),
    _column("results_expired_at", UtcDateTime, nullable=True),
    _column("error", Prose, nullable=True),
    _column("options", Json),
    _column("next_kind", one_of(AttemptKind), server_default=AttemptKind.FIRST.value),
    _column("launcher_started_at", UtcDateTime, nullable=True),
    _column("launcher_process", sa.Text, nullable=True),
    # That of its instance, for indexes.
    _column("process", Prose, server_default=""),
    # Whether it is found by its parameters; programs of version 7 don't see to that.
    _column("listed", sa.Boolean, server_default=sa.false()),
    sa.UniqueConstraint("instance_id", "run_number"),
    sa.ForeignKeyConstraint(
        ["id", "last_move", "status"], ["event.run_id", "event.sequence", "event.to_status"]
    ),
    sa.CheckConstraint("run_number >= 1", name="run_number"),
    sa.Index(None, "submitted_at", "id"),
    sa.Index(None, "process", "submitted_at", "id"),
    sa.Index(None, "process", "status", "submitted_at", "id"),
    sa.Index(None, "status", "submitted_at", "id"),
    sa.Index(None, "submitted_by", "submitted_at", "id"),
)

# Without a foreign key: rows lead to runs, and who has found one reads the run itself.
run_parameter = sa.Table(
    "run_parameter",
    metadata,
    _column("name", Prose, primary_key=True),
    _column("value", Prose, primary_key=True),
    _column("submitted_at", UtcDateTime, primary_key=True),
    _column("run_id", sa.Text, primary_key=True),
    sqlite_with_rowid=False,
)

attempt = sa.Table(
    "attempt",
    metadata,
    _column("run_id", sa.Text, sa.ForeignKey("run.id"), primary_key=True),
    _column("number", sa.Integer, primary_key=True, autoincrement=False),
    _column("launcher", sa.Text),
    _column("lease_until", UtcDateTime),
    _column("deadline", UtcDateTime),
    _column("runner", sa.Text),
    _column("job_id", sa.Text, nullable=True),
    _column("kind", one_of(AttemptKind)),
    _column("started_at", UtcDateTime),
    _column("ended_at", UtcDateTime, nullable=True),
    _column("outcome", one_of(AttemptOutcome), nullable=True),
    _column("error", Prose, nullable=True),
    sa.CheckConstraint("number >= 1", name="number"),
    sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended"),
)

event = sa.Table(
    "event",
    metadata,
    _column("sequence", Sequence, primary_key=True),
    _column("run_id", sa.Text),
    _column("attempt", sa.Integer, nullable=True),
    _column("at", UtcDateTime),
    _column("who", Prose),
    _column("type", sa.Text),
    _column("from_status", one_of(RunStatus), nullable=True),
    _column("to_status", one_of(RunStatus), nullable=True),
    _column("follows", Sequence, nullable=True),
    _column("why", Prose),
    _column("detail", Json),
    _column("delivered", sa.Boolean),
    _column("sealed", sa.Boolean, server_default=sa.false()),
    # A run and its first event point to each other: this one is checked when both are there.
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

# Without foreign keys: where an entry is gone, what it was sealed with has to be left.
audit_link = sa.Table(
    "audit_link",
    metadata,
    _column("number", Sequence, primary_key=True, autoincrement=False),
    _column("source", sa.Text),
    _column("sequence", Sequence),
    _column("sha256", sa.Text),
    sa.UniqueConstraint("source", "sequence"),
)


@functools.cache
def whole_metadata() -> sa.MetaData:
    """The tables with their partial indexes too, and those of one dialect.

    To define one imports both dialects, of which a registry is read by one.
    """
    for name, columns, is_unique, condition in (
        ("ux_attempt_live", [attempt.c.run_id], True, "ended_at IS NULL"),
        (
            "ux_event_beginning",
            [event.c.run_id],
            True,
            "follows IS NULL AND to_status IS NOT NULL",
        ),
        ("ix_event_undelivered", [event.c.sequence], False, "NOT delivered"),
        ("ix_event_unsealed", [event.c.sequence], False, "NOT sealed"),
        ("ix_run_expiring", [run.c.results_expire_at], False, "results_expired_at IS NULL"),
        ("ix_run_error", [run.c.submitted_at, run.c.id], False, "error IS NOT NULL"),
        ("ix_run_unlisted", [run.c.id], False, "NOT listed"),
    ):
        where = sa.text(condition)
        sa.Index(name, *columns, unique=is_unique, sqlite_where=where, postgresql_where=where)
    # For beginnings of ids, whatever the order of words is in the database's language.
    beginnings = sa.Index("ix_run_id", run.c.id, postgresql_ops={"id": "text_pattern_ops"})
    beginnings.ddl_if("postgresql")
    return metadata
