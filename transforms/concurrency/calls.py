"""Calls of functions in threads, which can be given up after a time limit, with a fence.

A thread that hangs in other people's code can't be killed, but it can be abandoned: the pool's
threads are daemons, so that none of them keeps the process from ending, and later calls use other
threads.

    call_with_limit(score, 5.0, loan)

A call that was given up must have no effect later. Its result is dropped, but a transaction in it
could still be committed. So the function must ask its `Fence` before it commits:

    def charge(connection, loan, fence):
        with connection.begin():
            connection.execute(…)
            fence.enter_commit()      # raises OverdueError: the transaction is rolled back

    call_with_limit(charge, 5.0, connection, loan, fence, fence=fence)

Either the call enters its commit before the time limit: then the limit no longer applies, and the
call's own result or error counts, however late. Or the limit is reached first: then `enter_commit`
raises, and the caller gets `TimeLimitExceededError`. A lock decides which of the two is first, so
a call that was declared overdue never commits.
"""

import ctypes
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from ledgerbeam.io.errors import (
    NoThreadFreeError,
    OutcomeUnknownError,
    OverdueError,
    TimeLimitExceededError,
)

T = TypeVar("T")

MAX_THREADS = 1024
"""The most threads of a pool. Threads that hang in calls that were given up are counted, too."""

TIMEOUT_SECONDS = 60.0
"""How long a call may wait for a thread, or take to return once it has entered its commit."""


class Stopped(BaseException):
    """Thrown into a thread whose call was given up, so that loops in it end.

    It is no `Exception`, so that code that catches every `Exception` ends, too.
    """


class Fence:
    """Either lets a call have an effect or gives it up; whichever comes first is final.

    Each call has its own fence. Code other than `call_with_limit` may close it, too, for instance
    when the run is canceled: then the call ends with `OverdueError`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered = False
        self._closed = False

    def check(self) -> None:
        """Raise if the call was given up.

        Raises:
            OverdueError: the call was given up.
        """
        if self._closed:
            raise OverdueError("the call was given up, and may have no effect any more")

    def enter_commit(self) -> None:
        """Declare that an effect follows; after this has returned, the call can't be given up.

        It may be called again in the same call, before other effects, and then always returns.

        Raises:
            OverdueError: the call was given up, and may have no effect.
        """
        with self._lock:
            self.check()
            self._entered = True

    def close(self) -> bool:
        """Give the call up, unless it has entered its commit or returned.

        Returns:
            Whether the call is given up, so that it has no effect, now or later.
        """
        with self._lock:
            self._closed = not self._entered
            return self._closed


class Call(Future[T]):
    """A call of a function in a thread of a pool, as the future of its result.

    Attributes:
        begun_at: when a thread began the call, by `time.monotonic`; None before that.
    """

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...]) -> None:
        super().__init__()
        self._function = function
        self._args = args
        # Reentrant, so that the thread can acquire it again if `Stopped` is raised between its
        # acquisition and the body of `with`.
        self._guard = threading.RLock()
        self._thread: int | None = None
        self._stopped = False
        self.begun_at: float | None = None

    def run(self) -> None:
        """Call the function in this thread, and set its result or its error."""
        if not self.set_running_or_notify_cancel():
            return
        self.begun_at = time.monotonic()
        result: Any = None
        failure: BaseException | None = None
        try:
            try:
                self._thread = threading.get_ident()
                result = self._function(*self._args)
            except BaseException as error:
                failure = error
            self._leave_thread()
        except Stopped as stopped:
            # Thrown into the call, it was raised after the call's end. It is thrown only once.
            failure = stopped
            self._leave_thread()
        if failure is None:
            self.set_result(result)
        else:
            self.set_exception(failure)

    def stop(self) -> None:
        """Throw `Stopped` into the function, if it is still running.

        The function ends at its next step in Python; code that waits in C, such as for the network,
        isn't interrupted. Code that shares locks or connections with other calls may be interrupted
        while it holds them.
        """
        with self._guard:
            if self._thread is not None:
                self._stopped = True
                _throw(self._thread)
                self._thread = None

    def _leave_thread(self) -> None:
        """Ensure that nothing is thrown into the next call of this thread."""
        with self._guard:
            self._thread = None
        if self._stopped:
            # Replaces what was thrown before and hasn't been raised yet, and catches it.
            _throw(threading.get_ident())


_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
_STOPPED = ctypes.py_object(Stopped)


def _throw(thread: int) -> None:
    """Throw `Stopped` into a thread, to be raised at its next step.

    Up to Python 3.12 all threads share one signal of what was thrown into any of them. It stays on
    until some thread has raised what was thrown into it: for ever if the one in question hangs in
    C, or if what was thrown is only taken back. As long as it is on, every step of every thread is
    slower, and a function that is traced, by a debugger or to measure coverage, doesn't begin. So
    this thread raises and catches one, too, before it calls any function in Python. A thread that
    has not raised its own yet turns the signal on again when it goes on.
    """
    own = ctypes.c_ulong(threading.get_ident())
    interruption: KeyboardInterrupt | None = None
    try:
        try:
            _set_exception(ctypes.c_ulong(thread), _STOPPED)
            _set_exception(own, _STOPPED)
            while True:  # it is raised at once
                pass
        except KeyboardInterrupt as error:
            interruption = error
            _set_exception(own, _STOPPED)
            while True:
                pass
    except Stopped:
        if interruption is not None:
            raise interruption from None


class DaemonPool:
    """Runs calls in daemon threads, which are started on demand, reused, and ended when idle.

    If all threads are busy and no more may be started, a call waits until one is free.
    """

    def __init__(self, max_threads: int = MAX_THREADS, idle_seconds: float = 60.0) -> None:
        """Make a pool without threads.

        Args:
            max_threads: the largest number of threads.
            idle_seconds: how long a thread waits for its next call before it ends.
        """
        self._max_threads = max_threads
        self._idle_seconds = idle_seconds
        self._changed = threading.Condition()
        self._calls: deque[Call[Any]] = deque()
        self._threads = 0
        self._idle = 0

    @property
    def threads(self) -> int:
        """The number of threads."""
        return self._threads

    def submit(self, function: Callable[..., T], *args: Any) -> Call[T]:
        """Start a call of the function in a thread."""
        call = Call(function, args)
        with self._changed:
            if len(self._calls) >= self._idle and self._threads < self._max_threads:
                threading.Thread(target=self._work, name="call", daemon=True).start()
                self._threads += 1
            self._calls.append(call)
            self._changed.notify()
        return call

    def _work(self) -> None:
        while (call := self._next()) is not None:
            call.run()
            del call  # its arguments may be large

    def _next(self) -> Call[Any] | None:
        with self._changed:
            self._idle += 1
            while not self._calls:
                if not self._changed.wait(self._idle_seconds) and not self._calls:
                    self._idle -= 1
                    self._threads -= 1
                    return None
            self._idle -= 1
            return self._calls.popleft()


@functools.cache
def shared_pool() -> DaemonPool:
    """The pool of this process."""
    return DaemonPool()


# A forked process has none of its parent's threads.
os.register_at_fork(after_in_child=shared_pool.cache_clear)


def call_with_limit(
    function: Callable[..., T],
    seconds: float,
    *args: Any,
    fence: Fence | None = None,
    pool: DaemonPool | None = None,
    patience: float = TIMEOUT_SECONDS,
) -> T:
    """Call a function in a thread of its own, and wait for it no longer than its limit.

    Args:
        function: the function, which is called with `args`.
        seconds: how long the call may take, from its start in a thread, to return or to enter its
            commit.
        *args: the arguments of the function.
        fence: the fence of this call, if the function uses one.
        pool: the pool of threads; by default `shared_pool`.
        patience: seconds that the call may wait for a thread, and seconds that it may take after
            its limit to return once it has entered its commit.

    Returns:
        The result of the function.

    Raises:
        TimeLimitExceededError: the call took too long. Its thread is stopped if possible, and its
            result is dropped.
        OutcomeUnknownError: the call has entered its commit and hangs.
        NoThreadFreeError: no thread was free to begin the call.
        Exception: any error that the function raises.
    """
    fence = fence or Fence()
    call = (pool or shared_pool()).submit(_fenced, fence, function, args)
    if not _ends_within(seconds, call, patience):
        if fence.close():
            call.stop()
            raise TimeLimitExceededError(f"took more than {seconds:g} s and was given up")
        if not wait([call], patience).done:
            raise OutcomeUnknownError(
                f"has entered its commit, and not returned {patience:g} s after its limit of "
                f"{seconds:g} s"
            )
    return call.result()


def _ends_within(seconds: float, call: Call[Any], patience: float) -> bool:
    submitted_at = time.monotonic()
    left = seconds
    # Usually there is one wait. On a busy machine a thread may begin late, and still has its time.
    while not wait([call], left).done:
        if call.begun_at is not None:
            left = call.begun_at + seconds - time.monotonic()
            if left <= 0:
                return False
        elif time.monotonic() - submitted_at > patience and call.cancel():
            raise NoThreadFreeError(
                f"a call wasn't begun for {patience:g} s: all threads are busy, or hang in calls "
                "that were given up: lower the parallelism, or let the called code end in time"
            )
        else:
            left = min(seconds, patience)
    return True


def _fenced(fence: Fence, function: Callable[..., T], args: tuple[Any, ...]) -> T:
    result = function(*args)
    fence.enter_commit()  # a result is an effect, too
    return result
