"""What a comparison of two published instances costs, beside DuckDB's FULL JOIN of their files.

    python benchmarks/bench_compare.py --rows 10000000 --repetitions 3

Whole processes, Parquet to Parquet, taking turns. Both sides are days of trades in three
currencies, marked by `delivery-marking`. The second day lacks one trade of 1,000, has as many new
ones, and another price in one of 100. What both contenders say of each row has to be the same, and
so have their totals: rows by status, rows by differing column, and for each currency the changes
of prices, added up with and without their signs.
"""

import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import report
import typer
from cases import TRADE_DATE, generated
from rich.console import Console
from turns import Figures, medians, take_turns

HERE = Path(__file__).resolve().parent
CONTENDERS = ("ledgerbeam", "duckdb")
NAME = "comparison"
SIDES = ("before", "after")
CURRENCIES = ("EUR", "INR", "USD")
INSTANCE = Path("delivery-marking") / TRADE_DATE.isoformat()


def command_of(contender: str, sides: Path, output: Path) -> list[str]:
    """What runs a contender."""
    instances = [str(sides / side / INSTANCE) for side in SIDES]
    if contender == "duckdb":
        script = str(HERE / "comparison" / "duckdb_join.py")
        parts = [f"{instance}/attempt-*/part-*.parquet" for instance in instances]
        return [sys.executable, script, *parts, str(output)]
    flags = ["--keys=id", "--customer=client_code", "--amounts=price", "--currency=currency"]
    before, after = instances
    module = "ledgerbeam.pipelines.comparison.compare"
    return [
        *(sys.executable, "-m", module, f"--before={before}", f"--after={after}", *flags),
        *(f"--business-date={TRADE_DATE}", f"--output={output}", "--json"),
    ]


def publish(rows: int, files: int, folder: Path) -> None:
    """Publish both sides: so many trades, marked for delivery, and the day after its changes."""
    pattern = generated(HERE / "data", rows, files, lambda _: None).parquet
    for side in SIDES:
        trades = folder / f"trades-{side}"
        trades.mkdir(parents=True)
        for number, path in enumerate(sorted(Path(pattern).parent.glob(Path(pattern).name))):
            table = _with_currency(pq.read_table(path))
            table = _changed(table) if side == "after" else table
            pq.write_table(table, trades / f"{number:05d}.parquet")
        subprocess.run(
            [
                *(sys.executable, "-m", "ledgerbeam.pipelines.delivery_marking"),
                *(f"--trades={trades}/*.parquet", f"--trade-date={TRADE_DATE}"),
                f"--output={folder / side}",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        shutil.rmtree(trades)


def _with_currency(table: pa.Table) -> pa.Table:
    codes = pa.array(table.column("id").to_numpy() % len(CURRENCIES), pa.int32())
    return table.append_column("currency", pa.DictionaryArray.from_arrays(codes, CURRENCIES))


def _changed(table: pa.Table) -> pa.Table:
    ids = table.column("id").to_numpy()
    prices = table.column("price")
    raised = pc.add(prices, pa.scalar(1, pa.decimal128(5, 2))).cast(prices.type)
    table = table.set_column(
        table.column_names.index("price"),
        "price",
        pc.if_else(pa.array(ids % 100 == 0), raised, prices),
    )
    new = table.filter(pa.array(ids % 1_000 == 1))
    new_ids = pa.array(-new.column("id").to_numpy().astype(np.int64))
    new = new.set_column(new.column_names.index("id"), "id", new_ids)
    return pa.concat_tables([table.filter(pa.array(ids % 1_000 != 999)), new])


def results_of(output: Path) -> tuple[pa.Table, dict[str, int]]:
    """What a contender says of each id, by id, and its totals."""
    files = [str(path) for path in output.rglob("part*.parquet")]
    table = ds.dataset(files).to_table(columns=["id", "comparison", "differing"])
    texts = [table.column(name).cast(pa.string()) for name in ("comparison", "differing")]
    named = {"id": table.column("id"), "comparison": texts[0], "differing": texts[1]}
    own = output / "totals.json"
    if own.exists():
        totals: dict[str, Any] = json.loads(own.read_text())
    else:
        (manifest,) = output.rglob("manifest.json")
        totals = json.loads(manifest.read_text())["totals"]
    found = {
        name: int(total)
        for name, total in totals.items()
        if total and name.startswith(("keys_", "changed_", "net_", "gross_"))
    }
    return pa.table(named).sort_by("id").combine_chunks(), found


def main(
    rows: Annotated[list[int] | None, typer.Option(help="rows of the first side; several")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="runs of each contender")] = 3,
    results: Annotated[Path, typer.Option(help="folder for table and raw figures")] = HERE
    / "results",
) -> None:
    """Measure the comparison against DuckDB's join."""
    started = datetime.now().astimezone()
    figures: dict[int, Figures] = {}
    for count in rows or [1_000_000, 10_000_000]:
        scratch = HERE / "data" / f"comparison-{os.getpid()}"
        try:
            publish(count, max(1, count // 312_500), scratch)
            figures[count] = take_turns(
                CONTENDERS,
                repetitions,
                scratch,
                lambda name, output: command_of(name, output.parent, output),
                results_of,
                exit_codes=(0, 5),
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    lines = table_of(figures)
    raw = report.circumstances(started) | {
        "figures": {str(count): of for count, of in figures.items()}
    }
    head = [
        "# What a comparison costs",
        "",
        "Two published instances of `delivery-marking`, compared by id, and a FULL JOIN of the "
        f"same files in DuckDB. Measured on {raw['started']} by `{raw['command']}`, {repetitions} "
        "repetitions in turn; medians, whole processes. Both say the same of each row, and have "
        "the same totals; the table of differing values, the report and the checks of the input's "
        "hashes are in ledgerbeam's figures alone.",
        "",
        f"- Machine: {raw['machine']}",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        "",
    ]
    report.save(results, NAME, raw, "\n".join([*head, *lines]) + "\n")
    Console().print("\n".join(lines), highlight=False)


def table_of(figures: dict[int, Figures]) -> list[str]:
    """The figures as a Markdown table."""
    lines = [
        "| rows of each side | contender | wall s | cpu s | cpu ÷ duckdb | peak MB |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for count, of_count in figures.items():
        median = medians(of_count)
        lines += [
            f"| {count:,} | {name} | {of['wall']:.2f} | {of['cpu']:.2f} "
            f"| {of['cpu'] / median['duckdb']['cpu']:.2f} | {of['peak']:,.0f} |"
            for name, of in median.items()
        ]
    return lines


if __name__ == "__main__":
    typer.run(main)
