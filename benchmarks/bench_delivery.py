"""Delivery marking side by side: this pipeline, bare and row-wise Beam, DuckDB, Polars, pandas.

    python benchmarks/bench_delivery.py --trades 1000000 --trades 10000000 --repetitions 3

Every run is a whole process, Parquet to Parquet, with the input in the page cache. The contenders
take turns, repetition by repetition, so that a busy machine hits them all alike. All results are
compared trade by trade: where one differs or fails, the exit status is 1.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated

import agreement
import pyarrow.dataset as ds
import report
import typer
from cases import TRADE_DATE, Case, generated, small_generated, small_given
from measure import measure, on_one_core
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ledgerbeam.io.commit.published import read_published

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
RESULTS = HERE / "results"

OURS = {
    "ledgerbeam": ["--rule=vectorised"],
    # As a run on record, with a launcher that watches over it.
    "ledgerbeam-recorded": ["--rule=vectorised", "--registry=sqlite:///{output}.db"],
    "ledgerbeam-per-component": ["--rule=per-component"],
    "ledgerbeam-per-component-one-core": ["--rule=per-component"],
}
SCRIPTS = {
    "bare-beam": "bare_beam.py",
    "duckdb": "duckdb_sql.py",
    "polars": "polars_streaming.py",
    "pandas": "pandas_job.py",
    "rowwise-beam": "rowwise_beam.py",
}
CONTENDERS = [*OURS, *SCRIPTS]


@dataclass
class Entry:
    """What a contender did on one day of trades.

    Attributes:
        contender: its name.
        wall_seconds: of each repetition.
        cpu_seconds: of each repetition, over all cores.
        peak_bytes: of each repetition.
        trouble: why it has no figures, or no more of them.
    """

    contender: str
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    trouble: str = ""


@dataclass
class Bout:
    """All contenders on one day of trades.

    Attributes:
        case: the day.
        entries: by contender.
        agreeing: groups of contenders whose results are equal.
        examples: rows in which results differ.
    """

    case: Case
    entries: dict[str, Entry]
    agreeing: list[list[str]] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether all who ran ended well, and agree."""
        failed = any(entry.trouble.startswith("failed") for entry in self.entries.values())
        return not failed and len(self.agreeing) <= 1


def compete(
    case: Case,
    contenders: dict[str, str],
    repetitions: int,
    limit_seconds: float,
    report_turn: Callable[[str], None],
) -> Bout:
    """Run every contender on a day, time after time, and compare their results.

    Args:
        case: the day.
        contenders: why not, by contender; empty for those that take part.
        repetitions: how many times.
        limit_seconds: of wall time for a run.
        report_turn: called before each run with what is run.
    """
    bout = Bout(case, {name: Entry(name, trouble=why) for name, why in contenders.items()})
    whole_input = ds.dataset(_files(case.parquet), format="parquet")
    of_the_date = whole_input.filter(ds.field("trade_date") == TRADE_DATE)
    columns = [*case.columns, agreement.DELIVERY_QUANTITY]
    types = [*agreement.sql_types(whole_input, case.columns), "BIGINT"]
    untouched = agreement.fingerprint(of_the_date, columns[:-1], types[:-1])
    results: dict[str, agreement.Fingerprint] = {}
    reference: tuple[str, ds.Dataset] | None = None
    scratch = DATA / f"outputs-{os.getpid()}"
    try:
        for repetition in range(repetitions):
            for name in _turns(list(contenders), repetition):
                entry = bout.entries[name]
                if entry.trouble:
                    continue
                report_turn(f"{case.title}: {name}, {repetition + 1} of {repetitions}")
                output = scratch / f"{name}-{repetition}"
                scratch.mkdir(parents=True, exist_ok=True)
                result = _run(name, case, output, limit_seconds, entry)
                if result is None:
                    continue
                marked = agreement.fingerprint(result, columns, types)
                carried = agreement.fingerprint(result, columns[:-1], types[:-1])
                if carried != untouched:
                    entry.trouble = "failed: the trades that came out aren't those that went in"
                elif results.setdefault(name, marked) != marked:
                    entry.trouble = "failed: another result than in its first run"
                if reference is None:
                    reference = (name, result)
                    continue  # kept, for others to be compared with
                if marked != results.get(reference[0], marked):
                    rows = agreement.differences(reference[1], result, columns, types)
                    bout.examples += [f"{reference[0]} or {name}: {row}" for row in rows]
                shutil.rmtree(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    bout.agreeing = agreement.groups(results)
    return bout


def _run(
    name: str, case: Case, output: Path, limit_seconds: float, entry: Entry
) -> ds.Dataset | None:
    """Run a contender once; its result, or None where it has none."""
    if name in OURS:
        command = [
            *(on_one_core() if name.endswith("-one-core") else ()),
            *(sys.executable, "-m", "ledgerbeam.pipelines.delivery_marking"),
            *(*case.ours, f"--trade-date={TRADE_DATE}", f"--output={output}"),
            *(flag.format(output=output) for flag in OURS[name]),
            "--json",
        ]
    else:
        script = str(HERE / "delivery" / SCRIPTS[name])
        command = [sys.executable, script, case.parquet, str(output), str(TRADE_DATE)]
    # What an earlier run wrote is not to be flushed to disk at this one's expense.
    os.sync()
    measured = measure(command, limit_seconds=limit_seconds)
    if measured.exit_code is None:
        # Others may be too slow for a day of this size; what is measured here may not.
        failed = "failed: " if name in OURS else ""
        entry.trouble = f"{failed}stopped after {limit_seconds:,.0f} s"
        return None
    if measured.exit_code:
        last = (measured.errors.strip().splitlines() or ["no message"])[-1]
        entry.trouble = f"failed: exit status {measured.exit_code}: {last}"
        return None
    entry.wall_seconds.append(measured.wall_seconds)
    entry.cpu_seconds.append(measured.cpu_seconds)
    entry.peak_bytes.append(measured.peak_bytes)
    if name in OURS:
        published: str = json.loads(measured.output.splitlines()[-1])["published"]
        return read_published(published)
    return ds.dataset(_files(f"{output}/*.parquet"), format="parquet")


def _turns(contenders: list[str], repetition: int) -> list[str]:
    """Let another one begin in each repetition: what follows whom is then not always the same."""
    first = repetition % len(contenders)
    return contenders[first:] + contenders[:first]


def _files(pattern: str) -> list[str]:
    path = Path(pattern)
    return sorted(map(str, path.parent.glob(path.name)))


def _read_once(case: Case) -> None:
    for file in _files(case.parquet):
        with Path(file).open("rb") as opened:
            while opened.read(1 << 24):
                pass


def main(
    trades: Annotated[list[int] | None, typer.Option(help="size of a day; repeatable")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="runs of each contender")] = 3,
    files: Annotated[int, typer.Option(min=1, help="files that a day is spread over")] = 32,
    contenders: Annotated[
        str, typer.Option(help="those that take part, separated by commas")
    ] = ",".join(CONTENDERS),
    limit: Annotated[float, typer.Option(help="most seconds that a run may take")] = 900.0,
    rowwise_up_to: Annotated[int, typer.Option(help="largest day for rowwise-beam")] = 1_000_000,
    pandas_up_to: Annotated[int, typer.Option(help="largest day for pandas")] = 10_000_000,
    small: Annotated[
        Path | None,
        typer.Option(exists=True, help="CSV file for the small case; without it one is made"),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="names of its columns in order; _ leaves one out")
    ] = "id,client_code,symbol,side,quantity,_",
    skip_small: Annotated[bool, typer.Option("--skip-small", help="no small case")] = False,
    results: Annotated[Path, typer.Option(help="folder for table, plot and raw figures")] = RESULTS,
) -> None:
    """Measure delivery marking against other ways to do it."""
    names = [name.strip() for name in contenders.split(",")]
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise typer.BadParameter(f"no contender {unknown[0]!r}: there are {', '.join(CONTENDERS)}")
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = 120  # in a log nothing has to fit a window
    largest = {"rowwise-beam": rowwise_up_to, "pandas": pandas_up_to}
    started = datetime.now().astimezone()
    bouts = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console,
    ) as progress:  # fmt: skip
        for case in _cases(progress, trades or [1_000_000, 10_000_000], files, small, columns,
                           skip_small):  # fmt: skip
            _read_once(case)
            why_not = {
                name: "not run at this size" if case.trades > largest.get(name, case.trades) else ""
                for name in names
            }
            taking_part = sum(not why for why in why_not.values())
            task = progress.add_task(case.title, total=taking_part * repetitions + 1)

            def report_turn(what: str, task: TaskID = task) -> None:
                progress.update(task, description=what, advance=1)

            bout = compete(case, why_not, repetitions, limit, report_turn)
            progress.remove_task(task)
            bouts.append(bout)
            console.print(_table(bout))
    report.write(results, [_plain(bout) for bout in bouts], started)
    console.print(f"written to {results}/delivery-marking.md, .png and .json")
    if not all(bout.is_sound for bout in bouts):
        console.print("[red]a contender failed, or results differ[/red]")
        raise typer.Exit(1)


def _cases(
    progress: Progress,
    trades: list[int],
    files: int,
    small: Path | None,
    columns: str,
    skip_small: bool,
) -> Iterator[Case]:
    """Make each day when its turn comes."""
    if small is not None:
        yield small_given(DATA, small.resolve(), columns)
    elif not skip_small:
        yield small_generated(DATA, lambda _: None)
    for count in trades:
        task = progress.add_task(f"making {count:,} trades", total=count)

        def advance(written: int, task: TaskID = task) -> None:
            progress.update(task, advance=written)

        case = generated(DATA, count, files, advance)
        progress.remove_task(task)
        yield case


def _plain(bout: Bout) -> report.Raw:
    """Turn a bout into what JSON can hold."""
    return {
        "title": bout.case.title,
        "trades": bout.case.trades,
        "files": bout.case.files,
        "entries": [asdict(entry) for entry in bout.entries.values()],
        "agreeing": bout.agreeing,
        "examples": bout.examples,
    }


def _table(bout: Bout) -> Table:
    table = Table(*report.HEADINGS, title=bout.case.title, caption=report.verdict(_plain(bout)))
    for row in report.rows(_plain(bout)):
        table.add_row(*row)
    return table


if __name__ == "__main__":
    typer.run(main)
