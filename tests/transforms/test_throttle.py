"""Admission of work: never more than is allowed, and never stuck."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledgerbeam.io.errors import CanceledError
from ledgerbeam.transforms.concurrency.throttle import BURST_SECONDS, Limits, Ramp, Throttle


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@given(
    parallelism=st.none() | st.integers(1, 50),
    rate=st.none()
    | st.floats(0.1, 1e6)
    | st.builds(Ramp, st.just(1.0), st.floats(1, 9), st.just(5.0)),
    number=st.integers(1, 40),
)
def test_parts_of_limits_admit_together_what_the_whole_does(
    parallelism: int | None, rate: float | Ramp | None, number: int
) -> None:
    parts = Limits(parallelism, rate).split(number)
    admitting = [part for part in parts if not part.paused]
    assert len(parts) == number
    assert admitting
    if parallelism is not None:
        assert sum(part.parallelism or 0 for part in admitting) == parallelism
    rates = [r.to_rate if isinstance(r, Ramp) else r for r in (part.rate for part in admitting)]
    if rate is None:
        assert set(rates) == {None}
    else:
        whole = rate.to_rate if isinstance(rate, Ramp) else rate
        assert sum(r or 0 for r in rates) == pytest.approx(whole)


class Simulated(Throttle):
    """Waits by moving its clock, so that one thread sees all that happens, and at once."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.waits = 0
        super().__init__(self.clock)

    def _wait(self, turn: threading.Condition, seconds: float | None) -> None:
        assert seconds is not None, "would wait forever"
        self.waits += 1
        self.clock.seconds += seconds

    def admit_at(self, units: float) -> float:
        """When it is admitted."""
        with self.admit(units):
            return self.clock.seconds


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is sure to come."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as executor:
        yield executor


def queue_up(throttle: Throttle, pool: ThreadPoolExecutor, number: int) -> list[Future[None]]:
    """So many threads that ask to be admitted, and don't release."""
    asking = [pool.submit(throttle.acquire) for _ in range(number)]
    until(lambda: throttle.in_flight + len(throttle._queue) >= number)
    return asking


rates = st.floats(0.5, 5_000)
ramps = st.builds(Ramp, st.just(0.0) | rates, rates, st.floats(0.1, 100))


class TestRate:
    @given(
        st.one_of(rates, ramps),
        st.lists(st.tuples(st.just(0.0) | st.floats(0, 3), st.integers(1, 300)), max_size=60),
    )
    @settings(deadline=None)
    def test_no_more_is_admitted_than_the_rate_and_a_burst(
        self, rate: float | Ramp, asked: list[tuple[float, int]]
    ) -> None:
        throttle = Simulated()
        throttle.set(Limits(rate=rate))
        admitted = []
        for lull, units in asked:
            throttle.clock.seconds += lull
            admitted.append((throttle.admit_at(units), units))
        ramp = rate if isinstance(rate, Ramp) else Ramp(rate, rate, 1.0)
        fastest = max(ramp.from_rate, ramp.to_rate)
        for first in range(len(admitted)):
            sum_units = 0.0
            for at, units in admitted[first:]:
                sum_units += units
                largest = max(u for _, u in admitted[first:])
                burst = max(1.0, BURST_SECONDS * fastest, largest)
                start = admitted[first][0]
                assert sum_units <= (ramp.units(start, at) + burst) * (1 + 1e-6)

    @given(rates, st.lists(st.integers(1, 300), min_size=1, max_size=40))
    @settings(deadline=None)
    def test_the_rate_is_reached_where_there_is_enough_to_do(
        self, rate: float, asked: list[int]
    ) -> None:
        throttle = Simulated()
        throttle.set(Limits(rate=rate))
        for units in asked:
            last = throttle.admit_at(units)
        assert last == pytest.approx((sum(asked) - 1) / rate, abs=1e-6)
        assert throttle.waits <= 2 * len(asked)

    @given(ramps, st.lists(st.integers(1, 300), min_size=1, max_size=40))
    @settings(deadline=None)
    def test_so_is_a_ramp(self, ramp: Ramp, asked: list[int]) -> None:
        throttle = Simulated()
        throttle.set(Limits(rate=ramp))
        for units in asked:
            last = throttle.admit_at(units)
        assert ramp.units(0.0, last) == pytest.approx(sum(asked) - 1, rel=1e-6, abs=1e-6)
        assert throttle.waits <= 3 * len(asked)

    @given(ramps, st.floats(0, 200), st.floats(0.001, 1e6))
    @settings(deadline=None)
    def test_time_and_units_of_a_ramp_agree(self, ramp: Ramp, start: float, units: float) -> None:
        seconds = ramp.seconds_for(units, start)
        assert ramp.units(start, start + seconds) == pytest.approx(units, rel=1e-6, abs=1e-6)

    @given(ramps, st.floats(0, 200), st.floats(0, 200))
    @settings(max_examples=50, deadline=None)
    def test_units_are_the_integral_of_the_rate(
        self, ramp: Ramp, start: float, length: float
    ) -> None:
        steps = 500
        step = length / steps
        integral = sum(ramp.rate_at(start + step * (i + 0.5)) for i in range(steps)) * step
        # The rule of midpoints is exact but where the ramp ends within a step.
        bend = abs(ramp.to_rate - ramp.from_rate) / ramp.seconds * step * step / 8
        units = ramp.units(start, start + length)
        assert units == pytest.approx(integral, rel=1e-6, abs=bend * (1 + 1e-6) + 1e-6)

    def test_a_vectorised_call_waits_as_long_as_its_units_cost(self) -> None:
        throttle = Simulated()
        throttle.set(Limits(rate=1000.0))
        throttle.clock.seconds = 500.0  # a lull saves up no more than a burst
        assert throttle.admit_at(100_000) == pytest.approx(500 + (100_000 - 100) / 1000)
        assert throttle.admit_at(1) == pytest.approx(500 + (100_001 - 100) / 1000)

    def test_after_a_lull_comes_a_burst_and_no_more(self) -> None:
        throttle = Simulated()
        throttle.set(Limits(rate=50.0))
        throttle.clock.seconds = 1000.0
        times = [throttle.admit_at(1) - 1000 for _ in range(10)]
        assert times[:5] == [0.0] * 5
        assert times[5:] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])

    def test_a_new_rate_begins_at_once_and_an_equal_one_goes_on(self) -> None:
        throttle = Simulated()
        throttle.set(Limits(rate=1.0))
        assert [throttle.admit_at(1) for _ in range(3)] == pytest.approx([0, 1, 2])
        throttle.set(Limits(rate=10.0))
        assert throttle.admit_at(1) == pytest.approx(2.1)
        ramp = Ramp(1.0, 3.0, 2.0)
        throttle.set(Limits(rate=ramp))
        assert throttle.admit_at(4) == pytest.approx(4.1)
        throttle.set(Limits(rate=ramp, parallelism=5))
        assert throttle.admit_at(3) == pytest.approx(5.1)

    def test_what_a_large_call_has_waited_for_survives_a_new_rate(self) -> None:
        throttle = Simulated()
        throttle.set(Limits(rate=10.0))
        moments = iter([50.0])

        def wait(turn: threading.Condition, seconds: float | None) -> None:
            # Half of 1,000 units have come when the rate is doubled.
            assert seconds is not None
            throttle.clock.seconds += next(moments, seconds)
            if throttle.clock.seconds == 50.0:
                with_lock_held(throttle, Limits(rate=20.0))

        throttle._wait = wait  # type: ignore[method-assign]
        assert throttle.admit_at(1000) == pytest.approx(50 + (1000 - 501) / 20)


def with_lock_held(throttle: Throttle, limits: Limits) -> None:
    """What another thread does while this one waits, which has let the lock go."""
    throttle._lock.release()
    try:
        throttle.set(limits)
    finally:
        throttle._lock.acquire()


class TestThreads:
    def test_never_more_in_flight_than_may_be(self, pool: ThreadPoolExecutor) -> None:
        throttle = Throttle()
        throttle.set(Limits(parallelism=3))
        lock = threading.Lock()
        now, most = 0, 0

        def work() -> None:
            nonlocal now, most
            with throttle.admit():
                with lock:
                    now += 1
                    most = max(most, now)
                time.sleep(0.001)
                with lock:
                    now -= 1

        for future in [pool.submit(work) for _ in range(200)]:
            future.result(30)
        assert most == 3
        assert throttle.in_flight == 0

    def test_who_waits_hears_of_a_higher_limit_at_once(self, pool: ThreadPoolExecutor) -> None:
        throttle = Throttle()
        throttle.set(Limits(parallelism=1))
        queue_up(throttle, pool, 10)
        assert throttle.in_flight == 1
        throttle.set(Limits(parallelism=4))
        until(lambda: throttle.in_flight == 4)
        throttle.set(Limits())
        until(lambda: throttle.in_flight == 10)

    def test_a_lower_limit_lets_work_in_flight_finish(self, pool: ThreadPoolExecutor) -> None:
        throttle = Throttle()
        throttle.set(Limits(parallelism=5))
        queue_up(throttle, pool, 8)
        throttle.set(Limits(parallelism=2))
        assert throttle.in_flight == 5
        for left in (4, 3, 2):
            throttle.release()
            assert throttle.in_flight == left
        throttle.release()  # the first one that lets another in
        until(lambda: throttle.in_flight == 2 and len(throttle._queue) == 2)
        throttle.set(Limits())
        until(lambda: throttle.in_flight == 4)

    def test_a_pause_lets_nobody_in_and_keeps_what_is_in_flight(
        self, pool: ThreadPoolExecutor
    ) -> None:
        throttle = Throttle()
        throttle.acquire()
        throttle.set(Limits(paused=True))
        waiting = [pool.submit(throttle.acquire) for _ in range(3)]
        until(lambda: len(throttle._queue) == 3)
        throttle.release()
        assert throttle.in_flight == 0
        throttle.set(Limits())
        for future in waiting:
            future.result(30)
        assert throttle.in_flight == 3

    @pytest.mark.parametrize(
        "limits", [Limits(paused=True), Limits(parallelism=1), Limits(rate=1e-12)]
    )
    def test_who_waits_is_told_of_a_cancellation(
        self, pool: ThreadPoolExecutor, limits: Limits
    ) -> None:
        throttle = Throttle()
        throttle.acquire()
        throttle.set(limits)
        if limits.rate is not None:
            throttle.acquire()  # the one token of the beginning
        waiting = [pool.submit(throttle.acquire) for _ in range(5)]
        until(lambda: len(throttle._queue) == 5)
        throttle.cancel()
        for future in waiting:
            with pytest.raises(CanceledError):
                future.result(30)
        throttle.set(Limits())
        with pytest.raises(CanceledError):
            throttle.acquire()
        assert (throttle.canceled, throttle.is_open) == (True, False)

    def test_nobody_is_passed_over(self, pool: ThreadPoolExecutor) -> None:
        """A call of many units is admitted though there are always small ones that want in."""
        clock = Clock()
        throttle = Throttle(clock)
        throttle.set(Limits(rate=10.0))
        throttle.acquire()
        large = pool.submit(throttle.acquire, 50)
        until(lambda: len(throttle._queue) == 1)
        small = [pool.submit(throttle.acquire) for _ in range(10)]
        until(lambda: len(throttle._queue) == 11)
        clock.seconds = 4.9
        small += [pool.submit(throttle.acquire) for _ in range(10)]
        until(lambda: throttle.in_flight + len(throttle._queue) == 22)
        throttle.set(throttle.limits)
        time.sleep(0.01)
        assert throttle.in_flight == 1
        clock.seconds = 5.0
        throttle.set(throttle.limits)
        large.result(30)
        assert throttle.in_flight == 2
        for second in (6.0, 7.0):
            # In steps of a burst: more time without anybody looking is a lull.
            for tenth in range(10):
                clock.seconds = second - 0.9 + tenth / 10
                admitted = throttle.in_flight
                throttle.set(throttle.limits)
                until(lambda before=admitted: throttle.in_flight > before)  # type: ignore[misc]
        for future in small:
            future.result(30)
        assert throttle.in_flight == 22

    def test_an_error_inside_releases(self) -> None:
        throttle = Throttle()
        with pytest.raises(RuntimeError), throttle.admit():
            raise RuntimeError
        assert throttle.in_flight == 0


class TestOpen:
    def test_it_is_open_only_where_nothing_holds_work_back(self) -> None:
        throttle = Throttle()
        assert throttle.is_open
        for limits in (Limits(parallelism=1), Limits(rate=1.0), Limits(paused=True)):
            throttle.set(limits)
            assert not throttle.is_open
            throttle.set(Limits())
            assert throttle.is_open

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Limits(parallelism=0),
            lambda: Limits(rate=0.0),
            lambda: Limits(rate=math.nan),
            lambda: Ramp(-1.0, 5.0, 1.0),
            lambda: Ramp(1.0, 0.0, 1.0),
            lambda: Ramp(1.0, 2.0, 0.0),
        ],
    )
    def test_limits_that_let_nothing_through_are_refused(self, make: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match="not"):
            make()


class TestHold:
    """Nothing is admitted for a time, with and without limits."""

    def test_it_ends_by_itself(self) -> None:
        throttle = Simulated()
        assert throttle.is_open
        throttle.hold(30)
        assert not throttle.is_open
        assert throttle.admit_at(1) == 30
        assert throttle.is_open
        assert throttle.admit_at(1) == 30

    def test_the_one_that_ends_later_counts(self) -> None:
        throttle = Simulated()
        throttle.hold(30)
        throttle.hold(10)
        throttle.clock.seconds = 5
        throttle.set(Limits(parallelism=3))
        assert throttle.admit_at(1) == 30
        assert not throttle.is_open

    def test_a_pause_and_a_rate_go_on_behind_it(self) -> None:
        throttle = Simulated()
        throttle.set(Limits(rate=2.0))
        throttle.hold(10)
        times = [throttle.admit_at(1) for _ in range(3)]
        assert times == [10, 10.5, 11]

    def test_who_waits_is_let_go_when_it_is_canceled(self, pool: ThreadPoolExecutor) -> None:
        throttle = Throttle()
        throttle.hold(3600)
        waiting = pool.submit(throttle.acquire)
        until(lambda: bool(throttle._queue))
        throttle.cancel()
        with pytest.raises(CanceledError):
            waiting.result(30)
