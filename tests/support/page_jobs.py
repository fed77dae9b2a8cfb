"""Page processes for tests, and a program that runs them.

The program: `python -m tests.support.page_jobs NAME JSON`.

What their functions do beyond giving results is put into `HOOK` by a test, or asked for by
variables in the environment where they run in another process.
"""

import datetime
import json
import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import sqlalchemy as sa
from pydantic import Field

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.define.expect import Expect
from ledgerbeam.batch.define.page_process import (
    CursorPage,
    CursorPages,
    Item,
    Page,
    PageProcess,
    SqlPages,
    SqlParameters,
)
from ledgerbeam.batch.define.process import Parameters, Record, Retry, RetryMode, instance_uri
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.commit.records import Totals
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.sql.ranges import ByCount, ByNumber, ByRange, Split
from ledgerbeam.io.sql.source import SqlTable
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.totals import exact_sum

DAY = datetime.date(2026, 11, 20)
TIMEOUT = 60
"""Seconds after which a test that waits for something has failed."""

HOOK: dict[str, Callable[[Any], None]] = {}
"""What to do in a call, by the process's name."""


class Calls:
    """Counts calls: as a hook, and as what tests wait for."""

    def __init__(self, hold: int = 0, wrong: Callable[[Any], bool] = lambda unit: False) -> None:
        """Let each call wait until so many were in flight; and fail where it is wrong."""
        self.names: list[str] = []
        self.active = 0
        self.peak = 0
        self.hold = hold
        self.wrong = wrong
        self.changed = threading.Condition()

    def __call__(self, unit: Any) -> None:
        with self.changed:
            self.names.append(unit.name)
            self.active += 1
            self.peak = max(self.peak, self.active)
            self.changed.notify_all()
            arrived = self.changed.wait_for(lambda: self.peak >= self.hold, TIMEOUT)
        try:
            assert arrived, f"no more than {self.peak} were in flight at a time"
            if self.wrong(unit):
                raise ValueError(f"{unit.name} is wrong")
        finally:
            with self.changed:
                self.active -= 1
                self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, TIMEOUT)


def _called(process: PageProcess[Any], unit: Any) -> None:
    HOOK.get(process.name, lambda unit: None)(unit)
    path = os.environ.get("PAGE_JOBS_CALLS")
    if path is not None:
        with Path(path).open("a") as file:
            file.write(f"{unit.name}\n")
    if unit.name == os.environ.get("PAGE_JOBS_KILL"):
        os.kill(os.getpid(), signal.SIGKILL)


class RowParameters(SqlParameters):
    """Parameters of processes over the table `account`."""

    business_date: datetime.date = DAY
    split: str = Field(description="count=N, number=N or range=KEY,KEY")
    page_rows: int = 10

    @property
    def cut(self) -> Split:
        kind, _, value = self.split.partition("=")
        if kind == "range":
            return ByRange(tuple(map(int, value.split(","))))
        return ByCount(int(value)) if kind == "count" else ByNumber(int(value))


class Rows(PageProcess[RowParameters]):
    """A row of results for each row of the table."""

    name = "rows"
    expect = Expect(min_rows=0)
    results = pa.schema([("id", pa.int64()), ("amount", pa.decimal128(12, 2))])
    retry = Retry(tries=2, first_delay=0.01)
    parallelism = 4

    @property
    def source(self) -> SqlPages:
        table = SqlTable(self.parameters.database, "account", ("id",))
        return SqlPages(table, self.parameters.cut, self.parameters.page_rows, ("amount",))

    def execute(self, page: Page) -> Iterator[Record]:
        _called(self, page)
        yield from page.items

    def result_totals(self, results: Components) -> Totals:
        return {
            "rows": results.table.num_rows,
            "amount": exact_sum(results.table.column("amount")),
        }


class OnceRows(Rows):
    """The same, each page called once at most."""

    name = "once-rows"
    retry = Retry(RetryMode.AT_MOST_ONCE)


class RowItems(PageProcess[RowParameters]):
    """The same, each row by itself."""

    name = "row-items"
    expect = Expect(min_rows=0)
    results = pa.schema([("amount", pa.decimal128(12, 2))])
    retry = Retry(tries=2, first_delay=0.01)
    failure_limit = "10%"

    @property
    def source(self) -> SqlPages:
        table = SqlTable(self.parameters.database, "account", ("id",))
        return SqlPages(table, self.parameters.cut, self.parameters.page_rows, ("amount",))

    def execute_item(self, item: Item) -> Iterator[Record]:
        _called(self, item)
        yield {"amount": item["amount"]}

    def result_totals(self, results: Components) -> Totals:
        return {"amount": exact_sum(results.table.column("amount"))}


class FeedParameters(Parameters):
    """Parameters of processes over a feed."""

    business_date: datetime.date = DAY
    feed: str
    start: str | None = None


class Feed(PageProcess[FeedParameters]):
    """A row of results for each item of a feed."""

    name = "feed"
    expect = Expect(min_rows=0)
    results = pa.schema([("id", pa.int64())])
    retry = Retry(tries=2, first_delay=0.01, never=(ValueError,))
    parallelism = 4

    @property
    def source(self) -> CursorPages:
        return CursorPages(self.fetch, self.parameters.start)

    def fetch(self, cursor: str | None) -> CursorPage:
        query = f"?cursor={cursor}" if cursor else ""
        with urllib.request.urlopen(self.parameters.feed + query, timeout=TIMEOUT) as answer:
            body = json.load(answer)
        return CursorPage(body["items"], body["next"])

    def execute(self, page: Page) -> Iterator[Record]:
        _called(self, page)
        for item in page.items:
            yield {"id": item["id"]}


class FeedItems(PageProcess[FeedParameters]):
    """The same, each item by itself."""

    name = "feed-items"
    expect = Expect(min_rows=0)
    results = pa.schema([("twice", pa.int64())])
    item_key = ("id",)
    retry = Retry(tries=2, first_delay=0.01)
    failure_limit = "10%"

    @property
    def source(self) -> CursorPages:
        return CursorPages(Feed(self.parameters).fetch, self.parameters.start)

    def execute_item(self, item: Item) -> Iterator[Record]:
        _called(self, item)
        yield {"twice": 2 * item["id"]}


class FeedServer:
    """Answers `items` and `next` for a cursor, over HTTP on the loopback interface.

    Attributes:
        pages: ids of the items, page by page; the cursor of page n is `cN`.
        asked: cursors that were asked for, in their order.
        failing: cursors that are answered by an error, so many times.
    """

    def __init__(self, pages: Sequence[Sequence[int]]) -> None:
        self.pages = pages
        self.asked: list[str | None] = []
        self.failing: dict[str, int] = {}
        self.url = ""
        self.loop = False

    def answer(self, cursor: str | None) -> dict[str, Any] | None:
        self.asked.append(cursor)
        if self.failing.get(cursor or "", 0):
            self.failing[cursor or ""] -= 1
            return None
        number = int(cursor[1:]) if cursor else 0
        last = number + 1 == len(self.pages)
        following = ("c1" if self.loop else None) if last else f"c{number + 1}"
        return {"items": [{"id": id_} for id_ in self.pages[number]], "next": following}


@contextmanager
def feed_server(pages: Sequence[Sequence[int]]) -> Iterator[FeedServer]:
    feed = FeedServer(pages)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cursor = parse_qs(urlsplit(self.path).query).get("cursor", [None])[0]
            answer = feed.answer(cursor)
            self.send_response(503 if answer is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    feed.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield feed
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_accounts(url: str, ids: Sequence[int]) -> None:
    """The table `account`, with an amount that follows from the id."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            sa.text("CREATE TABLE account (id bigint PRIMARY KEY, amount numeric(12, 2))")
        )
    add_accounts(url, ids)
    engine.dispose()


def add_accounts(url: str, ids: Sequence[int]) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        rows = [{"id": id_, "amount": str(amount_of(id_))} for id_ in ids]
        if rows:
            insert = sa.text("INSERT INTO account VALUES (:id, CAST(:amount AS numeric(12, 2)))")
            connection.execute(insert, rows)
    engine.dispose()


def amount_of(id_: int) -> Decimal:
    return Decimal(id_ % 997) / 4


JOBS: dict[str, type[PageProcess[Any]]] = {
    process.name: process for process in (Rows, OnceRows, RowItems, Feed, FeedItems)
}


def main(arguments: Sequence[str]) -> int:
    process = JOBS[arguments[0]]
    try:
        run(process(process.parameters_type.model_validate_json(arguments[1])))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    from tests.support.page_jobs import main as importable_main

    sys.exit(importable_main(sys.argv[1:]))


def sqlite_file(path: Path) -> str:
    path.touch()
    return f"sqlite:///{path}"


def rows(url: str, output: Path, split: str, **others: Any) -> Rows:
    return Rows(RowParameters(database=url, output=str(output), split=split, **others))


def published(process: PageProcess[Any], column: str = "id") -> list[Any]:
    values: list[Any] = read_published(instance_uri(process)).to_table().column(column).to_pylist()
    return values


def hook(process: type[PageProcess[Any]], calls: Callable[[Any], None]) -> Any:
    HOOK[process.name] = calls
    return calls
