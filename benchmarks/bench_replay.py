"""Catching up with messages on PostgreSQL: a consumer's process beside the same handler on Beam.

    python benchmarks/bench_replay.py --messages 200000

Both are commands, in processes of their own, and handle the same messages, with one UPDATE of the
customer's row each: two consumers, each with its inbox. The server is the tests' own, which doesn't
wait for a disk. CPU seconds are of the command with its children, and of the server meanwhile.
"""

import datetime
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer
from bench_messages import HERE, ROOT, TOPIC, Bench
from measure import server_cpu
from rich.console import Console
from rich.table import Table

from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.store.send import schedule_many

COMMAND = Path(sys.executable).parent / "ledgerbeam"


def measure(
    bench: Bench, count: int, arguments: list[str], environment: dict[str, str]
) -> list[str]:
    """Messages a second, and microseconds of CPU of client and server for each."""
    before, started, server = os.times(), time.monotonic(), server_cpu(bench.server)
    subprocess.run([COMMAND, *arguments], cwd=HERE, env=environment, check=True)
    seconds, after = time.monotonic() - started, os.times()
    client = sum(after[2:4]) - sum(before[2:4])
    server = server_cpu(bench.server) - server
    micros = (f"{1e6 * used / count:.1f}" for used in (client, server, client + server))
    return [f"{seconds:.1f}", f"{count / seconds:,.0f}", *micros]


def main(
    messages: Annotated[int, typer.Option(min=1, help="how many")] = 200_000,
) -> None:
    """Measure a consumer, and the same handler on Beam; prints a table."""
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import postgres_server

    with postgres_server() as server, tempfile.TemporaryDirectory() as results:
        pid = int((server.data / "postmaster.pid").read_text().split()[0])
        bench = Bench(server.create_database(), psutil.Process(pid))
        now = datetime.datetime.now(datetime.UTC)
        outgoing = iter(bench.outgoing(messages, now))
        with bench.engine.begin() as connection:
            while block := list(itertools.islice(outgoing, 50_000)):
                schedule_many(connection, TOPIC, block)
        scheduler = Scheduler(bench.database)
        scheduler.renew()
        while scheduler.posted < messages:
            scheduler.look()
        environment = os.environ | {"LEDGERBEAM_MESSAGES": bench.url}
        posted = f"--from={now.isoformat()}"
        end = f"--to={datetime.datetime.now(datetime.UTC).isoformat()}"
        flags = [posted, end, f"--output={results}", "--consumer=on-beam"]
        handler = "bench_messages:OneUpdate"
        table = Table("", "seconds", "messages a second", "client µs", "server µs", "both µs")
        for name, arguments in {
            "consume --slots=2": ["consume", handler, "--slots=2", "--until-idle"],
            "run, local runner": ["run", handler, *flags],
        }.items():
            table.add_row(name, *measure(bench, messages, arguments, environment))
        bench.close()
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
