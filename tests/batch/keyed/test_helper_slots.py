"""Which shards are in flight at a time, and when helpers are started that were not at first."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ledgerbeam.batch.execute import helpers
from ledgerbeam.batch.execute.executions import ShardControl
from ledgerbeam.batch.execute.helpers import Helpers
from ledgerbeam.batch.execute.worker_control import WorkerControl


class Noted(Helpers):
    """Helpers that only note that they are to be started."""

    def __init__(self, task: "Shards", room: int = 100) -> None:
        super().__init__(task, count=3, room=room, at_once=False)
        self.starts = 0

    def _start(self) -> None:
        self._has_started = True
        self.starts += 1


class Shards:
    """Notes what is in flight; a shard ends when `until` says so."""

    def __init__(self) -> None:
        self.in_flight: list[int] = []
        self.seen: set[tuple[int, ...]] = set()
        self.go = threading.Event()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Nothing."""

    def __call__(self, control: ShardControl, shard: int, *arguments: Any) -> int:
        (size,) = arguments
        with self._lock:
            self.in_flight.append(size)
            self.seen.add(tuple(sorted(self.in_flight)))
        assert self.go.wait(60)
        with self._lock:
            self.in_flight.remove(size)
        return shard


def executed(noted: Noted, folder: Path, sizes: Sequence[int], task: Shards) -> list[int]:
    """Execute shards of these sizes, all at the same time."""
    control = WorkerControl(str(folder), 1, "a")
    with ThreadPoolExecutor(len(sizes)) as pool:
        given = [
            pool.submit(noted.execute, control, number, size, (size,))
            for number, size in enumerate(sizes)
        ]
        task.go.set()
        return [each.result(60) for each in given]


def test_shards_in_flight_have_no_more_bytes_than_fit(tmp_path: Path) -> None:
    """One that has more than fits is alone."""
    task = Shards()
    sizes = [80, 30, 250, 60, 40, 70]
    assert executed(Noted(task), tmp_path, sizes, task) == [*range(len(sizes))]
    assert {size for of_moment in task.seen for size in of_moment} == {*sizes}
    assert all(sum(of_moment) <= 100 or len(of_moment) == 1 for of_moment in task.seen)


@pytest.mark.parametrize(("busy", "starts"), [(0.0, 1), (1e9, 0)])
def test_helpers_are_started_where_a_shard_waits_for_a_process_that_computes(
    busy: float, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helpers, "START_SECONDS", 0.01)
    monkeypatch.setattr(helpers, "BUSY", busy)
    task = Shards()
    noted = Noted(task)
    wait, waited = noted._changed.wait, []

    def counted(timeout: float | None = None) -> bool:
        # What follows a wait is done when the next one begins.
        waited.append(timeout)
        if len(waited) > 1:
            task.go.set()
        return wait(timeout)

    monkeypatch.setattr(noted._changed, "wait", counted)
    control = WorkerControl(str(tmp_path), 1, "a")
    with ThreadPoolExecutor(3) as pool:
        given = [pool.submit(noted.execute, control, number, 1, (1,)) for number in range(3)]
        assert sorted(each.result(60) for each in given) == [0, 1, 2]
    assert noted.starts == starts
