"""Fetching pages, in the order of a table's keys or from cursor to cursor.

The bounds of a table's pages are recorded before the pages are executed, so that every attempt has
the same pages, whatever was inserted or deleted between two attempts.
"""

import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from ledgerbeam.batch.define.page_process import CursorPages, Page, PageProcess, SqlPages
from ledgerbeam.batch.define.process import Retry, RetryMode
from ledgerbeam.io.commit.attempts import Attempt, PageCut
from ledgerbeam.io.errors import DatabaseError, PageFetchError, UserError
from ledgerbeam.io.secrets import resolve_url
from ledgerbeam.io.sql.connections import Engines, Transactions
from ledgerbeam.io.sql.keys import Key, KeyRange
from ledgerbeam.io.sql.reader import SqlPage, SqlReader
from ledgerbeam.transforms.concurrency.retry import error_line

T = TypeVar("T")

# As many as a reader fetches at once.
_ROWS_PER_CUT = 20_000


class FetchedPage(NamedTuple):
    """A page that was fetched and is to be executed.

    Attributes:
        number: the number of the page within its shard; in a walk, the number of the shard.
        page: the page to execute.
        position: for a walk, which page this is, and where the walk continues after it.
    """

    number: int
    page: Page
    position: dict[str, Any]


Wanted = Callable[[int], bool]
"""Whether the page of a number is to be fetched."""


class SqlFetcher:
    """Fetches pages of a table or query; threads may share it.

    Attributes:
        schema: the schema of the pages.
        amounts: columns that are added up.
    """

    def __init__(
        self,
        process: PageProcess[Any],
        attempt: Attempt,
        engines: Engines,
        transactions: Transactions,
        snapshot: str | None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connect to the database and read the columns of the source.

        Raises:
            UserError: the source can't be read.
        """
        source = process.source
        assert isinstance(source, SqlPages)
        self._source = source
        self._attempt = attempt
        self._retry = process.retry
        self._transactions = transactions
        self._sleep = sleep
        url = source.source.url
        resolved = replace(source.source, url=resolve_url(url))
        reader = SqlReader(resolved, engines.max_connections, snapshot, engines.of(url))
        self._reader = self._fetching(reader.__enter__)
        self.schema: pa.Schema | None = self._reader.schema
        self.amounts = source.amounts

    def pages(self, shard: int, range_: KeyRange, wanted: Wanted) -> Iterator[FetchedPage]:
        """The pages of a range; pages with recorded bounds keep them.

        Raises:
            UserError: the pages can't be read.
        """
        number = 0
        after = range_.after
        for cut in self._attempt.page_cuts(shard):
            for recorded in map(KeyRange.from_json, cut.pages):
                if wanted(number):
                    yield self._again(number, recorded)
                number += 1
                after = recorded.upto
            if cut.end:
                return
        rest = _Resumable(self._reader, KeyRange(after, range_.upto), self._source.page_rows)
        # Only the first page at first, so that work can begin at once.
        size = 1
        while True:
            pages = self._fetching(functools.partial(rest.take, size))
            mine = PageCut(pages=[page.range.to_json() for page in pages], end=len(pages) < size)
            if self._attempt.cut_pages(shard, number, mine) != mine:
                # Another worker, or another attempt, was faster.
                yield from self.pages(shard, range_, _from(number, wanted))
                return
            for page in pages:
                if wanted(number):
                    yield self._fetched(number, page)
                number += 1
            if mine.end:
                return
            size = max(_ROWS_PER_CUT // self._source.page_rows, 1)

    def _again(self, number: int, range_: KeyRange) -> FetchedPage:
        table = self._fetching(lambda: self._reader.read(range_))
        return self._fetched(number, SqlPage(range_, table))

    def _fetched(self, number: int, page: SqlPage) -> FetchedPage:
        name = f"{_text(page.range.after)}..{_text(page.range.upto)}"
        made = Page(name, table=page.table, transactions=self._transactions)
        return FetchedPage(number, made, {"range": page.range.to_json()})

    def _fetching(self, fetch: Callable[[], T]) -> T:
        return fetching(self._retry, fetch, _is_transient, self._sleep)


class _Resumable:
    """The pages of a range; after an error they continue behind the last page taken."""

    def __init__(self, reader: SqlReader, range_: KeyRange, page_rows: int) -> None:
        self._reader = reader
        self._range = range_
        self._page_rows = page_rows
        self._pages: Iterator[SqlPage] | None = None

    def take(self, count: int) -> list[SqlPage]:
        if self._pages is None:
            self._pages = self._reader.pages(self._range, self._page_rows)
        try:
            taken = list(islice(self._pages, count))
        except BaseException:
            self._pages = None  # the error has ended the iterator
            raise
        if taken:
            self._range = KeyRange(taken[-1].range.upto, self._range.upto)
        return taken


class CursorFetcher:
    """Walks from cursor to cursor.

    Attributes:
        schema: None, since pages of a cursor have no types.
        amounts: empty, for the same reason.
    """

    schema: pa.Schema | None = None
    amounts: tuple[str, ...] = ()

    def __init__(
        self,
        process: PageProcess[Any],
        transactions: Transactions,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        source = process.source
        assert isinstance(source, CursorPages)
        self._source = source
        self._retry = process.retry
        self._transactions = transactions
        self._sleep = sleep

    def pages(
        self, positions: Mapping[int, dict[str, Any]], wanted: Wanted
    ) -> Iterator[FetchedPage]:
        """The pages in the order of the walk.

        Args:
            positions: the positions of committed pages, by page number.
            wanted: whether to fetch a committed page; all other pages are fetched, since only a
                page itself has the cursor of the next one.

        Raises:
            UserError: a page can't be fetched, or the walk goes round in circles.
        """
        cursor = self._source.start
        seen: set[str | None] = set()
        number = 0
        while True:
            if number in positions:
                cursor = positions[number]["cursor"]
            if cursor in seen:
                raise PageFetchError(
                    f"page {number}: its cursor {cursor!r} was that of an earlier page: the walk "
                    "would never end: correct the source",
                    page=number,
                    cursor=cursor,
                )
            seen.add(cursor)
            following = positions[number]["next"] if number in positions else None
            if number not in positions or wanted(number):
                fetched = self._fetch(number, cursor)
                if number not in positions:
                    following = fetched.next or None
                if number + 1 in positions:
                    following = positions[number + 1]["cursor"]
                page = Page(
                    str(number),
                    items=fetched.items,
                    cursor=cursor,
                    transactions=self._transactions,
                )
                yield FetchedPage(number, page, {"cursor": cursor, "next": following})
            if following is None:
                return
            cursor = following
            number += 1

    def _fetch(self, number: int, cursor: str | None) -> Any:
        try:
            return fetching(
                self._retry,
                lambda: self._source.fetch(cursor),
                lambda error: not isinstance(error, (*self._retry.never, UserError)),
                self._sleep,
            )
        except Exception as error:
            raise PageFetchError(
                f"page {number}, cursor {cursor!r}: can't be fetched: {error_line(error)}: what "
                "is committed is kept: run again",
                page=number,
                cursor=cursor,
            ) from error


def fetching(
    retry: Retry,
    fetch: Callable[[], T],
    is_transient: Callable[[Exception], bool],
    sleep: Callable[[float], None],
) -> T:
    """Call `fetch` until it succeeds, as often as `retry` allows; reading twice is harmless."""
    most = retry.tries if retry.mode is RetryMode.AT_LEAST_ONCE else Retry().tries
    tries = 1
    while True:
        try:
            return fetch()
        except Exception as error:
            if tries >= most or not is_transient(error):
                raise
        # Jitter needs no secret; the delay changes no result.
        sleep(retry.delay(tries, random.random()))  # noqa: S311
        tries += 1


def _is_transient(error: Exception) -> bool:
    return isinstance(error, DatabaseError) and bool(error.is_transient)


def _from(first: int, wanted: Wanted) -> Wanted:
    return lambda number: number >= first and wanted(number)


def _text(key: Key | None) -> str:
    return "" if key is None else ",".join(map(str, key))
