"""Runs are found by a parameter, by who has submitted them and by the text of their error.

Parameters stand in a table of their own. Runs that are there are written to it here. Those that
programs of version 7 record or correct, which have the registry open and go on, are noted as not
listed, by a default and by a trigger; who looks for runs by a parameter lists them first.
"""

import json
from collections.abc import Iterator
from collections.abc import Sequence as Several
from typing import Any

import sqlalchemy as sa
from alembic import op

from ledgerbeam.batch.registry.parameters import DAMAGE, pairs_of
from ledgerbeam.batch.registry.schema import storable

revision = "8"
down_revision: str | None = "7"
branch_labels: Several[str] | None = None
depends_on: Several[str] | None = None

_SQLITE = """
CREATE TRIGGER run_listed AFTER UPDATE OF parameters ON run BEGIN
    UPDATE run SET listed = false WHERE id = NEW.id;
END
"""
_POSTGRESQL = """
CREATE FUNCTION run_listed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.listed := false;
    RETURN NEW;
END $$;
CREATE TRIGGER run_listed BEFORE UPDATE OF parameters ON run FOR EACH ROW
    EXECUTE FUNCTION run_listed()
"""
_SUBMITTED_BY = ("ix_run_submitted_by_submitted_at_id", ["submitted_by", "submitted_at", "id"])
_PARTIAL = (
    ("ix_run_error", ["submitted_at", "id"], "error IS NOT NULL"),
    ("ix_run_unlisted", ["id"], "NOT listed"),
)
_RUNS = 2_000  # that are read at once


def upgrade() -> None:
    """Make the table, fill it, and make the column and the indexes."""
    connection = op.get_bind()
    is_sqlite = connection.dialect.name == "sqlite"
    op.create_table(
        "run_parameter",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("submitted_at", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("run_id", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )
    last_event = 0 if is_sqlite else _last_event(connection)
    for rows in _pages(connection):
        (_write_sqlite if is_sqlite else _write_postgresql)(connection, rows)
    listed = sa.table("run", sa.column("listed"), sa.column("last_move"))
    if is_sqlite:
        op.add_column("run", _listed(sa.false()))
        op.execute(listed.update().values(listed=True))
        op.execute(_SQLITE)
    else:
        # By a default for rows that are there, which needn't be written for it.
        op.add_column("run", _listed(sa.true()))
        op.alter_column("run", "listed", server_default=sa.false())
        op.execute(listed.update().where(listed.c.last_move > last_event).values(listed=False))
        op.execute(_POSTGRESQL)
    op.create_index(_SUBMITTED_BY[0], "run", _SUBMITTED_BY[1])
    for name, columns, condition in _PARTIAL:
        where = sa.text(condition)
        op.create_index(name, "run", columns, sqlite_where=where, postgresql_where=where)


def _listed(default: sa.ColumnElement[bool]) -> sa.Column[bool]:
    return sa.Column("listed", sa.Boolean, nullable=False, server_default=default)


def _last_event(connection: sa.Connection) -> int:
    """The last event of what has ended; what other programs record from now on comes behind it.

    They go on while the table is filled, so the lock that waits for them is given back at once.
    """
    with connection.begin_nested() as waiting:
        connection.exec_driver_sql("LOCK TABLE run IN EXCLUSIVE MODE")
        last = connection.exec_driver_sql("SELECT max(sequence) FROM event").scalar()
        waiting.rollback()
    return last or 0


def _pages(connection: sa.Connection) -> Iterator[list[tuple[Any, ...]]]:
    """Rows of the table for the runs that are there, in the order in which they were submitted."""
    names = ("submitted_at", "id", "parameters", "run_number", "reason")
    run = sa.table("run", *map(sa.column, names))
    query = sa.select(*run.c).order_by(run.c.submitted_at, run.c.id).limit(_RUNS)
    runs = connection.execute(query).all()
    while runs:
        found = []
        for at, run_id, stored, number, reason in runs:
            try:
                pairs = list(pairs_of(_read(stored), number, reason))
            except DAMAGE:
                continue  # it is told of where it is read
            # Names and values are cut, so two may have become equal.
            stored_pairs = dict.fromkeys(tuple(map(storable, pair)) for pair in pairs)
            found += [(*pair, at, run_id) for pair in stored_pairs]
        if found:
            yield found
        behind = sa.tuple_(run.c.submitted_at, run.c.id) > sa.tuple_(*map(sa.literal, runs[-1][:2]))
        runs = connection.execute(query.where(behind)).all()


def _read(stored: Any) -> Any:
    return json.loads(stored) if isinstance(stored, str) else stored


def _write_sqlite(connection: sa.Connection, rows: list[tuple[Any, ...]]) -> None:
    connection.exec_driver_sql(
        "INSERT INTO run_parameter (name, value, submitted_at, run_id) VALUES (?, ?, ?, ?)", rows
    )


def _write_postgresql(connection: sa.Connection, rows: list[tuple[Any, ...]]) -> None:
    cursor: Any = connection.connection.cursor()
    copy = "COPY run_parameter (name, value, submitted_at, run_id) FROM STDIN"
    with cursor, cursor.copy(copy) as target:
        for row in rows:
            target.write_row(row)


def downgrade() -> None:
    """Drop all of it: it repeats what runs say."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for name, _, _ in _PARTIAL:
        op.drop_index(name, "run")
    op.drop_index(_SUBMITTED_BY[0], "run")
    if is_sqlite:
        op.execute("DROP TRIGGER run_listed")
    else:
        op.execute("DROP TRIGGER run_listed ON run")
        op.execute("DROP FUNCTION run_listed")
    op.drop_column("run", "listed")
    op.drop_table("run_parameter")
