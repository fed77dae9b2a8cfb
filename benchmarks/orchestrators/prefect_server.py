"""Prefect 3: server, a worker that starts processes, and a flow of one task."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrators.contenders import Call, Running, Start, call, free_port, started, until

_FLOW = """
import time
from pathlib import Path

from prefect import flow, task


@task
def work(number: int):
    at = time.time()
    new = Path("FOLDER/begun", f"{number}.new")
    new.write_text(str(at))
    new.rename(new.with_suffix(""))


@flow
def numbered(number: int):
    work(number)


if __name__ == "__main__":
    stored = flow.from_source(source="FOLDER/flows", entrypoint="numbered.py:numbered")
    for name in ("at-once", "waiting"):
        stored.deploy(name=name, work_pool_name="processes", work_queue_name=name)
"""


def start(programs: Path) -> Start:
    """How Prefect is started whose programs are in a folder."""

    @contextmanager
    def running(database: str, folder: Path) -> Iterator[Running]:
        port = free_port()
        (folder / "flows").mkdir()
        flow = folder / "flows" / "numbered.py"
        flow.write_text(_FLOW.replace("FOLDER", str(folder)))
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        prefect = str(programs / "prefect")
        server = [prefect, "server", "start", "--host=127.0.0.1", f"--port={port}", "--no-ui"]
        worker = [prefect, "worker", "start", "--pool=processes", "--type=process"]
        with started({"server": server}, environment, folder) as servers:
            until(lambda: call(port, "GET", "/api/health"), "Prefect's server")
            pool = {"name": "processes", "type": "process"}
            call(port, "POST", "/api/work_pools/", body=pool)
            deploy = [str(programs / "python"), str(flow)]
            subprocess.run(deploy, env=environment, check=True, stdout=subprocess.DEVNULL)
            held = {"is_paused": True}
            call(port, "PATCH", "/api/work_pools/processes/queues/waiting", body=held)
            ids = {
                name: call(port, "GET", f"/api/deployments/name/numbered/{name}")["id"]
                for name in ("at-once", "waiting")
            }

            def asked(name: str, number: int) -> Call:
                body = {"parameters": {"number": number}, "state": {"type": "SCHEDULED"}}
                return Call(f"/api/deployments/{ids[name]}/create_flow_run", body)

            with started({"worker": worker}, environment, folder) as workers:
                yield Running(
                    port,
                    [*servers, *workers],
                    at_once=lambda number: asked("at-once", number),
                    waiting=lambda number: asked("waiting", number),
                )

    return running
