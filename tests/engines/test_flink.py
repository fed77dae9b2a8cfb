"""The workloads on a Flink cluster, with all that may happen to one: `make flink-test`."""

import datetime
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from tests.support.command import ledgerbeam, published_by
from tests.support.flink_cluster import FlinkCluster, flink_cluster
from tests.support.recorded import NewPlace, Place, parts, sums, until

from ledgerbeam.batch.launch.job import JobId
from ledgerbeam.batch.model.run import AttemptOutcome, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.runners.flink import FlinkJob
from ledgerbeam.batch.settings import REGISTRY
from ledgerbeam.io.errors import RunnerUnavailableError
from ledgerbeam.synthetic.trades import write_trades

pytestmark = pytest.mark.flink

ways = pytest.mark.parametrize("more", [(), ("--streaming",)], ids=["batch", "streaming"])
"""Flink's two ways to run a job."""


@pytest.fixture(scope="module")
def lease() -> float:
    return 3.0


@pytest.fixture(scope="module")
def base(gcs: str, base: Path) -> Path:
    """The folder of all modules; what is started there finds the bucket."""
    return base


@pytest.fixture(scope="module")
def flink(base: Path) -> Iterator[FlinkCluster]:
    folder = base / "cluster"
    folder.mkdir()
    with flink_cluster(folder) as cluster:
        yield cluster


@pytest.fixture
def place(
    flink: FlinkCluster, new_place: NewPlace, new_schema: Callable[[], str]
) -> Iterator[Place]:
    place = new_place(url=new_schema())
    yield place
    place.let_go()
    flink.await_idle()


class Workload(NamedTuple):
    """A workload with its parameters, less the place of its output."""

    name: str
    flags: tuple[str, ...]


@pytest.fixture(scope="module")
def data(base: Path, gcs: str) -> str:
    """Trades and loans in object storage."""
    there = f"{gcs}/{uuid.uuid4().hex}"
    write_trades(f"{there}/trades", 20_000, files=4, trade_date=datetime.date(2026, 11, 20))
    given = ("--count=300", "--months=3", "--business-date=2026-11-30", "--files=2")
    ledgerbeam("generate", "loans", f"--output={there}/loans", *given)
    return there


def workload(name: str, data: str) -> Workload:
    loans = (
        f"--loans={data}/loans/loans-*",
        f"--transactions={data}/loans/transactions-*",
        "--business-date=2026-11-30",
    )
    investors = f"--investors={data}/loans/investors.parquet"
    return {
        "delivery-marking": Workload(
            name, (f"--trades={data}/trades/*", "--trade-date=2026-11-20", "--shards=5")
        ),
        "loan-close-of-business": Workload(name, (*loans, "--shards=3")),
        "investor-report": Workload(name, (*loans, investors, "--shards=3")),
    }[name]


@pytest.mark.parametrize(
    ("name", "parallelism", "more"),
    [
        ("delivery-marking", 1, ()),
        ("delivery-marking", 2, ()),
        ("delivery-marking", 4, ()),
        ("delivery-marking", 2, ("--streaming",)),
        ("loan-close-of-business", 2, ()),
        ("loan-close-of-business", 2, ("--streaming",)),
        ("investor-report", 2, ()),
    ],
)
def test_bytes_are_those_of_the_local_runner(
    name: str,
    parallelism: int,
    more: tuple[str, ...],
    flink: FlinkCluster,
    data: str,
    new_schema: Callable[[], str],
) -> None:
    given = workload(name, data)
    results = {}
    for runner, flags in (("local", []), ("flink", flink.flags(parallelism, *more))):
        output = f"--output={data}/{runner}-{uuid.uuid4().hex}"
        recorded = {**os.environ, REGISTRY: new_schema()}
        results[runner] = published_by(name, *given.flags, output, *flags, environment=recorded)
    assert results["flink"][1:] == results["local"][1:]
    run = json.loads(ledgerbeam("list", "--json", environment=recorded))
    assert (run["status"], run["attempts"][0]["runner"]) == ("SUCCESS", "FlinkRunner")
    assert flink.states()[JobId.parse(run["attempts"][0]["job_id"]).name] == "FINISHED"
    ledgerbeam("verify", results["flink"].uri)
    assert not flink.jars()


def held(
    place: Place, flink: FlinkCluster, more: tuple[str, ...] = ()
) -> "tuple[RunRecord, subprocess.Popen[bytes]]":
    """A run on Flink whose components wait, the first of them being executed; its launcher."""
    place.set("hold")
    run = place.runs.record(place.process, place.parameters(), flink.flags(2, *more))[0]
    launcher = place.launcher(run)
    until(place.calls, f"the first call of {place.told()}")
    return place.run(), launcher


def job_of(run: RunRecord) -> JobId:
    job = run.attempts[-1].job_id
    assert job is not None
    return JobId.parse(job)


def kill(process: "subprocess.Popen[bytes]") -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def undisturbed(place: Place) -> Any:
    """What the same input gives on the local runner."""
    other = Place(place.folder.parent / "undisturbed", f"sqlite:///{place.folder}/other.db")
    run = other.record()
    assert other.launcher(run).wait() == 0
    return parts(other.manifest()), sums(other.manifest())


@ways
def test_cancel_is_confirmed_by_flink(
    place: Place, flink: FlinkCluster, more: tuple[str, ...]
) -> None:
    run, launcher = held(place, flink, more)
    assert flink.states()[job_of(run).name] == "RUNNING"
    place.runs.cancel(run.id, "the desk calls")
    assert launcher.wait() == 0
    assert place.run().status is RunStatus.CANCELED
    # Confirmed: not one of Flink's tasks goes on, when the registry says so.
    assert flink.states()[job_of(run).name] == "CANCELED"
    before = place.tree()
    place.unset("hold")
    flink.await_idle()
    assert place.tree() == before
    place.check_story()


@ways
def test_a_job_whose_task_manager_is_killed_is_followed_by_another(
    place: Place, flink: FlinkCluster, more: tuple[str, ...]
) -> None:
    place.set("hold-A3")
    run = place.runs.record(place.process, place.parameters(), flink.flags(2, *more))[0]
    launcher = place.launcher(run)
    until(lambda: len(place.markers()) == 3, "all shards but one")
    until(lambda: any(call.account == "A3" for call in place.calls()), "the call that waits")
    before = place.markers()
    killed = flink.kill_busy_task_manager()
    until(lambda: len(place.run().attempts) == 2, "another attempt")
    place.unset("hold-A3")
    assert launcher.wait() == 0, place.told()
    run = place.run()
    assert run.status is RunStatus.SUCCESS
    assert [attempt.outcome for attempt in run.attempts] == [
        AttemptOutcome.LOST,
        AttemptOutcome.SUCCESS,
    ]
    assert before.items() <= place.markers().items()
    assert (parts(place.manifest()), sums(place.manifest())) == undisturbed(place)
    place.check_story()
    flink.restart_task_manager(killed)


def test_launcher_and_driver_are_killed_and_the_job_is_found_again(
    place: Place, flink: FlinkCluster
) -> None:
    run, launcher = held(place, flink)
    driver = psutil.Process(job_of(run).driver.pid)
    kill(launcher)
    driver.kill()
    until(lambda: not place.processes(), "nothing of the run on this machine")
    assert flink.states()[job_of(run).name] == "RUNNING"
    # Its lease runs out, and another launcher answers for the job that Flink still has.
    until(lambda: any("takes over" in what for what in place.reconcile()), "a take-over")
    until(lambda: place.run().attempts[0].launcher != run.attempts[0].launcher, "the new one")
    place.unset("hold")
    run = place.until_rest()
    assert (run.status, len(run.attempts)) == (RunStatus.SUCCESS, 1), place.told()
    assert flink.states()[job_of(run).name] == "FINISHED"
    assert (parts(place.manifest()), sums(place.manifest())) == undisturbed(place)
    place.check_story()


def test_a_job_that_was_found_again_can_be_canceled(place: Place, flink: FlinkCluster) -> None:
    run, launcher = held(place, flink)
    driver = psutil.Process(job_of(run).driver.pid)
    kill(launcher)
    driver.kill()
    place.runs.cancel(run.id, "the desk calls")
    run = place.until_rest()
    assert run.status is RunStatus.CANCELED
    assert flink.states()[job_of(run).name] == "CANCELED"


def test_a_worker_that_is_killed_is_followed_by_another_attempt(
    place: Place, flink: FlinkCluster
) -> None:
    place.set("kill-A3")
    run = place.runs.record(place.process, place.parameters(), flink.flags())[0]
    assert place.launcher(run).wait() == 0
    run = place.run()
    assert (run.status, len(run.attempts)) == (RunStatus.SUCCESS, 2), place.told()
    assert run.attempts[0].outcome is AttemptOutcome.LOST
    assert (parts(place.manifest()), sums(place.manifest())) == undisturbed(place)


def test_pause_takes_effect(place: Place, flink: FlinkCluster) -> None:
    place.set("hold")
    run = place.runs.record(place.process, place.parameters(), flink.flags())[0]
    place.runs.set_rate(run.id, 1.0)
    place.unset("hold")
    launcher = place.launcher(run)
    until(lambda: len(place.calls()) >= 2, "two calls")
    place.runs.pause(run.id, "the desk calls")
    until(lambda: place.runs.get(run.id).run.status is RunStatus.PAUSED, "the pause")
    until(lambda: len(place.calls("begin")) == len(place.calls("end")), "nothing in flight")
    assert place.runs.get(run.id).progress.shards_done < 4
    place.runs.set_rate(run.id, None)
    place.runs.resume(run.id)
    assert launcher.wait() == 0
    assert place.run().status is RunStatus.SUCCESS, place.told()
    assert (parts(place.manifest()), sums(place.manifest())) == undisturbed(place)


def test_a_component_that_fails_is_told_in_its_own_words(place: Place, flink: FlinkCluster) -> None:
    place.set("fail-A3")
    run = place.runs.record(place.process, place.parameters(), flink.flags())[0]
    assert place.launcher(run).wait() == 0
    run = place.run()
    assert (run.status, len(run.attempts)) == (RunStatus.FAILURE, 1)
    assert run.error is not None
    assert run.error.startswith("nothing published: 1 of 12 components failed"), run.error


def test_interrupted_without_a_registry_the_job_is_canceled(
    place: Place, flink: FlinkCluster
) -> None:
    place.set("hold")
    code = (
        "import sys, ledgerbeam as lb; from recorded_workloads.counting import Counting; "
        "sys.exit(lb.main(Counting))"
    )
    before = flink.states()
    kept = flink.jars()  # of drivers that other tests have killed
    process = subprocess.Popen(
        [sys.executable, "-c", code, *place.flags(), *flink.flags()],
        stderr=subprocess.PIPE,
        text=True,
    )
    until(place.calls, "the first call")
    (name,) = flink.states().keys() - before.keys()
    process.terminate()
    assert "goes on from what is committed" in process.communicate()[1]
    assert process.returncode == 143
    assert flink.states()[name] == "CANCELED"
    assert sorted(flink.jars()) == sorted(kept)


def test_a_cluster_that_is_not_there_is_one_line(place: Place, tmp_path: Path) -> None:
    with pytest.raises(RunnerUnavailableError, match="http://localhost:1/jobs/overview"):
        FlinkJob("localhost:1", "any").is_alive()
