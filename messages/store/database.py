"""The database that holds messages: opened, brought up to date, and asked for the time.

Senders need none of this: they write by a connection of their own, in their own transaction.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from ledgerbeam.io.errors import DatabaseError
from ledgerbeam.io.secrets import resolve_url
from ledgerbeam.io.sql.engine import connect, database_errors, open_engine, read_url, shown
from ledgerbeam.messages.store.partitions import make_partitions
from ledgerbeam.messages.store.schema import HEAD, VERSION_TABLE

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 5_303_178_128  # any number that other programs don't lock


_CLOCKS = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000 AS integer)",
}


class MessageDatabase:
    """A SQLite or PostgreSQL database with the tables of messages. Threads may share one.

    Attributes:
        engine: of SQLAlchemy.
        place: where it is, for messages, without user and password.
        is_postgresql: whether it is PostgreSQL.
        clock: SQL: the present time in microseconds.
    """

    def __init__(self, url: str, max_connections: int = 4, keeps_plans: bool = False) -> None:
        """Connect.

        Args:
            url: of SQLAlchemy, with its secret parts as references.
            max_connections: how many are opened at most.
            keeps_plans: whether PostgreSQL may plan a statement once for all of its values: for
                consumers, whose statements are many and small. A sweep needs plans for its own.

        Raises:
            DatabaseError: there is no such database, it can't be reached, or is of another kind.
        """
        self.engine = open_engine(resolve_url(url), max_connections)
        self.place = shown(self.engine.url)
        self.is_postgresql = self.engine.dialect.name == "postgresql"
        if not self.is_postgresql and self.engine.dialect.name != "sqlite":
            raise DatabaseError(
                f"{self.place}: messages are kept in PostgreSQL or SQLite: give such a database",
                database=self.place,
            )
        self.clock = _CLOCKS[self.engine.dialect.name]
        if self.is_postgresql and keeps_plans:
            sa.event.listen(self.engine, "connect", _keep_plans)
        if not self.is_postgresql:
            sa.event.listen(self.engine, "connect", _set_up_sqlite)
            sa.event.listen(self.engine, "begin", _begin_immediate)

    @classmethod
    def open(cls, url: str, max_connections: int = 4, keeps_plans: bool = False) -> Self:
        """Connect to a database whose tables are up to date; arguments are those of the class.

        Raises:
            DatabaseError: they aren't, or the database can't be reached.
        """
        database = cls(url, max_connections, keeps_plans)
        try:
            with database.begin("the tables of messages") as connection:
                version = _version(connection)
            if version != HEAD:
                found = "has no tables of messages" if version is None else f"is at {version}"
                raise DatabaseError(
                    f"{database.place}: it {found}, and version {HEAD} is needed: run "
                    "ledgerbeam messages init",
                    database=database.place,
                )
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def begin(self, what: str) -> Iterator[sa.Connection]:
        """A transaction, committed unless an exception leaves the block.

        Args:
            what: what is read or written, for messages.

        Raises:
            DatabaseError: the database can't be reached, or refuses a statement.
        """
        with (
            connect(self.engine, what) as connection,
            database_errors(self.engine, what),
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def snapshot(self, what: str) -> Iterator[sa.Connection]:
        """A transaction that only reads, and all of whose statements see one state.

        Arguments and errors are those of `begin`.
        """
        with self.begin(what) as connection:
            if self.is_postgresql:  # SQLite's transactions see one state in any case
                connection.exec_driver_sql(
                    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
                )
            yield connection

    def now(self, connection: sa.Connection) -> int:
        """The present time in microseconds; of the database's clock, which all processes share."""
        return present_time(connection)

    def migrate(self) -> None:
        """Make the tables, or bring them up to date, and make partitions.

        Raises:
            DatabaseError: the schema is newer than this code, or may not be changed.
        """
        with self.begin("the tables of messages") as connection:
            if self.is_postgresql:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            if _version(connection) != HEAD:
                self._upgrade(connection)
        if self.is_postgresql:
            with self.begin("partitions of messages") as connection:
                make_partitions(connection, self.now(connection))

    def _upgrade(self, connection: sa.Connection) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        version = _version(connection)
        if version is not None and version not in known:
            raise DatabaseError(
                f"{self.place}: its tables of messages have version {version}, which this version "
                "of ledgerbeam doesn't know: upgrade ledgerbeam, or use another database",
                database=self.place,
            )
        command.upgrade(config, "head")


def present_time(connection: sa.Connection) -> int:
    """The present time in microseconds, of the clock of a connection's database."""
    clock = _CLOCKS[connection.dialect.name]
    return int(connection.exec_driver_sql(f"SELECT {clock}").scalar_one())


def create_sqlite_file(url: str) -> None:
    """Make the file of a SQLite database if it is missing; of other URLs nothing."""
    parsed = read_url(resolve_url(url))
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return
    try:
        with sqlite3.connect(str(parsed.database)) as file:
            # Readers don't wait for the writer. The switch is made once in a file's life.
            file.execute("PRAGMA journal_mode = WAL")
    except sqlite3.Error as error:
        raise DatabaseError(
            f"{shown(parsed)}: {error}: check that the folder exists, and that you may write there",
            database=shown(parsed),
        ) from None


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.execute(
        sa.text(f"SELECT version_num FROM {VERSION_TABLE}")
    ).scalar()
    return found


def _keep_plans(connection: Any, _: object) -> None:
    connection.execute("SET plan_cache_mode = auto")
    connection.commit()


def _set_up_sqlite(connection: Any, _: object) -> None:
    # Transactions begin where `_begin_immediate` says so.
    connection.isolation_level = None


def _begin_immediate(connection: sa.Connection) -> None:
    if connection.get_execution_options().get("watches"):
        return
    # A transaction that begins by reading would fail, not wait, where another one writes.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
