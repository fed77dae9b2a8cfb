"""Launchers and drivers that are started before there is a run."""

import signal

import psutil
import pytest
from tests.support.recorded import Place, goes_on, processes_of, until

from ledgerbeam.batch.launch.ahead import LauncherAhead, launcher_ahead
from ledgerbeam.batch.launch.job import JobId
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import RunStatus

DRIVER = "ledgerbeam.batch.launch.driver"


def driver_of(run: RunRecord) -> list[str]:
    """The command line of the process of a run's first attempt."""
    job = JobId.parse(str(run.attempts[0].job_id))
    found: list[str] = psutil.Process(job.driver.pid).cmdline()
    return found


def test_a_run_that_is_submitted_is_launched_by_a_process_that_was_started_before(
    place: Place,
) -> None:
    place.set("hold")
    done = place.command("submit", place.process, *place.flags())
    assert (done.returncode, done.stderr) == (0, "")
    run = place.until_status(RunStatus.EXECUTING)
    until(lambda: place.run().attempts[0].job_id, "the attempt's job")
    assert driver_of(place.run())[-2:] == [DRIVER, "--ahead"]
    place.unset("hold")
    run = place.until_rest()
    assert run.status is RunStatus.SUCCESS
    assert f"run={run.id} attempt=1" in place.settings.log_of(run.id).read_text()


def test_a_run_that_is_launched_here_has_a_driver_that_was_started_before(place: Place) -> None:
    done = place.command("run", place.process, *place.flags(), f"--registry={place.url}")
    assert done.returncode == 0, done.stderr
    assert place.run().status is RunStatus.SUCCESS
    # Its log goes where that of the command goes.
    assert not place.settings.log_of(place.run().id).exists()


@pytest.mark.parametrize("verb", ["submit", "run"])
def test_a_command_that_fails_leaves_no_process(place: Place, verb: str) -> None:
    flags = [*place.flags(business_date="yesterdax"), f"--registry={place.url}"]
    state = str(place.settings.state)
    done = place.command(verb, place.process, *(flags if verb == "run" else flags[:-1]))
    assert done.returncode == 2
    assert "--business-date" in done.stderr
    assert not processes_of(state)


def test_one_that_is_not_used_ends(place: Place) -> None:
    state = str(place.settings.state)
    with launcher_ahead(place.settings):
        until(lambda: len(processes_of(state)) == 2, "the launcher and its driver")
    assert not processes_of(state)


def test_where_it_has_died_another_one_is_started(place: Place) -> None:
    launcher = LauncherAhead(place.settings)
    state = str(place.settings.state)
    until(lambda: len(processes_of(state)) == 2, "the launcher and its driver")
    for process in processes_of(state):
        process.send_signal(signal.SIGKILL)
    until(lambda: not launcher.is_waiting(), "its end")
    run = place.record()
    started = launcher.launch(place.settings, run.id)
    assert run.id in psutil.Process(started.pid).cmdline()
    assert started.wait() == 0
    assert place.run().status is RunStatus.SUCCESS
    launcher.close()


def test_where_only_its_driver_has_died_it_starts_another_one(place: Place) -> None:
    with launcher_ahead(place.settings) as launch:
        state = str(place.settings.state)
        until(lambda: len(processes_of(state)) == 2, "the launcher and its driver")
        (driver,) = [p for p in processes_of(state) if DRIVER in p.cmdline()]
        driver.kill()
        until(lambda: not goes_on(driver), "the driver's end")
        run = place.record()
        assert launch(place.settings, run.id).wait() == 0
    assert place.run().status is RunStatus.SUCCESS
    assert JobId.parse(str(place.run().attempts[0].job_id)).driver.pid != driver.pid
