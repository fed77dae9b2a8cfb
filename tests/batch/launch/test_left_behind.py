"""Attempts that are killed leave nothing behind, once the next one has come."""

import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.support.recorded import Place, job_of, until

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.settings import REGISTRY

pytestmark = pytest.mark.slow

SEVERAL = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where processes that a test starts have their temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def heartbeats(place: Place) -> list[Path]:
    return list((place.folder / "output").rglob("workers/*.json"))


def until_some_moment(place: Place, temporary: Path) -> None:
    """Wait until an attempt works: at its beginning, or after one of its next calls."""
    calls = len(place.calls())
    until(lambda: list(temporary.glob("ledgerbeam-*")), "an attempt's temporary files")
    more = random.randrange(4)
    until(lambda: len(place.calls()) >= calls + more, f"{more} more calls than {calls}")


def last_job(place: Place, number: int) -> str | None:
    """The job of the attempt with that number, once it is the last one and has a job."""
    attempts = place.run().attempts
    return attempts[-1].job_id if len(attempts) == number else None


def has_more_attempts(place: Place, number: int) -> bool:
    return len(place.run().attempts) > number


@pytest.mark.parametrize("flags", [[], SEVERAL], ids=["one process", "several"])
def test_on_record(place: Place, temporary: Path, flags: list[str]) -> None:
    """Two attempts of a run are killed, the third one comes to its end."""
    place.set("slow")
    run, _ = place.runs.record(place.process, place.parameters(), flags)
    launcher = place.launcher(run)
    for number in (1, 2):
        until(partial(last_job, place, number), f"the job of attempt {number}")
        until_some_moment(place, temporary)
        job_of(place.run()).kill()
        until(partial(has_more_attempts, place, number), "the next attempt")
    assert launcher.wait() == 0
    assert place.run().status is RunStatus.SUCCESS, place.told()
    assert list(temporary.iterdir()) == []
    assert heartbeats(place) == []


def test_without_a_next_attempt(place: Place, temporary: Path) -> None:
    """Who reconciles finds the temporary files of launcher and attempt, both killed."""
    place.set("hold")
    launcher = place.launcher(place.record())
    until(place.calls, "the first call")
    job = job_of(place.run())
    launcher.kill()
    launcher.wait()
    job.kill()
    until(lambda: not job.is_running() or job.status() == "zombie", "the job's end")
    assert list(temporary.iterdir()) != []
    assert place.command("reconcile").returncode == 0
    assert list(temporary.iterdir()) == []
    place.unset("hold")
    assert place.until_rest().status is RunStatus.SUCCESS
    assert list(temporary.iterdir()) == []
    assert heartbeats(place) == []


def test_of_a_module(place: Place, temporary: Path) -> None:
    code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "run", place.process, *place.flags()]
    environment = {**place.environment(), REGISTRY: ""}
    place.set("slow")
    for _ in range(2):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            until_some_moment(place, temporary)
            process.kill()
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert list(temporary.iterdir()) == []
    assert heartbeats(place) == []
