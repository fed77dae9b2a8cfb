"""What a person sees on a terminal: progress while a run goes on, and its summary."""

import os
import sys
import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from ledgerbeam.batch.keyed import Plan
from ledgerbeam.io import storage
from ledgerbeam.io.attempts import Manifest

_POLL_SECONDS = 0.5


class Progress:
    """Bars of splits read and shards committed, while the `with` lasts.

    They are counted from what is on disk and in storage, and so are right on every runner. Where
    standard error is no terminal nothing is shown and nothing is counted.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stop = threading.Event()
        self._bars = RichProgress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._bars.start()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if sys.stderr.isatty():
            self._stop.set()
            self._thread.join()
            self._bars.stop()

    def _watch(self) -> None:
        plan = self._plan
        splits = len(plan.splits)
        read = None
        if plan.spill_directory is not None:
            read = self._bars.add_task("read", total=splits)
        commits = self._bars.add_task("committed", total=plan.shards)
        markers = storage.join(storage.escape(plan.attempt.uri), "committed-*.json")
        while not self._stop.wait(_POLL_SECONDS):
            if read is not None and plan.spill_directory is not None:
                spilled = sum(n.endswith(".arrows") for n in os.listdir(plan.spill_directory))
                self._bars.update(read, completed=min(spilled, splits))
            found = len(storage.find(markers)) + len(plan.committed)
            self._bars.update(commits, completed=found)


def print_summary(manifest: Manifest, published: str, seconds: float) -> None:
    """Print what a run gave, as a table."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in manifest.totals.items():
        if not name.endswith("_hash"):
            table.add_row(_words(name), f"{value:,}")
    rows = manifest.totals["rows_in"]
    table.add_row("seconds", f"{seconds:,.1f}")
    table.add_row("rows a second", f"{rows / seconds:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"published at {published}", soft_wrap=True, highlight=False)


def _words(name: str) -> str:
    return name.replace("_", " ")
