"""Pages of a SQL table or query as Arrow tables: keyset pagination, never OFFSET.

    source = SqlTable(url, "loans", key=("id",))
    with exported_snapshot(url) as snapshot, SqlReader(source, 4, snapshot) as reader:
        for range_ in plan_ranges(source, ByNumber(8)):
            for page in reader.pages(range_, 1_000):
                ...

A page begins after the last key of the page before it. So no row is read twice, and no row that
exists all the time is missed, whatever is inserted or deleted meanwhile. Each page knows its range,
by which it can be read again.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ledgerbeam.io.errors import DatabaseError, ParameterError
from ledgerbeam.io.sql.engine import connect, database_errors, open_engine, shown
from ledgerbeam.io.sql.fetch import Fetch, Rows
from ledgerbeam.io.sql.keys import KeyRange
from ledgerbeam.io.sql.source import SqlSource, read_columns

# Several pages per query: that halves the cost of small pages, and saves a round trip for each.
_ROWS_PER_FETCH = 20_000
_BYTES_PER_FETCH = 8 << 20


class SqlPage(NamedTuple):
    """Consecutive rows of a source.

    Attributes:
        range: from the last key of the page before (or from the start of the range that is read)
            to the last key of this page.
        table: the rows, in the order of their keys.
    """

    range: KeyRange
    table: pa.Table


@contextmanager
def exported_snapshot(url: str) -> Iterator[str | None]:
    """The state of the database at this moment, for readers to see however long they take.

    PostgreSQL keeps it while the context is open, at the cost of a connection, and of dead rows
    that can't be cleaned up meanwhile. Other databases can't share a snapshot between connections:
    then this gives None, and each fetch sees what is committed when it begins.

    Raises:
        DatabaseError: the database can't be reached.
    """
    engine = open_engine(url)
    try:
        if engine.dialect.name != "postgresql":
            yield None
            return
        engine = _read_only(engine, repeatable=True)
        with connect(engine, "the snapshot") as connection:
            with database_errors(engine, "the snapshot"):
                # A server may be configured to end transactions that are idle for long.
                connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                snapshot = connection.scalar(sa.text("SELECT pg_catalog.pg_export_snapshot()"))
            yield str(snapshot)
    finally:
        engine.dispose()


class SqlReader:
    """Reads ranges of a source, page by page; a context manager that threads may share.

    A connection is held only during a fetch, and at most `max_connections` are open; a thread that
    finds none free waits. Each reader has its own limit, also where workers have one reader each.

    Attributes:
        schema: Arrow schema of all pages.
    """

    schema: pa.Schema

    def __init__(
        self,
        source: SqlSource,
        max_connections: int,
        snapshot: str | None = None,
        engine: sa.Engine | None = None,
    ) -> None:
        """Create a reader; it connects when its context is entered.

        Args:
            source: what to read.
            max_connections: connections open at the same time, at least 1.
            snapshot: a snapshot of `exported_snapshot` that is still open.
            engine: an engine of `open_engine`, which stays open; by default the reader has an
                engine of its own.
        """
        if snapshot is not None and not re.fullmatch(r"[0-9A-Fa-f-]+", snapshot):
            raise ParameterError(
                f"{snapshot!r} is no snapshot: give what exported_snapshot gave",
                parameter="snapshot",
                value=snapshot,
            )
        self._source = source
        self._max_connections = max_connections
        self._snapshot = snapshot
        self._shared = engine

    def __enter__(self) -> "SqlReader":
        """Look up the source's columns.

        Raises:
            UserError: the database can't be reached, there is no such table or column, or the type
                of a column must be given.
        """
        self._engine = self._shared or open_engine(self._source.url, self._max_connections)
        if self._engine.dialect.name == "postgresql":
            self._engine = _read_only(self._engine, repeatable=self._snapshot is not None)
        try:
            with self._connection() as connection:
                columns = read_columns(connection, self._source)
        except BaseException:
            self._close()
            raise
        self._fetch = Fetch(self._engine.dialect, self._source, columns)
        self.schema = self._fetch.schema
        return self

    def __exit__(self, *_: object) -> None:
        """Close the reader's own connections."""
        self._close()

    def _close(self) -> None:
        if self._shared is None:
            self._engine.dispose()

    def pages(self, range_: KeyRange, page_rows: int) -> Iterator[SqlPage]:
        """The range's rows in pages of `page_rows`, the last one with what is left; none are empty.

        Up to 20,000 rows, or about 8 MB, are fetched at once, and kept until all their pages have
        been given.

        Raises:
            UserError: the database can't be read, a value doesn't fit its column's type, or the key
                is null or not unique.
        """
        after = range_.after
        rows_per_fetch = page_rows
        more = True
        while more:
            # One extra row shows whether the range goes on, and whether the last key is repeated.
            table, key_of = self._read(KeyRange(after, range_.upto), rows_per_fetch + 1)
            more = table.num_rows > rows_per_fetch
            count = min(table.num_rows, rows_per_fetch)
            for start in range(0, count, page_rows):
                stop = min(start + page_rows, count)
                upto = key_of(stop - 1)
                yield SqlPage(KeyRange(after, upto), table.slice(start, stop - start))
                after = upto
            if more:
                fitting = _BYTES_PER_FETCH * table.num_rows // max(table.nbytes, 1)
                rows_per_fetch = max(min(fitting, _ROWS_PER_FETCH) // page_rows, 1) * page_rows

    def read(self, range_: KeyRange) -> pa.Table:
        """All rows of a range in one table; with the range of a page, that page again."""
        tables = [page.table for page in self.pages(range_, _ROWS_PER_FETCH)]
        return pa.concat_tables(tables) if tables else self.schema.empty_table()

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        name = self._source.name
        with connect(self._engine, name) as connection, database_errors(self._engine, name):
            yield connection

    def _read(self, range_: KeyRange, limit: int) -> Rows:
        with self._connection() as connection:
            if self._snapshot is not None and self._engine.dialect.name == "postgresql":
                self._enter_snapshot(connection)
            return self._fetch(connection, range_, limit)

    def _enter_snapshot(self, connection: sa.Connection) -> None:
        try:
            connection.execute(sa.text(f"SET TRANSACTION SNAPSHOT '{self._snapshot}'"))
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            raise DatabaseError(
                f"{shown(self._engine.url)}: {self._source.name}: the snapshot {self._snapshot} is "
                "gone with the process or connection that held it: begin to read again",
                database=shown(self._engine.url),
            ) from None


def _read_only(engine: sa.Engine, repeatable: bool) -> sa.Engine:
    level = "REPEATABLE READ" if repeatable else "READ COMMITTED"
    return engine.execution_options(isolation_level=level, postgresql_readonly=True)
