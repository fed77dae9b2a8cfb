"""Components that fail: found, tried again, listed, and no harm to their neighbours."""

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import processes
from tests.processes import (
    AFifthMayFail,
    AnyBalanceMayFail,
    AnyEachBalanceMayFail,
    BalanceOnce,
    Balances,
    EachBalance,
    OneBalanceMayFail,
    noted,
)
from tests.reading import instance_uri, record_of

from ledgerbeam.batch.execution import (
    EachExecuted,
    Executed,
    Executor,
    current_fence,
    records_table,
)
from ledgerbeam.batch.governor import Governor
from ledgerbeam.batch.launch import run
from ledgerbeam.batch.outcomes import Outcome, outcomes_of, outcomes_table
from ledgerbeam.batch.process import FailureLimit, Record, Retry, RetryMode
from ledgerbeam.batch.rejects import RowPlaces
from ledgerbeam.batch.results import Results
from ledgerbeam.batch.shard import ShardResult, execute_shard
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.batch.verify import verify
from ledgerbeam.io import control
from ledgerbeam.io.attempts import Attempt, start_attempt
from ledgerbeam.io.claims import Call
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.published import read_part, read_published
from ledgerbeam.io.records import Manifest, ShardCommit
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.calls import Overdue
from ledgerbeam.transforms.components import sort_components
from ledgerbeam.transforms.throttle import NO_LIMITS, Canceled, Limits

SUCCESS, FAILURE, UNKNOWN = (
    ComponentStatus.SUCCESS,
    ComponentStatus.FAILURE,
    ComponentStatus.UNKNOWN,
)
ROOT = Path(__file__).parents[1]
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


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


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


def bad_keys(bad: Iterable[int], error: type[Exception] = ValueError) -> Any:
    """A function of many components, which fails where one of these keys is among them."""
    bad = set(bad)

    def call(components: Components) -> pa.Table:
        found = sorted(bad.intersection(components.table.column("key").to_pylist()))
        if found:
            raise error(f"{found[0]} is bad")
        return components.table

    return call


class TestTables:
    def test_one_call_where_nothing_fails(self, bench: Bench) -> None:
        executed = bench.tables(64, bad_keys([]))
        assert (keys_of(executed.results), executed.outcomes) == (list(range(64)), {})
        assert bench.calls == [64]

    def test_who_fails_is_found_and_the_neighbours_succeed(self, bench: Bench) -> None:
        executed = bench.tables(64, bad_keys([37]))
        assert keys_of(executed.results) == [key for key in range(64) if key != 37]
        (outcome,) = executed.outcomes.values()
        assert outcome[:3] == ("unit 37", FAILURE, 1)
        assert outcome.error.startswith("ValueError: 37 is bad (test_execution.py:")
        # By halves, not one by one.
        assert bench.calls == [64, 32, 32, 16, 8, 4, 4, 2, 1, 1, 2, 8, 16]

    @given(st.integers(0, 40), st.sets(st.integers(0, 39)))
    def test_any_set(self, tmp_path_factory: Any, count: int, bad: set[int]) -> None:
        executed = Bench(tmp_path_factory.mktemp("set")).tables(count, bad_keys(bad))
        assert keys_of(executed.results) == [key for key in range(count) if key not in bad]
        expected = {key: FAILURE for key in range(count) if key in bad}
        assert {key: outcome.status for key, outcome in executed.outcomes.items()} == expected

    def test_errors_that_pass_are_waited_for(self, bench: Bench) -> None:
        left = [OSError("busy"), OSError("busy")]

        def call(components: Components) -> pa.Table:
            if left:
                raise left.pop()
            return components.table

        executed = bench.tables(8, call)
        assert (keys_of(executed.results), executed.outcomes) == (list(range(8)), {})
        assert bench.calls == [8, 8, 8]
        assert 0.25 <= bench.delays[0] <= 0.5 <= bench.delays[1] <= 1.0

    def test_one_that_succeeds_late_is_told_of(self, bench: Bench) -> None:
        left = [OSError("busy")] * 4  # three tries of both together, one of the first alone

        def call(components: Components) -> pa.Table:
            if left and 0 in components.table.column("key").to_pylist():
                raise left.pop()
            return components.table

        executed = bench.tables(2, call)
        assert keys_of(executed.results) == [0, 1]
        (outcome,) = executed.outcomes.values()
        assert outcome[:3] == ("unit 0", SUCCESS, 2)
        assert outcome.error.startswith("OSError: busy (")
        assert bench.calls == [2, 2, 2, 1, 1, 1]

    def test_when_too_many_fail_no_more_are_tried(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, most_failures=3)
        with pytest.raises(UserError, match="shard 0: more than 3 components failed") as raised:
            bench.tables(1024, bad_keys(range(1024)))
        assert "first unit 0: ValueError: 0 is bad" in str(raised.value)
        assert len(bench.calls) < 30

    @pytest.mark.parametrize("error", [MemoryError, Canceled])
    def test_what_is_nobodys_fault(self, bench: Bench, error: type[Exception]) -> None:
        with pytest.raises(error):
            bench.tables(8, bad_keys([3], error))
        assert bench.calls == [8]


class TestEach:
    @pytest.mark.parametrize("parallelism", [None, 8])
    def test_who_fails_costs_the_others_nothing(
        self, bench: Bench, parallelism: int | None
    ) -> None:
        bench.governor.throttle.set(Limits(parallelism))
        executed = bench.each(range(50), failing(ValueError("no rate"), {3: 9, 30: 9}))
        expected = [None if unit in (3, 30) else square(unit) for unit in range(50)]
        assert executed.records == expected
        assert {n: (o.component, o.status, o.tries) for n, o in executed.outcomes.items()} == {
            3: ("unit 3", FAILURE, 1),
            30: ("unit 30", FAILURE, 1),
        }
        assert executed.outcomes[3].error.startswith("ValueError: no rate (test_execution.py:")
        assert sorted(bench.calls) == list(range(50))

    def test_who_fails_is_tried_again_after_the_others(self, bench: Bench) -> None:
        executed = bench.each(range(5), failing(OSError("busy"), {1: 1, 2: 2, 3: 3}))
        assert bench.calls[:5] == list(range(5))
        assert sorted(bench.calls[5:8]) == [1, 2, 3]
        assert sorted(bench.calls[8:]) == [2, 3]
        # Two rounds, two waits: not one for each component.
        assert len(bench.delays) == 2
        assert 0.25 <= bench.delays[0] <= 0.5 <= bench.delays[1] <= 1.0
        outcomes = {o.component: (o.status, o.tries) for o in executed.outcomes.values()}
        assert outcomes == {
            "unit 1": (SUCCESS, 2),
            "unit 2": (SUCCESS, 3),
            "unit 3": (FAILURE, 3),
        }
        assert all(o.error.startswith("OSError: busy (") for o in executed.outcomes.values())
        assert executed.records == [square(0), square(1), square(2), None, square(4)]

    @pytest.mark.parametrize(
        "error", [ValueError, KeyError, TypeError, ZeroDivisionError, UserError]
    )
    def test_mistakes_are_not_tried_again(self, bench: Bench, error: type[Exception]) -> None:
        executed = bench.each(range(3), failing(error("wrong"), {1: 1}))
        assert executed.outcomes[1].status is FAILURE
        assert (bench.calls, bench.delays) == ([0, 1, 2], [])

    def test_what_is_never_retried_can_be_said(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, Retry(tries=5, never=(OSError,)))
        executed = bench.each(range(2), failing(OSError("closed"), {0: 1}))
        assert executed.outcomes[0].tries == 1
        executed = bench.each(range(2), failing(ValueError("late"), {0: 4}))
        assert executed.outcomes[0][1:3] == (SUCCESS, 5)

    def test_tries_of_earlier_attempts_are_counted(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, tries={"unit 0": 3, "unit 1": 1})
        executed = bench.each(range(2), failing(OSError("busy"), {0: 9, 1: 1}))
        assert executed.outcomes[0][:3] == ("unit 0", FAILURE, 6)
        assert executed.outcomes[1][:3] == ("unit 1", SUCCESS, 3)

    def test_when_too_many_fail_no_more_are_tried(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, most_failures=3)
        with pytest.raises(UserError, match=r"more than 3 components failed, .* first unit 0: Val"):
            bench.each(range(1000), failing(ValueError("wrong"), dict.fromkeys(range(1000), 1)))
        assert bench.calls == [0, 1, 2, 3]

    def test_who_will_be_tried_again_has_not_failed_yet(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, most_failures=1)
        busy = failing(OSError("busy"), dict.fromkeys(range(50), 1))
        executed = bench.each(range(60), failing(ValueError("wrong"), {55: 1}, busy))
        statuses = Counter(outcome.status for outcome in executed.outcomes.values())
        assert statuses == {SUCCESS: 50, FAILURE: 1}

    def test_many_that_fail_at_once(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, Retry(tries=2))
        bench.governor.throttle.set(Limits(32))
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            call = failing(OSError("busy"), dict.fromkeys(range(900), 2))
            executed = bench.each(range(900), call)
        finally:
            sys.setswitchinterval(interval)
        assert Counter(o[1:3] for o in executed.outcomes.values()) == {(FAILURE, 2): 900}

    def test_canceled_while_calls_are_in_flight(self, bench: Bench) -> None:
        """Those in flight end; nothing new is begun; their shard isn't committed."""
        bench.governor.throttle.set(Limits(4))
        arrived = threading.Barrier(5)
        going_on = threading.Event()

        def call(unit: int) -> list[Record]:
            arrived.wait(30)
            going_on.wait(30)
            return square(unit)

        with ThreadPoolExecutor(1) as pool:
            executing = pool.submit(bench.each, range(100), call)
            arrived.wait(30)
            bench.governor.throttle.cancel()
            going_on.set()
            with pytest.raises(Canceled):
                executing.result(30)
        assert len(bench.calls) == 4


class TestTimeLimit:
    def test_who_overruns_has_failed_and_has_no_effect_later(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, Retry(tries=1, time_limit=0.3))
        going_on = threading.Event()
        ends: list[BaseException | str] = []

        def call(unit: int) -> list[Record]:
            fence = current_fence()
            if unit == 1:
                try:
                    while not going_on.wait(0.01):
                        pass
                    fence.enter_commit()
                except BaseException as error:
                    ends.append(error)
                    raise
                ends.append("committed")
            return square(unit)

        executed = bench.each(range(3), call)
        assert executed.records == [square(0), None, square(2)]
        (outcome,) = executed.outcomes.values()
        assert outcome[:3] == ("unit 1", FAILURE, 1)
        assert outcome.error.startswith("TimeLimitExceeded: took more than 0.3 s and was given up")
        going_on.set()
        wait_until(lambda: bool(ends))
        assert ends[0] != "committed"
        assert executed.records[1] is None

    def test_the_fence_is_closed(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, Retry(tries=1, time_limit=0.3))
        fences = []

        def call(unit: int) -> list[Record]:
            fences.append(current_fence())
            while True:
                threading.Event().wait(0.01)

        assert bench.each([1], call).outcomes[0].status is FAILURE
        with pytest.raises(Overdue):
            fences[0].enter_commit()

    def test_who_has_entered_its_commit_is_waited_for(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, Retry(tries=1, time_limit=0.2))

        def call(unit: int) -> list[Record]:
            current_fence().enter_commit()
            threading.Event().wait(0.6)
            return square(unit)

        executed = bench.each([5], call)
        assert (executed.records, executed.outcomes) == ([square(5)], {})

    def test_who_overruns_is_tried_again(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, Retry(tries=2, time_limit=0.3))
        hanging = threading.Event()

        def call(unit: int) -> list[Record]:
            if len(bench.calls) == 1:
                hanging.wait(30)
            return square(unit)

        executed = bench.each([4], call)
        hanging.set()
        assert executed.records == [square(4)]
        assert executed.outcomes[0][1:3] == (SUCCESS, 2)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came true")


class TestResults:
    def outcomes(self, bench: Bench, call: Callable[[int], Any]) -> tuple[list[Any], list[Outcome]]:
        executed = bench.each(range(3), call)
        table, counts = records_table(executed, RESULTS, bench.executor, lambda n: f"unit {n}")
        assert table.schema == RESULTS
        assert sum(counts) == table.num_rows
        return table.column("square").to_pylist(), list(executed.outcomes.values())

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("one", "results don't fit: square is str, not int64"),
            (2**63, "results don't fit: Python int too large"),
            (0.5, "results don't fit: square is float, not int64"),
            (Decimal("1.5"), "results don't fit: square is Decimal, not int64"),
            (True, "results don't fit: Expected integer, got bool"),
            ({}, "results don't fit: square is dict, not int64"),
        ],
    )
    def test_what_does_not_fit_is_that_components_failure(
        self, bench: Bench, value: object, why: str
    ) -> None:
        values, outcomes = self.outcomes(
            bench, lambda unit: [{"square": value if unit == 1 else unit * unit}]
        )
        assert values == [0, 4]
        assert [(*o[:3], o.error[: len(why)]) for o in outcomes] == [("unit 1", FAILURE, 1, why)]

    def test_tries_of_what_does_not_fit(self, bench: Bench) -> None:
        call = failing(OSError("busy"), {1: 1}, lambda unit: [{"square": "x" if unit == 1 else 0}])
        values, outcomes = self.outcomes(bench, call)
        assert values == [0, 0]
        assert [o[:3] for o in outcomes] == [("unit 1", FAILURE, 2)]

    @pytest.mark.parametrize(
        "record", [{}, {"square": 1, "cube": 1}, {"cube": 1}], ids=["none", "more", "other"]
    )
    def test_wrong_columns(self, bench: Bench, record: Record) -> None:
        values, outcomes = self.outcomes(
            bench, lambda unit: [record] if unit == 1 else square(unit)
        )
        assert values == [0, 4]
        assert [o[:3] for o in outcomes] == [("unit 1", FAILURE, 1)]
        assert outcomes[0].error.startswith("TypeError: execute gave the columns ")
        assert ", and results has square (" in outcomes[0].error

    def test_nothing_that_could_be_gone_through(self, bench: Bench) -> None:
        values, outcomes = self.outcomes(bench, lambda unit: None if unit == 1 else square(unit))
        assert values == [0, 4]
        assert "TypeError: 'NoneType' object is not iterable" in outcomes[0].error

    def test_an_error_half_way_through_a_generator(self, bench: Bench) -> None:
        def call(unit: int) -> Iterator[Record]:
            yield {"square": 1}
            if unit == 1:
                raise ValueError("half-way")

        values, outcomes = self.outcomes(bench, call)
        assert (values, outcomes[0].status) == ([1, 1], FAILURE)

    def test_none_where_a_column_does_not_allow_it(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        schema = pa.schema([pa.field("square", pa.int64(), nullable=False)])
        executed = bench.each(range(2), lambda unit: [{"square": None if unit else 1}])
        table, counts = records_table(executed, schema, bench.executor, lambda n: f"unit {n}")
        assert (table.column("square").to_pylist(), counts) == ([1], [1, 0])
        assert executed.outcomes[1].error.endswith("square is None, and the column isn't nullable")


class TestAtMostOnce:
    def test_calls_and_results_are_recorded(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ONCE)
        executed = bench.each(range(4), failing(OSError("busy"), {2: 1}))
        assert executed.records == [square(0), square(1), None, square(3)]
        assert executed.outcomes[2][:3] == ("unit 2", FAILURE, 1)
        assert bench.delays == []
        names = [path.name for path in (tmp_path / "claims").iterdir()]
        assert len(names) == 8
        assert sum(name.endswith(".settled.json") for name in names) == 4

    def test_a_second_attempt_takes_over_what_is_settled(self, tmp_path: Path) -> None:
        call = failing(OSError("busy"), {2: 1})
        first = Bench(tmp_path, ONCE).each(range(4), call)
        second = Bench(tmp_path, ONCE)
        executed = second.each(range(4), call)
        assert second.executor.attempt.record.number == 2
        assert second.calls == []
        assert executed.records == first.records
        assert executed.outcomes == first.outcomes

    def test_what_was_claimed_only_is_unknown(self, tmp_path: Path) -> None:
        first = Bench(tmp_path, ONCE)
        assert Call(first.executor.attempt.instance_uri, 0, "unit 1", 0).claim(1)
        second = Bench(tmp_path, ONCE)
        executed = second.each(range(3), square)
        assert executed.records == [square(0), None, square(2)]
        assert executed.outcomes[1][:3] == ("unit 1", UNKNOWN, 1)
        assert "look whether it has taken effect" in executed.outcomes[1].error
        assert sorted(second.calls) == [0, 2]

    def test_what_has_failed_can_be_tried_again(self, tmp_path: Path) -> None:
        Bench(tmp_path, ONCE).each(range(2), failing(OSError("busy"), {1: 1}))
        again = Bench(tmp_path, ONCE, tries={"unit 1": 1})
        assert again.each([1], square).records == [square(1)]
        assert again.calls == [1]

    def test_who_overruns_is_unknown(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, Retry(RetryMode.AT_MOST_ONCE, time_limit=0.3))
        hanging = threading.Event()

        def call(unit: int) -> list[Record]:
            if unit == 1:
                hanging.wait(30)
            return square(unit)

        executed = bench.each(range(3), call)
        hanging.set()
        assert executed.records == [square(0), None, square(2)]
        assert executed.outcomes[1][1:3] == (UNKNOWN, 1)
        again = Bench(tmp_path, ONCE)
        assert again.each(range(3), call).outcomes[1].status is UNKNOWN
        assert again.calls == []

    def test_results_that_do_not_fit_are_settled_as_a_failure(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ONCE)
        executed = bench.each(range(2), lambda unit: [{"square": "x" if unit else 1}])
        assert executed.records == [[{"square": 1}], None]
        assert executed.outcomes[1].status is FAILURE

    def test_a_result_that_cannot_be_recorded_is_no_failure(self, tmp_path: Path) -> None:
        """It would be called again, although it was called, and has succeeded."""

        def call(unit: int) -> list[Record]:
            # From here on nothing can be written there.
            os.rename(tmp_path / "claims", tmp_path / "lost")
            (tmp_path / "claims").write_text("")
            return square(unit)

        with pytest.raises(UserError, match=r"cannot write .*/claims/00000-"):
            Bench(tmp_path, ONCE).each([1], call)
        os.remove(tmp_path / "claims")
        os.rename(tmp_path / "lost", tmp_path / "claims")
        again = Bench(tmp_path, ONCE)
        assert again.each([1], square).outcomes[0].status is UNKNOWN
        assert again.calls == []

    def test_two_threads_on_one_shard(self, tmp_path: Path) -> None:
        """As when a bundle runs twice: each component is called by one of them."""
        units = range(60)
        both = [Bench(tmp_path, ONCE) for _ in range(2)]
        together = threading.Barrier(2)

        def execute(bench: Bench) -> EachExecuted:
            together.wait(30)
            return bench.each(units, square)

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(execute, both))
        assert sorted(both[0].calls + both[1].calls) == list(units)
        for bench, executed in zip(both, results, strict=True):
            for unit in units:
                if unit in bench.calls:
                    assert executed.records[unit] == square(unit)
                elif executed.records[unit] is None:
                    assert executed.outcomes[unit].status is UNKNOWN
                else:
                    assert executed.records[unit] == square(unit)

    def test_two_processes_on_one_shard(self, tmp_path: Path) -> None:
        both = [racer(tmp_path) for _ in range(2)]
        assert [process.wait(120) for process in both] == [0, 0]
        assert sorted(map(int, noted(tmp_path / "calls"))) == list(range(40))

    @pytest.mark.parametrize("point", ["claim: before", "claim: made", "settle: before"])
    def test_a_process_that_is_killed(self, tmp_path: Path, point: str) -> None:
        assert racer(tmp_path, LEDGERBEAM_FAILPOINT=point).wait(120) == -signal.SIGKILL
        called_before = list(map(int, noted(tmp_path / "calls")))
        again = Bench(tmp_path, ONCE)
        executed = again.each(range(40), square)
        assert Counter(called_before + again.calls).most_common(1)[0][1] == 1
        unknown = {n for n, outcome in executed.outcomes.items() if outcome.status is UNKNOWN}
        assert unknown.isdisjoint(again.calls)
        assert unknown >= set(called_before)
        assert bool(unknown) == (point != "claim: before")


def racer(folder: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """A process that executes units of shard 0, each once at most."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.test_execution", str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def race(folder: Path) -> None:
    bench = Bench(folder, ONCE)

    def call(unit: int) -> list[Record]:
        processes.note(folder / "calls", str(unit))
        return square(unit)

    bench.each(range(40), call)


Payments = Sequence[tuple[str, int, Decimal]]


def payments_table(payments: Payments) -> pa.Table:
    accounts, numbers, amounts = zip(*payments, strict=True) if payments else ((), (), ())
    return pa.table(
        {
            "account": pa.array(accounts, pa.string()).dictionary_encode(),
            "number": pa.array(numbers, pa.int64()),
            "amount": pa.array(amounts, processes.MONEY),
        }
    )


def expected_of(payments: Payments, failing: Iterable[str]) -> list[dict[str, Any]]:
    """The results in plain Python."""
    failing = set(failing)
    rows = []
    for account in sorted({account for account, _, _ in payments} - failing):
        own = sorted((number, amount) for name, number, amount in payments if name == account)
        rows += [{"account": account, **row} for row in processes.balances(own)]
    return rows


def statuses_of(payments: Payments, failing: Iterable[str]) -> dict[str, ComponentStatus]:
    """Outcomes of those that did not just succeed, with rows."""
    failing = set(failing)
    accounts = {account for account, _, _ in payments}
    with_rows = {account for account, _, amount in payments if amount}
    return dict.fromkeys(accounts & failing, FAILURE) | dict.fromkeys(
        accounts - failing - with_rows, SUCCESS
    )


@st.composite
def payments_of_accounts(draw: st.DrawFn) -> list[tuple[str, int, Decimal]]:
    accounts = st.sampled_from(["A", "B", "C", "é", "a/b", "100%", "E"])
    amounts = st.sampled_from([0, 1, -1, 250, 10**14, -(10**14)])
    keys = draw(st.lists(st.tuples(accounts, st.integers(0, 9)), unique=True, max_size=40))
    return [(*key, Decimal(draw(amounts)).scaleb(-2)) for key in keys]


class Shard:
    """A shard that is executed and committed as often as attempts are made."""

    def __init__(self, folder: Path, definition: type[Any], payments: Payments) -> None:
        self.folder = folder
        self.process = definition(
            processes.BalanceParameters(payments="", output="", folder=str(folder))
        )
        table = payments_table(payments)
        self.components = sort_components(table, ("account",), "number").components
        self.governor = Governor(str(folder), 1, "here")
        self.governor.throttle.set(NO_LIMITS)
        self.commit: ShardCommit | None = None

    def execute(self, failing: Iterable[str]) -> ShardResult:
        """The next attempt, in which these accounts fail."""
        faults = dict.fromkeys(failing, "ValueError")
        (self.folder / "faults.json").write_text(json.dumps(faults))
        (self.folder / "calls").unlink(missing_ok=True)
        attempt = attempt_at(self.folder)
        done = execute_shard(
            self.process,
            attempt,
            self.governor,
            0,
            self.components,
            RowPlaces((), ()),
            self.commit,
        )
        outcomes = (
            attempt.write_outcomes(0, outcomes_table(done.outcomes)) if done.outcomes else None
        )
        self.commit = attempt.commit(
            ShardCommit(
                shard=0,
                attempt=attempt.record.number,
                code_version="1",
                part=attempt.write_part(0, done.results.table),
                outcomes=outcomes,
                totals=done.totals,
            )
        )
        return done

    @property
    def calls(self) -> set[str]:
        return {name for line in noted(self.folder / "calls") for name in line.split()}


BOTH = pytest.mark.parametrize("definition", [Balances, EachBalance])


class TestShards:
    @BOTH
    @settings(max_examples=60, deadline=None)
    @given(payments=payments_of_accounts(), failing=st.sets(st.sampled_from("ABCDé")))
    def test_any_payments_any_failures_then_mended(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        definition: type[Any],
        payments: Payments,
        failing: set[str],
    ) -> None:
        undisturbed = Shard(tmp_path_factory.mktemp("undisturbed"), definition, payments)
        undisturbed.execute([])
        shard = Shard(tmp_path_factory.mktemp("shard"), definition, payments)
        done = shard.execute(failing)
        assert done.results.table.to_pylist() == expected_of(payments, failing)
        found = {o.component.replace("%2F", "/").replace("%25", "%"): o for o in done.outcomes}
        assert {name: o.status for name, o in found.items()} == statuses_of(payments, failing)
        accounts = {account for account, _, _ in payments}
        lost = accounts & failing
        lost_amounts = [amount for account, _, amount in payments if account in lost]
        kept_amounts = [amount for account, _, amount in payments if account not in lost]
        assert done.totals["components"] == len(accounts)
        assert done.totals["failed"] == len(lost)
        assert done.totals["amount"] == sum(kept_amounts) * 100
        assert done.totals.get("failed_amount", 0) == sum(lost_amounts) * 100
        assert done.totals["rows"] + done.totals.get("failed_rows", 0) == len(payments)

        if lost:
            done = shard.execute([])
            assert shard.calls == lost
            assert {
                o.component: o[1:3] for o in done.outcomes if o.component in lost
            } == dict.fromkeys(lost, (SUCCESS, 2))
        assert done.totals["failed"] == 0
        assert done.results.table.to_pylist() == expected_of(payments, [])
        assert shard.commit is not None
        assert undisturbed.commit is not None
        assert shard.commit.part.sha256 == undisturbed.commit.part.sha256
        again = {"retries": len(lost)} if lost else {}
        assert shard.commit.totals == undisturbed.commit.totals | again

    @BOTH
    def test_what_fails_again(self, tmp_path: Path, definition: type[Any]) -> None:
        payments = [(account, 1, Decimal(1)) for account in "ABCD"]
        shard = Shard(tmp_path, definition, payments)
        shard.execute("BD")
        first = shard.commit
        done = shard.execute("B")
        assert [o[:3] for o in done.outcomes] == [("B", FAILURE, 2), ("D", SUCCESS, 2)]
        assert done.results.table.to_pylist() == expected_of(payments, "B")
        done = shard.execute("B")
        assert [o[:3] for o in done.outcomes] == [("B", FAILURE, 3), ("D", SUCCESS, 2)]
        assert done.results.table.to_pylist() == expected_of(payments, "B")
        assert first is not None
        assert shard.commit is not None
        assert shard.commit.part.sha256 != first.part.sha256

    def test_vectorised_equals_each(self, tmp_path: Path) -> None:
        payments = [(a, n, Decimal(n - 3)) for a in ("A", "B", "C", "Z") for n in range(7)]
        payments.append(("NOTHING", 1, Decimal(0)))
        done = []
        for definition in (Balances, EachBalance):
            (tmp_path / definition.__name__).mkdir()
            shard = Shard(tmp_path / definition.__name__, definition, payments)
            done.append(shard.execute(["B"]))
        vectorised, each = done
        assert vectorised.results.table.to_pylist() == each.results.table.to_pylist()
        assert vectorised.totals == each.totals
        ours = [o._replace(error=o.error.split(" (")[0]) for o in vectorised.outcomes]
        theirs = [o._replace(error=o.error.split(" (")[0]) for o in each.outcomes]
        assert sorted(ours) == sorted(theirs)
        assert {o.component: o.status for o in ours} == {"B": FAILURE, "NOTHING": SUCCESS}

    def test_totals_of_both_sides(self, tmp_path: Path) -> None:
        """A component that gave nothing has no results, nor has one that failed."""
        seen = []

        class Both(Balances):
            def executed_totals(self, executed: Components, results: Components) -> dict[str, int]:
                keys = [component.key[0] for component in executed.each(("account",))]
                sizes = (results.ends() - results.starts).tolist()
                seen.append(dict(zip(keys, sizes, strict=True)))
                return {"both": len(keys)}

            def results_of_failed(self, components: Components, errors: Any) -> pa.Table:
                none = self.execute_components(components.slice(0, 0))
                accounts = components.table.column("account").cast(pa.string())
                rows = {name: [None] * len(accounts) for name in none.column_names}
                return pa.table({**rows, "account": accounts}).cast(none.schema)

        payments = [(a, n, Decimal(1)) for a in "ABC" for n in range(3)]
        payments += [("A1", 1, Decimal(0)), ("Z", 1, Decimal(0))]
        done = Shard(tmp_path, Both, payments).execute(["B"])
        assert done.results.table.column("account").to_pylist().count("B") == 3
        assert seen == [{"A": 3, "A1": 0, "C": 3, "Z": 0}]
        assert done.totals["both"] == 4

    def test_a_function_that_cannot_do_nothing(self, tmp_path: Path) -> None:
        class Careless(Balances):
            def execute_components(self, components: Components) -> pa.Table:
                components.values("account")[0]
                return super().execute_components(components)

        with pytest.raises(
            UserError, match=r"Careless\.execute_components fails where it is given"
        ):
            Shard(tmp_path, Careless, []).execute([])

    def test_results_without_the_key(self, tmp_path: Path) -> None:
        class Keyless(Balances):
            def execute_components(self, components: Components) -> pa.Table:
                return super().execute_components(components).drop_columns("account")

        with pytest.raises(UserError, match=r"Keyless\.execute_components gave no column account"):
            Shard(tmp_path, Keyless, []).execute([])

    @pytest.mark.parametrize(
        ("limit", "components", "fails"),
        [(0, 2000, True), (1500, 2000, False), ("75%", 2000, False), ("5%", 2000, True)],
    )
    def test_how_many_failures_are_looked_for(
        self, tmp_path: Path, limit: int | str, components: int, fails: bool
    ) -> None:
        """A thousand, unless more may fail."""

        class Limited(EachBalance):
            failure_limit = limit

            def execute(self, component: Any) -> Iterator[Record]:
                if component.key[0] < "1400":
                    raise ValueError("bad")
                yield {"number": 1, "balance": Decimal(1), "sign": "+"}

        shard = Shard(tmp_path, Limited, [(f"{n:04}", 1, Decimal(1)) for n in range(components)])
        if fails:
            with pytest.raises(UserError, match="more than 1,000 components failed"):
                shard.execute([])
        else:
            assert shard.execute([]).totals["failed"] == 1400


@pytest.mark.parametrize(
    ("limit", "failed", "components", "allowed"),
    [
        (0, 0, 0, True),
        (0, 1, 10, False),
        (2, 2, 2, True),
        (2, 3, 3000, False),
        ("0.5%", 5, 1000, True),
        ("0.5%", 6, 1000, False),
        ("0.1%", 1, 999, False),
        ("33.3 %", 333, 1000, True),
        ("100%", 7, 7, True),
        ("0%", 0, 0, True),
    ],
)
def test_failure_limits(limit: int | str, failed: int, components: int, allowed: bool) -> None:
    assert FailureLimit(limit).allows(failed, components) == allowed


@pytest.mark.parametrize("limit", [-1, "some", "5", "-1%", "1%%", ""])
def test_what_is_no_failure_limit(limit: int | str) -> None:
    with pytest.raises(ValueError, match=r"must be a count or a share like '0\.5%', not"):
        FailureLimit(limit)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tries": 0}, "tries must be at least 1, not 0"),
        ({"time_limit": 0}, "time_limit must be more than 0 seconds, not 0"),
    ],
)
def test_what_is_no_retry(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retry(**wrong)


def test_delays_double_up_to_the_longest_and_are_shortened_at_random() -> None:
    retry = Retry(first_delay=1.0, longest_delay=5.0)
    assert [retry.delay(tries, 0.0) for tries in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 5.0]
    assert [retry.delay(tries, 1.0) for tries in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 2.5]


class TestRuns:
    """Whole runs, from files to what is published."""

    ACCOUNTS = tuple(f"A{number}" for number in range(10))

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        lines = ["account,number,amount"]
        for account in self.ACCOUNTS:
            lines += [f"{account},{n},{n}.25" for n in range(1, 4)]
        lines.append("NOTHING,1,0.00")
        (tmp_path / "payments.csv").write_text("\n".join(lines) + "\n")
        return tmp_path

    def process(self, definition: type[Any], folder: Path, output: str = "o", **more: Any) -> Any:
        parameters = {
            "payments": str(folder / "payments.csv"),
            "output": str(folder / output),
            "folder": str(folder),
            "shards": 2,
            **more,
        }
        return definition(processes.BalanceParameters.model_validate(parameters))

    def break_(self, folder: Path, **faults: str) -> None:
        (folder / "faults.json").write_text(json.dumps(faults))

    def outcomes(self, manifest: Manifest) -> dict[str, Outcome]:
        files = [commit.outcomes for commit in manifest.shards if commit.outcomes is not None]
        tables = [read_part(instance_uri(manifest), file) for file in files]
        return {o.component: o for table in tables for o in outcomes_of(table)}

    def balances(self, manifest: Manifest) -> dict[str, Any]:
        rows = read_published(instance_uri(manifest)).to_table().to_pylist()
        assert rows
        return {row["account"]: row["balance"] for row in rows}

    @BOTH
    def test_one_failure_is_one_too_many(self, folder: Path, definition: type[Any]) -> None:
        self.break_(folder, A3="ValueError")
        with pytest.raises(UserError, match="nothing published: 1 of 11 components failed, and 0 "):
            run(self.process(definition, folder))

        self.break_(folder)
        (folder / "calls").unlink()
        manifest = run(self.process(definition, folder))
        called = {name for line in noted(folder / "calls") for name in line.split()}
        assert called == {"A3"}
        assert self.balances(manifest)["A3"] == Decimal("6.75")
        assert self.outcomes(manifest)["A3"][1:3] == (SUCCESS, 2)
        assert manifest.counts["failed"] == 0
        verify(instance_uri(manifest), self.process(definition, folder))

        undisturbed = run(self.process(definition, folder, "undisturbed"))
        ours, theirs = ([c.part.sha256 for c in m.shards] for m in (manifest, undisturbed))
        assert ours == theirs

    def test_as_many_as_may(self, folder: Path) -> None:
        self.break_(folder, A3="ValueError")
        manifest = run(self.process(OneBalanceMayFail, folder))
        assert manifest.counts["failed"] == 1
        assert set(self.balances(manifest)) == set(self.ACCOUNTS) - {"A3"}
        controls = {control.name: control.actual for control in manifest.controls}
        assert controls["rows: in = out + rejected + other dates + failed"] == 31
        assert controls["amount: in = out + rejected + failed"] == 6750
        verify(instance_uri(manifest), self.process(OneBalanceMayFail, folder))

    def test_one_more_than_may(self, folder: Path) -> None:
        self.break_(folder, A3="ValueError", A4="ValueError")
        with pytest.raises(UserError, match="2 of 11 components failed, and 1 may: first A"):
            run(self.process(OneBalanceMayFail, folder))

    def test_a_share(self, folder: Path) -> None:
        self.break_(folder, A3="ValueError", A4="ValueError")
        assert run(self.process(AFifthMayFail, folder)).counts["failed"] == 2
        self.break_(folder, A3="ValueError", A4="ValueError", A5="ValueError")
        with pytest.raises(UserError, match="3 of 11 components failed, and 20% may"):
            run(self.process(AFifthMayFail, folder, "other"))

    @pytest.mark.parametrize("definition", [AnyBalanceMayFail, AnyEachBalanceMayFail])
    def test_all_of_them(self, folder: Path, definition: type[Any]) -> None:
        self.break_(folder, **dict.fromkeys([*self.ACCOUNTS, "NOTHING"], "ValueError"))
        manifest = run(self.process(definition, folder))
        assert (manifest.counts["failed"], manifest.counts["rows_out"]) == (11, 0)
        assert set(read_published(instance_uri(manifest)).schema.names) == {
            "account",
            "number",
            "balance",
            "sign",
        }
        verify(instance_uri(manifest), self.process(definition, folder))

    @pytest.mark.parametrize("fault", ["float", "none", "column"])
    def test_results_that_are_not_what_was_said(self, folder: Path, fault: str) -> None:
        self.break_(folder, A3=fault)
        manifest = run(self.process(AnyEachBalanceMayFail, folder))
        assert manifest.counts["failed"] == 1
        outcomes = self.outcomes(manifest)
        assert outcomes["A3"].status is FAILURE
        assert outcomes["NOTHING"][1:] == (SUCCESS, 1, "")

    @BOTH
    def test_a_rate_changes_nothing_but_the_time(self, folder: Path, definition: type[Any]) -> None:
        at_once = run(self.process(definition, folder))
        calls = len(noted(folder / "calls"))
        slow = self.process(definition, folder, "slow")
        uri = f"{folder}/slow/balances/{slow.instance}"
        now = datetime.datetime.now(datetime.UTC)
        control.steer(uri, now, "a test", "to see slices", rate=4.0)
        manifest = run(slow)
        if definition is Balances:
            assert len(noted(folder / "calls")) - calls > calls
        ours, theirs = ([c.part.sha256 for c in m.shards] for m in (manifest, at_once))
        assert ours == theirs

    def test_what_may_be_called_once_is_not_called_for_other_input(self, folder: Path) -> None:
        self.break_(folder, A3="MemoryError")
        with pytest.raises(MemoryError):
            run(self.process(BalanceOnce, folder))
        called = noted(folder / "calls")
        with (folder / "payments.csv").open("a") as file:
            file.write("A9,9,1.00\n")
        with pytest.raises(UserError, match=r"attempt 1 was begun on other input .*--run-number=2"):
            run(self.process(BalanceOnce, folder))
        assert noted(folder / "calls") == called
        again = self.process(BalanceOnce, folder, run_number=2, reason="a payment was missing")
        self.break_(folder)
        assert self.balances(run(again))["A9"] == Decimal("7.75")

    def test_at_most_once_over_two_attempts(self, folder: Path) -> None:
        """The first is given up half-way: one call has ended with its worker."""
        self.break_(folder, A3="MemoryError")
        with pytest.raises(MemoryError):
            run(self.process(BalanceOnce, folder))
        manifest = run(self.process(BalanceOnce, folder))
        assert manifest.attempt.number == 2
        assert Counter(noted(folder / "calls")).most_common(1)[0][1] == 1
        assert self.outcomes(manifest)["A3"].status is UNKNOWN
        assert (manifest.counts["unknown"], manifest.counts["failed"]) == (1, 0)
        assert set(self.balances(manifest)) == set(self.ACCOUNTS) - {"A3"}
        verify(instance_uri(manifest), self.process(BalanceOnce, folder))


if __name__ == "__main__":
    race(Path(sys.argv[1]))
