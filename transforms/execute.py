"""Execution of components: results, and dead letters of components that failed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import DoOutputsTuple, TaggedOutput

import ledgerbeam.io.arrow.coder  # noqa: F401 - how Beam hands tables on
from ledgerbeam.io.arrow.stream import join
from ledgerbeam.rules.components import Component, Components
from ledgerbeam.transforms.columnar.components import ComponentNames, tidy
from ledgerbeam.transforms.concurrency.executor import (
    MAX_FAILURES,
    EachExecuted,
    Executor,
    ThrottleOnly,
)
from ledgerbeam.transforms.concurrency.retry import Failure, Record, Retry, RetryMode
from ledgerbeam.transforms.concurrency.throttle import Limits

RESULTS = "results"
FAILED = "failed"


class Executed(NamedTuple):
    """The result of executing components.

    Attributes:
        results: results of the components that succeeded; None if none did.
        failed: one row for each component that failed: the columns of the key, `tries` (int32, how
            often it was called) and `error` (string, one line).
    """

    results: pa.Table | None
    failed: pa.Table


def execute_components(
    executor: Executor,
    components: Components,
    function: Callable[[Components], pa.Table],
    key: Sequence[str],
) -> Executed:
    """Execute components by a function of many components; see `ExecuteComponents`.

    Raises:
        TooManyFailuresError: too many components fail.
    """
    names = ComponentNames(components, key)
    executed = executor.execute_tables(components, function, names)
    results = join(executed.results) if executed.results else None
    return Executed(results, _dead_letters(components, key, executed.failed))


def execute_each(
    executor: Executor,
    components: Components,
    function: Callable[[Component], Iterable[Record]],
    key: Sequence[str],
    results: pa.Schema,
) -> Executed:
    """Execute components one by one; see `ExecuteEach`.

    Raises:
        TooManyFailuresError: too many components fail.
    """
    names = ComponentNames(components, key)
    executed = executor.execute_each(components.each(key), function, names, results)
    is_any = len(executed.failed) < len(components.starts)
    table = with_key(components, key, executed) if is_any else None
    return Executed(table, _dead_letters(components, key, executed.failed))


def with_key(components: Components, key: Sequence[str], executed: EachExecuted) -> pa.Table:
    """The rows that components returned one by one, with the columns of the key in front."""
    rows = pa.array(np.repeat(components.starts, np.array(executed.counts, np.int64)))
    keys = {name: components.table.column(name).take(rows) for name in key}
    columns = {name: executed.table.column(name) for name in executed.table.column_names}
    return tidy(pa.table(keys | columns))


def _dead_letters(
    components: Components, key: Sequence[str], failed: Mapping[int, Failure]
) -> pa.Table:
    numbers = sorted(failed)
    rows = pa.array(components.starts[np.array(numbers, np.int64)])
    keys = {name: components.table.column(name).take(rows) for name in key}
    tries = pa.array([failed[number].tries for number in numbers], pa.int32())
    errors = pa.array([failed[number].error for number in numbers], pa.string())
    return tidy(pa.table(keys | {"tries": tries, "error": errors}))


class ExecuteComponents(beam.PTransform):
    """Executes components by a function of many components.

    Elements are `(shard, components)`: a number for messages, and `Components`. The main output,
    `results`, has one `pa.Table` for each element in which any component succeeded: the rows that
    the function returned. The second output, `failed`, has one `pa.Table` for each element in which
    any component failed: the columns of the key, `tries` (int32) and `error` (string).

        def balances(accounts: Components) -> pa.Table:
            payments = accounts.table.group_by("account").aggregate([("amount", "sum")])
            return payments.rename_columns(["account", "balance"])

        executed = shards | ExecuteComponents(balances, key=["account"])
        executed.results | "Store" >> …
        executed.failed | "Alert" >> …

    All components of an element are executed in one call. A call that fails is repeated with halves
    of its components until the failing ones are alone, so that all others succeed; the function may
    therefore be called several times with the same component. Errors that may be temporary, such as
    a failed connection, are first retried: see `Retry`.

    `execute_components` does the same for one element, without Beam. Beam's metrics count `rows` of
    results and `failed` components, in the namespace `execute`.
    """

    def __init__(
        self,
        function: Callable[[Components], pa.Table],
        key: Sequence[str],
        *,
        retry: Retry | None = None,
        max_failures: int = MAX_FAILURES,
    ) -> None:
        """Make the transform.

        Args:
            function: returns the results of components, with the columns of the key.
            key: the columns that identify a component.
            retry: how often a call is tried; by default `Retry()`.
            max_failures: components of one element that may fail; one more fails the pipeline.

        Raises:
            ValueError: a column of the key has the name of a column of dead letters, or this
                transform doesn't support `retry`.
        """
        super().__init__()
        retry = retry or Retry()
        if retry.time_limit is not None:
            raise ValueError("a time_limit is one for each component: take ExecuteEach")
        self._do = _Execute(
            partial(execute_components, function=function, key=_checked_key(key)),
            retry,
            max_failures,
        )

    def expand(self, shards: beam.PCollection) -> DoOutputsTuple:
        """Build the graph."""
        return _expand(shards, self._do)


class ExecuteEach(beam.PTransform):
    """Executes components one by one, by a plain Python function.

    Elements and outputs are those of `ExecuteComponents`; `results` has the columns of the key and
    those of the schema.

        def interest(loan: Component) -> Iterator[dict[str, Any]]:
            yield {"interest": sum(loan.values("interest"))}

        results = pa.schema([("interest", pa.decimal128(18, 2))])
        executed = shards | ExecuteEach(interest, ["loan"], results, retry=Retry(time_limit=5.0))

    A component that fails is tried again after the others of its element; a component whose records
    don't fit the schema has failed. If there is a time limit and the function has a side effect,
    the function must call `current_fence().enter_commit()` before the effect: that raises in a call
    that took too long, so that a call counted as failed has no effect afterwards. As Beam may
    repeat a bundle, a call may be repeated even if it succeeded.

    `execute_each` does the same for one element, without Beam.
    """

    def __init__(
        self,
        function: Callable[[Component], Iterable[Record]],
        key: Sequence[str],
        results_schema: pa.Schema,
        *,
        retry: Retry | None = None,
        max_failures: int = MAX_FAILURES,
        in_flight: int = 1,
    ) -> None:
        """Make the transform.

        Args:
            function: returns a component's records, each with the columns of `results_schema`.
            key: the columns that identify a component.
            results_schema: the columns of the records, without those of the key.
            retry: how often a component is tried, and how long a call may take; by default
                `Retry()`.
            max_failures: components of one element that may fail; one more fails the pipeline.
            in_flight: how many calls may run at a time, in threads, for each thread that the runner
                gives to this step.

        Raises:
            ValueError: a column of the key is also one of the results or of the dead letters,
                this transform doesn't support `retry`, or `in_flight` is less than 1.
        """
        super().__init__()
        key = _checked_key(key)
        both = [name for name in key if name in results_schema.names]
        if both:
            raise ValueError(
                f"{both[0]} is in key and in results_schema: leave it out of the latter"
            )
        self._do = _Execute(
            partial(execute_each, function=function, key=key, results=results_schema),
            retry or Retry(),
            max_failures,
            in_flight,
        )

    def expand(self, shards: beam.PCollection) -> DoOutputsTuple:
        """Build the graph."""
        return _expand(shards, self._do)


def _checked_key(key: Sequence[str]) -> tuple[str, ...]:
    taken = [name for name in key if name in ("tries", "error")]
    if taken:
        raise ValueError(f"a column of the key is called {taken[0]}, as one of the dead letters is")
    return tuple(key)


def _expand(shards: beam.PCollection, do: "_Execute") -> DoOutputsTuple:
    executed: DoOutputsTuple = shards | "Execute" >> beam.ParDo(do).with_output_types(
        pa.Table
    ).with_outputs(FAILED, main=RESULTS)
    return executed


class _Execute(beam.DoFn):
    """Executes the components of an element."""

    def __init__(
        self,
        execute: Callable[[Executor, Components], Executed],
        retry: Retry,
        max_failures: int,
        in_flight: int = 1,
    ) -> None:
        if retry.mode is RetryMode.AT_MOST_ONCE:
            raise ValueError(
                f"retry can't be {RetryMode.AT_MOST_ONCE}: Beam may repeat any bundle, and nothing "
                "here records which calls were made: take a batch process"
            )
        self._execute = execute
        self._retry = retry
        self._max_failures = max_failures
        self._limits = Limits(in_flight)

    def setup(self) -> None:
        """Make the control that admits calls."""
        self._control = ThrottleOnly()
        self._control.throttle.set(self._limits)

    def process(self, element: tuple[int, Components]) -> Iterator[Any]:
        """Yield the results of the element's components, and its dead letters."""
        shard, components = element
        executor = Executor(self._retry, shard, self._control, self._max_failures)
        results, failed = self._execute(executor, components)
        if results is not None:
            Metrics.counter("execute", "rows").inc(results.num_rows)
            yield results
        if failed.num_rows:
            Metrics.counter("execute", "failed").inc(failed.num_rows)
            yield TaggedOutput(FAILED, failed)
