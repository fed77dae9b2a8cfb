"""Outcomes of an attempt's components, and how many may fail."""

from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.execution_bench import FAILURE, SUCCESS, AttemptBench, failing

from ledgerbeam.batch.define.process import FailureLimit
from ledgerbeam.batch.model.outcomes import Outcome, outcomes_of, outcomes_table
from ledgerbeam.io.errors import InputError


def test_tries_of_earlier_attempts_are_counted(tmp_path: Path) -> None:
    bench = AttemptBench(tmp_path, tries={"unit 0": 3, "unit 1": 1})
    executed = bench.each(range(2), failing(OSError("busy"), {0: 9, 1: 1}))
    assert executed.outcomes[0][:3] == ("unit 0", FAILURE, 6)
    assert executed.outcomes[1][:3] == ("unit 1", SUCCESS, 3)


class TestCodes:
    def test_codes_are_stored_and_read_again(self, tmp_path: Path) -> None:
        call = failing(InputError("bad"), {3: 1})
        executed = AttemptBench(tmp_path).each(range(8), call)
        assert [(o.status, o.code) for o in executed.outcomes.values()] == [
            (FAILURE, "invalid-input")
        ]
        outcomes = [*executed.outcomes.values(), Outcome("A7", FAILURE, 2, "ValueError: bad")]
        table = outcomes_table(outcomes)
        assert table.column("code").to_pylist() == ["invalid-input", None]
        assert outcomes_of(table) == outcomes

    def test_outcomes_that_were_stored_without_codes_are_read(self) -> None:
        before = pa.table(
            {
                "component": ["A7"],
                "status": ["FAILURE"],
                "tries": pa.array([2], pa.int32()),
                "error": ["ValueError: bad"],
            }
        )
        assert outcomes_of(before) == [Outcome("A7", FAILURE, 2, "ValueError: bad")]


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
