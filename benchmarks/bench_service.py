"""The service beside Airflow and Prefect: accepting, the time until work begins, idling.

    python benchmarks/bench_service.py

Each is started with its defaults on the same PostgreSQL server, one after the other, and so is the
client, on the same machine. A piece of work is one Python function, which writes when it begins:
the one component of a batch process, or the one task of a DAG or of a flow. Measured are

- idling: memory, CPU and statements of the database, before anything was asked for;
- pieces of work, one after the other, from the moment at which the call was answered to the moment
  at which the function begins;
- submissions of work that is held, so that nothing but accepting them is measured;
- the first again, with these waiting.
"""

import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import psutil
import typer
from orchestrators import airflow_scheduler, ledgerbeam_service, prefect_server
from orchestrators.contenders import Running, Start

if TYPE_CHECKING:
    from tests.support.postgres import PostgresServer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = ROOT / ".cache"
CORES = os.cpu_count() or 1
GIVEN_UP = 90.0
"""Seconds after which work isn't waited for any more."""

CONTENDERS: Mapping[str, Start] = {
    "ledgerbeam": ledgerbeam_service.start,
    "Airflow": airflow_scheduler.start(CACHE / "bench-airflow" / "bin"),
    "Prefect": prefect_server.start(CACHE / "bench-prefect" / "bin"),
}


class Size(NamedTuple):
    """How much is measured.

    Attributes:
        submissions: in each round.
        rounds: of submissions.
        connections: that share them.
        works: pieces of work, idle and again with submissions waiting.
        idle: seconds for which it is watched idling.
    """

    submissions: int
    rounds: int
    connections: int
    works: int
    idle: float


def measured(start: Start, server: "PostgresServer", size: Size) -> dict[str, Any]:
    """The figures of a contender."""
    url = server.create_database().partition("://")[2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "begun").mkdir()
        with start(url, folder) as running:
            time.sleep(size.idle / 2)  # until what it does at its start is done
            idle = idling(running, server, url.rpartition("/")[2], size.idle)
            alone = delays(running, folder, range(size.works))
            rates, spent, by_client = [], [], []
            connections = min(size.connections, running.connections)
            client = psutil.Process()
            for number in range(size.rounds):
                first = (number + 1) * size.submissions
                numbers = range(first, first + size.submissions)
                calls = [running.waiting(number) for number in numbers]
                before, own = cpu_of_all(running, server), cpu(client)
                seconds = running.ask(calls, connections)
                rates.append(size.submissions / seconds)
                by_client.append((cpu(client) - own) / seconds / CORES * 100)
                took = spent_since(before, cpu_of_all(running, server))
                spent.append(took / size.submissions * 1000)
            time.sleep(size.idle / 4)  # until they wait in their queue
            beside = delays(running, folder, range(-size.works, 0))
    return {
        "idle": idle,
        "connections": connections,
        "accepted a second": [round(rate, 1) for rate in rates],
        "percent of all cores that the client takes": [round(share, 1) for share in by_client],
        "ms of CPU a submission": [round(each, 2) for each in spent],
        "seconds until work begins": alone,
        "waiting": size.rounds * size.submissions,
        "seconds until work begins beside these": beside,
    }


def delays(running: Running, folder: Path, numbers: Sequence[int]) -> list[float]:
    """Seconds from the answer to a call until the work begins that it has asked for.

    Work that hasn't begun after `GIVEN_UP` seconds is counted as that: it was lost, or has failed
    before it began.
    """
    found = []
    for number in numbers:
        begun = folder / "begun" / str(number)
        running.ask([running.at_once(number)])
        answered = time.time()
        while not begun.exists() and time.time() - answered < GIVEN_UP:
            time.sleep(0.02)
        at = float(begun.read_text()) if begun.exists() else float("inf")
        found.append(round(min(at - answered, GIVEN_UP), 3))
        time.sleep(running.pause)
    return found


def idling(
    running: Running, server: "PostgresServer", database: str, seconds: float
) -> dict[str, Any]:
    """What a contender costs that has nothing to do, its database's server looked at apart."""
    postmaster = psutil.Process(int((server.data / "postmaster.pid").read_text().split()[0]))
    mine = {process.pid: cpu(process) for process in running.tree()}
    of_server = sum(map(cpu, [postmaster, *postmaster.children()]))
    before = statements(server, database)
    time.sleep(seconds)
    after = statements(server, database)
    tree = running.tree()
    memory = []
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            memory.append(process.memory_full_info())
    spent = sum(cpu(process) - mine.get(process.pid, 0.0) for process in tree)
    by_server = sum(map(cpu, [postmaster, *postmaster.children()])) - of_server
    return {
        "seconds": seconds,
        "processes": len(tree),
        "MB of PSS": round(sum(m.pss for m in memory) / 1e6),
        "MB of RSS": round(sum(m.rss for m in memory) / 1e6),
        "CPU s an hour": round(spent / seconds * 3600, 1),
        "CPU s an hour of PostgreSQL": round(by_server / seconds * 3600, 1),
        "statements a minute": {
            text: round(calls / seconds * 60, 1) for text, calls in sorted((after - before).items())
        },
    }


def cpu_of_all(running: Running, server: "PostgresServer") -> dict[int, float]:
    """Seconds of CPU by process, of a contender, the database's server and this client."""
    postmaster = psutil.Process(int((server.data / "postmaster.pid").read_text().split()[0]))
    everybody = [*running.tree(), postmaster, *postmaster.children(), psutil.Process()]
    return {process.pid: cpu(process) for process in everybody}


def spent_since(before: Mapping[int, float], now: Mapping[int, float]) -> float:
    """Seconds of CPU between two looks; what ended between them isn't known any more."""
    return sum(max(0.0, seconds - before.get(pid, 0.0)) for pid, seconds in now.items())


def cpu(process: psutil.Process) -> float:
    """Seconds of CPU that a process has used; 0 for one that has just ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def statements(server: "PostgresServer", database: str) -> Counter[str]:
    """How often each statement was executed in a database so far; its own text is left out."""
    import psycopg

    query = (
        "SELECT query, sum(calls)::bigint FROM pg_stat_statements s JOIN pg_database d "
        "ON d.oid = s.dbid WHERE datname = %s GROUP BY query"
    )
    with psycopg.connect(server.url().replace("+psycopg", "")) as connection:
        return Counter(dict(connection.execute(query, [database]).fetchall()))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of all values doesn't exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def table_of(figures: Mapping[str, Any]) -> str:
    """The figures as a table in Markdown."""
    rows: dict[str, list[str]] = {}
    for one in figures.values():
        idle, waiting = one["idle"], one["waiting"]
        rows.setdefault("accepted a second", []).append(
            f"{statistics.median(one['accepted a second']):,.0f}"
        )
        rows.setdefault("ms of CPU a submission, client and PostgreSQL too", []).append(
            f"{statistics.median(one['ms of CPU a submission']):,.1f}"
        )
        share = statistics.median(one["percent of all cores that the client takes"])
        rows.setdefault("connections that share them", []).append(str(one["connections"]))
        rows.setdefault("% of all cores that the client takes", []).append(f"{share:.0f}")
        for name, label in (
            ("seconds until work begins", "idle"),
            ("seconds until work begins beside these", f"{waiting:,} waiting"),
        ):
            label = label.replace(f"{waiting:,}", "work held and")
            told = f"{quantile(one[name], 0.5):.2f} / {quantile(one[name], 0.99):.2f}"
            rows.setdefault(f"s until work begins, p50 / p99, {label}", []).append(told)
        all_statements = sum(idle["statements a minute"].values())
        own = sum(
            calls
            for text, calls in idle["statements a minute"].items()
            if text.split()[0] not in ("BEGIN", "COMMIT", "ROLLBACK")
        )
        for name in ("processes", "MB of PSS", "MB of RSS", "CPU s an hour"):
            rows.setdefault(f"{name}, idle", []).append(f"{idle[name]:,}")
        rows.setdefault("CPU s an hour of its PostgreSQL, idle", []).append(
            f"{idle['CPU s an hour of PostgreSQL']:,}"
        )
        rows.setdefault("statements a minute, idle", []).append(f"{all_statements:,.0f}")
        rows.setdefault("of these, no BEGIN, COMMIT or ROLLBACK", []).append(f"{own:,.0f}")
    lines = [
        f"| | {' | '.join(figures)} |",
        "| --- |" + " ---: |" * len(figures),
        *(f"| {label} | {' | '.join(values)} |" for label, values in rows.items()),
    ]
    return "\n".join(lines) + "\n"


def main(
    contenders: Annotated[
        str, typer.Option(help="names of those to measure, with commas between")
    ] = ",".join(CONTENDERS),
    submissions: Annotated[int, typer.Option(help="in each round")] = 1000,
    rounds: Annotated[int, typer.Option(help="of submissions")] = 3,
    connections: Annotated[int, typer.Option(help="that share the submissions")] = 32,
    works: Annotated[int, typer.Option(help="pieces of work, one after the other")] = 30,
    idle: Annotated[float, typer.Option(help="seconds for which it is watched idling")] = 120,
    results: Annotated[Path, typer.Option(help="folder of the figures")] = HERE / "results",
) -> None:
    """Measure, and write `service.json` and `service.md`.

    Figures of contenders that aren't measured now stay as they are, so that each can be measured in
    a quiet hour of its own.
    """
    sys.path.insert(0, str(ROOT))
    from tests.support.postgres import postgres_server

    size = Size(submissions, rounds, connections, works, idle)
    settings = (
        "shared_preload_libraries = 'pg_stat_statements'",
        "max_connections = 300",
        # What is accepted would survive the machine.
        "fsync = on",
        "synchronous_commit = on",
        "full_page_writes = on",
    )
    with postgres_server(settings) as server:
        import psycopg

        with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION pg_stat_statements")
        path = results / "service.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        for name in contenders.split(","):
            circumstances = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "cores": CORES,
                "load before": os.getloadavg()[0],
                "size": size._asdict(),
            }
            known[name] = {**circumstances, **measured(CONTENDERS[name], server, size)}
            known[name]["load after"] = os.getloadavg()[0]
            print(json.dumps({name: known[name]}), file=sys.stderr)
    figures = {name: known[name] for name in CONTENDERS if name in known}
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
    (results / "service.md").write_text(table_of(figures))
    print(table_of(figures))


if __name__ == "__main__":
    typer.run(main)
