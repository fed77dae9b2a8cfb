"""The memory of one component, beside that of a shard with as many rows in many components.

    python benchmarks/bench_hot_keys.py --rows 3000000 --rows 30000000

Delivery marking of a day that is one shard: all trades of one client in one symbol, and trades as
they are spread over clients and symbols. Whole processes, Parquet to Parquet, taking turns.
"""

import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import report
import typer
from cases import TRADE_DATE
from measure import Measurement, measure
from rich.console import Console

from ledgerbeam.synthetic.trades import write_trades

HERE = Path(__file__).resolve().parent
NAME = "hot-keys"
KEYS = {"one component": (1, 1), "many components": (None, 500)}
"""How many clients and symbols trade; None for one client in a hundred trades."""

ROWS_PER_FILE = 1_000_000
LIMIT_SECONDS = 900.0
HEADINGS = ("trades", "of", "peak MB", "bytes a trade", "÷ many", "wall s", "cpu s")


def run(data: Path, rows: int, keys: str) -> Measurement:
    """Mark one day, and remove what that has made.

    Raises:
        RuntimeError: it failed.
    """
    folder = data / f"hot-keys-{os.getpid()}"
    clients, symbols = KEYS[keys]
    try:
        write_trades(
            str(folder / "trades"),
            rows,
            files=max(rows // ROWS_PER_FILE, 1),
            trade_date=TRADE_DATE,
            clients=clients,
            symbols=symbols,
        )
        measured = measure(
            [
                *(sys.executable, "-m", "ledgerbeam.pipelines.delivery_marking", "--shards=1"),
                *(f"--trades={folder}/trades/*", f"--trade-date={TRADE_DATE}"),
                f"--output={folder}/output",
            ],
            limit_seconds=LIMIT_SECONDS,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if measured.exit_code != 0:
        raise RuntimeError(f"{rows:,} trades of {keys} failed: {measured.errors}")
    return measured


def main(
    rows: Annotated[
        list[int] | None, typer.Option(help="trades; several times for several")
    ] = None,
    results: Annotated[Path, typer.Option(help="folder of the results")] = HERE / "results",
) -> None:
    """Measure one component beside many; writes hot-keys.md and hot-keys.json."""
    started = datetime.now().astimezone()
    figures: dict[int, dict[str, Measurement]] = {}
    for count in rows or [3_000_000, 30_000_000]:
        figures[count] = {keys: run(HERE / "data", count, keys) for keys in KEYS}
        for keys, of in figures[count].items():
            Console(stderr=True).print(f"{count:,} trades of {keys}: {of.peak_bytes / 1e6:,.0f} MB")
    cells = [
        [
            f"{count:,}",
            keys,
            f"{of.peak_bytes / 1e6:,.0f}",
            f"{of.peak_bytes / count:,.0f}",
            f"{of.peak_bytes / both['many components'].peak_bytes:.2f}",
            f"{of.wall_seconds:.1f}",
            f"{of.cpu_seconds:.1f}",
        ]
        for count, both in figures.items()
        for keys, of in both.items()
    ]
    raw = report.circumstances(started) | {
        "figures": {
            f"{count} trades of {keys}": of._asdict() | {"output": "", "errors": ""}
            for count, both in figures.items()
            for keys, of in both.items()
        }
    }
    lines = [
        "# The memory of one component",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`: delivery marking in one shard.",
        "",
        f"- Machine: {raw['machine']}",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        "",
        *report.table(HEADINGS, cells),
    ]
    report.save(results, NAME, raw, "\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
