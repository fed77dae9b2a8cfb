"""Components that may be called once only: claims, resolved calls, two at once, kills."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support import processes
from tests.support.execution_bench import (
    FAILURE,
    ONCE,
    UNKNOWN,
    AttemptBench,
    AttemptExecuted,
    failing,
    square,
)
from tests.support.processes import (
    noted,
)

from ledgerbeam.batch.define.process import Record, Retry, RetryMode
from ledgerbeam.io.commit.claims import Call
from ledgerbeam.io.errors import UserError

ROOT = Path(__file__).parents[3]


class TestAtMostOnce:
    def test_calls_and_results_are_recorded(self, tmp_path: Path) -> None:
        bench = AttemptBench(tmp_path, ONCE)
        executed = bench.each(range(4), failing(OSError("busy"), {2: 1}))
        assert executed.records == [square(0), square(1), None, square(3)]
        assert executed.outcomes[2][:3] == ("unit 2", FAILURE, 1)
        assert bench.delays == []
        names = [path.name for path in (tmp_path / "claims").iterdir()]
        assert len(names) == 8
        assert sum(name.endswith(".settled.json") for name in names) == 4

    def test_a_second_attempt_takes_over_what_is_resolved(self, tmp_path: Path) -> None:
        call = failing(OSError("busy"), {2: 1})
        first = AttemptBench(tmp_path, ONCE).each(range(4), call)
        second = AttemptBench(tmp_path, ONCE)
        executed = second.each(range(4), call)
        assert second.attempt.record.number == 2
        assert second.calls == []
        assert executed.records == first.records
        assert executed.outcomes == first.outcomes

    def test_what_was_claimed_only_is_unknown(self, tmp_path: Path) -> None:
        first = AttemptBench(tmp_path, ONCE)
        assert Call(first.attempt.instance_uri, 0, "unit 1", 0).claim(1)
        second = AttemptBench(tmp_path, ONCE)
        executed = second.each(range(3), square)
        assert executed.records == [square(0), None, square(2)]
        assert executed.outcomes[1][:3] == ("unit 1", UNKNOWN, 1)
        assert "look whether it has taken effect" in executed.outcomes[1].error
        assert sorted(second.calls) == [0, 2]

    def test_what_has_failed_can_be_tried_again(self, tmp_path: Path) -> None:
        AttemptBench(tmp_path, ONCE).each(range(2), failing(OSError("busy"), {1: 1}))
        again = AttemptBench(tmp_path, ONCE, tries={"unit 1": 1})
        assert again.each([1], square).records == [square(1)]
        assert again.calls == [1]

    def test_who_overruns_is_unknown(self, tmp_path: Path) -> None:
        bench = AttemptBench(tmp_path, Retry(RetryMode.AT_MOST_ONCE, time_limit=0.3))
        hanging = threading.Event()

        def call(unit: int) -> list[Record]:
            if unit == 1:
                hanging.wait(30)
            return square(unit)

        executed = bench.each(range(3), call)
        hanging.set()
        assert executed.records == [square(0), None, square(2)]
        assert executed.outcomes[1][1:3] == (UNKNOWN, 1)
        again = AttemptBench(tmp_path, ONCE)
        assert again.each(range(3), call).outcomes[1].status is UNKNOWN
        assert again.calls == []

    def test_results_that_do_not_fit_are_resolved_as_a_failure(self, tmp_path: Path) -> None:
        bench = AttemptBench(tmp_path, ONCE)
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
            AttemptBench(tmp_path, ONCE).each([1], call)
        os.remove(tmp_path / "claims")
        os.rename(tmp_path / "lost", tmp_path / "claims")
        again = AttemptBench(tmp_path, ONCE)
        assert again.each([1], square).outcomes[0].status is UNKNOWN
        assert again.calls == []

    def test_two_threads_on_one_shard(self, tmp_path: Path) -> None:
        """As when a bundle runs twice: each component is called by one of them."""
        units = range(60)
        both = [AttemptBench(tmp_path, ONCE) for _ in range(2)]
        together = threading.Barrier(2)

        def execute(bench: AttemptBench) -> AttemptExecuted:
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

    @pytest.mark.parametrize("point", ["claim: before", "claim: made", "resolve: before"])
    def test_a_process_that_is_killed(self, tmp_path: Path, point: str) -> None:
        assert racer(tmp_path, LEDGERBEAM_FAILPOINT=point).wait(120) == -signal.SIGKILL
        called_before = list(map(int, noted(tmp_path / "calls")))
        again = AttemptBench(tmp_path, ONCE)
        executed = again.each(range(40), square)
        assert Counter(called_before + again.calls).most_common(1)[0][1] == 1
        unknown = {n for n, outcome in executed.outcomes.items() if outcome.status is UNKNOWN}
        assert unknown.isdisjoint(again.calls)
        assert unknown >= set(called_before)
        assert bool(unknown) == (point != "claim: before")


def racer(folder: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """A process that executes units of shard 0, each once at most."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.batch.keyed.test_at_most_once", str(folder)],
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def race(folder: Path) -> None:
    bench = AttemptBench(folder, ONCE)

    def call(unit: int) -> list[Record]:
        processes.note(folder / "calls", str(unit))
        return square(unit)

    bench.each(range(40), call)


if __name__ == "__main__":
    race(Path(sys.argv[1]))
