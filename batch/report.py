"""What a person sees on a terminal: progress while a run goes on, and its summary."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ledgerbeam.batch.plan import Plan
from ledgerbeam.batch.terminal import progress_bars
from ledgerbeam.io import storage
from ledgerbeam.io.attempts import Manifest

_POLL_SECONDS = 0.5


@contextmanager
def watch(plan: Plan) -> Iterator[None]:
    """Show how many splits are read and how many shards committed, while the `with` lasts.

    They are counted from what is on disk and in storage, and so are right on every runner.
    """
    if not sys.stderr.isatty():
        yield
        return
    stop = threading.Event()
    with progress_bars() as bars:
        watcher = threading.Thread(target=_watch, args=(plan, bars, stop), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


def _watch(plan: Plan, bars: Progress, stop: threading.Event) -> None:
    splits = len(plan.splits)
    read = None
    if plan.spill_directory is not None:
        read = bars.add_task("read", total=splits)
    committed = bars.add_task("committed", total=plan.shards)
    markers = storage.join(storage.escape(plan.attempt.uri), "committed-*.json")
    while not stop.wait(_POLL_SECONDS):
        if read is not None and plan.spill_directory is not None:
            spilled = sum(name.endswith(".arrows") for name in os.listdir(plan.spill_directory))
            bars.update(read, completed=min(spilled, splits))
        bars.update(committed, completed=len(storage.find(markers)) + len(plan.committed))


def print_summary(manifest: Manifest, rows_are: str, published: str, seconds: float) -> None:
    """Print what a run gave, as a table."""
    counts = dict(manifest.counts)
    rows = counts.pop("rows_in")
    shown = {rows_are: rows, f"{rows_are} out": counts.pop("rows_out")} | counts | manifest.totals
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in shown.items():
        if not name.endswith("_hash"):
            table.add_row(name.replace("_", " "), f"{value:,}")
    table.add_row("seconds", f"{seconds:,.1f}")
    table.add_row(f"{rows_are} a second", f"{rows / seconds:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"published at {published}", soft_wrap=True, highlight=False)
