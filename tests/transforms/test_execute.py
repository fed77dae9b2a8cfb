"""Execution per component as transforms of anybody's pipeline, against plain Python."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st
from tests.support.harness import pipeline as local_pipeline

from ledgerbeam.rules.components import Component, Components
from ledgerbeam.transforms import ExecuteComponents, ExecuteEach, Retry, ShuffleByKey, current_fence
from ledgerbeam.transforms.columnar.components import sort_components
from ledgerbeam.transforms.concurrency.calls import Fence
from ledgerbeam.transforms.concurrency.executor import Executor
from ledgerbeam.transforms.concurrency.retry import RetryMode
from ledgerbeam.transforms.execute import Executed, execute_components, execute_each

KEY = ("account",)
SUMS = pa.schema([("sum", pa.int64())])
PAYMENTS = pa.schema([("account", pa.string()), ("amount", pa.int64())])

Payment = tuple[str, int]
LISTS = st.lists(st.tuples(st.sampled_from("ABCDé"), st.integers(-9, 9)), max_size=20)


def table_of(payments: Sequence[Payment]) -> pa.Table:
    columns = [list(column) for column in zip(*payments, strict=True)] or [[], []]
    return pa.table(columns, schema=PAYMENTS)


def components_of(payments: Sequence[Payment]) -> Components:
    return sort_components(table_of(payments), KEY, None).components


def sums_of(components: Components) -> pa.Table:
    """The sum of each account; accounts with a payment of 9 are bad."""
    accounts = components.table.column("account").take(pa.array(components.starts))
    amounts = components.column("amount").to_numpy()
    for account, (start, end) in zip(accounts.to_pylist(), components.bounds(), strict=True):
        if 9 in amounts[start:end]:
            raise ValueError(f"{account} is bad")
    sums = np.add.reduceat(amounts, components.starts)
    return pa.table({"account": accounts, "sum": sums})


def sum_of(component: Component) -> Iterator[dict[str, Any]]:
    """The same for one account."""
    amounts = component.values("amount")
    if 9 in amounts:
        raise ValueError(f"{component.key[0]} is bad")
    yield {"sum": sum(amounts)}


def expected_of(payments: Sequence[Payment]) -> tuple[list[Payment], list[str]]:
    """Sums and bad accounts in plain Python."""
    bad = {account for account, amount in payments if amount == 9}
    sums: Counter[str] = Counter()
    for account, amount in payments:
        sums[account] += amount
    return [(a, sums[a]) for a in sorted(sums) if a not in bad], sorted(bad)


def pairs_of(table: pa.Table) -> list[Payment]:
    return list(zip(table["account"].to_pylist(), table["sum"].to_pylist(), strict=True))


def dead_letters_of(table: pa.Table) -> list[tuple[str, int, str]]:
    """Account, tries, and the error without its place in the code."""
    assert table.schema.types[1:] == [pa.int32(), pa.string()]
    return [(r["account"], r["tries"], r["error"].split(" (")[0]) for r in table.to_pylist()]


BOTH = pytest.mark.parametrize("transform", ["components", "each"])


def execute(transform: str, components: Components) -> Executed:
    if transform == "each":
        return execute_each(Executor(), components, sum_of, KEY, SUMS)
    return execute_components(Executor(), components, sums_of, KEY)


def transform_of(transform: str, **options: Any) -> beam.PTransform:
    if transform == "each":
        return ExecuteEach(sum_of, KEY, SUMS, **options)
    return ExecuteComponents(sums_of, KEY, **options)


@BOTH
class TestBoth:
    @given(payments=LISTS)
    def test_pure_function(self, transform: str, payments: list[Payment]) -> None:
        sums, bad = expected_of(payments)
        executed = execute(transform, components_of(payments))
        assert (executed.results is None) == (not sums)
        if executed.results is not None:
            assert pairs_of(executed.results) == sums
        letters = [(account, 1, f"ValueError: {account} is bad") for account in bad]
        assert dead_letters_of(executed.failed) == letters

    def test_pipeline(self, transform: str) -> None:
        payments = [(f"{n % 50:02}", n % 11 - 4) for n in range(180)] + [("07", 9), ("33", 9)]
        sums, bad = expected_of(payments)
        assert bad == ["07", "33"]
        pipeline = local_pipeline()
        with pipeline:
            tables = pipeline | beam.Create([table_of(payments[::2]), table_of(payments[1::2])])
            shuffled = tables | ShuffleByKey(KEY, 4, PAYMENTS)
            executed = shuffled.components | transform_of(transform)
            results = executed.results | "Results" >> beam.FlatMap(pairs_of)
            failed = executed.failed | "Failed" >> beam.FlatMap(dead_letters_of)
            letters = [(account, 1, f"ValueError: {account} is bad") for account in bad]
            assert_that(results, equal_to(sums), label="results")
            assert_that(failed, equal_to(letters), label="failed")
        counters = pipeline.result.metrics().query(MetricsFilter().with_namespace("execute"))
        counts = {found.key.metric.name: found.committed for found in counters["counters"]}
        assert counts == {"rows": 48, "failed": 2}

    def test_one_failure_too_many_fails_the_pipeline(self, transform: str) -> None:
        payments = [(account, 9) for account in "ABC"]
        with (
            pytest.raises(Exception, match="shard 5: more than 2 components failed"),
            local_pipeline() as pipeline,
        ):
            _ = (
                pipeline
                | beam.Create([(5, components_of(payments))])
                | transform_of(transform, max_failures=2)
            )

    def test_calls_that_may_be_made_once_only_are_refused(self, transform: str) -> None:
        with pytest.raises(ValueError, match="retry can't be AT_MOST_ONCE"):
            transform_of(transform, retry=Retry(RetryMode.AT_MOST_ONCE))


def test_columns_of_the_key_may_not_hide_others() -> None:
    with pytest.raises(ValueError, match="a column of the key is called error"):
        ExecuteComponents(sums_of, ["error"])
    with pytest.raises(ValueError, match="account is in key and in results_schema"):
        ExecuteEach(sum_of, KEY, pa.schema([("account", pa.string())]))


def test_a_time_limit_is_one_for_each_component() -> None:
    with pytest.raises(ValueError, match="take ExecuteEach"):
        ExecuteComponents(sums_of, KEY, retry=Retry(time_limit=1.0))


class Calls:
    """What the calls of a test see of each other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0
        self.made: Counter[str] = Counter()
        self.meeting = threading.Barrier(3)
        self.fences: list[Fence] = []


calls = Calls()


@pytest.fixture(autouse=True)
def _new_calls() -> None:
    global calls
    calls = Calls()


def busy_at_first(component: Component) -> Iterator[dict[str, Any]]:
    """The first call of A fails; what runs at the same time is counted."""
    (account,) = component.key
    with calls.lock:
        calls.running += 1
        calls.most = max(calls.most, calls.running)
        calls.made[account] += 1
    try:
        if account == "A" and calls.made[account] == 1:
            raise OSError("busy")
        yield {"sum": sum(component.values("amount"))}
    finally:
        with calls.lock:
            calls.running -= 1


def meet(component: Component) -> Iterator[dict[str, Any]]:
    """Ends only when three calls run at the same time."""
    calls.meeting.wait(30)
    yield {"sum": 0}


def overrun(component: Component) -> Iterator[dict[str, Any]]:
    """A never ends by itself."""
    calls.fences.append(current_fence())
    while component.key == ("A",):
        threading.Event().wait(0.01)
    yield {"sum": 0}


Each = Callable[[Component], Iterator[dict[str, Any]]]


class TestEach:
    def executed(
        self, function: Each, accounts: str, sums: list[Payment], failed: list[Any], **options: Any
    ) -> None:
        """Execute accounts of one payment of 1 each, and compare what comes out."""
        components = components_of([(account, 1) for account in accounts])
        with local_pipeline() as pipeline:
            executed = (
                pipeline
                | beam.Create([(0, components)])
                | ExecuteEach(function, KEY, SUMS, **options)
            )
            results = executed.results | "Results" >> beam.FlatMap(pairs_of)
            letters = executed.failed | "Failed" >> beam.FlatMap(dead_letters_of)
            assert_that(results, equal_to(sums), label="results")
            assert_that(letters, equal_to(failed), label="failed")

    @pytest.mark.parametrize("time_limit", [None, 30.0])
    def test_one_call_at_a_time_and_another_try(self, time_limit: float | None) -> None:
        retry = Retry(first_delay=0.001, time_limit=time_limit)
        sums = [(account, 1) for account in "ABCDEF"]
        self.executed(busy_at_first, "ABCDEF", sums, [], retry=retry)
        assert calls.made == Counter("AABCDEF")
        assert calls.most == 1

    def test_calls_in_flight(self) -> None:
        sums = [(account, 0) for account in "ABCDEF"]
        self.executed(meet, "ABCDEF", sums, [], in_flight=3)

    def test_a_call_that_takes_too_long(self) -> None:
        error = "TimeLimitExceededError: took more than 0.3 s and was given up"
        retry = Retry(tries=1, time_limit=0.3)
        self.executed(overrun, "AB", [("B", 0)], [("A", 1, error)], retry=retry)
        assert len(calls.fences) == 2

    def test_in_flight_is_at_least_one(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            ExecuteEach(sum_of, KEY, SUMS, in_flight=0)
