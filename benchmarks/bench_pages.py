"""Pages of a PostgreSQL table: the framework against a plain loop with the same page function.

    python benchmarks/bench_pages.py --rows 1000000 --repetitions 3

A page of 1,000 rows costs a call of 10 ms to somebody else. The loop fetches page after page and
calls. What it takes, divided by the number of pages in flight, is what the framework is held to:
no framework, and a source that costs nothing. The contenders take turns, repetition by repetition.
"""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import report
import sqlalchemy as sa
import typer
from measure import measure
from pages_job import CALL_SECONDS, PAGE_ROWS, PARTITIONS
from rich.console import Console

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
LIMIT_SECONDS = 600.0

SPLITS = {"number": f"{PARTITIONS} partitions", "count": "walk, a page a shard"}
HEADINGS = (
    "pages by",
    "in flight: limit",
    "reached",
    "ideal s",
    "calls s",
    "÷ ideal",
    "run s",
    "÷ ideal",
    "process s",
    "cpu s",
)


class Contender(NamedTuple):
    """What is measured.

    Attributes:
        split: how pages are cut; empty for the loop.
        parallelism: pages in flight.
    """

    split: str
    parallelism: int

    def __str__(self) -> str:
        return f"{self.split}, {self.parallelism} in flight" if self.split else "loop"


def fill(url: str, rows: int) -> None:
    """Make the table of accounts, whose ids have gaps."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE account (id bigint PRIMARY KEY, customer text NOT NULL, "
                "opened date NOT NULL, balance numeric(14, 2) NOT NULL, currency char(3) NOT NULL, "
                "note text)"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO account SELECT 3 * n, 'customer ' || n % 50000, "
                "date '2020-01-01' + (n % 2000)::int, (n % 100000) / 100.0, 'USD', md5(n::text) "
                "FROM generate_series(1, :rows) AS n"
            ),
            {"rows": rows},
        )
        connection.execute(sa.text("VACUUM ANALYZE account"))
    engine.dispose()


def run(contender: Contender, url: str, rows: int, scratch: Path) -> dict[str, float]:
    """Measure one contender once.

    Raises:
        RuntimeError: it failed, or hasn't seen all rows.
    """
    arguments = [contender.split, str(contender.parallelism), url, str(scratch)]
    if not contender.split:
        arguments = ["loop", url]
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    measured = measure(
        [sys.executable, "-m", "pages_job", *arguments],
        limit_seconds=LIMIT_SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
    )
    shutil.rmtree(scratch, ignore_errors=True)
    if measured.exit_code != 0:
        raise RuntimeError(f"{contender} failed: {measured.errors}")
    told: dict[str, float] = json.loads(measured.output.splitlines()[-1])
    if told["rows"] != rows:
        raise RuntimeError(f"{contender} has seen {told['rows']:,} of {rows:,} rows")
    return told | {"process_seconds": measured.wall_seconds, "cpu_seconds": measured.cpu_seconds}


def table_rows(figures: dict[str, list[dict[str, float]]], order: list[Contender]) -> Iterator[Any]:
    """Cells of the results table, a row a contender."""
    loop = statistics.median(one["run_seconds"] for one in figures["loop"])
    for contender in order:
        ones = figures[str(contender)]

        def median(name: str, ones: list[dict[str, float]] = ones) -> float:
            return statistics.median(one[name] for one in ones)

        ideal = loop / contender.parallelism
        yield [
            SPLITS.get(contender.split, "plain loop"),
            str(contender.parallelism),
            f"{min(one['peak'] for one in ones):.0f}",
            f"{ideal:.2f}",
            f"{median('calls_seconds'):.2f}",
            f"{median('calls_seconds') / ideal:.2f}",
            f"{median('run_seconds'):.2f}",
            f"{median('run_seconds') / ideal:.2f}",
            f"{median('process_seconds'):.2f}",
            f"{median('cpu_seconds'):.2f}",
        ]


def markdown(raw: dict[str, Any], cells: list[list[str]]) -> str:
    """The page of results."""
    lines = [
        "# Pages of a table, beside a plain loop",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}; PostgreSQL on the same",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        f"- {raw['rows']:,} rows of six columns in pages of {PAGE_ROWS:,}; each page costs a call "
        f"of {1000 * CALL_SECONDS:.0f} ms. {raw['repetitions']} repetitions, in turns; medians.",
        "- `ideal` is what the plain loop takes, divided by the pages in flight. `calls` lasts "
        "from the beginning of the first call to the end of the last, `run` from before the "
        "pipeline is built until the manifest is published, `process` is the whole program. "
        "`reached` is the least of the repetitions.",
        "",
        *report.table(HEADINGS, cells),
    ]
    return "\n".join(lines) + "\n"


def main(
    rows: Annotated[int, typer.Option(min=1, help="of the table")] = 1_000_000,
    repetitions: Annotated[int, typer.Option(min=1, help="of each contender")] = 3,
    parallelism: Annotated[
        list[int] | None, typer.Option(help="pages in flight; several times for several")
    ] = None,
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure the page process against a plain loop; writes pages.md and pages.json."""
    # The tests' own server: it starts in two seconds and leaves nothing behind.
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import postgres_server

    started = datetime.now().astimezone()
    order = [
        Contender("", 1),
        *(Contender(split, n) for split in SPLITS for n in parallelism or (1, 2, 4, 8, 16)),
    ]
    figures: dict[str, list[dict[str, float]]] = {str(contender): [] for contender in order}
    console = Console(stderr=True)
    with postgres_server() as server:
        url = server.create_database()
        fill(url, rows)
        for repetition in range(repetitions):
            for contender in order:
                told = run(contender, url, rows, results / f".scratch-{os.getpid()}")
                figures[str(contender)].append(told)
                console.print(
                    f"{repetition + 1} of {repetitions}: {contender}: {told['calls_seconds']:.2f} s"
                    f" of calls, {told['run_seconds']:.2f} s of the run"
                )
    raw = report.circumstances(started) | {
        "rows": rows,
        "repetitions": repetitions,
        "figures": figures,
    }
    report.save(results, "pages", raw, markdown(raw, list(table_rows(figures, order))))
    console.print(f"written to {results / 'pages.md'}")


if __name__ == "__main__":
    typer.run(main)
