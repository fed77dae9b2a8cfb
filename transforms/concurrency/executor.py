"""Execution of components: admission, retries, time limits and failures.

A component that fails doesn't make others fail. If components execute one by one, it is tried again
after the others, in rounds. If many execute in one call, a call that fails is repeated with halves
of its components, until the failing ones are alone.

    executor = Executor(Retry(tries=2))
    executed = executor.execute_each(accounts, charge, names=["a", "b"], results=SCHEMA)
    executed.table, executed.failed
"""

import contextvars
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from ledgerbeam.io.errors import (
    CanceledError,
    ControlTotalMismatchError,
    FencedError,
    TooManyFailuresError,
    UserError,
)
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.concurrency.calls import Fence, call_with_limit, shared_pool
from ledgerbeam.transforms.concurrency.retry import (
    Failure,
    Retry,
    RetryAfter,
    RetryMode,
    error_line,
)
from ledgerbeam.transforms.concurrency.rows import (
    DOES_NOT_FIT,
    CheckedRows,
    GivenRows,
    UnitRows,
    ended,
)
from ledgerbeam.transforms.concurrency.throttle import Throttle
from ledgerbeam.transforms.concurrency.tracebacks import record_at_hand

R = TypeVar("R")

MAX_FAILURES = 1_000
"""How many components of a shard may fail before it is given up, unless a limit allows more."""

_POOLED = 32

# Errors that aren't the fault of the component that was being executed.
NOT_OF_A_COMPONENT = (CanceledError, ControlTotalMismatchError, FencedError, MemoryError)

_current = threading.local()


def current_fence() -> Fence:
    """The fence of the call that this thread executes, for use before a side effect.

    After its `enter_commit` has returned, the call can't be given up. It raises if the call has
    already been given up.
    """
    fence = getattr(_current, "fence", None)
    return fence if fence is not None else Fence()


class Names(Protocol):
    """Components' names by number, for messages and for reports of what is executing."""

    def __getitem__(self, number: int, /) -> str: ...


class CallControl(Protocol):
    """Admits calls, and is notified of calls in flight; used from several threads."""

    @property
    def throttle(self) -> Throttle:
        """Admits components."""

    def slice_size(self, count: int) -> int:
        """How many of `count` components to execute in one call."""

    def executing(
        self, shard: int, component: str, tries: int = 1, error: str | None = None
    ) -> AbstractContextManager[None]:
        """A context for the execution of a component in a thread of its own or in a call alone.

        Args:
            shard: the number of the component's shard.
            component: the name of the component.
            tries: the number of tries, including this one.
            error: the error of the try before this one.
        """

    def tracking(
        self, shard: int, component: Callable[[], str | None]
    ) -> AbstractContextManager[None]:
        """A context for the execution of a shard's components one by one.

        Args:
            shard: the number of the shard.
            component: returns the name of the component that is being executed, or None.
        """

    def waiting(self, shard: int, component: str, tries: int, error: str) -> None:
        """Called when a component has failed and will be tried again."""

    def hold(self, seconds: float) -> None:
        """Called when a component asks that nothing begins for so long."""


@dataclass(frozen=True)
class ThrottleOnly:
    """Admits calls by a throttle, without limits by default, and does nothing else."""

    throttle: Throttle = field(default_factory=Throttle)

    def slice_size(self, count: int) -> int:
        """All `count` components."""
        return count

    def executing(
        self, shard: int, component: str, tries: int = 1, error: str | None = None
    ) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def tracking(
        self, shard: int, component: Callable[[], str | None]
    ) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def waiting(self, shard: int, component: str, tries: int, error: str) -> None:
        """Do nothing."""

    def hold(self, seconds: float) -> None:
        """Admit nothing for so long."""
        self.throttle.hold(seconds)


class OnceCalled(NamedTuple):
    """The end of a call that may be made only once.

    Attributes:
        records: the rows that the call returned, now or earlier; None if it failed or its
            outcome is unknown.
        failure: why the call failed or is unknown; for a success, a note to record, or None.
    """

    records: CheckedRows | None
    failure: Failure | None


class CallOnce(Protocol):
    """Makes a call that may be made only once, unless it was made earlier."""

    def __call__(self, name: str, call: Callable[[], CheckedRows]) -> OnceCalled:
        """Make the call, or find how an earlier one ended.

        Args:
            name: the name of the component.
            call: makes the call, and returns its rows. An error is the component's failure,
                unless it is one of `NOT_OF_A_COMPONENT`.
        """


class TablesExecuted(NamedTuple, Generic[R]):
    """The result of executing components by a function of many components.

    Attributes:
        results: results of the calls that succeeded, in the components' order.
        failed: failures by the component's number.
        recovered: by the component's number, the last failures of components that failed in a call
            alone and then succeeded.
    """

    results: list[R]
    failed: dict[int, Failure]
    recovered: dict[int, Failure]


class EachExecuted(NamedTuple):
    """The result of executing units one by one.

    Attributes:
        table: rows of the units that succeeded, in the order of the units.
        counts: the number of rows of each unit; 0 for a unit that failed.
        failed: failures by the unit's number.
        recovered: by the unit's number, the last failures of units that then succeeded.
    """

    table: pa.Table
    counts: list[int]
    failed: dict[int, Failure]
    recovered: dict[int, Failure]


@dataclass(frozen=True)
class Executor:
    """Executes the components of one shard.

    Attributes:
        retry: how often each component is tried.
        shard: the number of the shard, for messages and for `control`.
        control: admits calls.
        max_failures: how many components may fail before the shard is given up.
        own_threads: the number of shards that execute concurrently, each in a thread of its own. If
            the parallelism is higher, each call has a thread of a pool.
        pooled: whether each call always has a thread of a pool.
        once: makes the calls of `execute_each`; needed if `retry` is `AT_MOST_ONCE`.
        sleep: waits between tries; takes seconds.
    """

    retry: Retry = field(default_factory=Retry)
    shard: int = 0
    control: CallControl = field(default_factory=ThrottleOnly)
    max_failures: int = MAX_FAILURES
    own_threads: int = 1
    pooled: bool = False
    once: CallOnce | None = None
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if (self.retry.mode is RetryMode.AT_MOST_ONCE) != (self.once is not None):
            raise ValueError(
                f"once must be given for {RetryMode.AT_MOST_ONCE}, and for nothing else: it "
                "records which calls were made"
            )

    def execute_tables(
        self, components: Components, call: Callable[[Components], R], names: Names
    ) -> TablesExecuted[R]:
        """Execute components by a function of many components.

        Args:
            components: the components. They are executed in one call, unless a rate or a pause must
                take effect between calls.
            call: returns the results of components. It may be called again with any components
                of a call that failed.
            names: the names of the components.

        Raises:
            TooManyFailuresError: too many components fail.
        """
        job = _Tables(self, components, call, names)
        for first, last in self._slices(len(components.starts)):
            job.run(first, last)
        return TablesExecuted(job.results, job.failed, job.recovered)

    def execute_each(
        self,
        units: Sequence[Any],
        call: Callable[[Any], GivenRows],
        names: Names,
        results: pa.Schema,
    ) -> EachExecuted:
        """Execute units one by one, or several at a time if the parallelism allows it.

        Args:
            units: the arguments of the calls.
            call: returns the rows of a unit.
            names: the names of the units.
            results: the columns of the rows. A unit whose values don't fit them has failed.

        Raises:
            TooManyFailuresError: too many units fail.
        """
        job = _Each(self, units, call, names, results)
        waiting = list(range(len(units)))
        tries = 0
        with self.control.tracking(self.shard, job.current):
            while waiting:
                if tries:
                    self.back_off(tries)
                tries += 1
                waiting = job.round(waiting, tries)
        return job.executed()

    def _slices(self, count: int) -> Iterator[tuple[int, int]]:
        first = 0
        while first < count:
            last = min(first + self.control.slice_size(count), count)
            yield first, last
            first = last

    def back_off(self, tries: int) -> None:
        """Wait before the next try."""
        # Jitter needs no secret; the delay changes no result.
        self.sleep(self.retry.delay(tries, random.random()))  # noqa: S311

    def is_final(self, error: Exception) -> bool:
        """Whether a component isn't tried again after this error."""
        return isinstance(error, (*self.retry.never, UserError))

    def check_failures(self, failed: Mapping[int, Failure], names: Names) -> None:
        """Give the shard up if too many components have failed.

        Raises:
            TooManyFailuresError: too many components have failed.
        """
        if len(failed) > self.max_failures:
            first, *_ = failed
            raise TooManyFailuresError(
                f"shard {self.shard}: more than {self.max_failures:,} components failed, and no "
                f"more were tried: first {names[first]} ({failed[first].error}); fix what they "
                "have in common, then run again",
                failed=len(failed),
                limit=self.max_failures,
            )


class _Tables(Generic[R]):
    """The execution of a shard's components, many per call.

    A recursive closure instead would hold the shard's tables until garbage is collected.
    """

    def __init__(
        self,
        executor: Executor,
        components: Components,
        call: Callable[[Components], R],
        names: Names,
    ) -> None:
        self._executor = executor
        self._components = components
        self._call = call
        self._names = names
        self.results: list[R] = []
        self.failed: dict[int, Failure] = {}
        self.recovered: dict[int, Failure] = {}

    def run(self, first: int, last: int, error: Exception | None = None) -> None:
        """Try these components in one call, and halves of them if that fails."""
        try:
            tries, error = self._try(first, last, error)
            if error is None:
                return
            if last - first == 1:
                self.failed[first] = self._failure(first, error, tries)
                self._executor.check_failures(self.failed, self._names)
                return
            middle = (first + last) // 2
            self.run(first, middle, error)
            self.run(middle, last, error)
        finally:
            # The error's traceback refers to this frame, and so to the tables of inner calls.
            error = None

    def _try(self, first: int, last: int, error: Exception | None) -> tuple[int, Exception | None]:
        """The number of tries, and the error of the last one; None if it succeeded."""
        executor = self._executor
        is_alone = last - first == 1
        tries = 0
        while tries < executor.retry.tries:
            if error is not None and tries:
                executor.back_off(tries)
            tries += 1
            executing: AbstractContextManager[None] = nullcontext()
            if error is not None and is_alone:
                executing = executor.control.executing(
                    executor.shard, self._names[first], tries, error_line(error)
                )
            try:
                with executor.control.throttle.admit(last - first), executing:
                    self.results.append(self._call(self._components.slice(first, last)))
            except NOT_OF_A_COMPONENT:
                raise
            except SystemExit as end:
                error = ended(end)
                break
            except Exception as caught:
                error = caught
                if isinstance(caught, RetryAfter):
                    executor.control.hold(caught.seconds)
                if executor.is_final(caught):
                    break
            else:
                if tries > 1 and error is not None and is_alone:
                    self.recovered[first] = self._failure(first, error, tries)
                return tries, None
        return tries, error

    def _failure(self, number: int, error: Exception, tries: int) -> Failure:
        return Failure.of(error, tries, unit=self._components.slice(number, number + 1))


class _Each:
    """The execution of a shard's units, one per call."""

    def __init__(
        self,
        executor: Executor,
        units: Sequence[Any],
        call: Callable[[Any], GivenRows],
        names: Names,
        results: pa.Schema,
    ) -> None:
        self._executor = executor
        self._units = units
        self._call = call
        self._names = names
        self._rows = UnitRows(len(units), results)
        self._failed: dict[int, Failure] = {}
        self._recovered: dict[int, Failure] = {}
        self._again: dict[int, Failure] = {}
        self._at: int | None = None

    def current(self) -> str | None:
        """The name of the unit that is being executed in the shard's own thread, or None."""
        return None if (number := self._at) is None else self._names[number]

    def round(self, numbers: list[int], tries: int) -> list[int]:
        """Try these units once, and return the numbers of those to try again."""
        again: list[int] = []
        executor = self._executor
        throttle = executor.control.throttle
        if (
            tries > 1
            or executor.pooled
            or executor.once is not None
            or executor.retry.time_limit is not None
        ):
            return self._in_pool(numbers, tries)
        call, add = self._call, self._rows.add
        for number, unit in enumerate(self._units):
            # Up to millions of components pass here, one by one, so each step in Python counts.
            is_open = throttle.is_open
            if not is_open and (throttle.limits.parallelism or 0) > executor.own_threads:
                self._at = None
                again += self._in_pool(numbers[number:], tries)
                break
            try:
                if is_open:
                    self._at = number
                    add(number, call(unit))
                else:
                    self._at = None
                    with throttle.admit(1):
                        self._at = number
                        add(number, call(unit))
            except NOT_OF_A_COMPONENT:
                raise
            except (Exception, SystemExit) as error:
                if self._fail(number, tries, error):
                    again.append(number)
        self._at = None
        return again

    def executed(self) -> EachExecuted:
        """The result of all rounds."""
        try:
            table = self._rows.table()
        except DOES_NOT_FIT:
            for number, error in self._rows.drop_misfits():
                before = self._recovered.pop(number, None)
                why = f"results don't fit: {' '.join(str(error).split())}"
                self._failed[number] = Failure(
                    1 if before is None else before.tries,
                    why,
                    record=record_at_hand(self._units[number]),
                )
            table = self._rows.table()
        return EachExecuted(table, self._rows.counts(), self._failed, self._recovered)

    def _in_pool(self, numbers: list[int], tries: int) -> list[int]:
        """Try these units as in `round`, with calls in threads of the pool."""
        if len(numbers) == 1:
            return numbers if self._pooled(numbers[0], tries) else []
        again: list[int] = []
        running: dict[Future[bool], int] = {}
        pool = shared_pool()
        try:
            for number in numbers:
                while len(running) >= self._most_in_pool():
                    self._collect(running, again)
                running[pool.submit(self._pooled, number, tries)] = number
            while running:
                self._collect(running, again)
        except BaseException:
            # No call may outlive its shard, so those in flight are waited for.
            for future in running:
                future.cancel()
            wait([future for future in running if not future.cancelled()])
            raise
        return sorted(again)

    def _most_in_pool(self) -> int:
        """How many of the shard's calls may be in the pool, where the throttle admits them."""
        executor = self._executor
        parallelism = executor.control.throttle.limits.parallelism
        if parallelism is None and not executor.pooled:
            return 1  # as many as in the shard's own thread
        # May exceed the parallelism, which the throttle enforces and which may be raised.
        return max(parallelism or 0, _POOLED)

    def _collect(self, running: dict[Future[bool], int], again: list[int]) -> None:
        done, _ = wait(running, return_when="FIRST_COMPLETED")
        for future in done:
            number = running.pop(future)
            if future.result():
                again.append(number)

    def _pooled(self, number: int, tries: int) -> bool:
        """Try a unit, and return whether to try it again."""
        executor = self._executor
        name = self._names[number]
        before = self._again.get(number)
        last_error = "" if before is None else before.error
        with (
            executor.control.throttle.admit(1),
            executor.control.executing(executor.shard, name, tries, last_error),
        ):
            if executor.once is not None:
                self._call_once(executor.once, number, name)
                return False
            try:
                self._rows.put(number, self._limited(number))
            except NOT_OF_A_COMPONENT:
                raise
            except (Exception, SystemExit) as error:
                return self._fail(number, tries, error)
        if before is not None:
            self._recovered[number] = before._replace(tries=tries)
        return False

    def _limited(self, number: int) -> CheckedRows:
        limit = self._executor.retry.time_limit
        unit = self._units[number]
        if limit is None:
            return self._rows.checked(self._call(unit))
        fence = Fence()

        def call() -> CheckedRows:
            _current.fence = fence
            try:
                return self._rows.checked(self._call(unit))
            finally:
                _current.fence = None

        # The call's own log lines are told apart by this thread's context.
        context = contextvars.copy_context()
        return call_with_limit(context.run, limit, call, fence=fence)

    def _call_once(self, once: CallOnce, number: int, name: str) -> None:
        records, failure = once(name, lambda: self._limited(number))
        if records is None:
            assert failure is not None
            if failure.record is None:
                failure = failure._replace(record=record_at_hand(self._units[number]))
            self._give_up(number, failure)
            return
        self._rows.put(number, records)
        if failure is not None:
            self._recovered[number] = failure

    def _fail(self, number: int, tries: int, error: Exception | SystemExit) -> bool:
        """Record a failure, and return whether to try the unit again."""
        if isinstance(error, SystemExit):
            error = ended(error)
        executor = self._executor
        if isinstance(error, RetryAfter):
            executor.control.hold(error.seconds)
        failure = Failure.of(error, tries, unit=self._units[number])
        if tries >= executor.retry.tries or executor.is_final(error):
            self._give_up(number, failure)
            return False
        self._again[number] = failure
        executor.control.waiting(executor.shard, self._names[number], tries, failure.error)
        return True

    def _give_up(self, number: int, failure: Failure) -> None:
        self._failed[number] = failure
        self._executor.check_failures(self._failed, self._names)
