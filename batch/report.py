"""What a person sees on a terminal: progress while a run goes on, and its summary."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ledgerbeam.batch.process import BatchProcess
from ledgerbeam.batch.terminal import progress_bars
from ledgerbeam.io import storage
from ledgerbeam.io.attempts import Attempt
from ledgerbeam.io.records import Manifest

_POLL_SECONDS = 0.5


@contextmanager
def watch(attempt: Attempt, committed: int, spill_directory: str | None) -> Iterator[None]:
    """Show how many files are spilled and shards committed, while the `with` lasts.

    They are counted from what is on disk and in storage, and so are right on every runner.

    Args:
        attempt: to look at.
        committed: shards that earlier attempts have committed.
        spill_directory: of the local runner.
    """
    if not sys.stderr.isatty():
        yield
        return
    stop = threading.Event()
    with progress_bars() as bars:
        arguments = (attempt, committed, spill_directory, bars, stop)
        watcher = threading.Thread(target=_watch, args=arguments, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


def _watch(
    attempt: Attempt,
    earlier: int,
    spill_directory: str | None,
    bars: Progress,
    stop: threading.Event,
) -> None:
    read = None
    if spill_directory is not None and attempt.record.inputs:
        read = bars.add_task("read", total=None)
    committed = bars.add_task("committed", total=attempt.record.shards)
    markers = storage.join(storage.escape(attempt.uri), "committed-*.json")
    while not stop.wait(_POLL_SECONDS):
        if read is not None and spill_directory is not None:
            spilled = sum(name.endswith(".arrows") for name in os.listdir(spill_directory))
            bars.update(read, completed=spilled)
        bars.update(committed, completed=len(storage.find(markers)) + earlier)


def print_summary(
    manifest: Manifest, process: BatchProcess[Any], published: str, seconds: float
) -> None:
    """Print what a run gave, as a table."""
    rows_are = process.rows_are
    counts = dict(manifest.counts)
    rows = counts.pop("rows_in")
    shown = {rows_are: rows, process.results_are: counts.pop("rows_out")} | counts | manifest.totals
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in shown.items():
        # Nothing unknown is the rule, and nothing to tell.
        if not name.endswith("_hash") and (value or name != "unknown"):
            table.add_row(name.replace("_", " "), f"{value:,}")
    table.add_row("seconds", f"{seconds:,.1f}")
    table.add_row(f"{rows_are} a second", f"{rows / seconds:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"published at {published}", soft_wrap=True, highlight=False)
