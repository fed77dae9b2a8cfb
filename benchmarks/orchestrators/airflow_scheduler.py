"""Airflow 3: API server, scheduler with LocalExecutor, DAG processor, and a DAG of one task."""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from orchestrators.contenders import Call, Running, Start, call, free_port, started, until

_DAGS = """
import time
from pathlib import Path

from airflow.sdk import dag, get_current_context, task

for name in ("at-once", "waiting"):

    @dag(dag_id=name, schedule=None, is_paused_upon_creation=name == "waiting")
    def numbered():
        @task
        def work():
            at = time.time()
            number = get_current_context()["dag_run"].conf["number"]
            new = Path("FOLDER/begun", f"{number}.new")
            new.write_text(str(at))
            new.rename(new.with_suffix(""))

        work()

    numbered()
"""


def start(programs: Path) -> Start:
    """How Airflow is started whose programs are in a folder."""

    @contextmanager
    def running(database: str, folder: Path) -> Iterator[Running]:
        port, secret = free_port(), secrets.token_hex(64)
        (folder / "dags").mkdir()
        (folder / "dags" / "numbered.py").write_text(_DAGS.replace("FOLDER", str(folder)))
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "AIRFLOW__API_AUTH__JWTsecret": secret,
            "AIRFLOW__API_secret_KEY": secret,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database}",
        }
        airflow = str(programs / "airflow")
        subprocess.run(
            [airflow, "db", "migrate"],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        parts = {
            "api-server": [
                airflow,
                "api-server",
                "--host=127.0.0.1",
                f"--port={port}",
                "--workers=1",
            ],
            "scheduler": [airflow, "scheduler"],
            "dag-processor": [airflow, "dag-processor"],
        }
        with started(parts, environment, folder) as processes:
            token = until(lambda: call(port, "GET", "/auth/token"), "a token of Airflow")
            headers = {"Authorization": f"Bearer {token['access_token']}"}
            for name in ("at-once", "waiting"):
                path = f"/api/v2/dags/{name}"
                until(partial(call, port, "GET", path, headers), f"the DAG {name}")

            def asked(name: str, number: int) -> Call:
                body = {"logical_date": None, "conf": {"number": number}}
                return Call(f"/api/v2/dags/{name}/dagRuns", body)

            yield Running(
                port,
                processes,
                at_once=lambda number: asked("at-once", number),
                waiting=lambda number: asked("waiting", number),
                headers=headers,
                # With 32, calls wait for its 15 connections to the database until they fail.
                connections=16,
            )

    return running
