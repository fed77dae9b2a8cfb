"""What the framework costs a component, and what a second core gains, executed one by one.

    python benchmarks/bench_components.py --components 1000000 --repetitions 3

Whole processes, Parquet to Parquet, as many components as rows, taking turns: the framework on all
cores and on one, the same loop in a bare Beam pipeline, and a plain Python script. Results are
compared row by row.
"""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import pyarrow.dataset as ds
import report
import typer
from cases import TRADE_DATE, generated
from measure import on_one_core
from rich.console import Console
from turns import Figures, medians, take_turns

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE / "components"
CONTENDERS = ("ledgerbeam", "ledgerbeam-one-core", "bare-beam", "plain-loop")
NAME = "components"


def command_of(contender: str, pattern: str, output: Path) -> list[str]:
    """What runs a contender."""
    if contender.startswith("ledgerbeam"):
        script = str(SCRIPTS / "net_position.py")
        flags = [f"--trades={pattern}", f"--business-date={TRADE_DATE}", f"--output={output}"]
        columns = "--columns=_=client_code,_=symbol,_=price"
        cores = on_one_core() if contender.endswith("-one-core") else []
        return [*cores, sys.executable, script, *flags, columns, "--json"]
    script = str(SCRIPTS / f"{contender.replace('-', '_')}.py")
    return [sys.executable, script, pattern, str(output)]


def results_of(output: Path) -> list[tuple[int, int]]:
    """All (id, net quantity) that a contender has written, by id."""
    files = [str(path) for path in output.rglob("part*.parquet")]
    table = ds.dataset(files).to_table(columns=["id", "net_quantity"]).sort_by("id")
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def main(
    components: Annotated[int, typer.Option(help="how many, of one row each")] = 1_000_000,
    repetitions: Annotated[int, typer.Option(min=1, help="runs of each contender")] = 3,
    results: Annotated[Path, typer.Option(help="folder for table and raw figures")] = HERE
    / "results",
) -> None:
    """Measure the framework against the same loop without it."""
    started = datetime.now().astimezone()
    case = generated(HERE / "data", components, 32, lambda _: None)
    figures = take_turns(
        CONTENDERS,
        repetitions,
        HERE / "data" / f"components-{os.getpid()}",
        lambda name, output: command_of(name, case.parquet, output),
        results_of,
    )
    lines = table_of(figures, components)
    raw = report.circumstances(started) | {
        "components": components,
        "figures": figures,
    }
    head = [
        "# What the framework costs a component",
        "",
        f"{components:,} components of one row each, executed one by one by the same Python "
        f"function. Measured on {raw['started']} by `{raw['command']}`, {repetitions} repetitions "
        "in turn; medians, whole processes.",
        "",
        f"- Machine: {raw['machine']}",
        "",
    ]
    report.save(results, NAME, raw, "\n".join([*head, *lines]) + "\n")
    Console().print("\n".join(lines), highlight=False)


def table_of(figures: Figures, components: int) -> list[str]:
    """The figures as a Markdown table."""
    median = medians(figures)
    rows = [
        f"| {name} | {of['wall']:.2f} | {of['cpu']:.2f} | {components / of['wall']:,.0f} "
        f"| {of['peak']:,.0f} | {of['wall'] / median['bare-beam']['wall']:.2f} "
        f"| {of['wall'] / median['plain-loop']['wall']:.2f} |"
        for name, of in median.items()
    ]
    return [
        "| contender | wall s | cpu s | components/s | peak MB | ÷ bare-beam | ÷ plain-loop |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]


if __name__ == "__main__":
    typer.run(main)
