"""Where the CPU seconds of a run go, step by step.

    python benchmarks/bench_steps.py delivery_marking --trades='trades/*' --trade-date=2026-11-20

It runs a shipped workload in this process and measures the time of each thread (user and system)
in the functions below, each without those that it calls. What is left is Beam, Python's imports
and everything that isn't listed. Bytes are those that a step hands on, where it says. A measured
run takes a few hundredths of a second more than others.
"""

import argparse
import functools
import importlib
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import report

from ledgerbeam.batch.model.exits import Exit

HERE = Path(__file__).resolve().parent


class Step(NamedTuple):
    """Functions whose time counts as one step.

    Attributes:
        name: of the step.
        places: functions, as `module:attribute` or `module:class.attribute`.
        bytes_of: how many bytes a result stands for; None for a step that hands on its input.
    """

    name: str
    places: tuple[str, ...]
    bytes_of: Callable[[Any], int] | None = None


def _bytes_of_block(block: Any) -> int:
    return int(block.table.nbytes)


def _bytes_spilled(spilled: Any) -> int:
    return sum(batch.length for _, batch in spilled)


STEPS = (
    Step("read and decode Parquet", ("io.datasets.readers:_read_parquet",), _bytes_of_block),
    Step("types and contract", ("io.datasets.readers:conform",)),
    Step("check money", ("batch.keyed.pipeline:check_money",)),
    Step("totals of what is read", ("batch.keyed.pipeline:row_totals",)),
    Step("distinct hashes", ("batch.keyed.pipeline:hash_distinct",)),
    Step("other columns of the reader", ("io.datasets.readers:read_split",)),
    Step("narrow", ("transforms.shuffle:narrow",)),
    Step("hash of the key", ("transforms.columnar.partition:shard_numbers",)),
    Step("split by shard", ("transforms.shuffle:split_by_shard",)),
    Step("shared dictionaries", ("io.arrow.shared:SharedDictionaries.encode",)),
    Step("dictionaries of batches", ("transforms.shuffle:decode_large", "io.arrow.stream:compact")),
    Step("write the spill", ("transforms.shuffle:spill",), _bytes_spilled),
    Step("read the spill", ("transforms.shuffle:load_batches",)),
    Step("join batches", ("transforms.shuffle:join", "transforms.shuffle:encode_dictionaries")),
    Step(
        "sort into components",
        ("transforms.shuffle:sort_components", "transforms.columnar.components:tidy"),
    ),
    Step("sort: the order", ("transforms.columnar.components:_sort",)),
    Step("sort: codes", ("transforms.columnar.components:_codes",)),
    Step("sort: dictionaries", ("transforms.columnar.components:_sort_dictionaries",)),
    Step("widen", ("transforms.shuffle:ShuffledInput.unpack",)),
    Step("other inputs beside the first", ("transforms.shuffle:align",)),
    Step("rule", ("batch.keyed.shard:_results_of",)),
    Step("totals of a shard", ("batch.keyed.shard:_totals",)),
    Step("encode Parquet", ("io.commit.parquet:to_parquet",), len),
    Step("write parts, SHA-256", ("io.commit.attempts:Attempt._write",)),
)
"""Steps of a keyed process, in the order in which a row passes through them."""

_BOOK = "rules.loans.read_book"
PARTS = {
    "comparison.compare": (
        Step("read the results again", ("batch.execute.reduce:Finish._read",)),
        Step("report: summarise", ("pipelines.comparison.files:summarise",)),
        Step("report: write", ("pipelines.comparison.files:_write",)),
        Step("rule: differing values", ("transforms.columnar.differences:Sides.differing",)),
        Step("rule: values of one side", ("transforms.columnar.differences:Sides.values",)),
        Step("rule: changes of amounts", ("transforms.columnar.differences:Sides.change",)),
        Step("rule: names of columns", ("pipelines.comparison.compare:names_of_columns",)),
        Step("rule: statuses", ("pipelines.comparison.compare:_statuses",)),
        Step("rule: table of differences", ("pipelines.comparison.compare:_differences",)),
        Step("rule: totals", ("pipelines.comparison.compare:Compare.result_totals",)),
        Step("both sides by key", ("transforms.shuffle:side_by_side",)),
    ),
    "loan_close_of_business": (
        Step("rule: columns of a state", ("pipelines.loan_close_of_business:with_state_columns",)),
        Step("rule: transactions as arrays", (f"{_BOOK}:Transactions.from_table",)),
        Step("rule: terms and states as arrays", (f"{_BOOK}:read_terms", f"{_BOOK}:read_states")),
        Step("rule: close of days", ("pipelines.loan_close_of_business:close_many",)),
        Step("rule: receipts", ("rules.closing.close_book:receipts",)),
        Step("rule: entries as a table", ("rules.loans.entries:Entries.table",)),
        Step("rule: states as a table", ("rules.closing.close_book:write_states",)),
        Step("rule: roll-forward", ("pipelines.loan_close_of_business:_check_roll_forward",)),
    ),
    "investor_report": (
        Step("rule: columns of a state", ("pipelines.investor_report:with_state_columns",)),
        Step("rule: transactions as arrays", (f"{_BOOK}:Transactions.from_table",)),
        Step("rule: terms and states as arrays", (f"{_BOOK}:read_terms", f"{_BOOK}:read_states")),
        Step("rule: wrong loans", ("pipelines.investor_report:InvestorReport._wrong_loans",)),
        Step("rule: close of days", ("rules.remittance.report_line_many:close_many",)),
        Step("rule: months", ("rules.remittance.report_line_many:_Months.table",)),
        Step("rule: remittance", ("rules.remittance.report_line_many:remit_many",)),
        Step("rule: money of the month", ("rules.remittance.report_line_many:_Bookings.money",)),
        Step("files: lines by investor", ("pipelines.investor_files:_by_investor",)),
        Step("files: sums of lines", ("pipelines.investor_files:_sums_of",)),
        Step("files: pools", ("pipelines.investor_files:pool_totals",)),
        Step("files: CSV", ("pipelines.investor_files:spreadsheet_csv",), len),
        Step("files: coder", ("io.arrow.stream:write_stream", "io.arrow.stream:read_stream")),
    ),
    "repayment_schedules": (
        Step("rule: loans as arrays", ("rules.schedules.schedule_many:read_loans",)),
        Step("rule: factors", ("rules.schedules.schedule_many:_factors",)),
        Step("rule: instalments", ("rules.schedules.schedule_many:_repay",)),
        Step("rule: columns", ("rules.schedules.schedule_many:_columns",)),
    ),
}
"""Steps within the rule, or behind it, by module of the workload."""


class _Clock:
    """Time of threads by step, each without the steps that it calls."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stacks = threading.local()

    def call(self, step: Step, function: Callable[[], Any]) -> Any:
        """Call a function of a step, and take its time."""
        stack = self._stacks.__dict__.setdefault("stack", [])
        stack.append(0.0)
        began = time.thread_time()
        try:
            result = function()
        finally:
            whole = time.thread_time() - began
            of_others = stack.pop()
            if stack:
                stack[-1] += whole
            with self._lock:
                self.seconds[step.name] += whole - of_others
        if step.bytes_of is not None and not hasattr(result, "__next__"):
            with self._lock:
                self.bytes[step.name] += step.bytes_of(result)
        return result

    def wrapped(self, step: Step, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time taken; of a generator, at each of its items."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            result = self.call(step, lambda: function(*args, **kwargs))
            return self._items(step, result) if hasattr(result, "__next__") else result

        return timed

    def _items(self, step: Step, items: Iterator[Any]) -> Iterator[Any]:
        end = object()
        without_bytes = step._replace(bytes_of=None)
        while (item := self.call(without_bytes, lambda: next(items, end))) is not end:
            if step.bytes_of is not None:
                with self._lock:
                    self.bytes[step.name] += step.bytes_of(item)
            yield item


def measure(module: str, arguments: list[str], results: Path) -> None:
    """Run a workload, and write its steps to a folder."""
    started = datetime.now().astimezone()
    clock = _Clock()
    steps = (*STEPS, *PARTS.get(module, ()))
    for step in steps:
        for place in step.places:
            name, _, path = place.partition(":")
            owner: Any = importlib.import_module(f"ledgerbeam.{name}")
            *classes, attribute = path.split(".")
            for class_ in classes:
                owner = getattr(owner, class_)
            setattr(owner, attribute, clock.wrapped(step, getattr(owner, attribute)))
    workload = importlib.import_module(f"ledgerbeam.pipelines.{module}")
    process = next(
        value
        for value in vars(workload).values()
        if isinstance(value, type)
        and value.__module__ == workload.__name__
        and "name" in vars(value)
    )
    imported = _cpu_seconds()
    with tempfile.TemporaryDirectory() as output:
        status = workload.main(process, [*arguments, f"--output={output}", "--json"])
    whole = _cpu_seconds()
    if status not in (Exit.OK, Exit.DIFFERENT):
        sys.exit(status)
    rest = whole - imported - sum(clock.seconds.values())
    found: list[tuple[str, float, int]] = [
        (step.name, clock.seconds[step.name], clock.bytes[step.name])
        for step in steps
        if step.name in clock.seconds
    ]
    found += [("Beam, and what isn't listed", rest, 0), ("imports", imported, 0), ("all", whole, 0)]
    raw = report.circumstances(started) | {
        "steps": [dict(zip(("step", "cpu_seconds", "bytes"), row, strict=True)) for row in found]
    }
    rows = [[name, f"{cpu:.2f}", f"{size / 1e6:,.0f}" if size else ""] for name, cpu, size in found]
    page = [
        f"# CPU seconds by step: {module}",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}",
        "- Each step is without those that it calls; user and system time of its threads.",
        "",
        *report.table(["step", "cpu s", "MB"], rows),
    ]
    report.save(results, module, raw, "\n".join(page) + "\n")
    print("\n".join(page))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("module", help="of the workload, such as delivery_marking")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "steps")
    given, others = parser.parse_known_args()
    measure(given.module, others, given.results)
