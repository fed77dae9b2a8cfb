"""The registry's database: how it is reached, and how its schema is brought up to date.

SQLite and PostgreSQL differ in how writers wait for each other. SQLite has one writer at a time:
transactions that write begin with `BEGIN IMMEDIATE`, which queues, where one that begins by
reading would fail. In PostgreSQL they lock the rows that they are about.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)

from ledgerbeam.batch.registry.schema import HEAD
from ledgerbeam.io import private
from ledgerbeam.io.errors import DatabaseError, ParameterError, RegistryUnavailableError
from ledgerbeam.io.sql.engine import create_engine, is_locked, one_line

TIMEOUT = 30
"""Seconds for which a writer waits for the one in front of it."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 5_303_178_127  # any number that other programs don't lock
_FORMS = "sqlite:////path/registry.db or postgresql+psycopg://user@host/database"


class Database:
    """A database of the registry's schema. Any number of threads may use one."""

    def __init__(self, url: str) -> None:
        """Connect, and bring the schema up to date.

        Args:
            url: of SQLAlchemy, for SQLite or PostgreSQL.

        Raises:
            UserError: the URL isn't of that kind, or the schema is newer than this code.
            RegistryUnavailableError: there is no such database.
        """
        self._url = _read_url(url)
        self.place = self._url.set(query={}).render_as_string(hide_password=True)
        engine = _engine(self._url, self.place)
        self._engine = engine
        self._reader = engine
        self._asker = engine
        self._writer = engine.execution_options(writes=True)
        if engine.dialect.name == "postgresql":
            self._reader = engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._asker = engine.execution_options(isolation_level="AUTOCOMMIT")
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database, and changes nothing."""
        with self._one_line_errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def asking(self) -> Iterator[sa.Connection]:
        """For a single question, which needs no transaction around it."""
        with self._one_line_errors(), self._asker.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, committed unless an exception leaves the block."""
        with self._one_line_errors(), self._writer.begin() as connection:
            yield connection

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @property
    def driver_error(self) -> type[Exception]:
        """Base of the errors of a driver's connection."""
        error: type[Exception] = self._engine.dialect.loaded_dbapi.Error
        return error

    def own_connection(self) -> sa.PoolProxiedConnection:
        """A driver's connection outside of transactions and of the pool, closed by the caller.

        Raises:
            RegistryUnavailableError: the database can't be reached.
        """
        with self._one_line_errors():
            connection = self._engine.raw_connection()
            connection.detach()
            if self.kind == "postgresql":
                connection.dbapi_connection.autocommit = True  # type: ignore[union-attr]
            return connection

    def _migrate(self) -> None:
        with self.reading() as connection:
            if _version(connection) == HEAD:
                return
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            version = _version(connection)
            from alembic import command
            from alembic.config import Config
            from alembic.script import ScriptDirectory

            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            known = {
                script.revision for script in ScriptDirectory.from_config(config).walk_revisions()
            }
            if version is not None and version not in known:
                raise DatabaseError(
                    f"{self.place}: its schema has version {version}, which this version of "
                    "ledgerbeam doesn't know: upgrade ledgerbeam, or use another database",
                    database=self.place,
                )
            command.upgrade(config, "head")

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            reason = " ".join(str(error.orig).split())
            raise DatabaseError(
                f"registry {self.place}: {reason}: its rows don't fit together: restore it from a "
                "copy",
                database=self.place,
            ) from error
        except DBAPIError as error:
            if isinstance(error, ProgrammingError) and error.statement is None:
                raise _unknown_option(self.place, self._reason(error)) from error
            broken = isinstance(error, OperationalError | InterfaceError)
            # A file that is damaged, or is something else, has no class of its own.
            broken |= type(error) is sa.exc.DatabaseError or error.connection_invalidated
            if not broken:
                raise
            raise RegistryUnavailableError(self._explain(error), registry=self.place) from error

    def _explain(self, error: DBAPIError) -> str:
        advice = "check that the server runs, and the URL's host, port, user and password"
        if is_locked(error.orig):
            advice = (
                f"another process has been writing to it for {TIMEOUT} s: try again when it has "
                "ended; `fuser` on the file names it; many that write at once need PostgreSQL"
            )
        elif self._url.drivername == "sqlite":
            advice = "check that its folder exists, that you may write there, and its disk"
        return f"registry {self.place}: {self._reason(error)}: {advice}"

    def _reason(self, error: DBAPIError) -> str:
        reason = one_line(error.orig)
        for secret in (self._url.password, self._url.query.get("password")):
            if secret:
                reason = reason.replace(str(secret), "***")
        return reason


def insert_into(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT that can say what to do where the row exists; each dialect has its own."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def _unknown_option(place: str, reason: str) -> ParameterError:
    return ParameterError(
        f"registry {place}: {reason}: correct what stands behind the ? of its URL",
        parameter="--registry",
    )


def _read_url(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        # What can't be read may hold a password in any place, so it isn't shown.
        raise ParameterError(
            f"the registry's URL isn't one: write it as {_FORMS}", parameter="--registry"
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ParameterError(
            f"no registry can be kept by {url.drivername}: write its URL as {_FORMS}",
            parameter="--registry",
        )
    if url.drivername == "sqlite" and url.database in (None, "", ":memory:"):
        raise ParameterError(
            f"the registry's URL names no file: write it as {_FORMS}", parameter="--registry"
        )
    return url


def _engine(url: sa.URL, place: str) -> sa.Engine:
    if url.drivername == "sqlite":
        _make_private(url, place)
        # Without an isolation level, transactions begin where `_begin` says so, and as it says.
        arguments: dict[str, Any] = {"timeout": TIMEOUT, "isolation_level": None}
        try:
            engine = create_engine(url, connect_args=arguments, pool_pre_ping=True)
        except ValueError as error:
            raise _unknown_option(place, str(error)) from None
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin)
        return engine
    arguments = {} if "connect_timeout" in url.query else {"connect_timeout": 10}
    try:
        engine = sa.create_engine(url, connect_args=arguments, pool_pre_ping=True, pool_size=10)
    except ModuleNotFoundError as error:
        raise DatabaseError(
            f"registry {place}: PostgreSQL's driver isn't installed: "
            "pip install 'ledgerbeam[postgres]'",
            database=place,
        ) from error
    sa.event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _make_private(url: sa.URL, place: str) -> None:
    """Make the file, where it isn't there, for this user alone; SQLite's others are as it is."""
    path = Path(url.database or "")
    if str(path).startswith("file:"):
        return
    if foreign := private.foreign_part(path.absolute()):
        raise DatabaseError(
            f"registry {place}: {foreign} belongs to somebody else, in a folder where everybody "
            "may make files: keep the registry in another folder",
            database=place,
        )
    with suppress(OSError):  # SQLite says what is the matter
        os.close(private.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))


def _set_up_sqlite(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    # Readers don't wait for the writer. The switch is made once in a file's life.
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        _log_ahead(connection)


def _log_ahead(connection: Any) -> None:
    import tenacity

    # The switch doesn't wait for other connections but fails.
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_locked),
        stop=tenacity.stop_after_delay(TIMEOUT),
        wait=tenacity.wait_random(0.01, 0.1),
        reraise=True,
    ):
        with attempt:
            connection.execute("PRAGMA journal_mode = WAL")


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _set_up_postgresql(connection: Any, _: Any) -> None:
    # A client that was stopped or cut off in a transaction doesn't hold its locks for ever.
    connection.execute(f"SET idle_in_transaction_session_timeout = '{TIMEOUT}s'")
    connection.execute(f"SET lock_timeout = '{TIMEOUT}s'")
    connection.commit()


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
