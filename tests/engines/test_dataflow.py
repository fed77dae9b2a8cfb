"""Everything up to Dataflow: what is submitted, and how jobs are watched, found and canceled.

The client is the real one, storage an emulator, the service one of this machine: no job has been
carried out. `make dataflow-test` makes the environment.
"""

import base64
import bz2
import io
import os
import signal
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.dataflow_service import PROJECT, REGION, DataflowService, dataflow_service
from tests.support.recorded import Place, until

from ledgerbeam.batch.launch.job import JobId
from ledgerbeam.batch.model.run import AttemptOutcome, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.secrets import Secret
from ledgerbeam.io.storage import stores

pytestmark = pytest.mark.dataflow

ROOT = Path(__file__).parents[2]
CANARY = "canary-6f1c2a"


@pytest.fixture(scope="module")
def lease() -> float:
    return 3.0


@pytest.fixture(scope="module")
def base(gcs: str, base: Path) -> Path:
    """The folder of all modules; what is started there finds the bucket."""
    return base


@pytest.fixture
def service(base: Path) -> Iterator[DataflowService]:
    with dataflow_service() as service:
        yield service


@pytest.fixture
def place(service: DataflowService, place: Place) -> Iterator[Place]:
    yield place
    if place.runs.list():
        if not place.run().status.is_final:
            place.runs.cancel(place.run().id, "the test is over")
        place.until_rest()


def flags(service: DataflowService, gcs: str) -> list[str]:
    return [
        "--runner=DataflowRunner",
        f"--project={PROJECT}",
        f"--region={REGION}",
        f"--temp_location={gcs}/temp",
        f"--staging_location={gcs}/staging",
        f"--dataflow_endpoint={service.url}",
        "--no_auth",
        f"--setup_file={ROOT / 'setup.py'}",
        "--resource_hints=min_ram=6GB",
        "--machine_type=n2-highmem-4",
        "--max_num_workers=12",
        "--labels=team=settlement",
    ]


def started(
    place: Place, service: DataflowService, gcs: str, **others: Any
) -> "tuple[RunRecord, subprocess.Popen[bytes]]":
    """A run whose job the service has; its launcher."""
    run = place.runs.record(place.process, place.parameters(**others), flags(service, gcs))[0]
    launcher = place.launcher(run)
    until(lambda: service.jobs, f"a job of {place.told()}")
    return place.run(), launcher


def job_of(run: RunRecord) -> JobId:
    job = run.attempts[-1].job_id
    assert job is not None
    return JobId.parse(job)


def test_what_is_submitted(
    place: Place, service: DataflowService, gcs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apache_beam.portability.api import beam_runner_api_pb2

    monkeypatch.setenv("BANK_PASSWORD", CANARY)
    run, _ = started(place, service, gcs, password="env:BANK_PASSWORD")
    assert Secret(reference="env:BANK_PASSWORD").resolve() == CANARY
    ((name, job),) = service.jobs.items()
    assert name == job_of(run).name
    assert job["labels"] == {
        "team": "settlement",
        "ledgerbeam-process": "counting",
        "ledgerbeam-instance": "2026-11-20",
        "ledgerbeam-attempt": "1",
        "ledgerbeam-run": run.id,
    }
    (pool,) = job["environment"]["workerPools"]
    assert pool["machineType"] == "n2-highmem-4"
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 12
    staged = {package["name"]: package["location"] for package in pool["packages"]}
    assert not [name for name in staged if "main_session" in name]
    read = {uri.uri: stores.read_bytes(uri.uri) for uri in stores.find(f"{gcs}/staging/**")}
    ours = [data for uri, data in read.items() if uri.endswith(".tar.gz")]
    with tarfile.open(fileobj=io.BytesIO(ours[-1])) as sdist:
        assert any(n.endswith("ledgerbeam/batch/keyed/pipeline.py") for n in sdist.getnames())
    (graph,) = [data for uri, data in read.items() if uri.endswith("pipeline.pb")]
    pipeline = beam_runner_api_pb2.Pipeline.FromString(graph)
    steps = {transform.unique_name for transform in pipeline.components.transforms.values()}
    parts = ("Read", "GroupByShard", "ExecuteShards", "Publish")
    assert {f"counting/{part}" for part in parts} <= steps
    hints = [
        dict(environment.resource_hints)
        for environment in pipeline.components.environments.values()
    ]
    assert {"beam:resources:min_ram_bytes:v1": str(6 * 10**9).encode()} in hints
    # The secret's name went there, and not the secret.
    functions = unpacked(pipeline)
    assert any(b"env:BANK_PASSWORD" in data for data in functions)
    assert not [data for data in [*read.values(), *functions] if CANARY.encode() in data]
    assert CANARY not in str(job)


def unpacked(pipeline: Any) -> list[bytes]:
    """The pickled functions of a graph, as they are before Beam compresses them."""
    from apache_beam.portability.api import beam_runner_api_pb2

    found = []
    for transform in pipeline.components.transforms.values():
        if transform.spec.urn == "beam:transform:pardo:v1":
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            packed = base64.b64decode(payload.do_fn.payload)
            try:
                found.append(zlib.decompress(packed))
            except zlib.error:
                found.append(bz2.decompress(packed))
    return found


def test_cancel_is_confirmed_by_the_service(
    place: Place, service: DataflowService, gcs: str
) -> None:
    service.confirms = False
    run, launcher = started(place, service, gcs)
    until(lambda: place.run().status is RunStatus.EXECUTING, "the run")
    place.runs.cancel(run.id, "the desk calls")
    name = job_of(place.run()).name
    until(lambda: service.state(name) == "CANCELLING", "the request")
    assert place.run().status is RunStatus.CANCELING
    assert launcher.poll() is None
    service.confirms = True
    assert launcher.wait() == 0
    assert place.run().status is RunStatus.CANCELED
    assert service.state(name) == "CANCELLED"
    place.check_story()


def test_a_job_is_found_again_by_its_name(place: Place, service: DataflowService, gcs: str) -> None:
    run, launcher = started(place, service, gcs)
    driver = psutil.Process(job_of(run).driver.pid)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    driver.kill()
    until(lambda: not place.processes(), "nothing of the run on this machine")
    until(lambda: any("takes over" in what for what in place.reconcile()), "a take-over")
    until(lambda: place.run().attempts[0].launcher != run.attempts[0].launcher, "the new one")
    assert place.run().status is RunStatus.EXECUTING
    failed = "Traceback (most recent call last):\n  File x\nledgerbeam.UserError: no such trades"
    service.move(job_of(run).name, "FAILED", failed)
    run = place.until_rest()
    assert (run.status, run.error, len(run.attempts)) == (RunStatus.FAILURE, "no such trades", 1)
    place.check_story()


def test_a_job_that_dataflow_lets_down_is_followed_by_others(
    place: Place, service: DataflowService, gcs: str
) -> None:
    run, launcher = started(place, service, gcs)
    for number in range(3):

        def has_come(count: int = number + 1) -> bool:
            return len(service.jobs) == count

        until(has_come, f"job {number + 1}")
        service.move(list(service.jobs)[-1], "FAILED", "The zone has no more machines.")
    assert launcher.wait() == 0
    run = place.run()
    assert [attempt.outcome for attempt in run.attempts] == [AttemptOutcome.LOST] * 3
    assert run.status is RunStatus.FAILURE
    assert run.error is not None
    assert "The zone has no more machines" in run.error
    # Each attempt's job has a name of its own.
    assert [name.rpartition("-")[2] for name in service.jobs] == ["1", "2", "3"]


def test_without_credentials_it_is_one_line(place: Place, gcs: str, tmp_path: Path) -> None:
    given = ["--runner=DataflowRunner", f"--project={PROJECT}", f"--region={REGION}"]
    done = place.command(
        *("run", "counting", *place.flags(), *given, f"--temp_location={gcs}/temp"),
        GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "none.json"),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert " is FAILURE: Dataflow: " in done.stderr.splitlines()[-1], done.stderr
    assert "none.json" in done.stderr.splitlines()[-1], done.stderr
