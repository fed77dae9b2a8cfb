"""Calls of a function that run side by side inside a bundle."""

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.testing.util import assert_that, equal_to
from tests.support.harness import pipeline

from ledgerbeam.transforms.concurrency.in_flight import DoInFlight

SECONDS = 30
"""How long to wait for what must happen, before the test fails."""


class Calls:
    """What the calls of a test see of each other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0
        self.ended: list[int] = []
        self.another_runs = threading.Event()
        self.failed = threading.Event()
        self.bundle_over = threading.Event()
        self.outlived: list[int] = []
        self.second_is_done = threading.Event()
        self.meeting = threading.Barrier(3)


calls = Calls()


@pytest.fixture(autouse=True)
def _new_calls() -> None:
    global calls
    calls = Calls()


def squares(number: int) -> list[int]:
    return [number * number]


def three_at_a_time(number: int) -> list[int]:
    with calls.lock:
        calls.running += 1
        calls.most = max(calls.most, calls.running)
    calls.meeting.wait(SECONDS)
    with calls.lock:
        calls.running -= 1
    return [number]


def second_first(number: int) -> list[int]:
    if number == 0:
        assert calls.second_is_done.wait(SECONDS)
    calls.second_is_done.set()
    return [number, -number]


def fails_at_one(number: int) -> list[int]:
    if number == 1:
        assert calls.another_runs.wait(SECONDS)
        calls.failed.set()
        raise ValueError("number one")
    calls.another_runs.set()
    assert calls.failed.wait(SECONDS)
    _look_for_the_end_of_the_bundle(number)
    return [number]


def lingers_after_zero(number: int) -> list[int]:
    if number == 0:
        assert calls.another_runs.wait(SECONDS)
    else:
        calls.another_runs.set()
        assert calls.failed.wait(SECONDS)
        _look_for_the_end_of_the_bundle(number)
    return [number]


def _look_for_the_end_of_the_bundle(number: int) -> None:
    # A bundle that doesn't wait for this call ends well within that time.
    if calls.bundle_over.wait(0.3):
        calls.outlived.append(number)
    calls.ended.append(number)


def fail(number: int) -> None:
    calls.failed.set()
    raise ValueError(f"after the step: {number}")


def even_and_odd(number: int) -> list[Any]:
    return [number] if number % 2 == 0 else [TaggedOutput("odd", number)]


def plus(number: int, others: list[int]) -> list[int]:
    return [number + sum(others)]


def by_hand(dofn: DoInFlight, bundles: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """The outputs of each bundle, in their order."""
    dofn.setup()
    try:
        outputs = []
        for bundle in bundles:
            dofn.start_bundle()
            given = [output for element in bundle for output in dofn.process(element)]
            given += [output.value for output in dofn.finish_bundle()]
            outputs.append(given)
        return outputs
    finally:
        dofn.teardown()


class TestDoInFlight:
    def test_in_a_pipeline(self) -> None:
        with pipeline() as p:
            numbers = p | beam.Create(range(100)) | beam.ParDo(DoInFlight(squares, 3))
            assert_that(numbers, equal_to([i * i for i in range(100)]))

    def test_bundles_that_run_twice(self) -> None:
        with pipeline("--direct_runner_bundle_repeat=1") as p:
            numbers = p | beam.Create(range(10)) | beam.ParDo(DoInFlight(squares, 3))
            assert_that(numbers, equal_to([i * i for i in range(10)]))

    def test_one_after_the_other(self) -> None:
        with pipeline() as p:
            numbers = (
                p
                | beam.Create(range(10))
                | "Once" >> beam.ParDo(DoInFlight(squares, 2))
                | "Twice" >> beam.ParDo(DoInFlight(squares, 4))
            )
            assert_that(numbers, equal_to([i**4 for i in range(10)]))

    def test_tagged_outputs(self) -> None:
        with pipeline() as p:
            even, odd = (
                p
                | beam.Create(range(7))
                | beam.ParDo(DoInFlight(even_and_odd, 2)).with_outputs("odd", main="even")
            )
            assert_that(even, equal_to([0, 2, 4, 6]), label="Even")
            assert_that(odd, equal_to([1, 3, 5]), label="Odd")

    def test_side_inputs(self) -> None:
        with pipeline() as p:
            others = beam.pvalue.AsList(p | "Others" >> beam.Create([10, 20]))
            numbers = p | beam.Create([1, 2, 3]) | beam.ParDo(DoInFlight(plus, 2), others)
            assert_that(numbers, equal_to([31, 32, 33]))

    def test_outputs_can_be_grouped(self) -> None:
        """What is emitted when the bundle ends is in the same window as the rest."""
        with pipeline() as p:
            sums = (
                p
                | beam.Create(range(10))
                | beam.ParDo(DoInFlight(squares, 2))
                | beam.combiners.Count.Globally()
            )
            assert_that(sums, equal_to([10]))

    def test_outputs_keep_the_order_of_the_elements(self) -> None:
        assert by_hand(DoInFlight(second_first, 2), [[0, 1, 2]]) == [[0, 0, 1, -1, 2, -2]]

    def test_as_many_at_a_time_as_told(self) -> None:
        # The meeting takes three: fewer in flight would never get through it.
        assert by_hand(DoInFlight(three_at_a_time, 3), [range(12)]) == [list(range(12))]
        assert calls.most == 3

    def test_bundles_do_not_mix(self) -> None:
        bundles = [[1, 2, 3], [], [4], range(10, 20)]
        given = by_hand(DoInFlight(squares, 3), bundles)
        assert given == [[i * i for i in bundle] for bundle in bundles]

    @pytest.mark.parametrize("numbers", [[1, 2], [1, 2, 3], [2, 1]])
    def test_an_error_fails_the_bundle_and_no_call_outlives_it(self, numbers: list[int]) -> None:
        with pytest.raises(ValueError, match="number one"):
            run_to_its_end(beam.ParDo(DoInFlight(fails_at_one, 2)), numbers)
        calls.bundle_over.set()
        assert 2 in calls.ended
        assert calls.outlived == []

    def test_no_call_outlives_a_bundle_that_fails_in_a_later_step(self) -> None:
        step = beam.ParDo(DoInFlight(lingers_after_zero, 2)) | beam.Map(fail)
        with pytest.raises(ValueError, match="after the step: 0"):
            run_to_its_end(step, [0, 1, 2])
        calls.bundle_over.set()
        assert 1 in calls.ended
        assert calls.outlived == []

    def test_after_a_failed_bundle_comes_another(self) -> None:
        dofn = DoInFlight(fails_at_one, 2)
        dofn.setup()
        dofn.start_bundle()
        list(dofn.process(1))
        list(dofn.process(2))
        with pytest.raises(ValueError, match="number one"):
            list(dofn.process(3))
        calls.bundle_over.set()
        assert calls.ended == [2]
        assert calls.outlived == []
        dofn.start_bundle()
        list(dofn.process(4))
        assert [output.value for output in dofn.finish_bundle()] == [4]
        dofn.teardown()

    def test_at_least_one_in_flight(self) -> None:
        with pytest.raises(ValueError, match="in_flight must be at least 1, not 0"):
            DoInFlight(squares, 0)


def run_to_its_end(step: Any, numbers: Sequence[int]) -> None:
    """Run a step on numbers in one bundle."""
    with pipeline() as p:
        _ = p | beam.Create(numbers, reshuffle=False) | step
