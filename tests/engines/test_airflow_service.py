"""The provider for Airflow, installed in a real Airflow, against a real service that wants keys."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.engines.test_airflow import AIRFLOW, ROOT, Scheduler
from tests.support.command import ledgerbeam
from tests.support.recorded import NewPlace, until
from tests.support.service import Service, service_of

pytestmark = pytest.mark.airflow

DAG = '''
import json, os
from pathlib import Path

from airflow.sdk import DAG
from ledgerbeam_provider.runs import RequestOperator, RunSensor

given = json.loads(os.environ["GIVEN"])

def mend(context):
    (Path(given["folder"]) / "fail-A7").unlink()

with DAG("asked", schedule=None):
    count = RequestOperator(
        task_id="count", workload="counting", parameters=given, priority=3,
        retries=1, retry_delay=0, on_retry_callback=mend,
    )
    seen = RunSensor(task_id="seen", run=f"counting/{given['business_date']}")
    count >> seen
'''  # fmt: skip
KILL = """
import asyncio, sys
from ledgerbeam_provider.runs import EndTrigger

trigger = EndTrigger(sys.argv[1], "ledgerbeam_default", cancels=True)
path, given = trigger.serialize()
asyncio.run(EndTrigger(**given).on_kill())
asyncio.run(EndTrigger(**given).on_kill())  # once more does no harm
"""
TRIES = """
import json, os
from ledgerbeam_provider.service import ServiceHook

def path_of(number, map_index, **others):
    given = {**json.loads(os.environ["GIVEN"]), **others}
    task = ("asked", "night", "count", map_index)
    return ServiceHook().go("counting", given, task=task, number=number, why="night")[0]

paths = [path_of(1, "-1"), path_of(1, "-1"), path_of(2, "-1")]
assert len(set(paths)) == 1, paths
assert path_of(1, "0") not in paths
assert path_of(1, "-1", shards=2) not in paths
print(paths[0])
"""
NIGHT = "2026-11-20T21:00:00+00:00"


@pytest.fixture(scope="module")
def lease() -> float:
    return 5.0


@pytest.fixture
def service(new_place: NewPlace, lease: float) -> Iterator[Service]:
    with service_of(new_place(), lease) as service:
        yield service


@dataclass
class Night:
    """An Airflow, and the service that it asks."""

    airflow: Scheduler
    service: Service

    def requests(self) -> list[dict[str, object]]:
        headers = {"Authorization": f"Bearer {self.airflow.environment['KEY']}"}
        answer = httpx.get(f"{self.service.server}/v1/requests", headers=headers)
        found: list[dict[str, object]] = answer.json()["items"]
        return found


@pytest.fixture
def night(service: Service, tmp_path: Path) -> Night:
    key = ledgerbeam(
        *("keys", "create", "airflow", "--role=counting=operator"),
        environment={**os.environ, "LEDGERBEAM_REGISTRY": service.place.url},
    ).strip()
    service.serve()
    service.route()
    service.work()
    installed, dags = tmp_path / "installed", tmp_path / "dags"
    subprocess.run(
        [
            *(str(AIRFLOW.parent / "python"), "-m", "pip", "install", "--quiet", "--no-deps"),
            *(f"--target={installed}", str(_copy(ROOT / "dags" / "provider", tmp_path))),
        ],
        check=True,
    )
    dags.mkdir()
    (dags / "asked.py").write_text(DAG)
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("AIRFLOW", "PYTEST"))}
    server = httpx.URL(service.server)
    environment = kept | {
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_LEDGERBEAM_DEFAULT": json.dumps(
            {
                "conn_type": "ledgerbeam",
                "schema": "http",
                "host": server.host,
                "port": server.port,
                "password": key,
            }
        ),
        "GIVEN": json.dumps(service.place.parameters()),
        "KEY": key,
        "PYTHONPATH": str(installed),
    }
    airflow = Scheduler(tmp_path, environment)
    migrated = airflow.airflow("db", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    return Night(airflow, service)


def _copy(provider: Path, folder: Path) -> Path:
    """Its sources, so that nothing is built beside them."""
    return Path(shutil.copytree(provider, folder / "provider"))


def test_what_has_failed_is_tried_again_from_what_is_committed(night: Night) -> None:
    providers = night.airflow.airflow("providers", "get", "airflow-provider-ledgerbeam")
    assert "0.1.0" in providers.stdout, providers.stdout + providers.stderr
    night.service.place.set("fail-A7")
    done = night.airflow.dag("asked", NIGHT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    retry, first = night.requests()
    assert (first["state"], first["code"]) == ("FAILURE", "too-many-failures")
    assert (retry["verb"], retry["state"]) == ("retry", "SUCCESS")
    assert first["run_id"] == retry["run_id"]
    assert first["requester"] == "airflow"
    assert str(first["why"]).startswith("Airflow: asked ")
    assert first["priority"] == 3
    run = night.service.place.run()
    assert len(run.attempts) == 2
    assert run.uri in done.stdout + done.stderr


def test_an_airflow_that_is_killed_and_one_that_kills(night: Night) -> None:
    place = night.service.place
    place.set("hold")
    first = subprocess.Popen(
        [str(AIRFLOW), "dags", "test", "asked", NIGHT],
        env=night.airflow.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: any(r["state"] == "RUNNING" for r in night.requests()), "a run")
    first.send_signal(signal.SIGKILL)
    first.wait()
    place.unset("hold")
    done = night.airflow.dag("asked", NIGHT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    # Airflow had forgotten about the first one; the service had not.
    second, asked_first = night.requests()
    assert second["state"] == asked_first["state"] == "SUCCESS"
    assert second["run_id"] == asked_first["run_id"]
    assert len(place.run().attempts) == 1
    # A task that is killed while its trigger waits takes its run with it.
    place.set("hold")
    with httpx.Client(
        base_url=night.service.server,
        headers={"Authorization": f"Bearer {night.airflow.environment['KEY']}"},
    ) as client:
        given = place.parameters(business_date="2026-11-23")
        asked = client.post("/v1/requests", json={"kind": "counting", "parameters": given}).json()
        path = f"/v1/requests/{asked['id']}"
        until(lambda: client.get(path).json()["run_id"], "a run")
        killed = subprocess.run(
            [str(AIRFLOW.parent / "python"), "-c", KILL, path],
            env=night.airflow.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert killed.returncode == 0, killed.stderr[-3000:]
        place.unset("hold")
        until(lambda: client.get(path).json()["ended_at"], "an end")
        assert client.get(path).json()["state"] == "CANCELED"
        assert client.get(path).json()["cancel_why"] == "its task was killed in Airflow"


def test_the_tries_of_a_task_are_one_request(night: Night) -> None:
    tried = subprocess.run(
        [str(AIRFLOW.parent / "python"), "-c", TRIES],
        env=night.airflow.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tried.returncode == 0, tried.stderr[-3000:]
    assert len(night.requests()) == 3
    path = tried.stdout.split()[-1]
    assert path.removeprefix("/v1/requests/") == night.requests()[-1]["id"]


def test_wrong_parameters_are_not_tried_again(night: Night) -> None:
    night.airflow.environment["GIVEN"] = json.dumps(
        night.service.place.parameters(business_date="tomorrow")
    )
    done = night.airflow.dag("asked", NIGHT)
    assert done.returncode != 0
    (request,) = night.requests()
    assert request["state"] == "REJECTED"
    assert "business_date" in done.stdout + done.stderr
