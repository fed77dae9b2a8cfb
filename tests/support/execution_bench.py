"""Executors that don't sleep, with and without an attempt, and units that fail as a test says."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from tests.support.processes import (
    Balances,
    EachBalance,
)
from tests.support.reading import record_of

from ledgerbeam.batch.execute.executor import ClaimedCalls, EarlierOutcomes
from ledgerbeam.batch.model.outcomes import Outcome
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.io.commit.attempts import Attempt, start_attempt
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.concurrency.executor import (
    EachExecuted,
    Executor,
    TablesExecuted,
    ThrottleOnly,
)
from ledgerbeam.transforms.concurrency.retry import Record, Retry, RetryMode
from ledgerbeam.transforms.concurrency.rows import GivenRows

SUCCESS, FAILURE, UNKNOWN = (
    ComponentStatus.SUCCESS,
    ComponentStatus.FAILURE,
    ComponentStatus.UNKNOWN,
)


RESULTS = pa.schema([("square", pa.int64())])


ONCE = Retry(RetryMode.AT_MOST_ONCE)


def attempt_at(folder: Path) -> Attempt:
    """The next attempt of the instance in a folder."""
    return start_attempt(str(folder), record_of(1))


class Bench:
    """An executor that doesn't sleep, and what is noted of its calls; unit 7 is called `unit 7`."""

    def __init__(self, retry: Retry | None = None, **others: Any) -> None:
        self.control = ThrottleOnly()
        self.delays: list[float] = []
        self.calls: list[int] = []
        self.executor = Executor(
            Retry() if retry is None else retry,
            control=self.control,
            sleep=self.delays.append,
            **{"own_threads": 2, **others},
        )

    def each(
        self,
        units: Sequence[int],
        call: Callable[[int], GivenRows],
        results: pa.Schema = RESULTS,
    ) -> EachExecuted:
        """Execute units one by one."""

        def noted_call(unit: int) -> GivenRows:
            self.calls.append(unit)
            return call(unit)

        names = [f"unit {unit}" for unit in units]
        return self.executor.execute_each(units, noted_call, names, results)

    def tables(
        self, count: int, call: Callable[[Components], pa.Table]
    ) -> TablesExecuted[pa.Table]:
        """Execute components of one row in tables."""
        table = pa.table({"key": range(count)})
        components = Components(table, np.arange(count, dtype=np.int64))

        def noted_call(part: Components) -> pa.Table:
            self.calls.append(part.table.num_rows)
            return call(part)

        names = [f"unit {number}" for number in range(count)]
        return self.executor.execute_tables(components, noted_call, names)


class AttemptExecuted(NamedTuple):
    """What executing units in an attempt gave: records, None for failed ones, and outcomes."""

    records: list[list[dict[str, Any]] | None]
    outcomes: dict[int, Outcome]


class AttemptBench:
    """A bench in the name of the next attempt of the instance in a folder."""

    def __init__(
        self,
        folder: Path,
        retry: Retry | None = None,
        tries: Mapping[str, int] | None = None,
    ) -> None:
        self.attempt = attempt_at(folder)
        before = {name: Outcome(name, FAILURE, count) for name, count in (tries or {}).items()}
        self.earlier = EarlierOutcomes(before, {})
        once = None
        if retry is not None and retry.mode is RetryMode.AT_MOST_ONCE:
            once = ClaimedCalls(self.attempt, 0, RESULTS, self.earlier)
        self.bench = Bench(retry, once=once)
        self.calls, self.delays = self.bench.calls, self.bench.delays

    def each(
        self, units: Sequence[int], call: Callable[[int], Iterable[Record]]
    ) -> AttemptExecuted:
        """Execute units one by one."""
        executed = self.bench.each(units, call)
        outcomes = self.earlier.outcomes_now(executed, [f"unit {unit}" for unit in units])
        return AttemptExecuted(records_of(executed), outcomes)


def records_of(executed: EachExecuted) -> list[list[dict[str, Any]] | None]:
    """Records by unit, None for one that failed."""
    rows = iter(executed.table.to_pylist())
    return [
        None if number in executed.failed else [next(rows) for _ in range(count)]
        for number, count in enumerate(executed.counts)
    ]


def square(unit: int) -> list[Record]:
    return [{"square": unit * unit}]


def failing(
    error: Exception,
    times: Mapping[int, int],
    otherwise: Callable[[int], Iterable[Record]] = square,
) -> Callable[[int], Iterable[Record]]:
    """A call that raises the error for some units the first so many times."""
    left = Counter(times)

    def call(unit: int) -> Iterable[Record]:
        if left[unit]:
            left[unit] -= 1
            raise type(error)(*error.args)
        return otherwise(unit)

    return call


def keys_of(results: Iterable[pa.Table]) -> list[int]:
    return [key for part in results for key in part.column("key").to_pylist()]


BOTH = pytest.mark.parametrize("definition", [Balances, EachBalance])
