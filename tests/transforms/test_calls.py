"""Calls in threads that can be given up."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from ledgerbeam.io.errors import (
    NoThreadFreeError,
    OutcomeUnknownError,
    OverdueError,
    TimeLimitExceededError,
)
from ledgerbeam.transforms.concurrency import calls
from ledgerbeam.transforms.concurrency.calls import (
    Call,
    DaemonPool,
    Fence,
    Stopped,
    call_with_limit,
)

LONG = 60.0
"""More than any of these calls needs."""


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is sure to come."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


def identity(value: object) -> object:
    return value


class TestPool:
    def test_threads_are_used_again(self) -> None:
        pool = DaemonPool()
        idents = set()
        for _ in range(50):
            idents.add(pool.submit(threading.get_ident).result(LONG))
            until(lambda: pool._idle == 1)
        assert len(idents) == pool.threads == 1

    def test_there_are_as_many_as_calls_at_a_time_but_no_more_than_may_be(self) -> None:
        pool = DaemonPool(max_threads=8)
        gate = threading.Event()
        waiting = [pool.submit(gate.wait, LONG) for _ in range(5)]
        assert pool.threads == 5
        waiting += [pool.submit(gate.wait, LONG) for _ in range(15)]
        assert pool.threads == 8
        gate.set()
        assert all(call.result(LONG) for call in waiting)
        assert pool.threads == 8

    def test_idle_threads_end_and_others_come_when_needed(self) -> None:
        pool = DaemonPool(idle_seconds=0.01)
        gate = threading.Barrier(5)
        for call in [pool.submit(gate.wait, LONG) for _ in range(5)]:
            call.result(LONG)
        until(lambda: pool.threads == 0)
        assert pool.submit(identity, 7).result(LONG) == 7

    def test_no_call_is_lost_among_threads_that_come_and_go(self) -> None:
        pool = DaemonPool(max_threads=4, idle_seconds=0.0005)
        for number in range(1000):
            assert pool.submit(identity, number).result(LONG) == number
            if number % 10 == 0:
                time.sleep(0.0005)

    def test_errors_are_given_to_whoever_asks(self) -> None:
        with pytest.raises(ZeroDivisionError):
            DaemonPool().submit(divmod, 1, 0).result(LONG)

    def test_all_threads_are_daemons(self) -> None:
        assert DaemonPool().submit(lambda: threading.current_thread().daemon).result(LONG)


class TestLimit:
    def test_a_call_in_time_gives_its_result_or_its_error(self) -> None:
        assert call_with_limit(identity, LONG, 5) == 5
        with pytest.raises(ZeroDivisionError):
            call_with_limit(divmod, LONG, 1, 0)

    def test_the_functions_own_timeout_is_no_limit(self) -> None:
        def slow_network() -> None:
            raise TimeoutError("no answer")

        with pytest.raises(TimeoutError, match="no answer"):
            call_with_limit(slow_network, LONG)

    def test_an_endless_loop_is_stopped(self) -> None:
        cleaned_up = threading.Event()
        pool = DaemonPool()

        def loop() -> None:
            try:
                while True:
                    with suppress(Exception):  # as some do, around everything
                        sum(range(100))
            finally:
                cleaned_up.set()

        with pytest.raises(TimeLimitExceededError, match=r"more than 0\.05 s"):
            call_with_limit(loop, 0.05, pool=pool)
        assert cleaned_up.wait(LONG)
        until(lambda: pool._idle == 1)
        assert call_with_limit(identity, LONG, 5, pool=pool) == 5
        assert pool.threads == 1

    def test_a_call_that_blocks_is_left_behind_and_its_result_dropped(self) -> None:
        gate, ended = threading.Event(), threading.Event()
        pool = DaemonPool()

        def block() -> str:
            # Waits in C for long, so that it can't be stopped.
            with suppress(Stopped):
                gate.wait(LONG)
            ended.set()
            return "late"

        with pytest.raises(TimeLimitExceededError):
            call_with_limit(block, 0.02, pool=pool)
        assert not ended.is_set()
        assert call_with_limit(identity, LONG, "next", pool=pool) == "next"
        assert pool.threads == 2
        gate.set()
        assert ended.wait(LONG)
        until(lambda: pool._idle == 2)
        assert call_with_limit(identity, LONG, "after", pool=pool) == "after"

    def test_a_call_that_no_thread_takes_was_never_begun(self) -> None:
        gate, begun = threading.Event(), threading.Event()
        pool = DaemonPool(max_threads=1)
        hanging = pool.submit(gate.wait, LONG)
        with pytest.raises(NoThreadFreeError, match="wasn't begun"):
            call_with_limit(begun.set, 0.02, pool=pool, patience=0.02)
        gate.set()
        hanging.result(LONG)
        assert call_with_limit(identity, LONG, 1, pool=pool) == 1
        assert not begun.is_set()

    def test_a_process_ends_in_spite_of_a_call_that_hangs(self) -> None:
        program = (
            "import time\n"
            "from ledgerbeam.io.errors import TimeLimitExceededError\n"
            "from ledgerbeam.transforms.concurrency.calls import call_with_limit\n"
            "try:\n"
            "    call_with_limit(time.sleep, 0.02, 3600)\n"
            "except TimeLimitExceededError:\n"
            "    print('given up')\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG
        )
        assert (ended.returncode, ended.stdout) == (0, "given up\n"), ended.stderr


class TestStop:
    def test_it_never_strikes_another_call(self, hasty_threads: None) -> None:
        """Calls are stopped as they end, in a thread that goes on with others at once."""
        pool = DaemonPool(max_threads=1)
        source = random.Random(11)
        for number in range(400):
            endless = number % 4 == 0
            call = pool.submit(spin, 10**12 if endless else source.randrange(2000))
            follower = pool.submit(spin, 200)
            while call._thread is None and not call.done():
                time.sleep(0)
            spin(source.randrange(1000))
            call.stop()
            error = call.exception(LONG)
            assert isinstance(error, Stopped) if endless else isinstance(error, Stopped | None)
            assert follower.result(LONG) == 200
        assert pool.threads == 1

    def test_a_call_that_ends_meanwhile_waits_for_what_is_thrown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The decision to stop a call is made, the call ends, and only then it is stopped."""
        pool, gate = DaemonPool(max_threads=1), threading.Event()
        throw = calls._throw

        def throw_late(thread: int) -> None:
            if thread != threading.get_ident():
                gate.set()
                time.sleep(0.05)  # in which the thread could go on with the next call
            throw(thread)

        monkeypatch.setattr(calls, "_throw", throw_late)
        call = pool.submit(gate.wait, LONG)
        follower = pool.submit(spin, 1_000_000)
        until(lambda: call._thread is not None)
        call.stop()
        assert isinstance(call.exception(LONG), Stopped)
        assert follower.result(LONG) == 1_000_000

    def test_it_is_harmless_before_and_after_a_call(self) -> None:
        call = Call(identity, (3,))
        call.stop()
        call.run()
        call.stop()
        assert call.result() == 3
        spin(100)

    def test_what_was_thrown_too_late_does_not_strike(self) -> None:
        """An exception that is under way when the call ends is caught."""
        call: Call[None]

        def stopped_by_itself() -> None:
            call.stop()  # what is thrown would strike at the next step

        call = Call(stopped_by_itself, ())
        call.run()
        assert isinstance(call.exception(), Stopped | None)
        spin(100)

    @pytest.mark.parametrize("is_traced", ["before", "after"])
    @pytest.mark.parametrize(
        "call", ["identity, 0.02, 1", "spin, 0.02, 10**12", "sleep, 0.02, 3600"]
    )
    def test_functions_that_are_traced_go_on(self, call: str, is_traced: str) -> None:
        """A debugger, or what measures coverage, doesn't stand still after calls with a limit."""
        trace = "threading.settrace(lambda *event: None); sys.settrace(lambda *event: None)\n"
        program = (
            "import sys, threading\n"
            "from time import sleep\n"
            "from ledgerbeam.io.errors import TimeLimitExceededError\n"
            "from ledgerbeam.transforms.concurrency.calls import call_with_limit\n"
            "from tests.transforms.test_calls import identity, spin\n"
            f"{trace if is_traced == 'before' else ''}"
            "try:\n"
            f"    call_with_limit({call})\n"
            "except TimeLimitExceededError:\n"
            "    sleep(0.1)\n"
            f"{trace if is_traced == 'after' else ''}"
            "print(spin(1000))\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG
        )
        assert (ended.returncode, ended.stdout) == (0, "1000\n"), ended.stderr


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns after a few steps of Python."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def spin(steps: int) -> int:
    for step in range(steps):
        identity(step)
    return steps


class TestFence:
    def test_what_entered_its_commit_in_time_counts_however_late(self) -> None:
        fence, limit_is_over = Fence(), threading.Event()

        def commit() -> str:
            fence.enter_commit()
            assert limit_is_over.wait(LONG)
            return "committed"

        threading.Timer(0.2, limit_is_over.set).start()
        assert call_with_limit(commit, 0.02, fence=fence) == "committed"

    def test_what_fails_in_its_commit_fails_however_late(self) -> None:
        fence = Fence()

        def commit() -> None:
            fence.enter_commit()
            time.sleep(0.1)
            raise ConnectionError("lost")

        with pytest.raises(ConnectionError, match="lost"):
            call_with_limit(commit, 0.02, fence=fence)

    def test_what_hangs_in_its_commit_is_unknown(self) -> None:
        fence, gate = Fence(), threading.Event()

        def commit() -> None:
            fence.enter_commit()
            gate.wait(LONG)

        with pytest.raises(OutcomeUnknownError, match="entered its commit"):
            call_with_limit(commit, 0.02, fence=fence, patience=0.02)
        gate.set()

    def test_what_is_late_is_refused(self) -> None:
        fence, gate, refused = Fence(), threading.Event(), threading.Event()

        def commit() -> None:
            with suppress(Stopped):
                gate.wait(LONG)
            for ask in (fence.check, fence.enter_commit):
                with pytest.raises(OverdueError):
                    ask()
            refused.set()

        with pytest.raises(TimeLimitExceededError):
            call_with_limit(commit, 0.02, fence=fence)
        gate.set()
        assert refused.wait(LONG)

    def test_whoever_closes_a_fence_ends_the_call(self) -> None:
        fence = Fence()

        def closed_on_the_way() -> str:
            fence.check()
            assert fence.close()
            return "dropped"

        with pytest.raises(OverdueError):
            call_with_limit(closed_on_the_way, LONG, fence=fence)

    def test_there_is_no_moment_between_the_limit_and_the_commit(self) -> None:
        """Calls commit just as their time is up: each does so or is given up, never both."""
        committed: list[int] = []

        def commit(number: int, fence: Fence, at: float) -> None:
            while time.monotonic() < at:
                time.sleep(0.0001)
            fence.enter_commit()
            committed.append(number)

        returned, given_up = [], []
        for number in range(200):
            fence = Fence()
            at = time.monotonic() + 0.003
            try:
                call_with_limit(commit, 0.003, number, fence, at, fence=fence)
                returned.append(number)
            except TimeLimitExceededError:
                given_up.append(number)
        time.sleep(0.05)  # for what would come too late
        assert committed == returned
        assert len(returned) + len(given_up) == 200

    def test_a_returned_call_cannot_be_given_up(self) -> None:
        fence = Fence()
        assert call_with_limit(identity, LONG, 1, fence=fence) == 1
        assert not fence.close()
