"""Writing to a database in a component's own transaction, once per instance and component.

    with component_transaction(engine, "2026-01-05", "loan-17", fence) as transaction:
        if not transaction.already_done:
            transaction.connection.execute(...)

The component's writes and the record that it is done are committed in one transaction: either both
exist or neither, whenever a process dies and however often the component is tried again.

Many rows are inserted by `transaction.insert(table, rows)`, from an Arrow table: on PostgreSQL by
COPY, without work for each row in Python.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import sqlalchemy as sa
from pyarrow import csv
from sqlalchemy.exc import DBAPIError, IntegrityError

from ledgerbeam.io.sql.engine import connect, database_errors

DONE = sa.Table(
    "ledgerbeam_component",
    sa.MetaData(),
    sa.Column("instance", sa.Text, primary_key=True),
    sa.Column("component", sa.Text, primary_key=True),
    sa.Column("done_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
)
"""The components whose writes are in the database. The rows of an instance may be deleted when no
later attempt of it can be made."""


class ComponentTransaction(NamedTuple):
    """An open transaction of one component.

    Attributes:
        connection: the connection to write by. Don't commit: that is done when the call returns.
        already_done: whether an earlier try has committed; nothing that is written is kept then.
    """

    connection: sa.Connection
    already_done: bool

    def insert(self, table: sa.Table, rows: pa.Table) -> None:
        """Insert rows; see `insert_rows`."""
        insert_rows(self.connection, table, rows)


def insert_rows(connection: sa.Connection, table: sa.Table, rows: pa.Table) -> None:
    """Insert rows into a table, in the connection's transaction; on PostgreSQL by COPY, if it can.

    It can't where the table's definition has a say in the values, by a default or a type of
    Python's, or where a value's text isn't PostgreSQL's.

    Args:
        connection: a connection, which is in its transaction afterwards.
        table: the table.
        rows: values by the names of the table's columns; columns that are left out get their
            defaults.

    Raises:
        DBAPIError: the database refuses the rows, or the connection is lost.
        pa.ArrowException: a column has a type that has no text, such as a list.
    """
    if rows.num_rows == 0:
        return
    if connection.dialect.driver != "psycopg" or not _can_be_copied(connection, table, rows.schema):
        connection.execute(table.insert(), rows.to_pylist())
        return
    from psycopg import sql

    if not connection.in_transaction():
        connection.begin()  # COPY goes past SQLAlchemy, which would have nothing to commit
    names = rows.column_names
    place = [name for name in (table.schema, table.name) if name is not None]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        sql.Identifier(*place), sql.SQL(", ").join(map(sql.Identifier, names))
    )
    text = pa.BufferOutputStream()
    # A null is empty, and an empty text is in quotes, for both sides.
    csv.write_csv(
        pa.table([_copied(column) for column in rows.columns], names),
        text,
        csv.WriteOptions(include_header=False),
    )
    driver = connection.connection.driver_connection
    assert driver is not None
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(text.getvalue())
    except connection.dialect.loaded_dbapi.Error as error:
        is_lost = connection.dialect.is_disconnect(error, driver, None)
        if is_lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            f"COPY {table.fullname}",
            None,
            error,
            connection.dialect.loaded_dbapi.Error,
            hide_parameters=True,
            connection_invalidated=is_lost,
            dialect=connection.dialect,
        ) from error


def _can_be_copied(connection: sa.Connection, table: sa.Table, rows: pa.Schema) -> bool:
    """Whether COPY stores the same as an INSERT of SQLAlchemy's."""
    if connection.get_execution_options().get("schema_translate_map"):
        return False
    for column in table.columns:
        if column.key not in rows.names:
            if column.default is not None:
                return False
        elif column.key != column.name or isinstance(column.type, sa.TypeDecorator | sa.Enum):
            return False
    no_text = (pa.types.is_duration, pa.types.is_string_view, pa.types.is_binary_view)
    return not any(is_one(field.type) for field in rows for is_one in no_text)


def _copied(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose text PostgreSQL reads as the same values."""
    if pa.types.is_dictionary(column.type):
        return _copied(column.cast(column.type.value_type))
    is_binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    if not any(is_one(column.type) for is_one in is_binary):
        return column
    texts = [None if value is None else f"\\x{value.hex()}" for value in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


@contextmanager
def component_transaction(
    engine: sa.Engine,
    instance: str,
    component: str,
    fence: Callable[[], None] | None = None,
) -> Iterator[ComponentTransaction]:
    """A transaction that commits at the end of the context, together with the row in `DONE`.

    Another try of the same component waits at the start until this one has committed or not. The
    table `DONE` is created if it is missing. If COMMIT itself fails, for example because the
    connection is lost, the next try finds out whether it took effect.

    Args:
        engine: an engine of `open_engine`, shared by the components of a process.
        instance: name of the batch process's instance, unique in this database.
        component: the component's key, unique in the instance.
        fence: called right before COMMIT; if it raises, nothing is written. It raises if the call
            has exceeded its time limit, or the attempt was given up.

    Raises:
        DatabaseError: the database can't be reached, or the table `DONE` can't be created.
    """
    what = f"component {component} of {instance}"
    with connect(engine, what) as connection:
        with database_errors(engine, what):
            already_done = not _claim(connection, instance, component)
        transaction = connection.get_transaction()
        # An exception leaves the connection's context without a commit, which rolls back.
        yield ComponentTransaction(connection, already_done)
        if already_done:
            connection.rollback()
            return
        if transaction is None or transaction is not connection.get_transaction():
            raise RuntimeError(f"{what} ended its transaction itself, which isn't its own to end")
        # After a failed statement PostgreSQL answers COMMIT with a silent rollback, but any other
        # statement with an error.
        connection.execute(sa.select(sa.literal(1)))
        if fence is not None:
            fence()
        connection.commit()


def _claim(
    connection: sa.Connection, instance: str, component: str, may_create: bool = True
) -> bool:
    """Insert the component's row; false if it exists already."""
    insert = DONE.insert().values(instance=instance, component=component)
    try:
        connection.execute(insert)
    except IntegrityError:
        connection.rollback()
        row = (DONE.c.instance == instance) & (DONE.c.component == component)
        if connection.execute(DONE.select().where(row)).first() is None:
            raise
        return False
    except DBAPIError:
        connection.rollback()
        if not may_create:
            raise
        # Another process may create the table between the insertion and this check: only a second
        # insertion shows whether it was missing.
        if not sa.inspect(connection).has_table(DONE.name):
            _create_table(connection)
        return _claim(connection, instance, component, may_create=False)
    return True


def _create_table(connection: sa.Connection) -> None:
    try:
        DONE.create(connection, checkfirst=True)
        connection.commit()
    except DBAPIError:
        # Another process has created it since the check, or it can't be created.
        connection.rollback()
        if not sa.inspect(connection).has_table(DONE.name):
            raise
