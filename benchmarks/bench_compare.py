"""What a comparison of two days costs, beside DuckDB's FULL JOIN of the same files.

    python benchmarks/bench_compare.py --rows 10000000 --repetitions 3

Whole processes, Parquet to Parquet, taking turns. The second side lacks one row of 1,000, has as
many new ones, and another price in one of 100. What both say of each row is compared.
"""

import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

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


def command_of(contender: str, before: str, after: str, output: Path) -> list[str]:
    """What runs a contender."""
    if contender == "duckdb":
        script = str(HERE / "comparison" / "duckdb_join.py")
        return [sys.executable, script, before, after, str(output)]
    flags = ["--keys=id", "--customer=client_code", "--amounts=price"]
    module = "ledgerbeam.pipelines.comparison.compare"
    return [
        *(sys.executable, "-m", module, f"--before={before}", f"--after={after}", *flags),
        *(f"--business-date={TRADE_DATE}", f"--output={output}", "--json"),
    ]


def changed(pattern: str, folder: Path) -> str:
    """Write the second side beside the first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(Path(pattern).parent.glob(Path(pattern).name))):
        table = pq.read_table(path)
        ids = table.column("id").to_numpy()
        table = table.set_column(
            table.column_names.index("price"),
            "price",
            pc.if_else(
                pa.array(ids % 100 == 0),
                pc.add(table.column("price"), pa.scalar(1, pa.decimal128(5, 2))).cast(
                    table.schema.field("price").type
                ),
                table.column("price"),
            ),
        )
        new = table.filter(pa.array(ids % 1_000 == 1))
        at = new.column_names.index("id")
        new = new.set_column(at, "id", pa.array(-new.column("id").to_numpy().astype(np.int64)))
        table = pa.concat_tables([table.filter(pa.array(ids % 1_000 != 999)), new])
        pq.write_table(table, folder / f"{number:05d}.parquet")
    return f"{folder}/*.parquet"


def results_of(output: Path) -> pa.Table:
    """What a contender says of each id, by id."""
    files = [str(path) for path in output.rglob("part*.parquet")]
    table = ds.dataset(files).to_table(columns=["id", "comparison", "differing"])
    texts = [table.column(name).cast(pa.string()) for name in ("comparison", "differing")]
    named = {"id": table.column("id"), "comparison": texts[0], "differing": texts[1]}
    return pa.table(named).sort_by("id").combine_chunks()


def main(
    rows: Annotated[int, typer.Option(help="rows of the first side")] = 10_000_000,
    repetitions: Annotated[int, typer.Option(min=1, help="runs of each contender")] = 3,
    results: Annotated[Path, typer.Option(help="folder for table and raw figures")] = HERE
    / "results",
) -> None:
    """Measure the comparison against DuckDB's join."""
    started = datetime.now().astimezone()
    before = generated(HERE / "data", rows, 32, lambda _: None).parquet
    scratch = HERE / "data" / f"comparison-{os.getpid()}"
    after = changed(before, scratch / "after")
    figures = take_turns(
        CONTENDERS,
        repetitions,
        scratch,
        lambda name, output: command_of(name, before, after, output),
        results_of,
        exit_codes=(0, 5),
    )
    lines = table_of(figures)
    raw = report.circumstances(started) | {"rows": rows, "figures": figures}
    head = [
        "# What a comparison costs",
        "",
        f"Two days of {rows:,} rows, compared by id. Measured on {raw['started']} by "
        f"`{raw['command']}`, {repetitions} repetitions in turn; medians, whole processes.",
        "",
        f"- Machine: {raw['machine']}",
        "",
    ]
    report.save(results, NAME, raw, "\n".join([*head, *lines]) + "\n")
    Console().print("\n".join(lines), highlight=False)


def table_of(figures: Figures) -> list[str]:
    """The figures as a Markdown table."""
    median = medians(figures)
    return [
        "| contender | wall s | cpu s | peak MB | ÷ duckdb |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {of['wall']:.2f} | {of['cpu']:.2f} | {of['peak']:,.0f} "
            f"| {of['wall'] / median['duckdb']['wall']:.2f} |"
            for name, of in median.items()
        ),
    ]


if __name__ == "__main__":
    typer.run(main)
