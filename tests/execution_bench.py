"""An executor on an attempt of its own, and units that fail as a test says."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.processes import (
    Balances,
    EachBalance,
)
from tests.reading import record_of

from ledgerbeam.batch.execution import (
    EachExecuted,
    Executed,
    Executor,
)
from ledgerbeam.batch.governor import Governor
from ledgerbeam.batch.process import Record, Retry, RetryMode
from ledgerbeam.batch.results import Results
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.attempts import Attempt, start_attempt
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.throttle import NO_LIMITS

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
    """An executor that doesn't sleep, and what is noted of its calls."""

    def __init__(self, folder: Path, retry: Retry | None = None, **others: Any) -> None:
        self.governor = Governor(str(folder), 1, "here")
        self.governor.throttle.set(NO_LIMITS)
        self.delays: list[float] = []
        self.calls: list[int] = []
        self.executor = Executor(
            Retry() if retry is None else retry,
            shard=0,
            attempt=attempt_at(folder),
            governor=self.governor,
            sleep=self.delays.append,
            **others,
        )

    def each(self, units: Sequence[int], call: Callable[[int], Iterable[Record]]) -> EachExecuted:
        """Execute units one by one; unit 7 is called `unit 7`."""

        def noted_call(unit: int) -> Iterable[Record]:
            self.calls.append(unit)
            return call(unit)

        return self.executor.execute_each(units, noted_call, lambda n: f"unit {units[n]}", RESULTS)

    def tables(self, count: int, call: Callable[[Components], pa.Table]) -> Executed:
        """Execute components of one row in tables."""
        table = pa.table({"key": range(count)})
        components = Components(table, np.arange(count, dtype=np.int64))

        def noted_call(part: Components) -> Results:
            self.calls.append(part.table.num_rows)
            return Results(call(part))

        return self.executor.execute_tables(components, noted_call, lambda n: f"unit {n}")


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


def keys_of(results: Iterable[Results]) -> list[int]:
    return [key for part in results for key in part.table.column("key").to_pylist()]


BOTH = pytest.mark.parametrize("definition", [Balances, EachBalance])
