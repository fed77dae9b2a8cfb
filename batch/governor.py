"""What holds a worker process to what its run is told: limits, pause, cancellation.

    governor = acquire(run_uri, attempt)      # in DoFn.setup; one for all of the process
    with governor.throttle.admit(), governor.executing(shard, component):
        …
    release(governor)                         # in DoFn.teardown

A thread looks at the run's control log, gives signs of life, and counts the workers. The limits
are the whole run's: each worker takes its share of them, and takes another share as workers come
and go. A worker without work keeps its share. Each may always have one in flight, so that more
workers than the parallelism that is allowed exceed it.

A worker that comes announces itself, and where others are at work it begins only when they have
had the time to count again and to make room. So their shares never add up to more than the limits.

A worker that can't read the control log doesn't know whether it was canceled. After a while it
begins nothing new until it can read it again.
"""

import datetime
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ledgerbeam.io import control, storage
from ledgerbeam.io.control import Executing, Heartbeat, Steering
from ledgerbeam.io.errors import UserError
from ledgerbeam.transforms.throttle import Limits, Ramp, Throttle

_log = logging.getLogger(__name__)

MOST_EXECUTING = 100
"""Components that a sign of life tells of."""

MOST_ERROR = 500
"""Characters of an error that it tells."""


@dataclass(frozen=True)
class Periods:
    """How often a governor does what, in seconds.

    Attributes:
        poll: between two looks at the control log.
        beat: between two signs of life; the same for all workers of a run.
        lease: how long work is begun without the control log being readable.
    """

    poll: float = 1.5
    beat: float = control.HEARTBEAT_SECONDS
    lease: float = 30.0


PERIODS = Periods()


def utc_now() -> datetime.datetime:
    """The present time in UTC."""
    return datetime.datetime.now(datetime.UTC)


class Governor:
    """Holds this process to what one attempt of a run is told.

    Attributes:
        throttle: admits components or pages, at this process's share. Closed until the control
            log has been read for the first time.
        attempt_uri: the attempt's folder.
    """

    def __init__(
        self,
        run_uri: str,
        attempt: int,
        worker: str,
        periods: Periods = PERIODS,
        now: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        """Make a governor that does nothing yet.

        Args:
            run_uri: the run's folder.
            attempt: its number.
            worker: id of this process, unique within the attempt.
            periods: how often to do what.
            now: gives the present time in UTC.
        """
        self.throttle = Throttle()
        self.throttle.set(Limits(paused=True))
        self._run_uri = run_uri
        self._attempt = attempt
        self.attempt_uri = storage.join(run_uri, f"attempt-{attempt}")
        self._worker = worker
        self._periods = periods
        self._now = now
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._executing: dict[object, Executing] = {}
        self._waiting: dict[tuple[int, str], Executing] = {}
        self._looks: dict[object, tuple[int, Callable[[], str | None]]] = {}
        self._done: dict[str, int] = {}
        self._steering: Steering | None = None
        self._workers = [worker]
        self._applied: tuple[Steering | None, list[str], bool] | None = None
        self._read_at = float("-inf")
        self._settled_at = time.monotonic() + periods.beat + periods.poll
        self._sign: str | None = None
        self._announced = False
        self._failing: set[str] = set()
        self._threads: list[threading.Thread] = []

    @property
    def canceled(self) -> bool:
        """Whether the attempt has been canceled, for good."""
        return self.throttle.canceled

    @property
    def steering(self) -> Steering | None:
        """What was read last, or None before that."""
        return self._steering

    @contextmanager
    def executing(
        self, shard: int, component: str, tries: int = 1, error: str | None = None
    ) -> Iterator[None]:
        """Tell of a component while it is executed; see `Executing`."""
        token = object()
        if error is not None:
            error = error[:MOST_ERROR]
        # Not validated: this runs once a component. A sign of life is read by those who check.
        told = Executing.model_construct(shard=shard, component=component, tries=tries, error=error)
        with self._lock:
            self._waiting.pop((shard, component), None)
            self._executing[token] = told
        try:
            yield
        finally:
            with self._lock:
                del self._executing[token]

    @contextmanager
    def looking(self, shard: int, component: Callable[[], str | None]) -> Iterator[None]:
        """Tell of whatever component is executed, by asking each time a sign of life is given.

        Args:
            shard: of the components.
            component: gives the one that is executed just now, or None; called in another thread.
        """
        token = object()
        with self._lock:
            self._looks[token] = (shard, component)
        try:
            yield
        finally:
            with self._lock:
                del self._looks[token]

    def waiting(self, shard: int, component: str, tries: int, error: str) -> None:
        """Tell of a component that has failed and waits for its next try."""
        told = Executing.model_construct(
            shard=shard, component=component, tries=tries, error=error[:MOST_ERROR]
        )
        with self._lock:
            self._waiting[shard, component] = told

    def slice_size(self, count: int) -> int:
        """How many of `count` components to execute in one call, so that a rate is kept evenly."""
        if self.throttle.is_open or self._steering is None:
            return count
        rate = self._steering.rate_at(self._now())
        return count if rate is None else max(int(rate / len(self._workers)), 1)

    def count(self, done: Mapping[str, int]) -> None:
        """Add components that are done, by status; take them off, once their shard is committed.

        Args:
            done: number by status; negative ones take off.
        """
        with self._lock:
            for status, number in done.items():
                self._done[status] = self._done.get(status, 0) + number

    def start(self) -> None:
        """Begin to look and to give signs of life, in threads that don't outlive the process."""
        # A call to the storage may hang for longer than the lease, so another thread watches it.
        for work in (self._govern, self._watch):
            thread = threading.Thread(target=work, name=work.__name__, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """End that, and don't wait for a storage that doesn't answer."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(self._periods.beat)

    def _govern(self) -> None:
        beat_at = time.monotonic()
        while not self._stopping.is_set():
            self._try("read the control log", self._read_control)
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + self._periods.beat
                self._try("give a sign of life", self._beat)
            self._apply()
            until_beat = max(beat_at - time.monotonic(), 0.0)
            self._stopping.wait(min(self._periods.poll, until_beat))
        self._try("take back the sign of life", self._withdraw)

    def _watch(self) -> None:
        while not self._stopping.wait(self._periods.poll):
            self._apply()

    def _read_control(self) -> None:
        asked_at = time.monotonic()
        if self._steering is None:
            self._steering = control.latest(self._run_uri)
        else:
            change = control.newer(self._run_uri, self._steering.number)
            self._steering = change or self._steering
        self._read_at = asked_at

    def _beat(self) -> None:
        now = self._now()
        with self._lock:
            executing = [*self._executing.values()]
            for shard, component in self._looks.values():
                if (name := component()) is not None:
                    executing.append(Executing(shard=shard, component=name))
            in_flight = len(executing)
            executing += self._waiting.values()
            done = {status: number for status, number in self._done.items() if number}
        heartbeat = Heartbeat(
            worker=self._worker,
            at=now,
            in_flight=max(self.throttle.in_flight, in_flight),
            # The sort is stable: among equals, what began first.
            executing=sorted(executing, key=lambda e: -e.tries)[:MOST_EXECUTING],
            done=done,
        )
        self._sign = control.beat(self.attempt_uri, heartbeat, self._sign)
        workers = control.live_workers(self.attempt_uri, now, self._periods.beat)
        self._workers = sorted({*workers, self._worker})
        if not self._announced:
            self._announced = True
            alone = len(self._workers) == 1
            room_made = time.monotonic() + self._periods.beat + self._periods.poll
            self._settled_at = float("-inf") if alone else room_made

    def _withdraw(self) -> None:
        if self._sign is not None:
            storage.delete(self._sign)

    def _apply(self) -> None:
        """Set this process's share, if anything has changed that decides it."""
        with self._lock:
            steering, workers, now = self._steering, self._workers, time.monotonic()
            if steering is not None and steering.cancels(self._attempt):
                self.throttle.cancel()
                return
            cut_off = now - self._read_at > self._periods.lease
            if steering is None or cut_off:
                closed = True
            else:
                settling = steering.limits_flow and now < self._settled_at
                closed = settling or steering.state == "pause"
            if self._applied == (steering, workers, closed):
                return
            if cut_off and steering is not None:
                _log.warning(
                    "%s: the control log can't be read for %g s: nothing new is begun until it "
                    "can be read again",
                    self._run_uri,
                    self._periods.lease,
                )
            self._applied = (steering, workers, closed)
            self.throttle.set(self._share(steering or Steering(), workers, closed))

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
        """Do it, and say so if it fails: once, until it has worked again."""
        try:
            step()
        except Exception as error:
            if what not in self._failing:
                self._failing.add(what)
                defect = None if isinstance(error, UserError) else error
                _log.warning("%s: cannot %s: %s", self._run_uri, what, error, exc_info=defect)
        else:
            if what in self._failing:
                self._failing.remove(what)
                _log.info("%s: can %s again", self._run_uri, what)


@dataclass
class _Shared:
    governor: Governor
    users: int


_governors: dict[str, _Shared] = {}
_governors_lock = threading.Lock()


def acquire(
    run_uri: str, attempt: int, periods: Periods = PERIODS, worker: str | None = None
) -> Governor:
    """This process's governor of an attempt, started by whoever asks first.

    Args:
        run_uri: the run's folder.
        attempt: its number.
        periods: how often to do what; those of whoever asks first.
        worker: id of this process; by default host, process and a random number.
    """
    key = storage.join(run_uri, f"attempt-{attempt}")
    with _governors_lock:
        shared = _governors.get(key)
        if shared is None:
            worker = worker or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            shared = _governors[key] = _Shared(Governor(run_uri, attempt, worker, periods), 0)
            shared.governor.start()
        shared.users += 1
        return shared.governor


def release(governor: Governor) -> None:
    """Stop the governor when all who acquired it have released it."""
    with _governors_lock:
        key = governor.attempt_uri
        shared = _governors[key]
        shared.users -= 1
        if shared.users:
            return
        del _governors[key]
    governor.stop()


def _forget_governors() -> None:
    """A forked process has none of its parent's threads."""
    global _governors_lock
    _governors.clear()
    _governors_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_governors)
