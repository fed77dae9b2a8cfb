"""The price migration beside a loop of one's own: CPU of client and server for each row.

    python benchmarks/bench_migration.py --rows 1000000 --repetitions 3

Both raise the same prices in pages of the same size, each page in one transaction that is on disk
when it has ended, and note each price before and after. The loop is `migration/plain_loop.py`.
What a run costs whatever its size, such as importing Beam, is measured with few rows, and taken off
what a row costs. The contenders take turns, and leave the same prices.
"""

import shutil
import statistics
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import psutil
import report
import sqlalchemy as sa
import typer
from measure import measure, server_cpu
from rich.console import Console

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
LOOP, OURS = "plain loop", "price migration"
PERCENT = "2.5"
FEW_ROWS = 1_000
LIMIT_SECONDS = 600.0
DURABLE = (
    "fsync = on",
    "synchronous_commit = on",
    "full_page_writes = on",
    "shared_buffers = 512MB",
    "max_wal_size = 4GB",
)
HEADINGS = ("contender", "client µs", "server µs", "both µs", "÷ loop", "wall s", "fixed cpu s")
PRICES = "SELECT count(*), sum(price), sum(hashint8(id) * price) FROM product"

Figure = dict[str, float]
"""Seconds of a run: `wall`, and CPU of `client` and `server`."""


def fill(url: str, rows: int) -> None:
    """Make the table of products, whose ids have gaps."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE product (id bigint PRIMARY KEY, name text NOT NULL, "
                "price numeric(12, 2) NOT NULL)"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO product SELECT 3 * n, 'product ' || n, (n % 100000) / 100.0 "
                "FROM generate_series(1, :rows) AS n"
            ),
            {"rows": rows},
        )
        connection.execute(sa.text("VACUUM ANALYZE product"))
        connection.execute(sa.text("CHECKPOINT"))
    engine.dispose()


def command_of(contender: str, url: str, page_rows: int, output: Path) -> list[str]:
    """What runs a contender."""
    if contender == LOOP:
        script = str(HERE / "migration" / "plain_loop.py")
        return [sys.executable, script, url.replace("+psycopg", ""), str(page_rows), PERCENT]
    flags = {
        "database": url,
        "business-date": "2026-11-20",
        "percent": PERCENT,
        "page-rows": page_rows,
        "output": output,
    }
    given = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", "ledgerbeam.pipelines.price_migration", *given]


def run(
    contender: str, url: str, rows: int, page_rows: int, server: psutil.Process
) -> tuple[Figure, tuple[Any, ...]]:
    """Measure one contender once; the figures, and what the prices are afterwards.

    Raises:
        RuntimeError: it failed.
    """
    fill(url, rows)
    output = RESULTS / f".scratch-{server.pid}"
    before = server_cpu(server)
    measured = measure(command_of(contender, url, page_rows, output), limit_seconds=LIMIT_SECONDS)
    cpu = server_cpu(server) - before
    shutil.rmtree(output, ignore_errors=True)
    if measured.exit_code != 0:
        raise RuntimeError(f"{contender} failed: {measured.errors}")
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = tuple(connection.execute(sa.text(PRICES)).one())
    engine.dispose()
    figure = {"wall": measured.wall_seconds, "client": measured.cpu_seconds, "server": cpu}
    return figure, found


def cells(figures: dict[str, list[Figure]], fixed: dict[str, Figure], rows: int) -> list[list[str]]:
    """The cells of the table of results, a row a contender."""
    per_row = {
        name: {
            side: 1e6
            * (statistics.median(one[side] for one in ones) - fixed[name][side])
            / (rows - FEW_ROWS)
            for side in ("client", "server")
        }
        for name, ones in figures.items()
    }
    both = {name: sum(of.values()) for name, of in per_row.items()}
    return [
        [
            name,
            f"{per_row[name]['client']:.1f}",
            f"{per_row[name]['server']:.1f}",
            f"{both[name]:.1f}",
            f"{both[name] / both[LOOP]:.2f}",
            f"{statistics.median(one['wall'] for one in ones):.1f}",
            f"{fixed[name]['client'] + fixed[name]['server']:.2f}",
        ]
        for name, ones in figures.items()
    ]


def markdown(raw: dict[str, Any], rows: list[list[str]]) -> str:
    """The page of results."""
    lines = [
        "# The price migration, beside a loop of one's own",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}; PostgreSQL on the same, with every commit on disk",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        f"- {raw['rows']:,} products in pages of {raw['page_rows']:,}. {raw['repetitions']} "
        "repetitions, in turns; medians. All leave the same prices.",
        f"- `client` and `server` are CPU for each row, without `fixed`: what {FEW_ROWS:,} rows "
        "take. `wall` is the whole program.",
        "",
        *report.table(HEADINGS, rows),
    ]
    return "\n".join(lines) + "\n"


def main(
    rows: Annotated[int, typer.Option(min=FEW_ROWS + 1, help="products")] = 1_000_000,
    page_rows: Annotated[int, typer.Option(min=1, help="products of a page")] = 1_000,
    repetitions: Annotated[int, typer.Option(min=1, help="of each contender")] = 3,
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure the migration against a plain loop; writes migration.md and migration.json."""
    # The tests' own server: it starts in two seconds and leaves nothing behind.
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import postgres_server

    started = datetime.now().astimezone()
    figures: dict[str, list[Figure]] = {LOOP: [], OURS: []}
    console = Console(stderr=True)
    with postgres_server(DURABLE) as server:
        process = psutil.Process(int((server.data / "postmaster.pid").read_text().split()[0]))

        def measured(name: str, count: int) -> tuple[Figure, tuple[Any, ...]]:
            return run(name, server.create_database(), count, page_rows, process)

        fixed = {name: measured(name, FEW_ROWS)[0] for name in figures}
        for repetition in range(repetitions):
            left = set()
            for name, ones in figures.items():
                figure, prices = measured(name, rows)
                ones.append(figure)
                left.add(prices)
                console.print(f"{repetition + 1} of {repetitions}: {name}: {figure}")
            if len(left) > 1:
                sys.exit(f"the contenders have left other prices: {left}")
    raw = report.circumstances(started) | {
        "rows": rows,
        "page_rows": page_rows,
        "repetitions": repetitions,
        "fixed": fixed,
        "figures": figures,
    }
    report.save(results, "migration", raw, markdown(raw, cells(figures, fixed, rows)))
    console.print(f"written to {results / 'migration.md'}")


if __name__ == "__main__":
    typer.run(main)
