"""Components that fail: found, tried again, listed, and no harm to their neighbours."""

import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.execution_bench import (
    RESULTS,
    Bench,
    failing,
    keys_of,
    records_of,
    square,
)

from ledgerbeam.io.errors import CanceledError, InputError, OverdueError, UserError
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.concurrency.executor import Executor, OnceCalled, current_fence
from ledgerbeam.transforms.concurrency.retry import (
    Failure,
    Record,
    Retry,
    RetryAfter,
    RetryMode,
)
from ledgerbeam.transforms.concurrency.throttle import Limits


@pytest.fixture
def bench() -> Bench:
    return Bench()


def tries_of(failures: Mapping[int, Failure]) -> dict[int, int]:
    return {number: failure.tries for number, failure in failures.items()}


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
        assert keys_of(executed.results) == list(range(64))
        assert (executed.failed, executed.recovered) == ({}, {})
        assert bench.calls == [64]

    def test_who_fails_is_found_and_the_neighbours_succeed(self, bench: Bench) -> None:
        executed = bench.tables(64, bad_keys([37]))
        assert keys_of(executed.results) == [key for key in range(64) if key != 37]
        assert (tries_of(executed.failed), executed.recovered) == ({37: 1}, {})
        error = executed.failed[37].error
        assert error.startswith("ValueError: 37 is bad (test_execute_calls.py:")
        # By halves, not one by one.
        assert bench.calls == [64, 32, 32, 16, 8, 4, 4, 2, 1, 1, 2, 8, 16]

    @given(st.integers(0, 40), st.sets(st.integers(0, 39)))
    def test_any_set(self, count: int, bad: set[int]) -> None:
        executed = Bench().tables(count, bad_keys(bad))
        assert keys_of(executed.results) == [key for key in range(count) if key not in bad]
        assert tries_of(executed.failed) == {key: 1 for key in range(count) if key in bad}

    def test_errors_that_pass_are_waited_for(self, bench: Bench) -> None:
        left = [OSError("busy"), OSError("busy")]

        def call(components: Components) -> pa.Table:
            if left:
                raise left.pop()
            return components.table

        executed = bench.tables(8, call)
        assert keys_of(executed.results) == list(range(8))
        assert (executed.failed, executed.recovered) == ({}, {})
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
        assert (executed.failed, tries_of(executed.recovered)) == ({}, {0: 2})
        assert executed.recovered[0].error.startswith("OSError: busy (")
        assert bench.calls == [2, 2, 2, 1, 1, 1]

    def test_when_too_many_fail_no_more_are_tried(self) -> None:
        bench = Bench(max_failures=3)
        with pytest.raises(UserError, match="shard 0: more than 3 components failed") as raised:
            bench.tables(1024, bad_keys(range(1024)))
        assert "first unit 0 (ValueError: 0 is bad" in str(raised.value)
        assert len(bench.calls) < 30

    @pytest.mark.parametrize("error", [MemoryError, CanceledError])
    def test_what_is_nobodys_fault(self, bench: Bench, error: type[Exception]) -> None:
        with pytest.raises(error):
            bench.tables(8, bad_keys([3], error))
        assert bench.calls == [8]


class TestCodes:
    def test_a_failure_has_the_code_of_its_error(self, bench: Bench) -> None:
        errors = [InputError("a rate of -2", column="rate"), ValueError("no rate")]

        def call(unit: int) -> list[Record]:
            if unit < 2:
                raise errors[unit]
            return square(unit)

        executed = bench.each(range(3), call)
        codes = {number: failure.code for number, failure in executed.failed.items()}
        assert codes == {0: "invalid-input", 1: ""}


class TestEach:
    @pytest.mark.parametrize("parallelism", [None, 8])
    def test_who_fails_costs_the_others_nothing(
        self, bench: Bench, parallelism: int | None
    ) -> None:
        bench.control.throttle.set(Limits(parallelism))
        executed = bench.each(range(50), failing(ValueError("no rate"), {3: 9, 30: 9}))
        expected = [None if unit in (3, 30) else square(unit) for unit in range(50)]
        assert records_of(executed) == expected
        assert (tries_of(executed.failed), executed.recovered) == ({3: 1, 30: 1}, {})
        assert executed.failed[3].error.startswith("ValueError: no rate (execution_bench.py:")
        assert sorted(bench.calls) == list(range(50))

    def test_who_fails_is_tried_again_after_the_others(self, bench: Bench) -> None:
        executed = bench.each(range(5), failing(OSError("busy"), {1: 1, 2: 2, 3: 3}))
        assert bench.calls[:5] == list(range(5))
        assert sorted(bench.calls[5:8]) == [1, 2, 3]
        assert sorted(bench.calls[8:]) == [2, 3]
        # Two rounds, two waits: not one for each component.
        assert len(bench.delays) == 2
        assert 0.25 <= bench.delays[0] <= 0.5 <= bench.delays[1] <= 1.0
        assert (tries_of(executed.recovered), tries_of(executed.failed)) == ({1: 2, 2: 3}, {3: 3})
        failures = [*executed.recovered.values(), *executed.failed.values()]
        assert all(failure.error.startswith("OSError: busy (") for failure in failures)
        assert records_of(executed) == [square(0), square(1), square(2), None, square(4)]

    @pytest.mark.parametrize("kind", ["second tries", "time limit", "at most once"])
    def test_without_parallelism_a_shard_has_one_call_in_flight(self, kind: str) -> None:
        def once(name: str, call: Callable[[], Sequence[Record]]) -> OnceCalled:
            return OnceCalled(call(), None)

        bench = {
            "second tries": lambda: Bench(),
            "time limit": lambda: Bench(Retry(time_limit=60.0)),
            "at most once": lambda: Bench(Retry(RetryMode.AT_MOST_ONCE), once=once),
        }[kind]()
        lock, meets = threading.Lock(), threading.Event()
        tried: set[int] = set()
        in_flight: list[int] = []

        def call(unit: int) -> list[Record]:
            if kind == "second tries" and unit not in tried:
                tried.add(unit)
                raise OSError("busy")
            with lock:
                in_flight.append(unit)
                if len(in_flight) > 1:
                    meets.set()
            meets.wait(0.005)  # another call would begin meanwhile
            with lock:
                in_flight.remove(unit)
            return square(unit)

        executed = bench.each(range(20), call)
        assert records_of(executed) == [square(unit) for unit in range(20)]
        assert not meets.is_set()

    @pytest.mark.parametrize(
        "error", [ValueError, KeyError, TypeError, ZeroDivisionError, UserError]
    )
    def test_mistakes_are_not_tried_again(self, bench: Bench, error: type[Exception]) -> None:
        executed = bench.each(range(3), failing(error("wrong"), {1: 1}))
        assert tries_of(executed.failed) == {1: 1}
        assert (bench.calls, bench.delays) == ([0, 1, 2], [])

    def test_what_is_never_retried_can_be_said(self) -> None:
        bench = Bench(Retry(tries=5, never=(OSError,)))
        executed = bench.each(range(2), failing(OSError("closed"), {0: 1}))
        assert tries_of(executed.failed) == {0: 1}
        executed = bench.each(range(2), failing(ValueError("late"), {0: 4}))
        assert (executed.failed, tries_of(executed.recovered)) == ({}, {0: 5})

    def test_when_too_many_fail_no_more_are_tried(self) -> None:
        bench = Bench(max_failures=3)
        with pytest.raises(UserError, match=r"more than 3 components failed,.* first unit 0 \(Val"):
            bench.each(range(1000), failing(ValueError("wrong"), dict.fromkeys(range(1000), 1)))
        assert bench.calls == [0, 1, 2, 3]

    def test_who_will_be_tried_again_has_not_failed_yet(self) -> None:
        bench = Bench(max_failures=1)
        busy = failing(OSError("busy"), dict.fromkeys(range(50), 1))
        executed = bench.each(range(60), failing(ValueError("wrong"), {55: 1}, busy))
        assert (len(executed.recovered), set(executed.failed)) == (50, {55})

    def test_many_that_fail_at_once(self) -> None:
        bench = Bench(Retry(tries=2))
        bench.control.throttle.set(Limits(32))
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            call = failing(OSError("busy"), dict.fromkeys(range(900), 2))
            executed = bench.each(range(900), call)
        finally:
            sys.setswitchinterval(interval)
        assert tries_of(executed.failed) == dict.fromkeys(range(900), 2)
        assert executed.recovered == {}

    def test_canceled_while_calls_are_in_flight(self, bench: Bench) -> None:
        """Those in flight end; nothing new is begun; their shard isn't committed."""
        bench.control.throttle.set(Limits(4))
        arrived = threading.Barrier(5)
        going_on = threading.Event()

        def call(unit: int) -> list[Record]:
            arrived.wait(30)
            going_on.wait(30)
            return square(unit)

        with ThreadPoolExecutor(1) as pool:
            executing = pool.submit(bench.each, range(100), call)
            arrived.wait(30)
            bench.control.throttle.cancel()
            going_on.set()
            with pytest.raises(CanceledError):
                executing.result(30)
        assert len(bench.calls) == 4


class TestTimeLimit:
    def test_who_overruns_has_failed_and_has_no_effect_later(self) -> None:
        bench = Bench(Retry(tries=1, time_limit=0.3))
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
        assert records_of(executed) == [square(0), None, square(2)]
        assert tries_of(executed.failed) == {1: 1}
        assert executed.failed[1].error.startswith(
            "TimeLimitExceededError: took more than 0.3 s and was given up"
        )
        going_on.set()
        wait_until(lambda: bool(ends))
        assert ends[0] != "committed"
        assert records_of(executed)[1] is None

    def test_the_fence_is_closed(self) -> None:
        bench = Bench(Retry(tries=1, time_limit=0.3))
        fences = []

        def call(unit: int) -> list[Record]:
            fences.append(current_fence())
            while True:
                threading.Event().wait(0.01)

        assert tries_of(bench.each([1], call).failed) == {0: 1}
        with pytest.raises(OverdueError):
            fences[0].enter_commit()

    def test_who_has_entered_its_commit_is_waited_for(self) -> None:
        bench = Bench(Retry(tries=1, time_limit=0.2))

        def call(unit: int) -> list[Record]:
            current_fence().enter_commit()
            threading.Event().wait(0.6)
            return square(unit)

        executed = bench.each([5], call)
        assert records_of(executed) == [square(5)]
        assert (executed.failed, executed.recovered) == ({}, {})

    def test_who_overruns_is_tried_again(self) -> None:
        bench = Bench(Retry(tries=2, time_limit=0.3))
        hanging = threading.Event()

        def call(unit: int) -> list[Record]:
            if len(bench.calls) == 1:
                hanging.wait(30)
            return square(unit)

        executed = bench.each([4], call)
        hanging.set()
        assert records_of(executed) == [square(4)]
        assert (executed.failed, tries_of(executed.recovered)) == ({}, {0: 2})


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came true")


class TestResults:
    def executed(
        self, bench: Bench, call: Callable[[int], Any]
    ) -> tuple[list[Any], dict[int, Failure]]:
        """Values and failures of three units."""
        executed = bench.each(range(3), call)
        assert executed.table.schema == RESULTS
        assert sum(executed.counts) == executed.table.num_rows
        assert executed.recovered == {}
        return executed.table.column("square").to_pylist(), executed.failed

    @pytest.mark.parametrize(
        ("value", "why"),
        [
            ("one", "results don't fit: square is str, not int64"),
            (2**63, "results don't fit: square is 9223372036854775808, not int64"),
            (0.5, "results don't fit: square is float, not int64"),
            (Decimal("1.5"), "results don't fit: square is Decimal, not int64"),
            (True, "results don't fit: square is True, not int64: Expected integer"),
            ({}, "results don't fit: square is dict, not int64"),
        ],
    )
    def test_what_does_not_fit_is_that_components_failure(
        self, bench: Bench, value: object, why: str
    ) -> None:
        values, failed = self.executed(
            bench, lambda unit: [{"square": value if unit == 1 else unit * unit}]
        )
        assert values == [0, 4]
        assert tries_of(failed) == {1: 1}
        assert failed[1].error.startswith(why)

    def test_tries_of_what_does_not_fit(self, bench: Bench) -> None:
        call = failing(OSError("busy"), {1: 1}, lambda unit: [{"square": "x" if unit == 1 else 0}])
        values, failed = self.executed(bench, call)
        assert values == [0, 0]
        assert tries_of(failed) == {1: 2}

    @pytest.mark.parametrize(
        "record", [{}, {"square": 1, "cube": 1}, {"cube": 1}], ids=["none", "more", "other"]
    )
    def test_wrong_columns(self, bench: Bench, record: Record) -> None:
        values, failed = self.executed(bench, lambda unit: [record] if unit == 1 else square(unit))
        assert values == [0, 4]
        assert tries_of(failed) == {1: 1}
        assert failed[1].error.startswith("TypeError: execute gave the columns ")
        assert ", and results has square (" in failed[1].error

    def test_nothing_that_could_be_gone_through(self, bench: Bench) -> None:
        values, failed = self.executed(bench, lambda unit: None if unit == 1 else square(unit))
        assert values == [0, 4]
        assert "DefinitionError: execute returned nothing: yield each row" in failed[1].error

    def test_an_error_half_way_through_a_generator(self, bench: Bench) -> None:
        def call(unit: int) -> Iterator[Record]:
            yield {"square": 1}
            if unit == 1:
                raise ValueError("half-way")

        values, failed = self.executed(bench, call)
        assert (values, tries_of(failed)) == ([1, 1], {1: 1})

    def test_none_where_a_column_does_not_allow_it(self) -> None:
        bench = Bench()
        schema = pa.schema([pa.field("square", pa.int64(), nullable=False)])
        executed = bench.each(range(2), lambda unit: [{"square": None if unit else 1}], schema)
        assert executed.table.column("square").to_pylist() == [1]
        assert executed.counts == [1, 0]
        assert executed.failed[1].error.endswith("square is None, and the column isn't nullable")


class TestTablesOfResults:
    """A unit may give its rows as a table."""

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=6), st.booleans())
    def test_the_rows_are_the_same(self, given_: list[tuple[bool, int]], pooled: bool) -> None:
        units = [
            ([10 * number + row for row in range(rows)], is_table)
            for number, (is_table, rows) in enumerate(given_)
        ]

        def call(unit: tuple[list[int], bool]) -> Any:
            values, is_table = unit
            column = pa.array(values, pa.int64())
            return (
                pa.table([column], schema=RESULTS) if is_table else [{"square": n} for n in values]
            )

        executor = Executor(pooled=pooled)
        executed = executor.execute_each(units, call, [""] * len(units), RESULTS)
        assert executed.table.schema == RESULTS
        assert executed.table.column("square").to_pylist() == [n for unit in units for n in unit[0]]
        assert executed.counts == [len(values) for values, _ in units]

    @pytest.mark.parametrize(
        ("table", "why"),
        [
            (pa.table({"square": [1.0]}), "TypeError: square is double, not int64: cast it"),
            (pa.table({"cube": [1]}), "TypeError: execute gave a table with the columns cube, and"),
            (pa.table([[1], [2]], ["square"] * 2), "TypeError: execute gave a table with the colu"),
        ],
    )
    def test_what_does_not_fit(self, bench: Bench, table: pa.Table, why: str) -> None:
        executed = bench.each(range(3), lambda unit: table if unit == 1 else square(unit))
        assert executed.table.column("square").to_pylist() == [0, 4]
        assert executed.failed[1].error.startswith(why)

    def test_none_where_a_column_does_not_allow_it(self, bench: Bench) -> None:
        schema = pa.schema([pa.field("square", pa.int64(), nullable=False)])
        tables = [pa.table({"square": pa.array(values, pa.int64())}) for values in ([1], [None])]
        executed = bench.each(range(2), tables.__getitem__, schema)
        assert executed.table == pa.table([[1]], schema=schema)
        assert "square is None, and the column isn't nullable" in executed.failed[1].error


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


class TestRetryAfter:
    """A component asks that nothing begins for some time, and is tried again."""

    def test_nothing_begins_before_it(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        held: list[float] = []
        monkeypatch.setattr(bench.control.throttle, "hold", held.append)

        def call(unit: int) -> list[Record]:
            if unit == 3 and 3 not in bench.calls[:-1]:
                raise RetryAfter(30, "too many requests")
            return square(unit)

        executed = bench.each(range(6), call)
        assert held == [30.0]
        assert records_of(executed) == [square(unit) for unit in range(6)]
        (failure,) = executed.recovered.values()
        assert failure.tries == 2
        assert "RetryAfter: after 30 s: too many requests" in failure.error

    def test_it_is_one_of_its_tries(self, bench: Bench) -> None:
        def call(components: Components) -> pa.Table:
            raise RetryAfter(0.001)

        executed = bench.tables(2, call)
        assert {failure.tries for failure in executed.failed.values()} == {3}

    @pytest.mark.parametrize("seconds", [0, -1, float("nan")])
    def test_it_takes_more_than_nothing(self, seconds: float) -> None:
        with pytest.raises(ValueError, match="more than 0"):
            RetryAfter(seconds)

    def test_it_may_come_from_another_process(self) -> None:
        error = RetryAfter(90_000, "later")
        again = pickle.loads(pickle.dumps(error))
        assert (
            (again.seconds, str(again))
            == (3600.0, "after 3600 s: later")
            == (
                error.seconds,
                str(error),
            )
        )
