"""Executing components: admission, retries, time limits, and what becomes of those that fail.

A component that fails costs its neighbours nothing. Where components execute one by one, it is
tried again after the others, in rounds. Where many execute in one call, a call that fails is
repeated with halves of its components, until those that fail are alone.
"""

import base64
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from ledgerbeam.batch.governor import Governor
from ledgerbeam.batch.outcomes import Outcome, error_line
from ledgerbeam.batch.process import Record, Retry, RetryMode
from ledgerbeam.batch.results import Results
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.arrow_stream import read_stream, write_stream
from ledgerbeam.io.attempts import Attempt, FencedError
from ledgerbeam.io.claims import Call, Decision, Settlement
from ledgerbeam.io.errors import UserError
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.calls import (
    Fence,
    OutcomeUnknown,
    TimeLimitExceeded,
    call_with_limit,
    shared_pool,
)
from ledgerbeam.transforms.throttle import Canceled

IN_FLIGHT = 2
"""Shards that a worker process executes side by side, in threads."""

MOST_FAILURES = 1_000
"""Failed components of one shard after which no more are looked for, unless more may fail."""

_POOLED = 32

_current = threading.local()


def current_fence() -> Fence:
    """The fence of the call that this thread executes: what has an effect asks it before.

    Once `enter_commit` has returned, the call can't be given up any more; it raises where it was.
    """
    fence = getattr(_current, "fence", None)
    return fence if fence is not None else Fence()


class Executed(NamedTuple):
    """What executing components gave.

    Attributes:
        results: of those that succeeded, call by call, in the components' order.
        outcomes: by the component's number, of those that did not just succeed.
    """

    results: list[Results]
    outcomes: dict[int, Outcome]


@dataclass
class Executor:
    """Calls the components of one shard.

    Attributes:
        retry: how often each is tried.
        shard: its number.
        attempt: in whose name it is done.
        governor: admits calls, and tells the world what is being done.
        most_failures: how many components may fail before the shard is given up.
        tries: how often components were tried by earlier attempts, by name; 0 where left out.
        decided: what people have found out about components that nobody knew of, by name.
        slow: whether each call takes long enough to be told of, and to have a thread of its own.
        sleep: waits between tries, in seconds.
    """

    retry: Retry
    shard: int
    attempt: Attempt
    governor: Governor
    most_failures: int = MOST_FAILURES
    tries: dict[str, int] = field(default_factory=dict)
    decided: Mapping[str, Decision] = field(default_factory=dict)
    slow: bool = False
    sleep: Callable[[float], None] = time.sleep

    def execute_tables(
        self,
        components: Components,
        call: Callable[[Components], Results],
        name_of: Callable[[int], str],
    ) -> Executed:
        """Execute components by a function of many at once.

        Raises:
            UserError: too many components fail.
        """
        job = _Tables(self, components, call, name_of)
        for first, last in self._slices(len(components.starts)):
            job.run(first, last)
        return Executed(job.results, job.outcomes)

    def execute_each(
        self,
        units: Sequence[Any],
        call: Callable[[Any], Iterable[Record]],
        name_of: Callable[[int], str],
        results: pa.Schema,
    ) -> "EachExecuted":
        """Execute units one by one, several at a time where more than `IN_FLIGHT` may be.

        Raises:
            UserError: too many units fail.
        """
        job = _Each(self, units, call, name_of, results)
        waiting = list(range(len(units)))
        tries = 0
        with self.governor.looking(self.shard, job.now):
            while waiting:
                if tries:
                    self.back_off(tries)
                tries += 1
                waiting = job.round(waiting, tries)
        return EachExecuted(job.records, job.outcomes)

    def _slices(self, count: int) -> Iterator[tuple[int, int]]:
        """Ranges of components; all at once unless a rate or a pause has to take effect between."""
        first = 0
        while first < count:
            last = min(first + self.governor.slice_size(count), count)
            yield first, last
            first = last

    def back_off(self, tries: int) -> None:
        """Wait before the next try."""
        # Jitter needs no secret; the delay changes no result.
        self.sleep(self.retry.delay(tries, random.random()))  # noqa: S311

    def is_final(self, error: Exception) -> bool:
        """Whether no further try is made after this error."""
        return isinstance(error, (*self.retry.never, UserError))

    def outcome(self, name: str, status: ComponentStatus, tries: int, error: str) -> Outcome:
        """What became of a component, with the tries of earlier attempts."""
        return Outcome(name, status, self.tries.get(name, 0) + tries, error)

    def check_failures(self, lost: Sequence[Outcome]) -> None:
        """Give the shard up where too many components are lost, after all their tries.

        Raises:
            UserError: they are.
        """
        if len(lost) > self.most_failures:
            raise UserError(
                f"shard {self.shard}: more than {self.most_failures:,} components failed, and no "
                f"more were tried: first {lost[0].component}: {lost[0].error}: mend what they "
                "have in common, then run again"
            )


# Not the fault of the component that happened to be executed.
_NOT_OF_A_COMPONENT = (Canceled, FencedError, MemoryError)


class _Tables:
    """Components of one shard, on their way, many in a call.

    Not a closure that calls itself: that would hold the shard's tables until garbage is looked for.
    """

    def __init__(
        self,
        executor: Executor,
        components: Components,
        call: Callable[[Components], Results],
        name_of: Callable[[int], str],
    ) -> None:
        self._executor = executor
        self._components = components
        self._call = call
        self._name_of = name_of
        self.results: list[Results] = []
        self.outcomes: dict[int, Outcome] = {}
        self._lost: list[Outcome] = []

    def run(self, first: int, last: int, error: Exception | None = None) -> None:
        """Try these components in one call, and halves of them where that fails."""
        try:
            tries, error = self._try(first, last, error)
            if error is None:
                return
            if last - first == 1:
                self._lose(first, tries, error)
                return
            middle = (first + last) // 2
            self.run(first, middle, error)
            self.run(middle, last, error)
        finally:
            # Its traceback holds this frame, and so the tables of those below.
            error = None

    def _try(self, first: int, last: int, error: Exception | None) -> tuple[int, Exception | None]:
        """The tries made, and the error of the last one; None where it gave results."""
        executor = self._executor
        tries = 0
        while tries < executor.retry.tries:
            if error is not None and tries:
                executor.back_off(tries)
            tries += 1
            told: AbstractContextManager[None] = nullcontext()
            if error is not None and last - first == 1:
                told = executor.governor.executing(
                    executor.shard, self._name_of(first), tries, error_line(error)
                )
            try:
                with executor.governor.throttle.admit(last - first), told:
                    self.results.append(self._call(self._components.slice(first, last)))
            except _NOT_OF_A_COMPONENT:
                raise
            except Exception as caught:
                error = caught
                if executor.is_final(caught):
                    break
            else:
                if tries > 1 and error is not None and last - first == 1:
                    self.outcomes[first] = executor.outcome(
                        self._name_of(first), ComponentStatus.SUCCESS, tries, error_line(error)
                    )
                return tries, None
        return tries, error

    def _lose(self, number: int, tries: int, error: Exception) -> None:
        executor = self._executor
        self.outcomes[number] = executor.outcome(
            self._name_of(number), ComponentStatus.FAILURE, tries, error_line(error)
        )
        self._lost.append(self.outcomes[number])
        executor.check_failures(self._lost)


class EachExecuted(NamedTuple):
    """What executing units one by one gave.

    Attributes:
        records: by the unit's number; None for one that didn't succeed.
        outcomes: by the unit's number, of those that did not just succeed.
    """

    records: list[Sequence[Record] | None]
    outcomes: dict[int, Outcome]


class _Each:
    """Units of one shard, on their way."""

    def __init__(
        self,
        executor: Executor,
        units: Sequence[Any],
        call: Callable[[Any], Iterable[Record]],
        name_of: Callable[[int], str],
        results: pa.Schema,
    ) -> None:
        self._executor = executor
        self._units = units
        self._call = call
        self._name_of = name_of
        self._results = results
        self._columns = frozenset(results.names)
        self.records: list[Sequence[Record] | None] = [None] * len(units)
        self.outcomes: dict[int, Outcome] = {}
        self._lost: list[Outcome] = []
        self._at: int | None = None

    def now(self) -> str | None:
        """The unit that is executed just now in the worker's own thread."""
        return None if (number := self._at) is None else self._name_of(number)

    def round(self, numbers: list[int], tries: int) -> list[int]:
        """Try these units once, and say which are to be tried again."""
        again: list[int] = []
        throttle = self._executor.governor.throttle
        once = self._executor.retry.mode is RetryMode.AT_MOST_ONCE
        pooled_always = once or self._executor.slow or self._executor.retry.time_limit is not None
        position = 0
        while position < len(numbers):
            if tries > 1 or pooled_always or (throttle.limits.parallelism or 0) > IN_FLIGHT:
                self._at = None
                again += self._in_pool(numbers[position:], tries)
                break
            number = numbers[position]
            position += 1
            try:
                if throttle.is_open:
                    self._at = number
                    records = self._checked(self._call(self._units[number]))
                else:
                    self._at = None
                    with throttle.admit(1):
                        self._at = number
                        records = self._checked(self._call(self._units[number]))
            except _NOT_OF_A_COMPONENT:
                raise
            except Exception as error:
                if self._failed(number, tries, error):
                    again.append(number)
                continue
            self.records[number] = records
        self._at = None
        return again

    def _in_pool(self, numbers: list[int], tries: int) -> list[int]:
        """The same, with calls in flight in threads of their own."""
        if len(numbers) == 1:
            return numbers if self._pooled(numbers[0], tries) else []
        again: list[int] = []
        running: dict[Future[bool], int] = {}
        pool = shared_pool()
        throttle = self._executor.governor.throttle
        try:
            for number in numbers:
                # More than the limit, which the throttle keeps: it may be raised meanwhile.
                while len(running) >= max(throttle.limits.parallelism or 0, _POOLED):
                    self._collect(running, again)
                running[pool.submit(self._pooled, number, tries)] = number
            while running:
                self._collect(running, again)
        except BaseException:
            # No call may outlive its shard: those not admitted yet find the throttle closed.
            for future in running:
                future.cancel()
            wait([future for future in running if not future.cancelled()])
            raise
        return sorted(again)

    def _collect(self, running: dict[Future[bool], int], again: list[int]) -> None:
        done, _ = wait(running, return_when="FIRST_COMPLETED")
        for future in done:
            number = running.pop(future)
            if future.result():
                again.append(number)

    def _pooled(self, number: int, tries: int) -> bool:
        """Try a unit, and say whether it is to be tried again."""
        executor = self._executor
        name = self._name_of(number)
        with executor.governor.throttle.admit(1):
            last_error = self.outcomes[number].error if number in self.outcomes else ""
            with executor.governor.executing(executor.shard, name, tries, last_error):
                if executor.retry.mode is RetryMode.AT_MOST_ONCE:
                    return self._once(number, name)
                try:
                    self.records[number] = self._limited(number)
                except _NOT_OF_A_COMPONENT:
                    raise
                except Exception as error:
                    return self._failed(number, tries, error)
        if tries > 1:
            self._succeeded_late(number, tries)
        return False

    def _limited(self, number: int) -> Sequence[Record]:
        limit = self._executor.retry.time_limit
        unit = self._units[number]
        if limit is None:
            return self._checked(self._call(unit))
        fence = Fence()

        def call() -> Sequence[Record]:
            _current.fence = fence
            try:
                return self._checked(self._call(unit))
            finally:
                _current.fence = None

        return call_with_limit(call, limit, fence=fence)

    def _once(self, number: int, name: str) -> bool:
        """Call a unit that may be called once only; what an earlier call gave is taken over."""
        executor = self._executor
        decision = executor.decided.get(name)
        if decision is not None and decision.settlement.status == ComponentStatus.SUCCESS:
            self.records[number] = _from_text(decision.settlement.results)
            found_out = f"settled by {decision.who}: {decision.why}"
            self.outcomes[number] = executor.outcome(name, ComponentStatus.SUCCESS, 0, found_out)
            return False
        call = Call(
            executor.attempt.instance_uri, executor.shard, name, executor.tries.get(name, 0)
        )
        if not call.claim(executor.attempt.record.number):
            settled = call.settlement()
            if settled is None:
                self._settle(
                    number,
                    Settlement(
                        status=ComponentStatus.UNKNOWN,
                        error="its one call was begun, and ended with its worker: look whether "
                        "it has taken effect",
                    ),
                )
            else:
                self._settle(number, settled)
            return False
        try:
            records = self._limited(number)
            settled = Settlement(
                status=ComponentStatus.SUCCESS, results=text_of(rows_table(records, self._results))
            )
        except _NOT_OF_A_COMPONENT:
            raise
        except (TimeLimitExceeded, OutcomeUnknown) as error:
            settled = Settlement(status=ComponentStatus.UNKNOWN, error=error_line(error))
        except Exception as error:
            settled = Settlement(status=ComponentStatus.FAILURE, error=error_line(error))
        call.settle(settled)
        self._settle(number, settled)
        return False

    def _settle(self, number: int, settled: Settlement) -> None:
        status = ComponentStatus(settled.status)
        if status is ComponentStatus.SUCCESS:
            self.records[number] = _from_text(settled.results)
            return
        name = self._name_of(number)
        self._lose(number, self._executor.outcome(name, status, 1, settled.error))

    def _checked(self, records: Iterable[Record]) -> Sequence[Record]:
        # Once a component: what can be saved here is saved a million times.
        if type(records) is not list:
            records = list(records)
        columns = self._columns
        for record in records:
            if record.keys() != columns:
                raise TypeError(
                    f"execute gave the columns {', '.join(record)}, and results has "
                    f"{', '.join(sorted(self._columns))}"
                )
        return records

    def _failed(self, number: int, tries: int, error: Exception) -> bool:
        """Note a failure, and say whether the unit is to be tried again."""
        executor = self._executor
        name = self._name_of(number)
        is_last = tries >= executor.retry.tries or executor.is_final(error)
        outcome = executor.outcome(name, ComponentStatus.FAILURE, tries, error_line(error))
        if is_last:
            self._lose(number, outcome)
        else:
            self.outcomes[number] = outcome
            executor.governor.waiting(executor.shard, name, tries, error_line(error))
        return not is_last

    def _lose(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number] = outcome
        self._lost.append(outcome)
        self._executor.check_failures(self._lost)

    def _succeeded_late(self, number: int, tries: int) -> None:
        error = self.outcomes[number].error
        self.outcomes[number] = self._executor.outcome(
            self._name_of(number), ComponentStatus.SUCCESS, tries, error
        )


def text_of(rows: pa.Table) -> str:
    """Rows of results as a `Settlement` holds them."""
    sink = pa.BufferOutputStream()
    write_stream(sink, rows)
    return base64.b64encode(sink.getvalue()).decode()


def _from_text(text: str) -> list[dict[str, Any]]:
    return read_stream(base64.b64decode(text)).to_pylist()


def rows_table(rows: Sequence[Record], results: pa.Schema) -> pa.Table:
    """Rows of results as a table.

    Raises:
        pa.ArrowException, TypeError, ValueError, OverflowError: a value doesn't fit its column.
    """
    arrays = []
    for column in results:
        values = [row[column.name] for row in rows]
        if pa.types.is_integer(column.type):
            # Arrow would cut off what is behind the point, without a word.
            for kind in {*map(type, values)} - {type(None)}:
                if not hasattr(kind, "__index__"):
                    raise TypeError(f"{column.name} is {kind.__name__}, not {column.type}")
        array = pa.array(values, column.type)
        if array.null_count and not column.nullable:
            raise ValueError(f"{column.name} is None, and the column isn't nullable")
        arrays.append(array)
    return pa.table(arrays, schema=results)


_DOES_NOT_FIT = (pa.ArrowException, TypeError, ValueError, OverflowError)


def records_table(
    executed: EachExecuted, results: pa.Schema, executor: Executor, name_of: Callable[[int], str]
) -> tuple[pa.Table, list[int]]:
    """All records as one table, and how many each unit gave.

    A unit whose values don't fit the columns has failed by that.
    """

    def table_of(records: Iterable[Sequence[Record]]) -> pa.Table:
        return rows_table([record for unit in records for record in unit], results)

    try:
        table = table_of(unit for unit in executed.records if unit is not None)
    except _DOES_NOT_FIT:
        for number, unit in enumerate(executed.records):
            try:
                if unit is not None:
                    table_of([unit])
            except _DOES_NOT_FIT as error:
                executed.records[number] = None
                before = executed.outcomes.get(number)
                why = f"results don't fit: {' '.join(str(error).split())}"
                lost = executor.outcome(name_of(number), ComponentStatus.FAILURE, 1, why)
                executed.outcomes[number] = (
                    lost if before is None else lost._replace(tries=before.tries)
                )
        table = table_of(unit for unit in executed.records if unit is not None)
    return table, [0 if unit is None else len(unit) for unit in executed.records]
