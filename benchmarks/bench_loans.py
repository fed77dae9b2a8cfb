"""Loan workloads side by side: these pipelines, the plain rules in a loop, row-wise Beam, DuckDB.

    python benchmarks/bench_loans.py --loans 200000 --repetitions 3

Every run is a whole process, Parquet to Parquet. The plain loop and row-wise Beam do a fifth of
the loans, and the loop closes the day of all of them; results are compared row by row, and where
one differs or fails, the exit status is 1. DuckDB has the totals of the report only, over lines
that are computed already. Growth is that of the pipelines from a quarter of the loans to twice as
many.
"""

import glob
import importlib.util
import json
import os
import shutil
import statistics
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import agreement
import matplotlib as mpl
import matplotlib.ticker
import pyarrow.dataset as ds
import report
import typer
from loan_cases import BUSINESS_DATE, INSTALMENTS, LoanCase, portfolio
from matplotlib.figure import Figure
from measure import measure
from rich.console import Console
from rich.progress import Progress

from ledgerbeam.io.commit.published import read_published

HERE = Path(__file__).resolve().parent
NAME = "loans"
CLOSE = "close of business"
LONG = 60
"""Seconds: a run that takes longer isn't repeated."""

# Module of each workload, the folder of its input, and what its rates are of.
WORKLOADS = {
    "schedules": ("repayment_schedules", "schedules", "instalments"),
    "report": ("investor_report", "month", "loans"),
    CLOSE: ("loan_close_of_business", "day", "loans"),
}
SCRIPTS = {
    "plain loop": "plain_loop.py",
    "row-wise Beam": "rowwise_beam.py",
    "DuckDB, totals of lines": "duckdb_totals.py",
}


@dataclass
class Entry:
    """What a contender did.

    Attributes:
        workload: a key of `WORKLOADS`.
        contender: its name.
        loans: how many there were.
        wall_seconds: of each repetition; as the others.
        cpu_seconds: over all cores.
        peak_bytes: of all its processes.
        trouble: why it has no figures, or no more of them.
    """

    workload: str
    contender: str
    loans: int
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    trouble: str = ""

    @property
    def rate(self) -> float:
        """Units of work in a second of the median run."""
        each = INSTALMENTS if self.workload == "schedules" else 1
        return self.loans * each / statistics.median(self.wall_seconds)


def command_of(entry: Entry, case: LoanCase, output: Path) -> list[str]:
    """What runs a contender."""
    if entry.contender in SCRIPTS:
        script = str(HERE / "loans" / SCRIPTS[entry.contender])
        folder = str(case.folder)
        return [sys.executable, script, entry.workload, folder, str(output), str(BUSINESS_DATE)]
    module, room, _ = WORKLOADS[entry.workload]
    folder = str(case.folder / room)
    flags = [f"--loans={folder}/loans-*.parquet"]
    if entry.workload != "schedules":
        flags.append(f"--transactions={folder}/transactions-*.parquet")
    if entry.workload == "report":
        flags.append(f"--investors={folder}/investors.parquet")
    return [
        *(sys.executable, "-m", f"ledgerbeam.pipelines.{module}", *flags),
        *(f"--business-date={BUSINESS_DATE}", f"--output={output}", "--json"),
    ]


def compete(entries: list[Entry], case: LoanCase, repetitions: int, limit: float) -> list[str]:
    """Run contenders of one workload in turns, and compare their rows.

    Returns:
        Who differs from the first one.
    """
    found: dict[str, agreement.Fingerprint] = {}
    types: list[str] = []
    columns: list[str] = []
    scratch = HERE / "data" / f"loan-outputs-{os.getpid()}"
    for repetition in range(repetitions):
        first = repetition % len(entries)
        for entry in entries[first:] + entries[:first]:
            if entry.trouble or max(entry.wall_seconds, default=0) > LONG:
                continue
            output = scratch / "output"
            scratch.mkdir(parents=True, exist_ok=True)
            os.sync()
            try:
                measured = measure(command_of(entry, case, output), limit_seconds=limit)
                if measured.exit_code is None:
                    entry.trouble = f"stopped after {limit:,.0f} s"
                    continue
                if measured.exit_code:
                    last = (measured.errors.strip().splitlines() or ["no message"])[-1]
                    entry.trouble = f"failed: exit status {measured.exit_code}: {last}"
                    continue
                entry.wall_seconds.append(measured.wall_seconds)
                entry.cpu_seconds.append(measured.cpu_seconds)
                entry.peak_bytes.append(measured.peak_bytes)
                if repetition or entry.contender.startswith("DuckDB"):
                    continue
                result = _result(entry, output, measured.output)
                if not columns:
                    columns = list(result.schema.names)
                    types = agreement.sql_types(result, columns)
                found[entry.contender] = agreement.fingerprint(result, columns, types)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return [name for name, result in found.items() if result != next(iter(found.values()))]


def _result(entry: Entry, output: Path, printed: str) -> ds.Dataset:
    if entry.contender == "ledgerbeam":
        return read_published(json.loads(printed.splitlines()[-1])["published"])
    return ds.dataset(sorted(glob.glob(f"{output}/part*.parquet")), format="parquet")


def contenders_of(workload: str, is_fifth: bool) -> list[str]:
    """Who takes part."""
    if is_fifth:
        return ["ledgerbeam", "plain loop", "row-wise Beam"]
    others = {"report": ["DuckDB, totals of lines"], CLOSE: ["plain loop"]}
    return ["ledgerbeam", *others.get(workload, [])]


def main(
    loans: Annotated[int, typer.Option(min=20, help="how many, of 24 months each")] = 200_000,
    repetitions: Annotated[int, typer.Option(min=1, help="runs of each contender")] = 3,
    limit: Annotated[float, typer.Option(help="most seconds that a run may take")] = 1_800.0,
    growth: Annotated[bool, typer.Option(help="whether to measure other sizes, too")] = True,
    results: Annotated[Path, typer.Option(help="folder for table, plot and raw figures")] = HERE
    / "results",
) -> None:
    """Measure the loan workloads against other ways to do them."""
    started = datetime.now().astimezone()
    console = Console(stderr=True)
    there = [
        name
        for name, (module, _, _) in WORKLOADS.items()
        if importlib.util.find_spec(f"ledgerbeam.pipelines.{module}")
    ]

    most = 2 * loans
    with Progress(console=console, transient=True) as bars:
        task = bars.add_task(f"making {most:,} loans", total=most)

        def made(count: int) -> LoanCase:
            return portfolio(HERE / "data", count, most, lambda done: bars.advance(task, done))

        made(most)

    entries: list[Entry] = []
    differing: list[str] = []
    for count in (loans // 5, loans):
        case = made(count)
        for workload in there:
            names = contenders_of(workload, count < loans)
            of_bout = [Entry(workload, name, count) for name in names]
            console.print(f"{workload}, {count:,} loans: {', '.join(names)}")
            wrong = compete(of_bout, case, repetitions, limit)
            differing += [f"{workload}: {name}" for name in wrong]
            entries += of_bout
    grown = [entry for entry in entries if entry.contender == "ledgerbeam"]
    for count in (loans // 4, loans // 2, 2 * loans) if growth else ():
        case = made(count)
        for workload in there:
            entry = Entry(workload, "ledgerbeam", count)
            console.print(f"{workload}, {count:,} loans")
            compete([entry], case, repetitions, limit)
            grown.append(entry)
    raw = report.circumstances(started) | {
        "transactions": made(loans).transactions,
        "entries": [asdict(entry) for entry in entries],
        "grown": [asdict(entry) for entry in grown],
        "differing": differing,
    }
    write(results, raw, entries, grown)
    console.print("\n".join(table_of(entries)), highlight=False, soft_wrap=True)
    failed = [entry for entry in [*entries, *grown] if entry.trouble.startswith("failed")]
    for entry in failed:
        console.print(f"{entry.workload}, {entry.contender}: {entry.trouble}")
    if failed or differing:
        raise typer.Exit(1)


def table_of(entries: list[Entry]) -> list[str]:
    """The figures as a Markdown table."""
    rows = []
    for entry in entries:
        head = f"| {entry.workload} | {entry.loans:,} | {entry.contender} |"
        if not entry.wall_seconds:
            rows.append(f"{head} {entry.trouble} | | | | |")
            continue
        walls = entry.wall_seconds
        rows.append(
            f"{head} {statistics.median(walls):.2f} | {min(walls):.2f} - {max(walls):.2f} "
            f"| {statistics.median(entry.cpu_seconds):.2f} "
            f"| {entry.rate:,.0f} {WORKLOADS[entry.workload][2]} "
            f"| {max(entry.peak_bytes) / 1e6:,.0f} |"
        )
    return [
        "| workload | loans | contender | wall s | min - max | cpu s | a second | peak MB |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]


def write(folder: Path, raw: dict[str, Any], entries: list[Entry], grown: list[Entry]) -> None:
    """Write `loans.md`, `.png` and `.json`."""
    verdict = "All contenders of a workload agree on every row."
    if raw["differing"]:
        verdict = f"RESULTS DIFFER: {', '.join(raw['differing'])}."
    grown = sorted(grown, key=lambda entry: entry.loans)
    lines = [
        "# Loan workloads, side by side",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`. The largest portfolio of the first "
        f"table has {raw['transactions']:,} transactions of 24 months; the report is that of the "
        f"last one, and schedules are of {INSTALMENTS} instalments. {verdict}",
        "",
        f"- Machine: {raw['machine']}",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        "- Wall time is that of the whole process, imports included; peak memory that of the "
        "process tree. `wall s` is the median of the repetitions, which took turns; a run of more "
        f"than {LONG} s wasn't repeated.",
        "",
        *table_of(entries),
        "",
        "## Growth",
        "",
        f"![Wall time by number of loans]({NAME}.png)",
        "",
        *table_of(grown),
    ]
    report.save(folder, NAME, raw, "\n".join(lines) + "\n")
    _plot(folder / f"{NAME}.png", grown, raw)


def _plot(path: Path, grown: list[Entry], raw: dict[str, Any]) -> None:
    """Wall seconds by loans, with a line through the first one as long as time is linear."""
    workloads = list(dict.fromkeys(entry.workload for entry in grown if entry.wall_seconds))
    if not workloads:
        return
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(4.2 * len(workloads), 3.4), layout="constrained")
        panels = figure.subplots(1, len(workloads), squeeze=False)[0]
        for axes, workload in zip(panels, workloads, strict=True):
            mine = [entry for entry in grown if entry.workload == workload and entry.wall_seconds]
            loans = [entry.loans for entry in mine]
            walls = [statistics.median(entry.wall_seconds) for entry in mine]
            linear = [walls[0] * count / loans[0] for count in loans]
            axes.plot(loans, linear, color="#a9b4c0", ls="--", label="in proportion")
            axes.plot(loans, walls, "o-", color="#1f5fa8", label="ledgerbeam")
            axes.set_title(workload, loc="left", fontweight="bold")
            axes.set_xlabel("loans")
            axes.set_ylabel("wall seconds")
            axes.set_xlim(0)
            axes.set_ylim(0)
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        figure.supxlabel(f"{raw['machine']} · {raw['started'][:10]}", fontsize=7, color="#555555")
        figure.savefig(path, dpi=130)


if __name__ == "__main__":
    typer.run(main)
