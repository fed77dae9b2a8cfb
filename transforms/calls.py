"""Calls of functions in threads that can be given up: with a limit of time, and a fence.

A thread that hangs in somebody else's code can't be killed. It can be left behind: the pool's
threads are daemons, so that none of them keeps the process from ending, and there are others for
the calls that follow.

    call_with_limit(score, 5.0, loan)

A call that is given up must not have an effect later. What a function gives is dropped then, but a
transaction would still be committed. So it asks its `Fence` before it commits:

    def charge(connection, loan, fence):
        with connection.begin():
            connection.execute(…)
            fence.enter_commit()      # raises Overdue: the transaction is rolled back

    call_with_limit(charge, 5.0, connection, loan, fence, fence=fence)

To enter the commit is the point of no return. Either the call enters first: then the limit of time
is off, and the call's own result or error counts, however late. Or the limit strikes first: then
`enter_commit` raises, and the caller gets `TimeLimitExceeded`. One lock decides which, so that a
call that was declared overdue never commits.
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

T = TypeVar("T")

MAX_THREADS = 1024
"""Of a pool. Threads that hang in calls that were given up are counted until these return."""

PATIENCE_SECONDS = 60.0
"""How long a call may wait for a thread, or take to return once it has entered its commit."""


class TimeLimitExceeded(Exception):  # noqa: N818
    """The call took too long and was given up; it hasn't entered a commit, nor will it."""


class OutcomeUnknown(Exception):  # noqa: N818
    """The call entered its commit, but didn't return: nobody can say whether it committed."""


class NoThreadFree(RuntimeError):  # noqa: N818
    """The call was never begun: every thread of the pool is busy or hangs."""


class Overdue(Exception):  # noqa: N818
    """Raised in the called code: the call was given up, and may have no effect any more."""


class Stopped(BaseException):
    """Thrown into a thread whose call was given up, so that a loop ends.

    No `Exception`: code that goes on after all of these has to end too.
    """


class Fence:
    """Lets a call have an effect, or declares it overdue; whichever comes first is final.

    Each call has its own. Others than `call_with_limit` may close it, too, such as whoever learns
    that the run is canceled: then the call ends with `Overdue`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered = False
        self._closed = False

    def check(self) -> None:
        """Go on, or raise.

        Raises:
            Overdue: the call was given up.
        """
        if self._closed:
            raise Overdue("the call was given up, and may have no effect any more")

    def enter_commit(self) -> None:
        """The last step before an effect. Once it has returned, the call can't be given up.

        It may be asked again in the same call, for further effects, and then always returns.

        Raises:
            Overdue: the call was given up, and may have no effect.
        """
        with self._lock:
            self.check()
            self._entered = True

    def close(self) -> bool:
        """Give the call up, unless it has entered its commit or returned.

        Returns:
            Whether that was so: the call has no effect, and will have none.
        """
        with self._lock:
            self._closed = not self._entered
            return self._closed


class Call(Future[T]):
    """A call of a function in a thread of a pool; its future result.

    Attributes:
        begun_at: when a thread began it, by `time.monotonic`; None before that.
    """

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...]) -> None:
        """Hold a call until a thread runs it."""
        super().__init__()
        self._function = function
        self._args = args
        # Reentrant: should `Stopped` strike between its acquisition and the body of `with`, the
        # thread could still take it again.
        self._guard = threading.RLock()
        self._thread: int | None = None
        self.begun_at: float | None = None

    def run(self) -> None:
        """Call the function in this thread, and keep what it gives or raises."""
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
            # Thrown into the call, it struck after its end. It is thrown only once.
            failure = stopped
            self._leave_thread()
        if failure is None:
            self.set_result(result)
        else:
            self.set_exception(failure)

    def stop(self) -> None:
        """Throw `Stopped` into the function, if it is still running.

        It ends at its next step in Python; what waits in C, as for the network, isn't reached.
        Code that shares locks or connections with other calls may be struck while it holds them.
        """
        with self._guard:
            if self._thread is not None:
                _throw(self._thread, ctypes.py_object(Stopped))
                self._thread = None

    def _leave_thread(self) -> None:
        """See to it that nothing is thrown into the call that this thread runs next."""
        with self._guard:
            self._thread = None
        # What was thrown before that, and hasn't struck yet, never will.
        _throw(threading.get_ident(), None)


def _throw(thread: int, error: "ctypes.py_object[type[BaseException]] | None") -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)


class DaemonPool:
    """Runs calls in daemon threads, started as they are needed, used again, and let go when idle.

    A call beyond the last thread waits until one is free.
    """

    def __init__(self, max_threads: int = MAX_THREADS, idle_seconds: float = 60.0) -> None:
        """Make a pool without threads.

        Args:
            max_threads: how many there may be.
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
        """How many there are."""
        return self._threads

    def submit(self, function: Callable[..., T], *args: Any) -> Call[T]:
        """Call the function in a thread."""
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
    patience: float = PATIENCE_SECONDS,
) -> T:
    """Call a function in a thread of its own, and wait for it no longer than its limit.

    Args:
        function: is called with `args`.
        seconds: how long it may take, from when a thread has begun it, to return or to enter its
            commit.
        *args: its arguments.
        fence: that of this call, where the function asks one.
        pool: where threads come from; by default `shared_pool`.
        patience: seconds that it may wait for a thread; and that it may take, beyond its limit, to
            return once it has entered its commit.

    Returns:
        What the function gives.

    Raises:
        TimeLimitExceeded: it took too long. Its thread is told to stop, its result is dropped.
        OutcomeUnknown: it hangs, and has entered its commit.
        NoThreadFree: it wasn't even begun.
        Exception: whatever the function raises.
    """
    fence = fence or Fence()
    call = (pool or shared_pool()).submit(_fenced, fence, function, args)
    if not _ends_within(seconds, call, patience):
        if fence.close():
            call.stop()
            raise TimeLimitExceeded(f"took more than {seconds:g} s and was given up")
        if not wait([call], patience).done:
            raise OutcomeUnknown(
                f"has entered its commit, and not returned {patience:g} s after its limit of "
                f"{seconds:g} s"
            )
    return call.result()


def _ends_within(seconds: float, call: Call[Any], patience: float) -> bool:
    submitted_at = time.monotonic()
    left = seconds
    # Mostly one wait: on a busy machine a thread may begin late, and has its time all the same.
    while not wait([call], left).done:
        if call.begun_at is not None:
            left = call.begun_at + seconds - time.monotonic()
            if left <= 0:
                return False
        elif time.monotonic() - submitted_at > patience and call.cancel():
            raise NoThreadFree(
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
