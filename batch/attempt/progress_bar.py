"""A progress bar on the terminal while an attempt runs."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress

from ledgerbeam.batch.attempt.terminal import progress_bars
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.storage import stores, uris

_POLL_SECONDS = 0.5


@contextmanager
def watch(attempt: Attempt, committed: int, spill_directory: str | None) -> Iterator[None]:
    """Show how many files are spilled and shards committed, while the `with` block runs.

    Files on disk and in storage are counted, so the numbers are right on every runner.

    Args:
        attempt: the attempt to show.
        committed: number of shards that earlier attempts have committed.
        spill_directory: the folder where batches are spilled; None if they aren't.
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
    markers = uris.join(uris.escape(attempt.uri), "committed-*.json")
    while not stop.wait(_POLL_SECONDS):
        if read is not None and spill_directory is not None:
            spilled = sum(name.endswith(".arrows") for name in os.listdir(spill_directory))
            bars.update(read, completed=spilled)
        bars.update(committed, completed=len(stores.find(markers)) + earlier)
