"""Connections to SQL databases, and their errors as one line without a password."""

import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SAWarning,
)

from ledgerbeam.io.errors import DatabaseError, ParameterError

# How values look as text must not depend on the server's settings. Compiling a query (JIT) takes
# longer than reading the few rows of a page. A generic plan, kept for all ranges of keys, may sort
# the whole rest of a range for each page.
_POSTGRESQL_SETTINGS = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET jit = off; "
    "SET plan_cache_mode = force_custom_plan"
)
_SQLITE_WAITS_FOR_LOCKS = 60.0  # seconds


def open_engine(url: str, max_connections: int = 1) -> sa.Engine:
    """An engine with a pool of at most `max_connections`; a thread that needs another one waits.

    Args:
        url: SQLAlchemy URL, including the password if there is one.
        max_connections: size of the pool, at least 1.

    Raises:
        DatabaseError: the URL or an option in it can't be read, its driver isn't installed, or the
            SQLite file is missing.
    """
    if max_connections < 1:
        raise ParameterError(
            f"max_connections is {max_connections}: give 1 or more",
            parameter="max_connections",
            value=max_connections,
        )
    parsed = read_url(url)
    dialect = parsed.get_backend_name()
    try:
        if dialect == "sqlite":
            _check_file(parsed)
        engine = create_engine(
            parsed,
            pool_size=max_connections,
            max_overflow=0,
            pool_timeout=None,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"timeout": _SQLITE_WAITS_FOR_LOCKS} if dialect == "sqlite" else {},
        )
    except (NoSuchModuleError, ImportError) as error:
        extra = ": pip install 'ledgerbeam[postgres]'" if "postgresql" in url else ""
        raise DatabaseError(
            f"{shown(parsed)}: there is no driver {parsed.drivername}: {error}{extra}",
            database=shown(parsed),
        ) from None
    except ValueError as error:
        raise DatabaseError(
            f"{shown(parsed)}: {error}: correct the database's URL, or what stands behind its ?",
            database=shown(parsed),
        ) from None
    if dialect == "postgresql":
        sa.event.listen(engine, "connect", _set_up_postgresql)
    return engine


def create_engine(url: sa.URL, **settings: Any) -> sa.Engine:
    """SQLAlchemy's engine, of a URL whose parts and options the driver knows.

    Raises:
        ValueError: SQLite's URL names a host; an option behind the URL's ? is unknown, comes twice,
            or has a wrong value.
        NoSuchModuleError: SQLAlchemy knows no such dialect or driver.
        ImportError: the driver isn't installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SAWarning)
            return sa.create_engine(url, **settings)
    except NoSuchModuleError:
        raise  # a kind of ArgumentError, but what is missing is a driver
    except (ArgumentError, SAWarning, TypeError) as error:
        raise ValueError(re.split(r"[;\n]", str(error))[0]) from None


def read_url(url: str) -> sa.URL:
    """The parts of a database's URL.

    Raises:
        DatabaseError: it isn't a URL. It isn't shown, as any part of it may be a password.
    """
    try:
        return sa.make_url(url)
    except (ArgumentError, ValueError):
        raise DatabaseError(
            "the database's URL can't be read: write DIALECT+DRIVER://USER:PASSWORD@HOST/DATABASE "
            "or sqlite:////FOLDER/FILE"
        ) from None


def shown(url: sa.URL) -> str:
    """Where a database is, without user, password and options."""
    place = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.get_backend_name()}://{place}/{url.database or ''}"


def connect(engine: sa.Engine, what: str) -> sa.Connection:
    """A connection of the engine's pool, to be used as a context.

    Args:
        engine: an engine that `open_engine` has made.
        what: what is read or written, for messages.

    Raises:
        DatabaseError: the database can't be reached.
    """
    try:
        return engine.connect()
    except DBAPIError as error:
        raise DatabaseError(
            f"{shown(engine.url)}: {what}: no connection: {_reason(error, engine)}: check the "
            "address, and that the server is up and lets this user in",
            database=shown(engine.url),
            is_transient=isinstance(error, OperationalError | InterfaceError),
        ) from None


@contextmanager
def database_errors(engine: sa.Engine, what: str) -> Iterator[None]:
    """Turn errors of the database and its driver into a `UserError`."""
    try:
        yield
    except DBAPIError as error:
        advice = ""
        if isinstance(error, ProgrammingError):
            advice = ": check the names of table and columns, the query, and this user's rights"
        elif error.connection_invalidated:
            advice = ": the connection was lost: try again"
        elif is_locked(error.orig):
            advice = f": another process has been writing to it for {_SQLITE_WAITS_FOR_LOCKS:g} s"
            advice += ": try again when it has ended; `fuser` on the file names it"
        reason = _reason(error, engine)
        raise DatabaseError(
            f"{shown(engine.url)}: {what}: {reason}{advice}",
            database=shown(engine.url),
            is_transient=isinstance(error, OperationalError | InterfaceError),
        ) from None


def _check_file(url: sa.URL) -> None:
    file = url.database
    if file in (None, "", ":memory:"):
        raise DatabaseError("sqlite: a database in memory belongs to one connection: give a file")
    if not file.startswith("file:") and not Path(file).is_file():
        raise DatabaseError(
            f"{shown(url)}: there is no such file: correct the URL", database=shown(url)
        )


def _set_up_postgresql(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(_POSTGRESQL_SETTINGS)
    cursor.close()
    connection.commit()


def is_locked(error: BaseException | None) -> bool:
    """Whether it is SQLite's, that somebody else has been writing for too long."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest is the kind of the error
    return isinstance(error, sqlite3.Error) and code == sqlite3.SQLITE_BUSY


def one_line(error: BaseException | None) -> str:
    """The text of a driver's error, which may have several lines, as one."""
    return " ".join(str(error).split())


def _reason(error: DBAPIError, engine: sa.Engine) -> str:
    # The other lines describe our own statement.
    text = " ".join(re.split(r"\n(LINE|CONTEXT)", str(error.orig))[0].split())
    password = engine.url.password
    return text.replace(str(password), "***") if password else text
