"""Makes a worker process obey its run's limits, pauses and cancellation.

    worker_control = acquire(run_uri, attempt)      # in DoFn.setup; shared in the process
    with worker_control.throttle.admit(), worker_control.executing(shard, component):
        …
    release(worker_control)                         # in DoFn.teardown

A thread polls the run's control log, sends heartbeats, and counts the workers. The limits apply to
the whole run: each worker takes an equal share of them, which changes as workers start and end. A
worker without work keeps its share. Each worker may always have one component in flight, so if
there are more workers than the parallelism, the run exceeds it.

A new worker announces itself by a heartbeat. If other workers are running, it starts work only
after they have had time to count it and to reduce their shares, so that the shares never add up to
more than the limits.

A worker that can't read the control log doesn't know whether its run was canceled. After the lease
it starts nothing new until it can read the log again.
"""

import datetime
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.execute.executions import Executions, Snapshot
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.control_log import Heartbeat, Hold, Steering
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.machine import host_name
from ledgerbeam.io.shared import SharedByKey
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.transforms.concurrency.throttle import Limits, Ramp, Throttle

_log = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Shards that a worker process executes side by side, in threads."""

MAX_EXECUTING = 100
"""How many components a heartbeat names at most."""


@dataclass(frozen=True)
class Periods:
    """The intervals of a worker control, in seconds.

    Attributes:
        poll: time between two reads of the control log.
        beat: time between two heartbeats; the same for all workers of a run.
        lease: how long new work may start while the control log can't be read.
    """

    poll: float = 1.5
    beat: float = control_log.HEARTBEAT_SECONDS
    lease: float = 30.0


PERIODS = Periods()


class Steered(Protocol):
    """A throttle, of this process or of one that executes for it."""

    def set(self, limits: Limits) -> None:
        """Replace the limits."""

    def hold(self, seconds: float) -> None:
        """Admit nothing for so long."""

    def cancel(self) -> None:
        """Admit nothing from now on."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a shard is executed: in this process, or in one that executes for it.

    Attributes:
        throttle: admits its components.
        snapshot: gives what the other process executes; nothing for this process.
    """

    throttle: Steered
    snapshot: Callable[[], Snapshot]


class WorkerControl(Executions):
    """Makes this process obey the limits, pauses and cancellation of an attempt's run.

    Attributes:
        throttle: admits components or pages within this process's share of the limits. It is
            closed until the control log has been read for the first time.
        own_slot: where shards are executed in this process, if others execute beside it.
        attempt_uri: the attempt's folder.
    """

    def __init__(
        self,
        run_uri: str,
        attempt: int,
        worker: str,
        periods: Periods = PERIODS,
        now: Clock = utc_now,
    ) -> None:
        """Make a worker control, which does nothing until `start`.

        Args:
            run_uri: the run's folder.
            attempt: the number of the attempt.
            worker: id of this process, unique within the attempt.
            periods: the intervals of polls and heartbeats.
            now: returns the present time in UTC.
        """
        super().__init__()
        self.throttle = Throttle()
        self.throttle.set(Limits(paused=True))
        self.own_slot = Slot(self.throttle, Snapshot)
        self._run_uri = run_uri
        self._attempt = attempt
        self.attempt_uri = uris.join(run_uri, f"attempt-{attempt}")
        self._worker = worker
        self._periods = periods
        self._now = now
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._slots: list[Slot] = []
        self._done: dict[str, int] = {}
        self._steering: Steering | None = None
        self._workers = [worker]
        self._applied: tuple[Steering | None, list[str], bool, list[Slot]] | None = None
        self._read_at = float("-inf")
        self._stable_at = time.monotonic() + periods.beat + periods.poll
        self._heartbeat_uri: str | None = None
        self._announced = False
        self._failing: set[str] = set()
        self._threads: list[threading.Thread] = []

    @property
    def canceled(self) -> bool:
        """Whether the attempt has been canceled, which is final."""
        return self.throttle.canceled

    @property
    def steering(self) -> Steering | None:
        """The steering that was read last; None before the first read."""
        return self._steering

    def slice_size(self, count: int) -> int:
        """How many of `count` components to execute in one call, to keep a rate evenly."""
        if self.throttle.is_open or self._steering is None:
            return count
        rate = self._steering.rate_at(self._now())
        return count if rate is None else max(int(rate / len(self._workers)), 1)

    def hold(self, seconds: float) -> None:
        """Have no worker of the run begin anything for so long; others hear of it when they poll.

        If that can't be told to them, which is logged, it holds for this one.
        """
        now = self._now()
        steering = self._steering
        told = 0.0 if steering is None or steering.hold is None else steering.hold.left(now)
        for throttle in self._throttles:
            throttle.hold(seconds)
        # Of many calls that fail at once, one tells.
        if seconds - told > self._periods.poll and not self.canceled:
            self._try("hold the run", lambda: self._tell_hold(seconds, now))

    def _tell_hold(self, seconds: float, now: datetime.datetime) -> None:
        hold = Hold(seconds=seconds, until=now + datetime.timedelta(seconds=seconds))
        with self._telling:
            before = control_log.latest(self._run_uri)
            if before.hold is None or seconds - before.hold.left(now) > self._periods.poll:
                why = f"a component has asked for {seconds:g} s in which nothing begins"
                before = control_log.steer(self._run_uri, now, self._worker, why, hold=hold)
            self._take(before)

    @contextmanager
    def sharing(self, slot: Slot) -> Iterator[None]:
        """A shard is executed in that slot inside of the `with` block.

        Slots that execute side by side share what this process may do, to the last component: where
        it may have fewer in flight than there are slots, some wait until others have ended.
        """
        self._change_slots(lambda: self._slots.append(slot))
        steering = self._steering
        hold = None if steering is None else steering.hold
        if hold is not None and (left := hold.left(self._now())):
            slot.throttle.hold(left)
        try:
            yield
        finally:
            self._change_slots(lambda: self._slots.remove(slot))

    def own_threads(self) -> int:
        """Two, or one where other processes execute beside this one."""
        return 1 if {*self._slots} - {self.own_slot} else IN_FLIGHT

    def _change_slots(self, change: Callable[[], None]) -> None:
        with self._lock:
            change()
        self._apply()

    @property
    def _throttles(self) -> list[Steered]:
        of_slots = [slot.throttle for slot in self._slots if slot.throttle is not self.throttle]
        return [self.throttle, *of_slots]

    def count(self, done: Mapping[str, int]) -> None:
        """Add to the number of components that are done and whose shard is not yet committed.

        Args:
            done: number of components by status; negative to subtract those of a committed shard.
        """
        with self._lock:
            for status, number in done.items():
                self._done[status] = self._done.get(status, 0) + number

    def start(self) -> None:
        """Start to poll and to send heartbeats, in daemon threads."""
        # A call to the storage may hang for longer than the lease, so another thread watches it.
        for work in (self._govern, self._watch):
            thread = threading.Thread(target=work, name=work.__name__, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stop these threads, without waiting long for a storage that doesn't answer."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(self._periods.beat)

    def _govern(self) -> None:
        beat_at = time.monotonic()
        while not self._stopping.is_set():
            self._try("read the control log", self._read_control)
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + self._periods.beat
                self._try("send a heartbeat", self._beat)
            self._apply()
            until_beat = max(beat_at - time.monotonic(), 0.0)
            self._stopping.wait(min(self._periods.poll, until_beat))
        self._try("delete the heartbeat", self._withdraw)

    def _watch(self) -> None:
        while not self._stopping.wait(self._periods.poll):
            self._apply()

    def _read_control(self) -> None:
        asked_at = time.monotonic()
        if self._steering is None:
            self._take(control_log.latest(self._run_uri))
        else:
            change = control_log.newer(self._run_uri, self._steering.number)
            if change is not None:
                self._take(change)
        self._read_at = asked_at

    def _take(self, steering: Steering) -> None:
        with self._lock:
            if self._steering is None or steering.number > self._steering.number:
                self._steering = steering
        if steering.hold is not None and (left := steering.hold.left(self._now())):
            for throttle in self._throttles:
                throttle.hold(left)

    def _beat(self) -> None:
        now = self._now()
        with self._lock:
            snapshots = [self.snapshot(), *(slot.snapshot() for slot in self._slots)]
            executing = [each for snapshot in snapshots for each in snapshot.executing]
            in_flight = len(executing)
            executing += [each for snapshot in snapshots for each in snapshot.waiting]
            done = {status: number for status, number in self._done.items() if number}
        heartbeat = Heartbeat(
            worker=self._worker,
            at=now,
            in_flight=max(self.throttle.in_flight, in_flight),
            # The sort is stable: among equal tries, components that began first come first.
            executing=sorted(executing, key=lambda e: -e.tries)[:MAX_EXECUTING],
            done=done,
        )
        self._heartbeat_uri = control_log.beat(self.attempt_uri, heartbeat, self._heartbeat_uri)
        workers = control_log.live_workers(self.attempt_uri, now, self._periods.beat)
        self._workers = sorted({*workers, self._worker})
        if not self._announced:
            self._announced = True
            alone = len(self._workers) == 1
            room_made = time.monotonic() + self._periods.beat + self._periods.poll
            self._stable_at = float("-inf") if alone else room_made

    def _withdraw(self) -> None:
        if self._heartbeat_uri is not None:
            stores.delete(self._heartbeat_uri)

    def _apply(self) -> None:
        """Set the throttle to this process's share of the limits, if that has changed."""
        with self._lock:
            steering, workers, now = self._steering, self._workers, time.monotonic()
            if steering is not None and steering.cancels(self._attempt):
                for throttle in self._throttles:
                    throttle.cancel()
                return
            cut_off = now - self._read_at > self._periods.lease
            if steering is None or cut_off:
                closed = True
            else:
                changing = steering.limits_flow and now < self._stable_at
                closed = changing or steering.state == "pause"
            if self._applied == (steering, workers, closed, self._slots):
                return
            if cut_off and steering is not None:
                _log.warning(
                    "%s: the control log can't be read for %g s: nothing new is begun until it "
                    "can be read again",
                    self._run_uri,
                    self._periods.lease,
                )
            self._applied = (steering, workers, closed, [*self._slots])
            limits = self._share(steering or Steering(), workers, closed)
            slots = dict.fromkeys(self._slots or [self.own_slot])
            throttles = [slot.throttle for slot in slots]
            for throttle, share in zip(throttles, limits.split(len(throttles)), strict=True):
                throttle.set(share)

    def _share(self, steering: Steering, workers: list[str], closed: bool) -> Limits:
        parallelism = steering.parallelism
        if parallelism is not None:
            each, left = divmod(parallelism, len(workers))
            parallelism = max(each + (workers.index(self._worker) < left), 1)
        rate: float | Ramp | None = None
        if steering.ramp is not None:
            now = self._now()
            seconds = steering.ramp.seconds - steering.ramp.elapsed(now)
            to_rate = steering.ramp.to_rate / len(workers)
            from_rate = steering.ramp.rate_at(now) / len(workers)
            rate = Ramp(from_rate, to_rate, seconds) if seconds > 0 else to_rate
        elif steering.rate is not None:
            rate = steering.rate / len(workers)
        return Limits(parallelism, rate, paused=closed)

    def _try(self, what: str, step: Callable[[], None]) -> None:
        """Run a step. Log its first failure, and the first success after failures."""
        try:
            step()
        except Exception as error:
            if what not in self._failing:
                self._failing.add(what)
                bug = None if isinstance(error, UserError) else error
                _log.warning("%s: cannot %s: %s", self._run_uri, what, error, exc_info=bug)
        else:
            if what in self._failing:
                self._failing.remove(what)
                _log.info("%s: can %s again", self._run_uri, what)


_worker_controls = SharedByKey(WorkerControl.stop)


def acquire(
    run_uri: str, attempt: int, periods: Periods = PERIODS, worker: str | None = None
) -> WorkerControl:
    """This process's worker control for an attempt, started by the first caller.

    Args:
        run_uri: the run's folder.
        attempt: the number of the attempt.
        periods: the intervals of polls and heartbeats; those of the first caller count.
        worker: id of this process; by default host, process id and a random number.
    """

    def start() -> WorkerControl:
        name = worker or f"{host_name()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        control = WorkerControl(run_uri, attempt, name, periods)
        control.start()
        return control

    return _worker_controls.acquire(uris.join(run_uri, f"attempt-{attempt}"), start)


def release(worker_control: WorkerControl) -> None:
    """Release a worker control; it stops when all its callers have released it."""
    _worker_controls.release(worker_control.attempt_uri)
