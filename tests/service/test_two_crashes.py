"""The service, killed with -9 at two points of one night, whatever processes reach them.

Points of the front end, the router, the node, the launcher and the attempt's process; and the
database and the object store, which die when another one does. Whatever died is started again, as
by systemd, and the callers ask again by the same keys: no request that was accepted is lost, no run
is published twice, and of a kind that is served in order never two run at once.

The suite tries a few pairs. `LEDGERBEAM_PAIRS=all` tries all of them, `LEDGERBEAM_PAIRS=40` so many
by chance.
"""

import itertools
import os
import random
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx
import pytest
from tests.service.test_service_crashes import DAYS, check_one_at_a_time
from tests.service.test_service_crashes import failpoints as failpoints_of_service
from tests.support.object_stores import (
    ENDPOINT,
    FaultyProxy,
    faulty_proxy,
)
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.recorded import ACCOUNTS, TIMEOUT, NewPlace, Place
from tests.support.service import Service, service_of

from ledgerbeam.batch.model.run import AttemptOutcome
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.errors import UserError
from ledgerbeam.service.model import RequestRecord, RequestState

pytestmark = pytest.mark.slow

PAIRS = os.environ.get("LEDGERBEAM_PAIRS")
DATABASE = "database"
STORE = "object store"
OUTAGE_SECONDS = 3.0
"""How long the object store doesn't answer."""
OF_LAUNCHER = (
    *("submit: recorded", "spawn: recorded", "spawn: started", "launcher: begun"),
    *("launcher: claimed", "launcher: workers steered", "launcher: job started"),
    *("job: reported", "launcher: job recorded", "job: started", "run: started", "run: published"),
    *("launcher: job ended", "launcher: concluded", "launcher: end recorded"),
)
POINTS = (*failpoints_of_service(), *OF_LAUNCHER, DATABASE, STORE)
OF_SUITE = [
    ("accept: stored", "route: before commit"),
    ("take: before commit", "launcher: concluded"),
    ("work: recorded", "finish: before commit"),
    ("run: published", DATABASE),
    ("job: started", STORE),
    (DATABASE, STORE),
]
OF_NODE = "work: launched"
Pair = tuple[str, str]


class Store(NamedTuple):
    """A bucket, and the network to it."""

    bucket: str
    network: FaultyProxy


def pairs() -> list[Pair]:
    found = list(itertools.combinations(POINTS, 2))
    if PAIRS is None:
        return OF_SUITE
    return found if PAIRS == "all" else random.sample(found, int(PAIRS))


@pytest.fixture(scope="module")
def lease() -> float:
    return 5.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A database of its own, which may be killed, and keeps what it has said to be committed."""
    with postgres_server(["synchronous_commit = on"]) as server:
        yield server


@pytest.fixture(scope="module")
def store(gcs: str) -> Iterator[Store]:
    """The tests' object store, which processes of a service reach by a network that may fail."""
    with faulty_proxy(os.environ[ENDPOINT["gs"]]) as proxy:
        yield Store(gcs, proxy)


@pytest.fixture(scope="module")
def covered(request: pytest.FixtureRequest) -> Iterator[list[Pair]]:
    """The pairs of which both points were reached; printed at the end."""
    found: list[Pair] = []
    yield found
    points = {point for pair in found for point in pair}
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(
            f"\ntwo crashes: {len(points)} of {len(POINTS)} points, {len(found)} of "
            f"{len(POINTS) * (len(POINTS) - 1) // 2} pairs covered"
        )


@pytest.mark.parametrize("pair", pairs(), ids=" and ".join)
def test_nothing_is_lost_and_nothing_done_twice(
    new_place: NewPlace,
    lease: float,
    server: PostgresServer,
    request: pytest.FixtureRequest,
    covered: list[Pair],
    pair: Pair,
) -> None:
    store = request.getfixturevalue("store") if STORE in pair else None
    place = new_place(url=server.create_database())
    with service_of(place, lease) as service:
        night = Night(service, server, store, pair)
        found = night.until_ended()
        ends = [(request.state, request.error) for request in found]
        assert ends == [(RequestState.SUCCESS, None)] * 2, service.told()
        requests = httpx.get(f"{service.server}/v1/requests").json()["items"]
        assert len(requests) == len(DAYS)
    check_published_once(place)
    check_one_at_a_time(place)
    # A way that the first crash has cut off may not lead to the second point.
    reached = [point for point in pair if night.has_reached(point)]
    assert reached
    if len(reached) == len(pair):
        covered.append(pair)


class Night:
    """A service over which somebody watches, and two callers who want their runs."""

    def __init__(
        self, service: Service, server: PostgresServer, store: Store | None, pair: Pair
    ) -> None:
        self._service = service
        place = service.place
        self._output = str(place.folder / "output")
        if store is not None:
            self._output = f"{store.bucket}/{uuid.uuid4().hex}"
            service.environment[ENDPOINT["gs"]] = store.network.url
        # Where neither is a point of a process, both die with the node.
        self._armed = [point for point in pair if point not in {DATABASE, STORE}] or [OF_NODE]
        self._are_to_die: dict[str, Callable[[], None]] = {}
        if DATABASE in pair:
            self._are_to_die[DATABASE] = server.crash
        if store is not None:
            self._are_to_die[STORE] = lambda: store.network.go_down(OUTAGE_SECONDS)
        self._parts: dict[str, subprocess.Popen[str]] = {}
        self._asked: dict[str, str] = {}

    def until_ended(self) -> list[RequestRecord]:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            self._keep_up()
            try:
                found = self._ask()
            except (UserError, httpx.HTTPError):
                continue  # something is down, or hasn't come up yet
            if all(request.state.is_final for request in found):
                return found
            time.sleep(0.2)
        raise AssertionError(f"not at an end: {self._asked}: {self._service.told()}")

    def has_reached(self, point: str) -> bool:
        if point in {DATABASE, STORE}:
            return point not in self._are_to_die
        once = f"once.{point}" if len(self._armed) > 1 else "once"
        return (self._service.place.folder / once).exists()

    def _keep_up(self) -> None:
        """Start what has died."""
        if self._are_to_die and self.has_reached(self._armed[0]):
            while self._are_to_die:
                self._are_to_die.popitem()[1]()
        starts: dict[str, Callable[..., subprocess.Popen[str]]] = {
            "serve": self._service.serve,
            "route": self._service.route,
            "work": self._service.work,
        }
        for name, start in starts.items():
            part = self._parts.get(name)
            if part is None or part.poll() is not None:
                self._parts[name] = start(failpoint=",".join(self._armed))

    def _ask(self) -> list[RequestRecord]:
        """Ask for both runs, as callers do who don't know whether they were heard."""
        place = self._service.place
        with self._service.client() as client:
            queue = f"{self._service.server}/v1/queues/counting"
            serialised = {"limit": 1, "why": "one after the other"}
            if not self._asked:
                httpx.patch(queue, json=serialised, timeout=60).raise_for_status()
            for day in DAYS:
                given = place.parameters(business_date=day, output=self._output)
                stored = client.request("counting", given, key=f"key-{day}").id
                assert self._asked.setdefault(day, stored) == stored
            return [client.get_request(request) for request in self._asked.values()]


def check_published_once(place: Place) -> None:
    """Each instance has one run, which has published once, and what it was to."""
    runs = place.runs.list("counting")
    assert len(runs) == len(DAYS)
    for run in runs:
        assert run.status is RunStatus.SUCCESS
        outcomes = [attempt.outcome for attempt in run.attempts]
        assert outcomes.count(AttemptOutcome.SUCCESS) == 1, outcomes
        ends = [event.to_status for event in place.runs.events(run.id)]
        assert ends.count(RunStatus.SUCCESS) == 1
        assert place.runs.results(run.id).count_rows() == len(ACCOUNTS) - 1
