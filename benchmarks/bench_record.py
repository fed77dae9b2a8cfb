"""What it costs that a run is on record: beside the module's run, which isn't.

    python benchmarks/bench_record.py

A small day is marked by the module alone, by `ledgerbeam run --registry=…`, by `ledgerbeam submit`
with `--watch`, and by a service on this machine whose node is warm: by a client, a program of its
own. Registries are SQLite files. Wall time is that of whole processes, from their start to their
end; CPU seconds are theirs and, but for the service, those of all that they have started and waited
for. The contenders take turns, each day is another one, and all must publish the same rows.
"""

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import report
import typer
from measure import measure
from orchestrators.contenders import call, free_port, until
from rich.console import Console

from ledgerbeam.io.commit.published import read_published
from ledgerbeam.synthetic.trades import write_trades

RESULTS = Path(__file__).resolve().parent / "results"
WORKLOAD = "delivery-marking"
FIRST_DAY = datetime.date(2026, 11, 2)
COMMAND = "import sys; from ledgerbeam.batch.cli import main; sys.exit(main())"
CLIENT = """
import json, sys
import ledgerbeam as lb

with lb.Client(sys.argv[1]) as client:
    run = client.submit("delivery-marking", json.loads(sys.argv[2]))
    view = client.wait(run.id)
sys.exit(view.run.status != "SUCCESS")
"""
MODULE, RUN, SUBMIT, NODE = "module", "run --registry", "submit --watch", "client, warm node"
SETTLED_SECONDS = 6.0
"""After a run, until the node's next launcher has imported what it needs."""


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """Front end, router and one node on this machine; gives the URL."""
    port = free_port()
    environment = {
        **os.environ,
        "LEDGERBEAM_REGISTRY": f"sqlite:///{folder}/service.db",
        "LEDGERBEAM_STATE": str(folder / "service"),
    }
    command = [sys.executable, "-m", "ledgerbeam.service.commands", "up", f"--port={port}"]
    with (folder / "service.log").open("wb") as log:
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: call(port, "GET", f"/v1/kinds/{WORKLOAD}"), "the service")
        yield f"http://127.0.0.1:{port}"
    finally:
        started.terminate()
        started.wait()


def commands(trades: str, day: str, folder: Path, server: str) -> dict[str, list[str]]:
    """What each contender runs on a day."""
    flags = [f"--trades={trades}", f"--trade-date={day}"]
    ours = [sys.executable, "-c", COMMAND]
    given = {"trades": trades, "trade_date": day, "output": str(folder / NODE)}
    return {
        MODULE: [
            *(sys.executable, "-m", "ledgerbeam.pipelines.delivery_marking"),
            *(*flags, f"--output={folder / MODULE}"),
        ],
        RUN: [
            *(*ours, "run", WORKLOAD, *flags),
            *(f"--output={folder / RUN}", f"--registry=sqlite:///{folder}/run.db"),
        ],
        SUBMIT: [
            *(*ours, "submit", WORKLOAD, *flags, f"--output={folder / SUBMIT}"),
            *(f"--registry=sqlite:///{folder}/submit.db", "--watch"),
        ],
        NODE: [sys.executable, "-c", CLIENT, server, json.dumps(given)],
    }


def published(output: Path, day: str) -> list[Mapping[str, Any]]:
    """The rows of a result, in their order."""
    rows = read_published(str(output / WORKLOAD / day)).to_table()
    found: list[Mapping[str, Any]] = rows.sort_by("id").to_pylist()
    return found


def markdown(raw: dict[str, Any]) -> str:
    """The page of results."""
    figures = raw["figures"]
    walls = {name: statistics.median(one["wall"]) for name, one in figures.items()}
    rows = [
        [
            name,
            f"{walls[name]:.2f}",
            f"{min(one['wall']):.2f} - {max(one['wall']):.2f}",
            f"{walls[name] - walls[MODULE]:+.2f}" if name != MODULE else "",
            f"{statistics.median(one['cpu']):.2f}",
        ]
        for name, one in figures.items()
    ]
    lines = [
        "# What a run on record costs",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        f"- {raw['trades']:,} trades a day; {raw['repetitions']} days, in turns; medians.",
        "- Wall time is that of the whole process that asks for the run and waits for its end. "
        "CPU seconds leave out the launcher of `submit`, which goes on by itself, and the service.",
        "",
        *report.table(("contender", "wall s", "min - max", "more s", "cpu s"), rows),
    ]
    return "\n".join(lines) + "\n"


def main(
    trades: Annotated[int, typer.Option(min=1, help="of a day")] = 10_000,
    repetitions: Annotated[int, typer.Option(min=1, max=28, help="days of each contender")] = 7,
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure what a run on record costs; writes record.md and record.json."""
    started = datetime.datetime.now().astimezone()
    console = Console(stderr=True)
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name, service(Path(name)) as server:
        folder = Path(name)
        environment = {**os.environ, "LEDGERBEAM_STATE": str(folder / "state")}
        for repetition in range(repetitions):
            day = FIRST_DAY + datetime.timedelta(days=repetition)
            write_trades(str(folder / f"{day}"), trades, files=4, trade_date=day)
            asked = commands(f"{folder}/{day}/*.parquet", str(day), folder, server)
            first = repetition % len(asked)
            for contender in [*asked, *asked][first : first + len(asked)]:
                time.sleep(SETTLED_SECONDS)
                measured = measure(asked[contender], limit_seconds=120, env=environment)
                if measured.exit_code != 0:
                    raise SystemExit(f"{contender} failed: {measured.errors}")
                one = figures.setdefault(contender, {"wall": [], "cpu": []})
                one["wall"].append(measured.wall_seconds)
                one["cpu"].append(measured.cpu_seconds)
                console.print(f"{day}: {contender}: {measured.wall_seconds:.2f} s")
            expected = published(folder / MODULE, str(day))
            for contender in asked:
                if published(folder / contender, str(day)) != expected:
                    raise SystemExit(f"{contender} has published other rows")
    figures = {contender: figures[contender] for contender in (MODULE, RUN, SUBMIT, NODE)}
    raw = report.circumstances(started) | {
        "trades": trades,
        "repetitions": repetitions,
        "figures": figures,
    }
    report.save(results, "record", raw, markdown(raw))
    console.print(f"written to {results / 'record.md'}")


if __name__ == "__main__":
    typer.run(main)
