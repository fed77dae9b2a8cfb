"""Recorded runs on local runners that start processes of their own: paused, canceled, killed."""

import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.support.prism import ON_PRISM, PRISM, assert_is_built
from tests.support.recorded import ACCOUNTS, TIMEOUT, Place, goes_on, until

from ledgerbeam.batch.launch.job import JobId
from ledgerbeam.batch.model.run import AttemptOutcome, RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.io.commit.attempts import Attempt, attempts, ending_of
from ledgerbeam.io.commit.records import Manifest

WORKER = "apache_beam.runners.worker.sdk_worker_main"
SEVERAL = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


@pytest.fixture(scope="module")
def undisturbed(base: Path) -> Manifest:
    """What the runner that is the default publishes."""
    place = Place(base / "undisturbed", f"sqlite:///{base}/undisturbed.db")
    assert place.launcher(place.record()).wait() == 0, place.told()
    return place.manifest()


@pytest.fixture(
    params=[
        pytest.param(SEVERAL, id="several", marks=pytest.mark.slow),
        pytest.param(ON_PRISM, id="prism", marks=pytest.mark.prism),
    ]
)
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    given: tuple[str, ...] = request.param
    if given is ON_PRISM:
        assert_is_built()
    return given


def held(place: Place, flags: tuple[str, ...]) -> "tuple[RunRecord, subprocess.Popen[bytes]]":
    """A run whose components wait, some of them being executed; and its launcher."""
    place.set("hold")
    run, _ = place.runs.record(place.process, place.parameters(), flags)
    launcher = place.launcher(run)
    until(place.calls, f"the first call of {place.told()}")
    return place.run(), launcher


def driver_of(run: RunRecord) -> psutil.Process:
    job = run.attempts[-1].job_id
    assert job is not None
    return psutil.Process(JobId.parse(job).driver.pid)


def check_same(place: Place, undisturbed: Manifest) -> None:
    manifest = place.manifest()
    assert [c.part.sha256 for c in manifest.shards] == [c.part.sha256 for c in undisturbed.shards]
    assert [f.sha256 for f in manifest.reports] == [f.sha256 for f in undisturbed.reports]
    assert (manifest.totals, manifest.counts) == (undisturbed.totals, undisturbed.counts)
    place.check_story()


def test_paused_and_resumed(place: Place, flags: tuple[str, ...], undisturbed: Manifest) -> None:
    run, launcher = held(place, flags)
    place.runs.pause(run.id, "the desk calls")
    # The worker_control tells when no worker lets a component begin any more.
    until(lambda: place.runs.get(run.id).run.status is RunStatus.PAUSED, "paused")
    until(lambda: place.runs.get(run.id).progress.executing, "who is in flight")
    begun = len(place.calls())
    place.unset("hold")
    until(lambda: len(place.calls("end")) == len(place.calls()), "the end of what was in flight")
    until(lambda: not place.runs.get(run.id).progress.executing, "that it is seen")
    assert len(place.calls()) <= begun + 1
    assert place.runs.get(run.id).progress.shards_done < 4
    place.runs.resume(run.id)
    assert launcher.wait() == 0
    assert place.run().status is RunStatus.SUCCESS, place.told()
    assert Counter(call.account for call in place.calls()) == dict.fromkeys(ACCOUNTS, 1)
    counts = place.runs.get(run.id).progress.components
    assert counts == {ComponentStatus.SUCCESS: len(ACCOUNTS)}
    check_same(place, undisturbed)


def test_canceled(place: Place, flags: tuple[str, ...], undisturbed: Manifest) -> None:
    run, launcher = held(place, flags)
    group = [driver_of(run), *driver_of(run).children(recursive=True)]
    assert len(group) > 1
    assert place.runs.cancel(run.id, "wrong day").status is RunStatus.CANCELING
    assert place.until_status(RunStatus.CANCELED), place.told()
    assert not [process for process in group if goes_on(process)]
    before = place.tree()
    assert launcher.wait() == 0
    place.unset("hold")
    assert place.tree() == before
    place.runs.restart(run.id, "the right one after all")
    assert place.until_rest().status is RunStatus.SUCCESS, place.told()
    check_same(place, undisturbed)


def test_a_killed_driver(place: Place, flags: tuple[str, ...], undisturbed: Manifest) -> None:
    run, launcher = held(place, flags)
    driver = driver_of(run)
    started = driver.children(recursive=True)
    driver.kill()
    until(lambda: len(place.run().attempts) == 2, f"another attempt of {place.told()}")
    assert not [process for process in started if goes_on(process)]
    place.unset("hold")
    assert launcher.wait() == 0
    run = place.run()
    assert run.status is RunStatus.SUCCESS, place.told()
    assert [a.outcome for a in run.attempts] == [AttemptOutcome.LOST, AttemptOutcome.SUCCESS]
    check_same(place, undisturbed)


def test_a_killed_launcher_and_driver(
    place: Place, flags: tuple[str, ...], undisturbed: Manifest
) -> None:
    run, launcher = held(place, flags)
    driver = driver_of(run)
    started = driver.children(recursive=True)
    launcher.kill()
    driver.kill()
    launcher.wait()
    place.unset("hold")
    assert place.until_rest().status is RunStatus.SUCCESS, place.told()
    assert not [process for process in started if goes_on(process)]
    check_same(place, undisturbed)


@pytest.mark.prism
def test_a_killed_engine(place: Place, undisturbed: Manifest) -> None:
    run, launcher = held(place, ON_PRISM)
    (prism,) = [p for p in driver_of(run).children(recursive=True) if p.name() == PRISM.name]
    prism.kill()
    place.unset("hold")
    until(lambda: len(place.run().attempts) == 2, f"another attempt of {place.told()}")
    assert launcher.wait() == 0
    assert place.run().status is RunStatus.SUCCESS, place.told()
    check_same(place, undisturbed)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Beam's worker processes below one, as soon as they are there."""
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            if WORKER in child.cmdline():
                found.append(child)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_killed_before_its_first_element(
    place: Place, undisturbed: Manifest, count: int
) -> None:
    run, _ = place.runs.record(place.process, place.parameters(), SEVERAL)
    launcher = place.launcher(run)
    until(lambda: place.run().attempts and place.run().attempts[0].job_id, "the driver")
    driver = driver_of(place.run())
    until(lambda: len(workers_of(driver)) >= count, "workers")
    workers_of(driver)[0].kill()
    assert not place.calls()
    assert launcher.wait(TIMEOUT) == 0
    run = place.run()
    assert run.status is RunStatus.SUCCESS, place.told()
    assert [a.outcome for a in run.attempts] == [AttemptOutcome.LOST, AttemptOutcome.SUCCESS]
    assert "a worker process was killed (signal 9, SIGKILL)" in (run.attempts[0].error or "")
    check_same(place, undisturbed)


@pytest.mark.slow
def test_a_worker_that_does_not_start(place: Place) -> None:
    code = (
        "import sys; from ledgerbeam.batch.runners import lost_workers; "
        "lost_workers.START_SECONDS = 3; from ledgerbeam.batch.cli.app import main; "
        "sys.exit(main())"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, "run", place.process, *place.flags(), *SEVERAL],
        stderr=subprocess.PIPE,
        text=True,
    )
    program = psutil.Process(running.pid)
    (worker, *_) = until(lambda: workers_of(program), "a worker")
    worker.suspend()
    _, told = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 1
    lines = [line for line in told.splitlines() if line.startswith("counting:")]
    assert len(lines) == 1, told
    assert "a worker process has not connected for 3 s" in lines[0]
    assert not goes_on(worker)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), SEVERAL], ids=["one", "several"])
def test_an_error_is_told_where_no_log_can_be_written(place: Place, flags: tuple[str, ...]) -> None:
    # Where a worker can't print an error, Beam would wait for its answer for ever.
    place.set("fail-A7")
    code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
    with Path("/dev/full").open("w") as full:
        running = subprocess.Popen(
            [sys.executable, "-c", code, "run", place.process, *place.flags(), *flags],
            stderr=full,
        )
        try:
            assert running.wait(TIMEOUT) == 1
        finally:
            running.kill()
    uri = str(place.folder / "output" / "counting" / str(place.day))
    (attempt,) = attempts(uri)
    assert "1 of 12 components failed" in str(ending_of(Attempt(uri, attempt).uri))
