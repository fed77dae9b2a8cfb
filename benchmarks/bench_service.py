"""The service on PostgreSQL: what it accepts a second, how soon work begins, what idling costs.

    python benchmarks/bench_service.py --submissions 2000 --runs 20

Front end, router and one node are processes of this machine, and so are the clients. Submissions
are of a kind whose queue is held, so that nothing but accepting and routing is measured. Then small
runs are asked for one after the other: from the call to the moments that requests and events tell.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KIND = "delivery-marking"


@contextmanager
def service(registry: str, state: Path) -> Iterator[tuple[str, dict[str, psutil.Process]]]:
    """The URL of a front end, and the processes."""
    environment = {
        **os.environ,
        "LEDGERBEAM_REGISTRY": registry,
        "LEDGERBEAM_STATE": str(state),
    }
    started = {}
    url = ""
    try:
        for name in (["serve", "--port=0"], ["route"], ["work", "--slots=1"]):
            started[name[0]] = subprocess.Popen(
                [sys.executable, "-m", "ledgerbeam.service.commands", *name],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            output = started[name[0]].stdout
            assert output is not None
            line = output.readline()
            url = url or line.split()[1]
        yield url, {name: psutil.Process(process.pid) for name, process in started.items()}
    finally:
        for process in started.values():
            process.terminate()
            process.wait()


def accepted(url: str, count: int, clients: int) -> float:
    """Requests that are accepted a second."""
    httpx.patch(f"{url}/v1/queues/{KIND}", json={"held": True}).raise_for_status()

    def submit(number: int) -> None:
        with httpx.Client(base_url=url) as client:
            for _ in range(count // clients):
                body = {"kind": KIND, "parameters": {"trade_date": "no date"}}
                client.post("/v1/requests", json=body).raise_for_status()

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(submit, range(clients)))
    seconds = time.perf_counter() - started
    httpx.patch(f"{url}/v1/queues/{KIND}", json={"held": False}).raise_for_status()
    return count / seconds


def latencies(url: str, folder: Path, count: int) -> dict[str, list[float]]:
    """Seconds from the call to each moment, of runs that are asked for one after the other."""
    found: dict[str, list[float]] = {"taken": [], "driver begins": [], "published": []}
    with httpx.Client(base_url=url, timeout=120) as client:
        for number in range(count):
            parameters = {
                "trades": f"{folder}/trades/*.parquet",
                "trade_date": "2026-11-20",
                "output": f"{folder}/results-{number}",
                "run_number": number + 1,
                "reason": "" if number == 0 else "measured again",
            }
            called = datetime.now(UTC)
            body = {"kind": KIND, "parameters": parameters}
            asked = client.post("/v1/requests", json=body).raise_for_status().json()
            while asked["ended_at"] is None:
                path = f"/v1/requests/{asked['id']}"
                asked = client.get(path, headers={"Prefer": "wait=30"}).json()
            assert asked["state"] == "SUCCESS", asked
            events = client.get(f"/v1/runs/{asked['run_id']}/audit").json()
            job = next(event["at"] for event in events if event["type"] == "job")
            end = next(event["at"] for event in events if event["to_status"] == "SUCCESS")
            for name, at in zip(found, (asked["started_at"], job, end), strict=True):
                found[name].append((datetime.fromisoformat(at) - called).total_seconds())
            time.sleep(6)  # until another launcher waits, as on a machine that isn't busy
    return found


def idling(processes: dict[str, psutil.Process], seconds: float) -> dict[str, Any]:
    """Of each process, megabytes and what an hour would cost in seconds of CPU."""

    def cpu(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before = {name: cpu(process) for name, process in processes.items()}
    time.sleep(seconds)
    return {
        name: {
            "MB": round(process.memory_info().rss / 1e6),
            "CPU s an hour": round((cpu(process) - before[name]) / seconds * 3600, 1),
        }
        for name, process in processes.items()
    }


def main(
    submissions: Annotated[int, typer.Option(help="requests that are accepted")] = 2000,
    clients: Annotated[int, typer.Option(help="that send them at once")] = 4,
    runs: Annotated[int, typer.Option(help="small runs, one after the other")] = 20,
    idle: Annotated[float, typer.Option(help="seconds for which it is watched idling")] = 60,
    results: Annotated[Path, typer.Option(help="folder of the figures")] = HERE / "results",
) -> None:
    """Measure, and write `service.json`."""
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import postgres_server

    from ledgerbeam.synthetic.trades import write_trades

    with postgres_server() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        day = datetime(2026, 11, 20, tzinfo=UTC).date()
        write_trades(f"{folder}/trades", 1000, files=1, format="parquet", trade_date=day, seed=7)
        with service(server.create_database(), folder / "state") as (url, processes):
            while KIND not in httpx.get(f"{url}/v1/kinds").text:
                time.sleep(0.2)
            taken = latencies(url, folder, runs)
            figures = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
                "seconds from the call, median and worst": {
                    name: [round(statistics.median(all_), 3), round(max(all_), 3)]
                    for name, all_ in taken.items()
                },
                "idle": idling(processes, idle),
                "accepted a second": round(accepted(url, submissions, clients)),
            }
    results.mkdir(parents=True, exist_ok=True)
    (results / "service.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    typer.run(main)
