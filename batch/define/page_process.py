"""Definitions whose units of work are pages: of a SQL table or query, or of an opaque cursor."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from pyarrow.types import is_decimal
from pydantic import Field

from ledgerbeam.batch.define.process import BatchProcess, P, Parameters, Record, is_overridden
from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.io.secrets import DatabaseUrl
from ledgerbeam.io.sql.connections import Engines, Transactions
from ledgerbeam.io.sql.ranges import ByCount, Split
from ledgerbeam.io.sql.source import SqlSource
from ledgerbeam.io.sql.write import ComponentTransaction
from ledgerbeam.rules.components import Row
from ledgerbeam.transforms.columnar.components import component_name
from ledgerbeam.transforms.columnar.shard_totals import InputTotals, TotalNames

MAX_CONNECTIONS = 8


class SqlParameters(Parameters):
    """Parameters of workloads that read or write a database."""

    database: DatabaseUrl = Field(
        description="URL of the database (postgresql+psycopg://…, sqlite:////…), with its "
        "password as ${env:NAME} or ${file:PATH}"
    )
    max_connections: int = Field(
        default=MAX_CONNECTIONS,
        ge=1,
        description="connections to a database that a worker process opens at most",
    )


@dataclass(frozen=True)
class SqlPages:
    """The rows of a table or query, in pages by key.

    Attributes:
        source: what is read. Its URL may hold references to secrets, which workers resolve.
        split: how the rows are cut into partitions, each of which is committed and redone as a
            whole. `ByNumber` and `ByRange` cut the table beforehand into partitions of many
            pages, which are shared out among workers. With `ByCount` each page is a partition,
            and one worker walks from page to page.
        page_rows: rows of a page; with `ByCount` it is that count.
        amounts: columns (int64 or decimal) that are added up, for control totals.
    """

    source: SqlSource
    split: Split
    page_rows: int = 1_000
    amounts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.split, ByCount):
            object.__setattr__(self, "page_rows", self.split.rows)
        if self.page_rows < 1:
            raise ValueError(f"page_rows must be at least 1, not {self.page_rows}")


@dataclass(frozen=True)
class CursorPage:
    """The page that a source returns for a cursor.

    Attributes:
        items: the page's items, each as values by name.
        next: cursor of the next page; None or empty after the last one.
    """

    items: Sequence[Mapping[str, Any]]
    next: str | None


@dataclass(frozen=True)
class CursorPages:
    """Pages of a source that can only be walked, since each page has the cursor of the next.

    Attributes:
        fetch: a function that gives the page of a cursor, and the first page for None. It is
            called by one thread.
        start: cursor of the page to begin at; None for the first one.
    """

    fetch: Callable[[str | None], CursorPage]
    start: str | None = None


class Page:
    """Consecutive items of a source.

    Attributes:
        name: the page's name in results and outcomes: its range of keys as `AFTER..UPTO`, or its
            number in the walk. It stays the same in all attempts on the same input.
        cursor: the cursor by which the page was fetched; None for the first page, and for pages
            of a database.
    """

    __slots__ = ("_items", "_table", "_transactions", "cursor", "name")

    def __init__(
        self,
        name: str,
        *,
        items: Sequence[Mapping[str, Any]] | None = None,
        table: pa.Table | None = None,
        cursor: str | None = None,
        transactions: Transactions | None = None,
    ) -> None:
        """Make a page of items or of a table's rows.

        Args:
            name: the name of the page.
            items: the items, for a page of a cursor.
            table: the rows, for a page of a database.
            cursor: the cursor by which the page was fetched.
            transactions: begins the page's transactions; by default those of an instance called
                `test`.
        """
        self.name = name
        self.cursor = cursor
        self._items = items
        self._table = table
        self._transactions = transactions or Transactions("test", Engines(1))

    @property
    def table(self) -> pa.Table:
        """The rows of a page of a database, with exact types.

        Raises:
            TypeError: this is a page of a cursor, which has no table.
        """
        if self._table is None:
            raise TypeError("pages of a cursor have no table: use items")
        return self._table

    @property
    def items(self) -> Sequence[Mapping[str, Any]]:
        """The items. Rows of a database are converted when they are first asked for."""
        if self._items is None:
            self._items = [Row(item) for item in self.table.to_pylist()]
        return self._items

    def records(self) -> Sequence[Mapping[str, Any]]:
        """The items, by which a failed call is told."""
        return self.items

    def is_own(self, value: object) -> bool:
        """Whether a value is one of the items."""
        return any(value is item for item in self._items or ())

    def __len__(self) -> int:
        return self._table.num_rows if self._table is not None else len(self._items or ())

    def transaction(self, url: str, part: str = "") -> AbstractContextManager[ComponentTransaction]:
        """The page's own transaction, which commits once, however often the page is tried.

        A page of a table that is tried again by a later attempt is read again by its range of keys,
        and may have lost rows and got others meanwhile. Those that came were not written by the
        transaction that is already done; `part` begins another one for them.

        Args:
            url: the URL of the database, as the parameter holds it.
            part: name of a part of the page that is written for itself, such as the first of its
                keys; by default the whole page.
        """
        name = (self.name, part) if part else (self.name,)
        return self._transactions.begin(url, component_name(name))

    def item(self, number: int, name: str) -> "Item":
        """An item as a unit of work."""
        return Item(self.items[number], name, self._transactions)


class Item(Row):
    """An item of a page, as a unit of work.

    Attributes:
        name: the values of the item's key, as text.
    """

    def __init__(
        self, values: Mapping[str, Any], name: str, transactions: Transactions | None = None
    ) -> None:
        super().__init__(values)
        self.name = name
        self._transactions = transactions or Transactions("test", Engines(1))

    def transaction(self, url: str) -> AbstractContextManager[ComponentTransaction]:
        """The item's own transaction; see `Page.transaction`."""
        return self._transactions.begin(url, self.name)


class PageProcess(BatchProcess[P]):
    """A workload over the pages of a table, a query or a cursor.

    A definition has a `source`, and one of two methods: `execute`, called once per page, or
    `execute_item`, called once per item, where an item that fails doesn't affect the others.

    Attributes:
        item_key: columns that identify an item, where items execute one by one; by default the
            key of the table or query. For items of a cursor their values become text.
        parallelism: pages or items in flight over the whole run.
    """

    item_key: ClassVar[tuple[str, ...]] = ()
    parallelism: ClassVar[int | None] = 4

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check that exactly one of `execute` and `execute_item` is written."""
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "name"):
            return
        if cls.executes_items() == is_overridden(cls, PageProcess, "execute"):
            raise DefinitionError(
                f"{cls.__name__} has {'both' if cls.executes_items() else 'neither'} execute and "
                "execute_item: write one of them"
            )
        if cls.results is None:
            raise DefinitionError(
                f"{cls.__name__}: results is missing: give the columns that execute returns as a "
                "pyarrow.schema"
            )
        if not cls.executes_items() and "page" in cls.results.names:
            raise DefinitionError(
                f"{cls.__name__}: results has a column page, in which the page's name will be: "
                "call it otherwise"
            )

    @classmethod
    def executes_items(cls) -> bool:
        """Whether items execute one by one, and not pages."""
        return is_overridden(cls, PageProcess, "execute_item")

    @property
    def source(self) -> SqlPages | CursorPages:
        """Where pages come from. It is asked for in the launcher and on workers."""
        raise NotImplementedError(f"{type(self).__name__}: source is missing")

    @property
    def total_decimals(self) -> Mapping[str, int]:
        """Includes the `amounts` that are read, where the source declares their types."""
        source = self.source
        if not isinstance(source, SqlPages):
            return super().total_decimals
        types = {name: source.source.types.get(name) for name in source.amounts}
        of_source = {n: t.scale for n, t in types.items() if t is not None and is_decimal(t)}
        return {**super().total_decimals, **of_source}

    @property
    def total_names(self) -> TotalNames:
        """The names of the totals over its rows or items."""
        source = self.source
        amounts = source.amounts if isinstance(source, SqlPages) else ()
        return TotalNames((InputTotals("rows", amounts, has_ids=False),))

    @property
    def key(self) -> tuple[str, ...]:
        """Columns of the results that name the component: `page`, or the key of items."""
        if not self.executes_items():
            return ("page",)
        source = self.source
        key = self.item_key or (source.source.key if isinstance(source, SqlPages) else ())
        results = self.results
        assert results is not None
        if not key:
            raise DefinitionError(
                f"{type(self).__name__}: item_key is missing: name the columns that identify an "
                "item"
            )
        taken = [name for name in key if name in results.names]
        if taken:
            raise DefinitionError(
                f"{type(self).__name__}: results has {taken[0]}, which is in the key of items and "
                "added to each row: leave it out"
            )
        return tuple(key)

    @property
    def rows_label(self) -> str:
        """`rows` for pages of a database, else `items`."""
        return "rows" if isinstance(self.source, SqlPages) else "items"

    def execute(self, page: Page) -> Iterable[Record] | pa.Table:
        """Execute one page.

        Returns:
            Rows of results, with the columns of `results`: one by one, or as an Arrow table, which
            costs the least where a page has many. The page's name is added to each.
        """
        raise NotImplementedError

    def execute_item(self, item: Item) -> Iterable[Record]:
        """Execute one item.

        Returns:
            Rows of results, with the columns of `results`. The item's key is added to each.
        """
        raise NotImplementedError
