"""Processes over pages while they are executed: steered, paused, canceled."""

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.page_jobs import (
    TIMEOUT,
    Calls,
    Rows,
    hook,
    published,
    rows,
)

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.define.page_process import PageProcess
from ledgerbeam.batch.define.process import instance_uri
from ledgerbeam.batch.execute import worker_control
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.attempts import commits
from ledgerbeam.io.errors import UserError


class TestControl:
    """What a run is told while it goes on."""

    def test_parallelism(self, accounts: str, tmp_path: Path) -> None:
        process = rows(accounts, tmp_path, "count=2")
        calls = hook(Rows, Calls(hold=9))
        with running(process) as thread:
            calls.wait_for(lambda: calls.active == 4)
            steer(process, parallelism=9)
            thread.join(TIMEOUT)
        assert calls.peak == 9
        assert published(process) == list(range(1, 61))

    def test_pause_and_resume(self, accounts: str, tmp_path: Path) -> None:
        process = rows(accounts, tmp_path, "count=5")
        calls = hook(Rows, Calls(hold=5))  # never: the first four wait
        with running(process) as thread:
            calls.wait_for(lambda: calls.active == 4)
            steer(process, state="pause")
            wait_until(lambda: throttle_of(process).limits.paused)
            calls.hold = 0
            with calls.changed:
                calls.changed.notify_all()
            calls.wait_for(lambda: calls.active == 0)
            wait_until(lambda: len(commits(instance_uri(process), [1])) == 4)
            assert len(calls.names) == 4
            steer(process, state="run")
            thread.join(TIMEOUT)
        assert published(process) == list(range(1, 61))

    def test_cancel(self, accounts: str, tmp_path: Path) -> None:
        process = rows(accounts, tmp_path, "count=5")
        calls = hook(Rows, Calls(hold=5))
        with running(process) as thread:
            calls.wait_for(lambda: calls.active == 4)
            steer(process, state="cancel")
            wait_until(lambda: throttle_of(process).canceled)
            calls.hold = 0
            with calls.changed:
                calls.changed.notify_all()
            with pytest.raises(UserError, match="cancel"):
                thread.join(TIMEOUT)
        assert len(calls.names) == 4
        # What was in flight has ended, and counts.
        assert sorted(commits(instance_uri(process), [1])) == [0, 1, 2, 3]


class Running(threading.Thread):
    """A run in a thread of this process, whose error is raised where it is joined."""

    def __init__(self, process: PageProcess[Any]) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            run(self.process)
        except BaseException as error:
            self.error = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


@contextmanager
def running(process: PageProcess[Any]) -> Iterator[Running]:
    thread = Running(process)
    thread.start()
    try:
        yield thread
    finally:
        threading.Thread.join(thread, TIMEOUT)


def steer(process: PageProcess[Any], **changes: Any) -> None:
    now = datetime.datetime.now(datetime.UTC)
    control_log.steer(instance_uri(process), now, "somebody", "a test", **changes)


def throttle_of(process: PageProcess[Any]) -> Any:
    ((control, _),) = worker_control._worker_controls._shared.values()
    return control.throttle


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
