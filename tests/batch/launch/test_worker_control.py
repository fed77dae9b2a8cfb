"""Workers that do as their run is told, share its limits, and may be cut off from it."""

import datetime
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.execute.executions import Snapshot
from ledgerbeam.batch.execute.worker_control import (
    MAX_EXECUTING,
    Periods,
    Slot,
    WorkerControl,
    acquire,
    release,
)
from ledgerbeam.io.commit.control_log import (
    Executing,
    Ramp,
    Steering,
    heartbeats,
    live_workers,
    steer,
)
from ledgerbeam.io.errors import CanceledError
from ledgerbeam.transforms.concurrency import throttle
from ledgerbeam.transforms.concurrency.throttle import Limits

QUICK = Periods(poll=0.05, beat=0.2, lease=0.5)


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something that is sure to come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def change(run: str, **changes: object) -> Steering:
    return steer(run, utc_now(), "test", "a reason", **changes)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> str:
    folder = tmp_path / "run"
    folder.mkdir()
    return str(folder)


@contextmanager
def governing(
    run: str,
    worker: str = "a",
    attempt: int = 1,
    periods: Periods = QUICK,
    now: Clock = utc_now,
) -> Iterator[WorkerControl]:
    worker_control = WorkerControl(run, attempt, worker, periods, now)
    worker_control.start()
    try:
        yield worker_control
    finally:
        worker_control.throttle.cancel()
        worker_control.stop()


@contextmanager
def busy(worker_control: WorkerControl, threads: int) -> Iterator[None]:
    """That many threads which ask for admission again and again."""
    ended = threading.Event()

    def work() -> None:
        try:
            while not ended.is_set():
                with worker_control.throttle.admit():
                    time.sleep(0.001)
        except CanceledError:
            pass

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(threads):
            pool.submit(work)
        try:
            yield
        finally:
            ended.set()
            worker_control.throttle.cancel()


class Elsewhere(throttle.Throttle):
    """A throttle of another process that executes for this one."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = Slot(self, lambda: Snapshot((Executing(shard=7, component="there"),)))
        self.set(Limits(paused=True))


class TestSlots:
    """Shards that are executed side by side, in this process and in others."""

    def test_they_share_what_the_process_may_do(self, run: str) -> None:
        change(run, parallelism=5, rate=10.0)
        one, two = Elsewhere(), Elsewhere()
        with governing(run) as own:
            until(lambda: own.throttle.limits == Limits(5, 10.0))
            with own.sharing(own.own_slot), own.sharing(one.slot):
                assert [own.throttle.limits, one.limits] == [Limits(3, 5.0), Limits(2, 5.0)]
                assert own.own_threads() == 1
                with own.sharing(two.slot):
                    limits = [own.throttle.limits, one.limits, two.limits]
                    assert [each.parallelism for each in limits] == [2, 2, 1]
                change(run, parallelism=None, rate=None)
                until(lambda: own.throttle.is_open and one.is_open)

    def test_with_fewer_than_slots_some_wait_for_the_others(self, run: str) -> None:
        change(run, parallelism=1)
        one, two = Elsewhere(), Elsewhere()
        with governing(run) as own, own.sharing(one.slot):
            until(lambda: one.limits == Limits(1))
            with own.sharing(two.slot), ThreadPoolExecutor(1) as pool:
                assert two.limits.paused
                waiting = pool.submit(two.acquire)
                own._slots.remove(one.slot)
                own._apply()
                waiting.result(30)
                own._slots.append(one.slot)

    def test_a_hold_and_a_cancellation_reach_all(self, run: str) -> None:
        one, two = Elsewhere(), Elsewhere()
        with governing(run) as own, own.sharing(one.slot):
            until(lambda: one.is_open)
            own.hold(3600)
            assert not one.is_open
            with own.sharing(two.slot):
                assert not two.is_open
                change(run, state="cancel")
                until(lambda: own.canceled and one.canceled and two.canceled)

    def test_a_heartbeat_has_what_they_execute(self, run: str) -> None:
        with governing(run) as own, own.sharing(Elsewhere().slot):
            until(lambda: any(beat.executing for beat in heartbeats(own.attempt_uri, utc_now())))
            (beat,) = heartbeats(own.attempt_uri, utc_now())
            assert [(e.shard, e.component) for e in beat.executing] == [(7, "there")]


class TestControl:
    def test_without_limits_it_is_open(self, run: str) -> None:
        with governing(run) as worker_control:
            until(lambda: worker_control.throttle.is_open)

    def test_limits_change_while_it_runs(self, run: str) -> None:
        change(run, parallelism=2)
        with governing(run) as worker_control, busy(worker_control, 8):
            until(lambda: worker_control.throttle.in_flight == 2)
            change(run, parallelism=6)
            until(lambda: worker_control.throttle.in_flight == 6)
            change(run, parallelism=1)
            until(lambda: worker_control.throttle.in_flight <= 1)
            change(run, parallelism=None, rate=1000.0)
            until(lambda: worker_control.throttle.limits == Limits(rate=1000.0))

    def test_a_pause_lets_work_in_flight_finish(self, run: str) -> None:
        with governing(run) as worker_control:
            worker_control.throttle.acquire()
            change(run, state="pause")
            until(lambda: worker_control.throttle.limits.paused)
            assert worker_control.throttle.in_flight == 1
            worker_control.throttle.release()
            with busy(worker_control, 3):
                time.sleep(0.05)
                assert worker_control.throttle.in_flight == 0
                change(run, state="run")
                until(lambda: worker_control.throttle.in_flight > 0)

    def test_a_cancellation_is_final_for_the_attempt(self, run: str) -> None:
        change(run, state="pause")
        with governing(run) as worker_control, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(worker_control.throttle.acquire)
            change(run, state="cancel")
            with pytest.raises(CanceledError):
                waiting.result(60)
            assert worker_control.canceled
            change(run, state="run", earliest_attempt=2)
            until(
                lambda: worker_control.steering is not None and worker_control.steering.number == 3
            )
            with pytest.raises(CanceledError):
                worker_control.throttle.acquire()
            with governing(run, attempt=2) as restarted:
                until(lambda: restarted.throttle.is_open)
            # A worker that comes late, to an attempt of which it can't know that it was canceled.
            with governing(run, "late") as late:
                until(lambda: late.canceled)

    def test_a_ramp_is_where_it_should_be(self, run: str) -> None:
        began = utc_now()
        change(run, ramp=Ramp(from_rate=10, to_rate=110, seconds=100, started_at=began))
        at = [began + datetime.timedelta(seconds=40)]
        with governing(run, now=lambda: at[0]) as worker_control:
            expected = throttle.Ramp(from_rate=50, to_rate=110, seconds=60)
            until(lambda: worker_control.throttle.limits == Limits(rate=expected))
            with governing(run, "b", now=lambda: at[0]):
                expected = throttle.Ramp(from_rate=25, to_rate=55, seconds=60)
                until(lambda: worker_control.throttle.limits == Limits(rate=expected))
            at[0] += datetime.timedelta(seconds=3600)
            until(lambda: worker_control.throttle.limits == Limits(rate=110.0))


class TestShares:
    def test_parallelism_is_divided_and_nobody_gets_nothing(self, run: str) -> None:
        change(run, parallelism=5)

        def shares(*worker_controls: WorkerControl) -> list[int | None]:
            return [
                None if g.throttle.limits.paused else g.throttle.limits.parallelism
                for g in worker_controls
            ]

        with governing(run, "a") as a:
            until(lambda: shares(a) == [5])
            with governing(run, "b") as b:
                until(lambda: shares(a, b) == [3, 2])
                change(run, parallelism=1)
                until(lambda: shares(a, b) == [1, 1])
                change(run, parallelism=4)
                until(lambda: shares(a, b) == [2, 2])
            until(lambda: shares(a) == [4])

    def test_who_comes_later_waits_until_others_have_made_room(self, run: str) -> None:
        change(run, parallelism=6)
        # Slow enough that a busy machine doesn't keep the others from counting in time.
        periods = Periods(poll=0.9, beat=0.9)
        with governing(run, "a", periods=periods) as a:
            until(lambda: a.throttle.limits == Limits(parallelism=6))
            with governing(run, "b", periods=periods) as b:
                until(lambda: not b.throttle.limits.paused)
                assert a.throttle.limits == b.throttle.limits == Limits(parallelism=3)

    @pytest.mark.slow
    def test_two_processes_share_a_rate_and_one_takes_over_when_the_other_dies(
        self, run: str
    ) -> None:
        change(run, rate=40.0)
        with worker(run, "a") as a, worker(run, "b") as b:
            # Both at half of it, for a while.
            until(lambda: all(len(w.at_rate(20.0)) >= 30 for w in (a, b)))
            start = max(w.at_rate(20.0)[0] for w in (a, b))
            end = min(w.at_rate(20.0)[-1] for w in (a, b))
            both = [at for w in (a, b) for at in w.at_rate(20.0) if start <= at <= end]
            # Each may have a burst of two.
            assert 20 <= len(both) <= 40 * (end - start) + 5

            change(run, rate=4000.0)
            for w in (a, b):
                until(lambda w=w: len(w.at_rate(2000.0)) > 20)  # type: ignore[misc]

            b.process.kill()
            until(lambda: len(a.at_rate(4000.0)) > 20)
            change(run, state="cancel")
            assert a.process.wait(60) == 0
            assert a.lines[-1] == {"canceled": True}
        assert live_workers(f"{run}/attempt-1", utc_now(), period=1e6) == ["b"]


class Worker:
    """A process under a `WorkerControl`: it prints when it was admitted, and at which rate."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def at_rate(self, rate: float) -> list[float]:
        """When it was admitted while its share was that."""
        return [line["at"] for line in self.lines if line.get("rate") == rate]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))


@contextmanager
def worker(run: str, name: str) -> Iterator[Worker]:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, run, name], stdout=subprocess.PIPE, text=True
    ) as process:
        found = Worker(process)
        try:
            yield found
        finally:
            process.kill()
            found._reader.join()


WORKER = """
import json, sys, time
from ledgerbeam.batch.execute.worker_control import Periods, acquire, release
from ledgerbeam.io.errors import CanceledError

run, name = sys.argv[1:]
worker_control = acquire(run, 1, Periods(poll=0.1, beat=1.0), name)
try:
    while True:
        with worker_control.throttle.admit(), worker_control.executing(0, "C1"):
            rate = worker_control.throttle.limits.rate
            print(json.dumps({"at": time.monotonic(), "rate": rate}), flush=True)
except CanceledError:
    release(worker_control)
    print(json.dumps({"canceled": True}), flush=True)
"""


class TestCutOff:
    def test_it_goes_on_for_a_while_and_then_begins_nothing_new(
        self, run: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        change(run, parallelism=3)
        with governing(run) as worker_control:
            until(lambda: worker_control.throttle.limits == Limits(parallelism=3))
            os.rename(run, f"{run}-away")
            os.symlink(run, run)  # a link to itself, which nobody can follow
            until(lambda: "cannot read the control log" in caplog.text)
            assert "Too many levels of symbolic links" in caplog.text
            until(lambda: worker_control.throttle.limits == Limits(parallelism=3, paused=True))
            assert "nothing new is begun until it can be read again" in caplog.text
            os.unlink(run)
            os.rename(f"{run}-away", run)
            until(lambda: worker_control.throttle.limits == Limits(parallelism=3))
            until(lambda: "can read the control log again" in caplog.text)
        # Told once, however often it was tried.
        assert caplog.text.count("cannot read the control log") == 1

    def test_it_does_so_too_while_the_storage_does_not_answer(self, run: str) -> None:
        change(run, parallelism=3)
        with governing(run) as worker_control:
            until(lambda: worker_control.throttle.limits == Limits(parallelism=3))
            hanging = Path(run, "control", "000002.json")
            os.mkfifo(hanging)  # to open it for reading waits for a writer
            until(lambda: worker_control.throttle.limits.paused)
            with hanging.open("w"):
                hanging.unlink()
            change(run, parallelism=4)
            until(lambda: worker_control.throttle.limits == Limits(parallelism=4))

    def test_it_begins_nothing_before_it_has_read_the_control_log(self, run: str) -> None:
        Path(run, "control").mkdir()
        unreadable = Path(run, "control", "000001.json")
        unreadable.write_text("{")
        with governing(run) as worker_control:
            until(lambda: live_workers(f"{run}/attempt-1", utc_now()) == ["a"])
            assert not worker_control.throttle.is_open
            assert worker_control.throttle.limits.paused
            unreadable.unlink()
            until(lambda: worker_control.throttle.is_open)

    def test_a_defect_is_told_with_its_traceback(
        self, run: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with governing(run) as worker_control:
            until(lambda: worker_control.throttle.is_open)
            monkeypatch.setattr("ledgerbeam.io.commit.control_log.newer", lambda *_: 1 / 0)
            until(lambda: worker_control.throttle.limits.paused)
            monkeypatch.undo()
            until(lambda: worker_control.throttle.is_open)
        assert "ZeroDivisionError" in caplog.text


class TestSignsOfLife:
    def test_they_tell_what_is_executed_and_what_is_done(self, run: str) -> None:
        attempt = f"{run}/attempt-1"
        with governing(run, "a") as worker_control:
            worker_control.count({"SUCCESS": 5, "FAILURE": 2})
            worker_control.count({"SUCCESS": 3, "FAILURE": -2})
            with (
                worker_control.executing(4, "C1/UPL"),
                worker_control.executing(4, "C2", 2, "x" * 9999),
            ):

                def told() -> bool:
                    (sign,) = heartbeats(attempt, utc_now()) or (None,)
                    return sign is not None and (
                        sign.executing
                        == [
                            Executing(shard=4, component="C2", tries=2, error="x" * 500),
                            Executing(shard=4, component="C1/UPL"),
                        ]
                        and sign.done == {"SUCCESS": 8}
                        and sign.in_flight == 2
                    )

                until(told)
            until(lambda: [s.executing for s in heartbeats(attempt, utc_now())] == [[]])
        assert os.listdir(f"{attempt}/workers") == []

    def test_one_that_is_not_announced_is_asked_for(self, run: str) -> None:
        attempt = f"{run}/attempt-1"
        at: list[str | None] = ["C1"]

        def told() -> list[tuple[list[str], int]]:
            signs = heartbeats(attempt, utc_now())
            return [([e.component for e in s.executing], s.in_flight) for s in signs]

        with governing(run, "a") as worker_control:
            with worker_control.tracking(4, lambda: at[0]):
                until(lambda: told() == [(["C1"], 1)])
                at[0] = None
                until(lambda: told() == [([], 0)])
                at[0] = "C2"
                until(lambda: told() == [(["C2"], 1)])
            until(lambda: told() == [([], 0)])

    def test_what_was_tried_most_often_comes_first_where_there_is_much(self, run: str) -> None:
        with governing(run, "a") as worker_control, ThreadPoolExecutor(150) as pool:
            gate = threading.Event()

            def work(number: int) -> None:
                with worker_control.executing(0, str(number), tries=2 if number == 149 else 1):
                    gate.wait(60)

            for number in range(150):
                pool.submit(work, number)
            try:
                until(
                    lambda: (
                        [s.in_flight for s in heartbeats(f"{run}/attempt-1", utc_now())] == [150]
                    )
                )
                (sign,) = heartbeats(f"{run}/attempt-1", utc_now())
            finally:
                gate.set()
            names = [told.component for told in sign.executing]
            assert names[0] == "149"
            assert len(names) == MAX_EXECUTING


class TestRegistry:
    def test_there_is_one_an_attempt_and_the_last_one_stops_it(self, run: str) -> None:
        with ThreadPoolExecutor(8) as pool:
            acquired = list(pool.map(lambda _: acquire(run, 1, QUICK), range(8)))
        first = acquired[0]
        assert all(each is first for each in acquired)
        other = acquire(run, 2, QUICK)
        assert other is not first
        release(other)
        for each in acquired[1:]:
            release(each)
        until(lambda: first.throttle.is_open)
        assert all(thread.is_alive() for thread in first._threads)
        release(first)
        assert not any(thread.is_alive() for thread in first._threads)
        assert live_workers(first.attempt_uri, utc_now()) == []
        again = acquire(run, 1, QUICK)
        assert again is not first
        release(again)

    def test_it_needs_no_beam(self) -> None:
        program = (
            "import sys, ledgerbeam.batch.execute.worker_control\n"
            "print('apache_beam' in sys.modules)"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert ended.stdout == "False\n"


def test_workers_share_limits_through_object_storage(root: str) -> None:
    change(root, rate=10.0)
    periods = Periods(poll=0.2, beat=1.0)
    with governing(root, "a", periods=periods) as a, governing(root, "b", periods=periods) as b:
        until(lambda: a.throttle.limits == b.throttle.limits == Limits(rate=5.0))
        change(root, state="cancel")
        until(lambda: a.canceled and b.canceled)


class TestHold:
    """A component asks that nothing begins for a while: no worker of the run begins anything."""

    def test_it_holds_for_all_workers_and_those_that_come_later(self, run: str) -> None:
        with governing(run, "a") as one, governing(run, "b") as other:
            for control in (one, other):
                until(lambda control=control: control.throttle.is_open)  # type: ignore[misc]
            one.hold(3600)
            assert not one.throttle.is_open
            until(lambda: not other.throttle.is_open)
            with governing(run, "c") as late:
                until(lambda: late.steering is not None)
                assert not late.throttle.is_open
                assert late.steering is not None
                assert late.steering.hold is not None
                assert "has asked for 3600 s" in late.steering.why

    def test_many_at_once_tell_it_once(self, run: str) -> None:
        with governing(run) as control:
            until(lambda: control.steering is not None)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(control.hold, [60.0] * 8))
            assert control.steering is not None
            assert control.steering.number == 1
            change(run, parallelism=2)
            until(lambda: control.steering is not None and control.steering.number == 2)
            assert control.steering.hold is not None
            assert not control.throttle.is_open

    def test_it_ends_and_clocks_that_differ_make_it_no_longer(self, run: str) -> None:
        def ahead() -> datetime.datetime:
            return utc_now() + datetime.timedelta(hours=5)

        with governing(run, "a", now=ahead) as one, governing(run, "b") as other:
            for control in (one, other):
                until(lambda control=control: control.throttle.is_open)  # type: ignore[misc]
            one.hold(0.3)
            for control in (one, other):
                control.throttle.acquire()  # would wait for hours
                control.throttle.release()

    def test_without_one_the_entry_is_as_it_was_before(self, run: str) -> None:
        change(run, parallelism=3)
        (entry,) = Path(run, "control").glob("*.json")
        assert "hold" not in json.loads(entry.read_text())
