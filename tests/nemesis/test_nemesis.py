"""Recorded runs among random faults end as undisturbed ones; the campaign is `make nemesis`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.nemesis.faults import FAULTS, draw
from tests.nemesis.scene import clock_library
from tests.nemesis.trial import run_trial, undisturbed

from ledgerbeam.io.commit.records import Manifest

ROOT = Path(__file__).parents[2]
SEEDS = range(5)


def test_a_seed_draws_the_same_faults_again() -> None:
    plans = [draw(seed, ["sqlite", "postgresql"], has_clock=True) for seed in range(300)]
    assert plans == [draw(seed, ["sqlite", "postgresql"], has_clock=True) for seed in range(300)]
    assert {fault.kind for plan in plans for fault in plan.faults} == FAULTS.keys()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return undisturbed(tmp_path_factory.mktemp("nemesis"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_disturbed_run_ends_as_an_undisturbed_one(
    seed: int, expected: Manifest, tmp_path: Path, new_schema: Callable[[], str]
) -> None:
    library = clock_library(tmp_path)
    plan = draw(seed, ["sqlite", "postgresql"], library is not None)
    url = new_schema() if plan.database == "postgresql" else ""
    result = run_trial(plan, expected, url, library)
    assert not result.told, result.line()


@pytest.mark.slow
def test_a_campaign_runs_trials_side_by_side_and_counts_them() -> None:
    command = [sys.executable, "-m", "tests.nemesis", "--seed=5", "--trials=3", "--at-once=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[3 of 3, 0 wrong]" in done.stdout
    assert "| any trial | 3 | " in done.stdout
