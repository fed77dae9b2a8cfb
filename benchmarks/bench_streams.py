"""Streams of events on one front end: what 100 browsers that look at a run cost it.

    python benchmarks/bench_streams.py --streams 100 --seconds 20

A run is on record in PostgreSQL and doesn't begin; so many clients of this machine follow its
events. Then it is canceled, and each of them has to be told.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer
from orchestrators.contenders import call, free_port, started, until

ROOT = Path(__file__).resolve().parents[1]
KIND = "delivery-marking"


async def followed(
    url: str, run: str, streams: int, front: psutil.Process, seconds: float
) -> dict[str, Any]:
    """What it costs a front end that so many follow a run, and when they hear of its end."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        begun = asyncio.Semaphore(0)
        told: list[float] = []

        async def follow() -> None:
            async with client.stream("GET", f"/v1/runs/{run}/events") as answer:
                is_first = True
                async for line in answer.aiter_lines():
                    if is_first:
                        begun.release()
                        is_first = False
                    if line == "event: end":
                        told.append(time.monotonic())

        before = front.memory_info().rss
        following = [asyncio.create_task(follow()) for _ in range(streams)]
        for _ in following:
            await begun.acquire()
        times = front.cpu_times()
        await asyncio.sleep(seconds)
        later = front.cpu_times()
        after = front.memory_info().rss
        (await client.post(f"/v1/runs/{run}/cancel")).raise_for_status()
        canceled = time.monotonic()
        await asyncio.gather(*following)
        assert len(told) == streams
    spent = later.user + later.system - times.user - times.system
    return {
        "streams": streams,
        "MB without them": round(before / 1e6),
        "MB with them": round(after / 1e6),
        "CPU, percent of a core": round(100 * spent / seconds, 1),
        "seconds until the last was told of the end": round(max(told) - canceled, 2),
    }


def main(
    streams: Annotated[int, typer.Option(help="clients that follow the run")] = 100,
    seconds: Annotated[float, typer.Option(help="for which CPU is counted")] = 20,
) -> None:
    """Measure, and print the figures."""
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import postgres_server

    from ledgerbeam.batch.runs.client import Runs
    from ledgerbeam.batch.settings import Settings
    from ledgerbeam.synthetic.trades import write_trades

    with postgres_server() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        day = datetime(2026, 11, 20, tzinfo=UTC).date()
        write_trades(f"{folder}/trades", 1000, files=1, format="parquet", trade_date=day, seed=7)
        registry = server.create_database()
        port = free_port()
        command = (sys.executable, "-m", "ledgerbeam.service.commands", "serve", f"--port={port}")
        places = {"LEDGERBEAM_REGISTRY": registry, "LEDGERBEAM_STATE": f"{folder}/state"}
        with started({"front-end": command}, places, folder) as (front,):
            until(partial(call, port, "GET", "/readyz"), "the front end")
            parameters = {
                "trades": f"{folder}/trades/*.parquet",
                "trade_date": "2026-11-20",
                "output": f"{folder}/results",
            }
            with Runs(Settings(registry, folder / "state", 30)) as runs:
                run = runs.record(KIND, parameters)[0]
            url = f"http://localhost:{port}"
            process = psutil.Process(front.pid)
            figures = asyncio.run(followed(url, run.id, streams, process, seconds))
    load = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    print(json.dumps({**figures, **load}, indent=2))


if __name__ == "__main__":
    typer.run(main)
