"""The two programs that `bench_pages.py` measures: a page process, and a plain loop.

    python -m pages_job loop URL
    python -m pages_job SPLIT PARALLELISM URL OUTPUT

Both call the same page function, which takes 10 ms of somebody else's time, for pages of 1,000 rows
that the same query gives. They print what they counted as a line of JSON.
"""

import datetime
import json
import sys
import threading
import time
from collections.abc import Iterator

import pyarrow as pa

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.define.page_process import Page, PageProcess, SqlPages, SqlParameters
from ledgerbeam.batch.define.process import Record
from ledgerbeam.io.sql.ranges import ByCount, ByNumber
from ledgerbeam.io.sql.source import SqlTable

PAGE_ROWS = 1_000
CALL_SECONDS = 0.01
PARTITIONS = 4
COLUMNS = ("id", "customer", "opened", "balance", "currency", "note")


def call_service() -> None:
    """Stand for a call to a service that answers in 10 ms."""
    time.sleep(CALL_SECONDS)


class Watch:
    """When calls began and ended, and how many were in flight."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self.peak = 0
        self.first = float("inf")
        self.last = 0.0
        self._active = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Begin a call."""
        with self._lock:
            self._active += 1
            self.peak = max(self.peak, self._active)
            self.first = min(self.first, time.perf_counter())

    def __exit__(self, *_: object) -> None:
        """End it."""
        with self._lock:
            self._active -= 1
            self.last = time.perf_counter()


WATCH = Watch()


class AccountParameters(SqlParameters):
    """Parameters of the page process."""

    business_date: datetime.date = datetime.date(2026, 11, 20)
    split: str


class Accounts(PageProcess[AccountParameters]):
    """Calls the service for each page, and notes how many rows it had."""

    name = "accounts"
    results = pa.schema([("rows", pa.int64()), ("last", pa.int64())])

    @property
    def source(self) -> SqlPages:
        """The accounts."""
        table = SqlTable(self.parameters.database, "account", ("id",), COLUMNS)
        is_walk = self.parameters.split == "count"
        split = ByCount(PAGE_ROWS) if is_walk else ByNumber(PARTITIONS)
        return SqlPages(table, split, PAGE_ROWS)

    def execute(self, page: Page) -> Iterator[Record]:
        """Call the service."""
        with WATCH:
            call_service()
        yield {"rows": len(page), "last": page.table.column("id")[-1].as_py()}


def loop(url: str) -> dict[str, float]:
    """Page after page in one thread, over one connection, without a framework."""
    import psycopg

    columns = ", ".join(COLUMNS)
    query = f"SELECT {columns} FROM account WHERE id > %s ORDER BY id LIMIT {PAGE_ROWS}"
    start = time.perf_counter()
    results = []
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        last = 0
        while rows := connection.execute(query, (last,)).fetchall():
            last = rows[-1][0]
            with WATCH:
                call_service()
            results.append({"rows": len(rows), "last": last})
    return {
        "peak": WATCH.peak,
        "pages": len(results),
        "rows": sum(result["rows"] for result in results),
        "calls_seconds": WATCH.last - WATCH.first,
        "run_seconds": time.perf_counter() - start,
    }


def framework(split: str, parallelism: int, url: str, output: str) -> dict[str, float]:
    """The page process, with so many pages in flight."""
    Accounts.parallelism = parallelism
    start = time.perf_counter()
    manifest = run(Accounts(AccountParameters(database=url, output=output, split=split)))
    return {
        "peak": WATCH.peak,
        "pages": manifest.counts["components"],
        "rows": manifest.counts["rows_in"],
        "calls_seconds": WATCH.last - WATCH.first,
        "run_seconds": time.perf_counter() - start,
    }


def main(arguments: list[str]) -> None:
    """Run what the arguments say."""
    if arguments[0] == "loop":
        told = loop(arguments[1])
    else:
        split, parallelism, url, output = arguments
        told = framework(split, int(parallelism), url, output)
    print(json.dumps(told))


if __name__ == "__main__":
    # What is pickled must live in an importable module.
    from pages_job import main as importable_main

    importable_main(sys.argv[1:])
