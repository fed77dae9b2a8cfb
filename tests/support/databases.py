"""Databases to make tables in, for tests of what reads and writes them."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

_NAMES = (f"t{number}" for number in itertools.count())


class Database(NamedTuple):
    """A database to make tables in."""

    url: str
    engine: sa.Engine

    def execute(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    def create(self, columns: str, rows: Sequence[tuple[Any, ...]] = ()) -> str:
        """The name of a new table of these columns and rows."""
        name = next(_NAMES)
        self.execute(f"CREATE TABLE {name} ({columns})")
        if rows:
            values = [f"v{index}" for index in range(len(rows[0]))]
            marks = ", ".join(f":{value}" for value in values)
            with self.engine.begin() as connection:
                connection.execute(
                    sa.text(f"INSERT INTO {name} VALUES ({marks})"),
                    [dict(zip(values, row, strict=True)) for row in rows],
                )
        return name

    def ordered_keys(self, table: str, key: tuple[str, ...]) -> list[tuple[Any, ...]]:
        names = ", ".join(key)
        with self.engine.connect() as connection:
            rows = connection.exec_driver_sql(f"SELECT {names} FROM {table} ORDER BY {names}")
            return [tuple(row) for row in rows]


@contextmanager
def open_database(url: str) -> Iterator[Database]:
    """The database of a URL, for as long as the context is open."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _do_not_wait_for_the_disk)
    try:
        yield Database(url, engine)
    finally:
        engine.dispose()


def sqlite_url(folder: Path) -> str:
    """The URL of a new SQLite database in WAL mode."""
    url = f"sqlite:///{folder}/bank.db"
    with open_database(url) as database, database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    return url


def _do_not_wait_for_the_disk(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")
