"""Front end, router and node, killed with -9 at every point that the code of the service names.

Whatever died: no request that was accepted is lost, none has its run published twice, and of a kind
that is served in order never two run at once.
"""

import ast
import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.support.recorded import NewPlace, Place, until
from tests.support.service import Service, service_of

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.service.errors import ServiceUnavailableError
from ledgerbeam.service.model import RequestState

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DAYS = ("2026-11-02", "2026-11-03")
WHO = {"accept": "front end", "route": "router", "take": "node", "work": "node", "finish": "node"}


def failpoints() -> list[str]:
    """All points that the code of the service names.

    Those of actions on many and of errands have tests beside those of what they do.
    """
    calls = [
        node
        for file in sorted((ROOT / "service").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint"
    ]
    names = [node.args[0].value for node in calls if isinstance(node.args[0], ast.Constant)]
    assert len(names) == len(set(names)) == len(calls)
    return [str(name) for name in names]


@pytest.fixture(scope="module")
def lease() -> float:
    return 5.0


@pytest.fixture
def service(new_place: NewPlace, lease: float) -> Iterator[Service]:
    with service_of(new_place(), lease) as service:
        yield service


@pytest.mark.parametrize("point", [p for p in failpoints() if p.partition(":")[0] in WHO])
def test_nothing_is_lost_and_nothing_done_twice(service: Service, point: str) -> None:
    place = service.place
    part = WHO[point.partition(":")[0]]
    doomed = service.serve(point if part == "front end" else "")
    parts = [service.route(point if part == "router" else "")]
    with service.client() as client:
        if part == "router":
            (doomed,) = parts
        keys = {day: f"key-{day}" for day in DAYS}
        until(
            lambda: "counting" in httpx.get(f"{service.server}/v1/kinds").text,
            "the kind is published",
        )
        serialised = {"limit": 1, "why": "one after the other"}
        httpx.patch(f"{service.server}/v1/queues/counting", json=serialised).raise_for_status()
        asked = {}
        for day in DAYS:
            try:
                given = place.parameters(business_date=day)
                asked[day] = client.request("counting", given, key=keys[day]).id
            except ServiceUnavailableError:
                assert part == "front end"
                break
    if part == "front end":
        assert doomed.wait(60) == -signal.SIGKILL
        # It died with the call; the caller asks the next one, by the same keys.
        service.serve()
    elif part == "router":
        assert doomed.wait(60) == -signal.SIGKILL
        service.route()
    with service.client() as client:
        for day in DAYS:
            given = place.parameters(business_date=day)
            stored = client.request("counting", given, key=keys[day]).id
            assert asked.setdefault(day, stored) == stored
        first = service.work(failpoint=point if part == "node" else "")
        if part == "node":
            assert first.wait(120) == -signal.SIGKILL
        service.work()
        found = [service.ended(client, request) for request in asked.values()]
    assert [request.state for request in found] == [RequestState.SUCCESS] * 2, service.told()
    requests = httpx.get(f"{service.server}/v1/requests").json()["items"]
    assert len(requests) == len(DAYS)
    check_runs(place, len(DAYS))
    check_one_at_a_time(place)


def check_runs(place: Place, count: int) -> None:
    """Each instance has one run, one attempt of which has published."""
    runs = place.runs.list("counting")
    assert len(runs) == count
    for run in runs:
        assert run.status is RunStatus.SUCCESS
        assert [str(attempt.outcome) for attempt in run.attempts] == ["SUCCESS"]
        ends = [event for event in place.runs.events(run.id) if event.to_status is not None]
        assert [event.to_status for event in ends].count(RunStatus.SUCCESS) == 1


def check_one_at_a_time(place: Place) -> None:
    """No two runs were at work at the same time, by the times of their attempts."""
    times = sorted(
        (attempt.started_at, attempt.ended_at)
        for run in place.runs.list("counting")
        for attempt in run.attempts
    )
    for (_, ended), (started, _) in itertools.pairwise(times):
        assert ended is not None
        assert ended <= started
