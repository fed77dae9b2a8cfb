"""Admission of work inside one process: limits of parallelism and rate, pause, cancellation.

    throttle = Throttle()
    with throttle.admit():            # waits for its turn
        call(component)

    throttle.set(Limits(parallelism=8, rate=50.0))   # from any thread, in force at once

With millions of components and no limits, even a free lock takes noticeable time. Such a loop
reads the attribute `is_open` now and then, and skips admission while it is true:

    for number, component in enumerate(components):
        if number % 1000 == 0:
            is_open = throttle.is_open
        if is_open:
            call(component)
        else:
            with throttle.admit():
                call(component)

Work that skips admission isn't counted as in flight, and a new limit affects the loop only after it
has read the attribute again.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ledgerbeam.io.errors import CanceledError

BURST_SECONDS = 0.1
"""After a pause in demand, the units of this many seconds may start at once, at least one."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Ramp:
    """A rate that changes linearly from the moment when it is set, and then stays constant.

    Attributes:
        from_rate: units per second at the beginning; may be 0.
        to_rate: units per second at the end.
        seconds: how long the change takes.
    """

    from_rate: float
    to_rate: float
    seconds: float

    def __post_init__(self) -> None:
        if not (self.from_rate >= 0 and self.to_rate > 0 and self.seconds > 0):
            raise ValueError(f"a ramp goes from 0 or more to more than 0 in some time, not {self}")

    def rate_at(self, elapsed: float) -> float:
        """Units per second, `elapsed` seconds after the beginning."""
        done = min(elapsed / self.seconds, 1.0)
        return self.from_rate + (self.to_rate - self.from_rate) * done

    def units(self, start: float, end: float) -> float:
        """Units between two moments, in seconds after the beginning: the integral of the rate."""
        first, last = min(start, self.seconds), min(end, self.seconds)
        ramped = (last - first) * (self.rate_at(first) + self.rate_at(last)) / 2
        return ramped + self.to_rate * (max(end, self.seconds) - max(start, self.seconds))

    def seconds_for(self, units: float, start: float) -> float:
        """How many seconds `units` take, from `start` seconds after the beginning."""
        left = max(self.seconds - start, 0.0)
        ramped = self.units(start, start + left)
        if units > ramped:
            return left + (units - ramped) / self.to_rate
        rate, slope = self.rate_at(start), (self.to_rate - self.from_rate) / self.seconds
        # The root of rate * t + slope * t^2 / 2 = units, in a form that doesn't divide by slope.
        return 2 * units / (rate + math.sqrt(max(rate * rate + 2 * slope * units, 0.0)))


@dataclass(frozen=True)
class Limits:
    """Limits on the admission of work.

    Attributes:
        parallelism: how many admissions may be in flight; None for no limit.
        rate: units per second, constant or as a ramp; None for no limit.
        paused: whether nothing new is admitted.
    """

    parallelism: int | None = None
    rate: float | Ramp | None = None
    paused: bool = False

    def __post_init__(self) -> None:
        if self.parallelism is not None and self.parallelism < 1:
            raise ValueError(f"parallelism must be at least 1, not {self.parallelism}")
        if isinstance(self.rate, int | float) and not self.rate > 0:
            raise ValueError(f"rate must be more than 0, not {self.rate}")

    def split(self, number: int) -> "list[Limits]":
        """Limits of so many throttles that together admit what these limits do.

        Where fewer may be in flight than there are throttles, those at the end admit nothing.
        """
        if self == NO_LIMITS or self.paused:
            return [self] * number
        admitting = number if self.parallelism is None else min(number, self.parallelism)
        rate = self.rate
        if isinstance(rate, Ramp):
            rate = Ramp(rate.from_rate / admitting, rate.to_rate / admitting, rate.seconds)
        elif rate is not None:
            rate = rate / admitting
        each, left = divmod(self.parallelism or 0, admitting)
        shares = [
            Limits(None if self.parallelism is None else each + (place < left), rate)
            for place in range(admitting)
        ]
        return shares + [Limits(paused=True)] * (number - admitting)


NO_LIMITS = Limits()


class Throttle:
    """Admits work in the order in which callers ask.

    In any period, no more units are admitted than the integral of the rate plus a burst:
    `BURST_SECONDS` of the rate, or one unit, or the units of a single admission, whichever is most.
    An admission of more units than a burst waits until the rate has provided them. Only the first
    caller in the queue can take units, so no caller waits for ever. All methods may be called from
    any thread.

    Attributes:
        is_open: whether there is neither limit nor pause nor cancellation; see the module.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a throttle without limits.

        Args:
            clock: returns seconds, and never goes back.
        """
        self.is_open = True
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: deque[threading.Condition] = deque()
        self._in_flight = 0
        self._canceled = False
        self._held_until = -math.inf
        self._limits = NO_LIMITS
        self._bucket: _Bucket | None = None

    @property
    def limits(self) -> Limits:
        """The current limits."""
        return self._limits

    @property
    def canceled(self) -> bool:
        """Whether `cancel` was called, after which nothing is admitted."""
        return self._canceled

    @property
    def in_flight(self) -> int:
        """How many admissions haven't been released."""
        return self._in_flight

    def set(self, limits: Limits) -> None:
        """Replace the limits at once. Work in flight continues, even if it exceeds them.

        An unchanged rate or ramp continues; any other begins now.
        """
        with self._lock:
            if limits.rate != self._limits.rate:
                self._bucket = self._new_bucket(limits.rate)
            self._limits = limits
            self._open()
            self._wake_first()

    def hold(self, seconds: float) -> None:
        """Admit nothing for so long; what is in flight continues. A hold that ends later stays."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)
            self.is_open = False

    def cancel(self) -> None:
        """Admit nothing from now on; callers that wait get `CanceledError`."""
        with self._lock:
            self._canceled = True
            self.is_open = False
            self._wake_first()  # each caller that leaves wakes the next

    @contextmanager
    def admit(self, units: float = 1) -> Iterator[None]:
        """Admit the work inside the `with` block; see `acquire`."""
        self.acquire(units)
        try:
            yield
        finally:
            self.release()

    def acquire(self, units: float = 1) -> None:
        """Wait until work may begin; it counts as one in flight, whatever its units are.

        Args:
            units: the units of the rate that it takes, such as its number of components.

        Raises:
            CanceledError: the throttle was canceled before.
        """
        with self._lock:
            if self._bucket is not None and not self._queue:
                # While nobody was waiting, no more than a burst is saved up.
                self._bucket.fill(self._clock())
            try:
                if self._queue or self._seconds_to_wait(units) != 0:
                    self._stand_in_line(units)
                self._in_flight += 1
                if self._bucket is not None:
                    self._bucket.take(units)
            finally:
                self._wake_first()

    def release(self) -> None:
        """End the work that one `acquire` admitted; may be called from any thread."""
        with self._lock:
            self._in_flight -= 1
            self._wake_first()

    def _open(self) -> None:
        is_free = not self._canceled and self._limits == NO_LIMITS
        self.is_open = is_free and self._held_until <= self._clock()

    def _stand_in_line(self, units: float) -> None:
        turn = threading.Condition(self._lock)
        self._queue.append(turn)
        try:
            while (seconds := self._seconds_to_wait(units, turn)) != 0:
                self._wait(turn, seconds)
        finally:
            self._queue.remove(turn)

    def _seconds_to_wait(
        self, units: float, turn: threading.Condition | None = None
    ) -> float | None:
        """0 to begin now, None to wait until notified; `turn` is None outside the queue."""
        if self._canceled:
            raise CanceledError("the run is canceled: nothing new is begun")
        if self._limits.paused or (turn is not None and self._queue[0] is not turn):
            return None
        if self._held_until > -math.inf:
            held = self._held_until - self._clock()
            if held > 0:
                return held
            self._held_until = -math.inf
            self._open()
        parallelism = self._limits.parallelism
        if parallelism is not None and self._in_flight >= parallelism:
            return None
        if self._bucket is None:
            return 0.0
        self._bucket.fill(self._clock(), units)
        return self._bucket.seconds_to(units)

    def _wait(self, turn: threading.Condition, seconds: float | None) -> None:
        turn.wait(seconds if seconds is None else min(seconds, threading.TIMEOUT_MAX))

    def _wake_first(self) -> None:
        if self._queue:
            self._queue[0].notify()

    def _new_bucket(self, rate: float | Ramp | None) -> "_Bucket | None":
        if rate is None:
            return None
        bucket = _Bucket(rate if isinstance(rate, Ramp) else Ramp(rate, rate, 1.0), self._clock())
        if self._bucket is not None:
            self._bucket.fill(self._clock(), self._bucket.wanted)
            bucket.tokens = self._bucket.tokens
            bucket.fill(self._clock(), self._bucket.wanted)
        return bucket


class _Bucket:
    """Tokens, one per unit, which are added at a rate; no more than a burst are kept."""

    def __init__(self, ramp: Ramp, now: float) -> None:
        self.tokens = 1.0
        self.wanted = 0.0
        self._ramp = ramp
        self._began = now
        self._filled = 0.0

    def fill(self, now: float, wanted: float = 0.0) -> None:
        """Add the tokens due since the last call, up to a burst or what the queue's first wants."""
        elapsed = max(now - self._began, self._filled)
        came = self._ramp.units(self._filled, elapsed)
        most = max(1.0, self._ramp.rate_at(elapsed) * BURST_SECONDS, wanted)
        self.tokens = min(self.tokens + came, most)
        self._filled = elapsed
        self.wanted = wanted

    def take(self, units: float) -> None:
        """Remove tokens, and forget how many the first in the queue wanted."""
        self.tokens -= units
        self.wanted = 0.0

    def seconds_to(self, units: float) -> float:
        """Seconds from the last fill until there are `units` tokens."""
        missing = units - self.tokens
        if missing <= units * _ROUNDING:
            return 0.0
        return self._ramp.seconds_for(missing, self._filled)
