"""Lists, filters and pages of the service in front of a registry with a million runs.

    python benchmarks/bench_lists.py --runs 1000000 --database postgresql --database sqlite

The registry is filled by SQL: runs that have ended, each with its request, an attempt, three
events and two entries of the audit. Most kinds have many; one is retired, and has the oldest ones
only; one is rare. Then each list and each page is asked for, of the application in this process,
and the time until its answer is there is what counts. Beside it stands the CPU that this process
took, which holds where the machine is busy with other work; PostgreSQL's own isn't in it.
"""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIMIT_MS = 50.0

_SCHEMA = '{"type": "object", "properties": {}}'
_SERIES = {
    "postgresql": "generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS s(n)",
    "sqlite": "(WITH RECURSIVE s(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM s "
    "WHERE n < :last) SELECT n FROM s)",
}
_HEX = {"postgresql": "lpad(to_hex({}), {}, '0')", "sqlite": "printf('%0{1}x', {0})"}
_AT = {
    "postgresql": "timestamptz '2024-01-01 00:00:00+00' + ({}) * interval '1 second'",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S.000000', '2024-01-01', '+' || ({}) || ' seconds')",
}
_PARAMETERS = {
    "day": "n",
    "business_date": "'day ' || (n / 1000)",
    "currency": "CASE n % 3 WHEN 0 THEN 'EUR' WHEN 1 THEN 'JPY' ELSE 'USD' END",
    "parity": "n % 2",
    "output": "'/nowhere'",
    "max_rejects": "0",
}
"""Each of its own number of values: a million, a thousand, three, two, one and one."""
_JSON = {"postgresql": "json_build_object", "sqlite": "json_object"}
_KIND = (
    "CASE WHEN n <= {retired} THEN 'retired' WHEN n % {rare} = 0 THEN 'rare' "
    "ELSE 'kind-' || (n % 20) END"
)
_STATUS = "CASE WHEN n % 50 = 0 THEN 'FAILURE' WHEN n % 997 = 0 THEN 'CANCELED' ELSE 'SUCCESS' END"
_FILL = (
    "INSERT INTO instance (id, process, name, identity, business_date) "
    "SELECT n, {kind}, 'day-' || n, '{{}}', '2026-11-20' FROM {series}",
    "INSERT INTO event (sequence, run_id, attempt, at, who, type, from_status, to_status, follows, "
    "why, detail, delivered, sealed) SELECT 3 * n - 2, {id}, NULL, {submitted}, 'ada', "
    "'submitted', NULL, 'INITIATED', NULL, '', '{{}}', true, true FROM {series}",
    "INSERT INTO event (sequence, run_id, attempt, at, who, type, from_status, to_status, follows, "
    "why, detail, delivered, sealed) SELECT 3 * n - 1, {id}, 1, {started}, 'ada', 'status', "
    "'INITIATED', 'EXECUTING', 3 * n - 2, '', '{{}}', true, true FROM {series}",
    "INSERT INTO event (sequence, run_id, attempt, at, who, type, from_status, to_status, follows, "
    "why, detail, delivered, sealed) SELECT 3 * n, {id}, 1, {ended}, 'ada', 'status', 'EXECUTING', "
    "{status}, 3 * n - 1, '', '{{}}', true, true FROM {series}",
    "INSERT INTO run (id, instance_id, definition_id, run_number, status, last_move, parameters, "
    "output, uri, beam_flags, reason, submitted_by, submitted_at, error, options, process, listed) "
    "SELECT {id}, n, 1, 1, {status}, 3 * n, {parameters}, '/nowhere', "
    "'/nowhere/' || n, '[]', '', 'caller-' || (n % 7), {submitted}, "
    "CASE WHEN n % 50 = 0 THEN 'no prices of ' || n END, '{{}}', {kind}, true FROM {series}",
    *(
        f"INSERT INTO run_parameter (name, value, submitted_at, run_id) SELECT '{name}', "
        f"CAST({value} AS text), {{submitted}}, {{id}} FROM {{series}}"
        for name, value in {**_PARAMETERS, "run_number": "1", "reason": "''"}.items()
    ),
    "INSERT INTO attempt (run_id, number, launcher, lease_until, deadline, runner, kind, "
    "started_at, ended_at, outcome) SELECT {id}, 1, 'host:1:1', {ended}, {ended}, 'DirectRunner', "
    "'first', {started}, {ended}, {status} FROM {series}",
    "INSERT INTO request (sequence, id, kind, verb, state, parameters, priority, turn, requester, "
    "why, received_at, queued_at, started_at, ended_at, run_id, node, epoch, lost, error, "
    "problems, version) SELECT n, {id}, {kind}, 'submit', {status}, '{{}}', 0, n, "
    "'caller-' || (n % 7), '', "
    "{submitted}, {submitted}, {started}, {ended}, {id}, 'node', 1, 0, "
    "CASE WHEN n % 50 = 0 THEN 'no prices of ' || n END, '[]', 4 FROM {series}",
    "INSERT INTO audit (sequence, at, who, action, kind, subject, why, detail, sealed) "
    "SELECT 2 * n - 1, {submitted}, 'caller-' || (n % 7), 'request.received', {kind}, {id}, '', "
    "'{{}}', true FROM {series}",
    "INSERT INTO audit (sequence, at, who, action, kind, subject, why, detail, sealed) "
    "SELECT 2 * n, {ended}, 'node', 'request.success', {kind}, {id}, '', '{{}}', true "
    "FROM {series}",
)
_STEP = 100_000


def fill(engine: sa.Engine, runs: int) -> None:
    """Record so many runs that have ended, by SQL."""
    dialect = engine.dialect.name
    retired, rare = max(runs // 100, 1), max(runs // 5, 2)
    pairs = ", ".join(f"'{name}', {value}" for name, value in _PARAMETERS.items())
    words = {
        "series": _SERIES[dialect],
        "kind": _KIND.format(retired=retired, rare=rare),
        "status": _STATUS,
        "parameters": f"{_JSON[dialect]}({pairs})",
        "id": f"{_HEX[dialect].format('(n * 2654435761) % 4294967296', 8)} "
        "|| '-0000-4000-8000-' || "
        f"{_HEX[dialect].format('n', 12)}",
        "submitted": _AT[dialect].format("n * 60"),
        "started": _AT[dialect].format("n * 60 + 5"),
        "ended": _AT[dialect].format("n * 60 + 50"),
    }
    with engine.begin() as connection:
        at = datetime(2026, 11, 20, tzinfo=UTC).isoformat(" ")
        connection.exec_driver_sql(
            "INSERT INTO definition (id, process, code_version, parameters_schema, first_seen_at, "
            f"last_seen_at) VALUES (1, 'kind', '1', '{_SCHEMA}', '{at[:19]}', '{at[:19]}')"
        )
    for first in range(1, runs + 1, _STEP):
        with engine.begin() as connection:
            if dialect == "postgresql":  # what is made here fits together
                connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            places = {"first": first, "last": min(first + _STEP - 1, runs)}
            for statement in _FILL:
                connection.execute(sa.text(statement.format(**words)), places)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE" if dialect == "sqlite" else "VACUUM ANALYZE")


def calls(runs: int) -> dict[str, str]:
    """Addresses that are asked for, by what they stand for."""
    middle = runs // 2
    some = f"{(middle * 2654435761) % 4294967296:08x}-0000-4000-8000-{middle:012x}"
    from ledgerbeam.service.store.reading import cursor_of

    of_run, of_request, of_audit = cursor_of(some), cursor_of(middle), cursor_of(2 * middle)
    return {
        "tonight": "/",
        "runs": "/runs",
        "runs, from the middle": f"/runs?cursor={of_run}",
        "runs of a kind": "/runs?kind=kind-3",
        "runs of a kind, from the middle": f"/runs?kind=kind-3&cursor={of_run}",
        "runs of a retired kind": "/runs?kind=retired",
        "runs of a rare kind": "/runs?kind=rare",
        "runs of no kind": "/runs?kind=nothing",
        "runs that failed": "/runs?status=FAILURE",
        "runs that go on": "/runs?status=EXECUTING",
        "runs of a kind that failed": "/runs?kind=kind-10&status=FAILURE",
        "runs of a kind that were canceled": "/runs?kind=retired&status=CANCELED",
        "runs of a kind, none canceled": "/runs?kind=rare&status=CANCELED",
        "runs since a day": "/v1/runs?since=2025-01-01T00:00:00Z",
        "runs of a kind since a day": "/v1/runs?kind=kind-3&since=2025-01-01T00:00:00Z",
        "runs of a requester": "/runs?requester=caller-3",
        "runs of a requester of a retired kind": "/runs?requester=caller-3&kind=retired",
        "runs of a requester that failed": "/runs?requester=caller-3&status=FAILURE",
        "runs of nobody": "/runs?requester=nobody",
        "runs with a parameter that one has": f"/runs?where=day={middle}",
        "runs with one that a thousand have": f"/runs?where=business_date=day+{middle // 1000}",
        "runs with one that all have": "/runs?where=max_rejects=0",
        "the same, from the middle": f"/runs?where=max_rejects=0&cursor={of_run}",
        "runs with a parameter that none has": "/runs?where=currency=CHF",
        "runs with two parameters": f"/runs?where=currency=EUR&where=day={middle // 3 * 3}",
        "runs with two that many have": "/runs?where=currency=EUR&where=parity=1",
        "runs with a parameter, of a kind": "/runs?where=currency=EUR&kind=kind-3",
        "runs with a parameter, that failed": "/runs?where=currency=EUR&status=FAILURE",
        "runs with a parameter, that a kind never has": "/runs?where=parity=0&kind=kind-3",
        "the same, further back": f"/runs?where=parity=0&kind=kind-3&cursor={of_run}",
        "runs with an error": "/runs?error=prices",
        "runs with a rare error": f"/runs?error=prices+of+{runs // 100 * 50}",
        "runs with an error that none has": "/runs?error=disk",
        "runs with an error, from the middle": f"/runs?error=disk&cursor={of_run}",
        "runs with an error, of a kind": "/runs?error=prices&kind=kind-10",
        "runs with an error, of a kind without": "/runs?error=prices&kind=kind-3",
        "runs by all filters": "/runs?kind=kind-10&status=FAILURE&since=2025-01-01&error=prices"
        "&requester=caller-3&where=currency=EUR",
        "run by its name": f"/v1/runs?name=kind-{middle % 20}/day-{middle}",
        "run by the beginning of its id": f"/v1/runs/{some[:10]}",
        "requests": "/requests",
        "requests, from the middle": f"/requests?cursor={of_request}",
        "requests of a kind": "/requests?kind=kind-3",
        "requests of a retired kind": "/requests?kind=retired",
        "requests that failed": "/requests?state=FAILURE",
        "requests that are dead": "/requests?state=DEAD",
        "requests of a kind that failed": "/requests?kind=kind-10&state=FAILURE",
        "requests of a caller": "/requests?requester=caller-3",
        "requests of a caller that failed": "/requests?requester=caller-3&state=FAILURE",
        "requests of a caller of a retired kind": "/requests?requester=caller-3&kind=retired",
        "requests of nobody": "/requests?requester=nobody",
        "requests with an error": "/requests?error=prices",
        "requests with a rare error": f"/requests?error=prices+of+{runs // 100 * 50}",
        "requests with an error that none has": "/requests?error=disk",
        "a request": f"/requests/{some}",
        "queues": "/queues",
        "form": "/kinds/kind-3/new",
        "actions on many": "/bulk",
        "audit": "/audit",
        "audit, from the middle": f"/audit?cursor={of_audit}",
        "audit of a subject": f"/audit?subject={some}",
        "a run": f"/runs/{some}",
        "a run's record": f"/runs/{some}/record",
        "history of a run": f"/v1/runs/{some}/audit",
        "kinds": "/v1/kinds",
        "metrics": "/metrics",
    }


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/registry.db"
        return
    from tests.support.postgres import postgres_server

    with postgres_server() as server:
        yield server.create_database()


def filled(url: str, runs: int) -> float:
    """Make a registry of so many runs, with their kinds; gives the seconds that this took."""
    from ledgerbeam.batch.model.queue import QueuePolicy
    from ledgerbeam.batch.registry.registry import Registry
    from ledgerbeam.service.model import KindRecord
    from ledgerbeam.service.store.dispatch import Dispatch

    with Registry.open(url) as registry:
        now = datetime.now(UTC)
        Dispatch(registry.database).publish(
            KindRecord(
                name=name,
                description="",
                parameters_schema=json.loads(_SCHEMA),
                code_version="1",
                policy=QueuePolicy(),
                seen_at=now,
            )
            for name in ("retired", "rare", *(f"kind-{number}" for number in range(20)))
        )
        engine = sa.create_engine(url)
        started = time.perf_counter()
        fill(engine, runs)
        seconds = time.perf_counter() - started
        engine.dispose()
    return seconds


def measured(url: str, folder: Path, runs: int, times: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each call and CPU, and of what `reconcile` asks each time."""
    from fastapi.testclient import TestClient

    from ledgerbeam.batch.registry.registry import Registry
    from ledgerbeam.batch.settings import Settings
    from ledgerbeam.service.web.app import create_app, import_for_pages

    found: dict[str, list[tuple[float, float]]] = {}
    with Registry.open(url) as registry:
        now = datetime.now(UTC)
        for name, ask in (
            ("audit: what isn't sealed", registry.seal_audit),
            ("runs that go on, for the watcher", registry.open_runs),
            ("runs that expire", lambda: registry.expiring(now)),
            ("events to be delivered", lambda: registry.undelivered(100)),
        ):
            found[name] = [milliseconds(ask) for _ in range(times)]
    app = create_app(Settings(url, folder, 30), needs_key=False)
    import_for_pages()  # as `ledgerbeam serve` does
    with TestClient(app, "http://localhost:8017", follow_redirects=False) as client:
        for name, path in calls(runs).items():
            answer = client.get(path)
            assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:300]}"
            found[name] = [milliseconds(lambda path=path: client.get(path)) for _ in range(times)]
    return found


def milliseconds(ask: Any) -> tuple[float, float]:
    """How long a call takes, and the CPU of this process in it."""
    started, spent = time.perf_counter(), time.process_time()
    ask()
    took = time.perf_counter() - started
    return round(took * 1000, 2), round((time.process_time() - spent) * 1000, 2)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of all values doesn't exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def table_of(figures: Mapping[str, Any]) -> str:
    """Median and 99th percentile of each call, and its median of CPU, in Markdown."""
    names = next(iter(figures.values()))["milliseconds and CPU"]
    heads = " | ".join(f"{name}, p50 / p99 | CPU" for name in figures)
    lines = [f"| ms | {heads} |", "| --- |" + " ---: | ---: |" * len(figures)]
    for name in names:
        told = []
        for one in figures.values():
            took, spent = zip(*one["milliseconds and CPU"][name], strict=True)
            p99 = quantile(took, 0.99)
            mark = " *" if p99 > LIMIT_MS else ""
            told.append(f"{quantile(took, 0.5):.1f} / {p99:.1f}{mark}")
            told.append(f"{quantile(spent, 0.5):.1f}")
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines) + f"\n\n\\* more than {LIMIT_MS:g} ms\n"


def main(
    runs: Annotated[int, typer.Option(help="that are on record, and have ended")] = 1_000_000,
    times: Annotated[int, typer.Option(help="that each call is made")] = 100,
    databases: Annotated[
        list[str] | None, typer.Option("--database", help="postgresql, sqlite")
    ] = None,
    results: Annotated[Path, typer.Option(help="folder of the figures")] = HERE / "results",
) -> None:
    """Measure, and write `lists.json` and `lists.md`."""
    sys.path.insert(0, str(ROOT))
    raw: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load before": os.getloadavg()[0],
        "runs": runs,
        "figures": {},
    }
    for kind in databases or ["postgresql", "sqlite"]:
        with tempfile.TemporaryDirectory() as name, database(kind, Path(name)) as url:
            raw["figures"][kind] = {
                "seconds to fill": round(filled(url, runs), 1),
                "milliseconds and CPU": measured(url, Path(name), runs, times),
            }
    raw["load after"] = os.getloadavg()[0]
    results.mkdir(parents=True, exist_ok=True)
    (results / "lists.json").write_text(json.dumps(raw, indent=1) + "\n")
    (results / "lists.md").write_text(table_of(raw["figures"]))
    print(table_of(raw["figures"]))


if __name__ == "__main__":
    typer.run(main)
