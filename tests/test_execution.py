"""Components that fail: found, tried again, listed, and no harm to their neighbours."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.execution_bench import FAILURE, RESULTS, SUCCESS, Bench, failing, keys_of, square

from ledgerbeam.batch.execution import (
    current_fence,
    records_table,
)
from ledgerbeam.batch.outcomes import Outcome
from ledgerbeam.batch.process import FailureLimit, Record, Retry
from ledgerbeam.io.errors import UserError
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.calls import Overdue
from ledgerbeam.transforms.throttle import Canceled, Limits


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


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
        assert executed.outcomes[3].error.startswith("ValueError: no rate (execution_bench.py:")
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
