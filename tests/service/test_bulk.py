"""Actions on many: what they find, who may have them done, and that each target is reached once."""

import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from tests.service.front_ends import KIND, SCHEMA, NewKey, problem
from tests.service.test_request_database import NOON, at_once
from tests.support.json_lines import lines_of
from tests.support.racers import play, submitted
from tests.support.recorded import NewPlace, until
from tests.support.service import Service, service_of

from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.service.bulk import BulkAsk, BulkState, BulkTarget, TargetState
from ledgerbeam.service.model import KindRecord, RequestState, Role, Submission, Verb
from ledgerbeam.service.router import Router
from ledgerbeam.service.store.bulk import Bulks, Chosen
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.store.intake import Intake
from ledgerbeam.service.store.keys import Keys
from ledgerbeam.service.web.app import create_app

DAYS = [f"2026-11-{day:02}" for day in range(2, 7)]


class Bench:
    """A registry with a router that acts when it is told to."""

    def __init__(self, settings: Settings) -> None:
        self.runs = Runs(settings)
        self.registry = self.runs.registry
        self.database = self.registry.database
        self.intake = Intake(self.database)
        self.dispatch = Dispatch(self.database)
        self.bulks = Bulks(self.database)
        self.router = Router(self.runs, lambda: NOON)
        self.publish(KIND)
        self.publish("close", approvals=("bulk",))

    def publish(self, name: str, approvals: tuple[str, ...] = ()) -> None:
        record = KindRecord(
            name=name,
            description="",
            parameters_schema=SCHEMA,
            code_version="1",
            policy=QueuePolicy(),
            approvals=approvals,
            seen_at=NOON,
        )
        self.dispatch.publish([record])

    def expired(self, kind: str = KIND, who: str = "ada") -> str:
        """A request that no node was free for."""
        asked, _ = self.intake.accept(Submission(kind=kind, start_by=NOON), who=who, at=NOON)
        assert self.dispatch.admit([asked.id], "router", NOON)
        late = NOON.replace(hour=13)
        self.dispatch.take([kind], 1, node="n", now=late, lease_until=late)
        assert self.intake.get(asked.id).state is RequestState.EXPIRED
        return asked.id

    def act(self) -> int:
        reached = 0
        while now := self.router._act():
            reached += now
        return reached


@pytest.fixture
def bench(registry_url: str, registry: Registry, tmp_path: Any) -> Iterator[Bench]:
    bench = Bench(Settings(registry_url, tmp_path, 30))
    yield bench
    bench.registry.close()


@pytest.fixture
def local(bench: Bench) -> Iterator[TestClient]:
    app = create_app(bench.runs._settings, needs_key=False)
    with TestClient(app, "http://localhost:8017") as client:
        yield client


@pytest.fixture
def guarded(bench: Bench) -> Iterator[TestClient]:
    app = create_app(bench.runs._settings, needs_key=True)
    with TestClient(app, "http://batch.example.com") as client:
        yield client


@pytest.fixture
def new_key(bench: Bench) -> NewKey:
    def make(name: str = "ada", **roles: str) -> dict[str, str]:
        given = {kind.replace("_", "-").replace("all", "*"): Role(r) for kind, r in roles.items()}
        key = Keys(bench.database).create(name, given, who="root", at=NOON)
        return {"Authorization": f"Bearer {key}"}

    return make


def asked(of: str, verb: str, **which: Any) -> dict[str, Any]:
    return {"of": of, "verb": verb, "filter": which, "why": "the feed was late"}


def test_a_dry_run_says_what_would_be_touched_and_touches_nothing(
    bench: Bench, local: TestClient
) -> None:
    open_runs = [submitted(bench.registry).id for _ in range(3)]
    ended = submitted(bench.registry).id
    play(bench.registry, ended, "start fail")
    shown = local.post("/v1/bulk/dry-run", json=asked("runs", "cancel", kind=KIND)).json()
    assert (shown["count"], shown["kinds"], shown["approval"]) == (3, {KIND: 3}, False)
    assert {target["id"] for target in shown["targets"]} == set(open_runs)
    assert bench.act() == 0
    assert local.get("/v1/bulk").json()["items"] == []
    assert bench.registry.get(open_runs[0]).status is RunStatus.INITIATED


def test_runs_are_canceled_and_each_says_by_which_action(bench: Bench, local: TestClient) -> None:
    ids = [submitted(bench.registry).id for _ in range(3)]
    answer = local.post("/v1/bulk", json=asked("runs", "cancel", kind=KIND))
    assert answer.status_code == 202
    place = answer.headers["Location"]
    assert answer.json()["targets"] == {"PENDING": 3}
    ended = bench.runs.cancel(ids[1], "by hand, meanwhile").id
    bench.act()
    found = local.get(place, headers={"Prefer": "wait=1"}).json()
    assert (found["state"], found["targets"]) == ("DONE", {"DONE": 2, "SKIPPED": 1})
    left = local.get(f"{place}/targets", params={"state": "SKIPPED"}).json()["items"]
    assert [target["id"] for target in left] == [ended]
    assert "is CANCELED already" in left[0]["told"]
    for run in (ids[0], ids[2]):
        last = bench.registry.events(run)[-1]
        assert (last.to_status, last.why) == (RunStatus.CANCELED, "the feed was late")
        assert last.detail == {"bulk": found["id"]}
    audit = local.get("/v1/audit", params={"subject": found["id"]}).json()["items"]
    assert [entry["action"] for entry in audit] == ["bulk.done", "bulk.asked"]
    assert audit[0]["detail"]["counts"] == {"DONE": 2, "SKIPPED": 1}


def test_failed_runs_are_retried_by_a_request_each(bench: Bench, local: TestClient) -> None:
    failed, again = (submitted(bench.registry).id for _ in range(2))
    play(bench.registry, failed, "start fail")
    play(bench.registry, again, "start fail")
    local.post("/v1/bulk", json=asked("runs", "retry", status="FAILURE")).raise_for_status()
    # What is meant is the failure that was seen, not one of an attempt since.
    play(bench.registry, again, "retry start fail")
    bench.act()
    (target, other) = bench.bulks.targets(
        local.get("/v1/bulk").json()["items"][0]["id"]
    ).items  # newest run first
    assert (target.id, target.state) == (again, TargetState.SKIPPED)
    assert "attempted again since" in str(target.told)
    assert (other.id, other.state) == (failed, TargetState.DONE)
    request = bench.intake.get(str(other.request_id))
    assert (request.verb, request.run_id) == (Verb.RETRY, failed)
    assert request.parameters == {"after": bench.registry.events(failed)[-1].sequence}


def test_requests_are_redriven_canceled_and_queues_released(
    bench: Bench, local: TestClient
) -> None:
    ids = {bench.expired() for _ in range(3)}
    local.post("/v1/bulk", json=asked("requests", "redrive", kind=KIND)).raise_for_status()
    bench.act()
    assert {bench.intake.get(id_).state for id_ in ids} == {RequestState.RECEIVED}
    local.post("/v1/bulk", json=asked("requests", "cancel", requester="ada")).raise_for_status()
    bench.act()
    assert {bench.intake.get(id_).state for id_ in ids} == {RequestState.CANCELED}
    held = {"held": True, "why": "storage is full"}
    local.patch(f"/v1/queues/{KIND}", json=held).raise_for_status()
    shown = local.post("/v1/bulk/dry-run", json=asked("queues", "release")).json()
    assert [target["id"] for target in shown["targets"]] == [KIND]
    local.post("/v1/bulk", json=asked("queues", "release")).raise_for_status()
    bench.act()
    assert bench.intake.queue(KIND).held_why is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (asked("runs", "redrive", kind=KIND), "there is no redrive of runs"),
        (asked("runs", "cancel"), "a filter is missing"),
        (asked("runs", "cancel", state="QUEUED"), "runs have no filter state"),
        (asked("runs", "cancel", kind=KIND) | {"why": ""}, "why"),
        (asked("runs", "cancel", kind=KIND, color="red"), "color"),
    ],
)
def test_what_cannot_be_meant_is_refused(local: TestClient, given: Any, told: str) -> None:
    assert told in problem(local.post("/v1/bulk", json=given), 400, "bad-request")["detail"]


def test_what_has_changed_since_the_dry_run_is_a_412(bench: Bench, local: TestClient) -> None:
    submitted(bench.registry)
    given = asked("runs", "cancel", kind=KIND)
    seen = {"If-Match": local.post("/v1/bulk/dry-run", json=given).headers["ETag"]}
    submitted(bench.registry)
    problem(local.post("/v1/bulk", json=given, headers=seen), 412, "changed-meanwhile")
    seen = {"If-Match": local.post("/v1/bulk/dry-run", json=given).headers["ETag"]}
    assert local.post("/v1/bulk", json=given, headers=seen).status_code == 202


def test_sent_twice_it_is_one_action(bench: Bench, local: TestClient) -> None:
    submitted(bench.registry)
    given, key = asked("runs", "cancel", kind=KIND), {"Idempotency-Key": "k"}
    first = local.post("/v1/bulk", json=given, headers=key).json()
    bench.act()
    # What it has reached by then, it wouldn't find any more.
    again = local.post("/v1/bulk", json=given, headers=key | {"If-Match": '"7"'})
    assert (again.json()["id"], again.json()["state"]) == (first["id"], "DONE")
    other = asked("runs", "retry", kind=KIND)
    problem(local.post("/v1/bulk", json=other, headers=key), 422, "idempotency-conflict")
    assert len(local.get("/v1/bulk").json()["items"]) == 1


def test_what_a_definition_wants_approved_waits_for_another_person(
    bench: Bench, guarded: TestClient, new_key: NewKey
) -> None:
    run = submitted(bench.registry, process="close").id
    ada, bob = new_key("ada", close="approver"), new_key("bob", close="approver")
    given = asked("runs", "cancel", kind="close")
    stored = guarded.post("/v1/bulk", json=given, headers=ada)
    place, etag = f"/v1/bulk/{stored.json()['id']}", stored.headers["ETag"]
    assert stored.json()["state"] == "WAITING"
    assert bench.act() == 0
    problem(guarded.post(f"{place}/approve", headers=ada), 403, "same-person")
    carl = new_key("carl", close="operator")
    problem(guarded.post(f"{place}/approve", headers=carl), 403, "access-denied")
    approved = guarded.post(f"{place}/approve", headers=bob | {"If-Match": etag})
    assert (approved.json()["state"], approved.json()["approved_by"]) == ("RUNNING", "bob")
    problem(
        guarded.post(f"{place}/approve", headers=bob | {"If-Match": etag}), 412, "changed-meanwhile"
    )
    bench.act()
    last = bench.registry.events(run)[-1]
    assert (last.who, last.to_status) == ("ada", RunStatus.CANCELED)
    assert last.detail["approved_by"] == "bob"
    problem(guarded.post(f"{place}/cancel", headers=ada), 409, "request-state")


def test_what_is_refused_or_stopped_does_nothing_more(bench: Bench, local: TestClient) -> None:
    run = submitted(bench.registry, process="close").id
    given = asked("runs", "cancel", kind="close")
    refused = local.post("/v1/bulk", json=given).json()["id"]
    local.post(f"/v1/bulk/{refused}/refuse", json={"why": "not tonight"}).raise_for_status()
    submitted(bench.registry)
    stopped = local.post("/v1/bulk", json=asked("runs", "cancel", kind=KIND)).json()["id"]
    answer = local.post(f"/v1/bulk/{stopped}/cancel").json()
    assert (answer["state"], answer["targets"]) == ("CANCELED", {"PENDING": 1})
    assert bench.act() == 0
    assert bench.registry.get(run).status is RunStatus.INITIATED


def test_each_target_has_to_be_one_that_the_caller_may_change(
    bench: Bench, guarded: TestClient, new_key: NewKey
) -> None:
    submitted(bench.registry)
    submitted(bench.registry, process="close")
    mixed = new_key("ada", all="viewer", close="operator")
    everything = asked("runs", "cancel", status="INITIATED")
    problem(guarded.post("/v1/bulk/dry-run", json=everything, headers=mixed), 403, "access-denied")
    given = asked("runs", "cancel", kind="close")
    assert guarded.post("/v1/bulk/dry-run", json=given, headers=mixed).json()["count"] == 1
    # Who has sent requests may withdraw them, as one by one.
    bench.intake.accept(Submission(kind=KIND), who="eve", at=NOON)
    eve = new_key("eve", delivery_marking="submitter")
    own = asked("requests", "cancel", requester="eve")
    assert guarded.post("/v1/bulk", json=own, headers=eve).status_code == 202
    bench.intake.accept(Submission(kind=KIND), who="ada", at=NOON)
    others = asked("requests", "cancel", kind=KIND)
    problem(guarded.post("/v1/bulk", json=others, headers=eve), 403, "access-denied")
    problem(guarded.get("/v1/bulk/none", headers=eve), 404, "bulk-not-found")


def test_of_routers_that_race_one_reaches_each_target(bench: Bench) -> None:
    ids = [bench.expired() for _ in range(30)]
    chosen = [Chosen(BulkTarget(id=id_, kind=KIND, name="")) for id_ in ids]
    given = BulkAsk.model_validate(asked("requests", "redrive", kind=KIND))
    action = bench.bulks.ask(given, chosen, who="ada", at=NOON, waits=False)

    def race(number: int) -> int:
        reached = 0
        while bench.bulks.get(action.id).state is BulkState.RUNNING:
            reached += bench.bulks.reach(action.sequence, NOON, f"router {number}")
        return reached

    # One of them counts the end, too.
    assert sum(at_once(4, race)) == len(ids) + 1
    found = bench.bulks.get(action.id)
    assert (found.state, found.targets) == (BulkState.DONE, {TargetState.DONE: len(ids)})
    entries = bench.intake.audit(limit=1000).items
    redriven = [entry.subject for entry in entries if entry.action == "request.redriven"]
    assert sorted(redriven) == sorted(ids)
    assert [entry.action for entry in entries].count("bulk.done") == 1


@pytest.fixture
def service(new_place: NewPlace) -> Iterator[Service]:
    with service_of(new_place(), 5) as service:
        yield service


@pytest.mark.parametrize("point", ["bulk: before commit of a target", "bulk: reached a target"])
@pytest.mark.slow
def test_another_router_goes_on_where_one_was_killed(service: Service, point: str) -> None:
    place = service.place
    ids = [place.record(business_date=day).id for day in DAYS]
    service.serve()
    doomed = service.route(failpoint=point)
    with service.client() as client:
        until(lambda: "counting" in httpx.get(f"{service.server}/v1/kinds").text, "the kind")
        action = client.bulk("runs", "cancel", "a wrong file", kind="counting").id
        assert doomed.wait(60) == -signal.SIGKILL
        service.route()
        until(lambda: client.get_bulk(action, wait=5).ended_at, "its end")
        assert client.get_bulk(action).targets == {TargetState.DONE: len(DAYS)}
        assert [target.id for target in client.bulk_targets(action)] == ids[::-1]
    for run in ids:
        moves = [e for e in place.runs.registry.events(run) if e.detail.get("bulk") == action]
        assert [move.to_status for move in moves] == [RunStatus.CANCELED]


@pytest.mark.slow
def test_the_command_line_acts_on_many(service: Service) -> None:
    place = service.place
    for day in DAYS:
        place.record(business_date=day)
    service.serve()
    service.route()
    given = [f"--server={service.server}", "--kind=counting", "--why=a wrong file"]
    shown = place.command("bulk", "cancel", *given, "--dry-run")
    assert shown.stdout.splitlines()[-1] == "cancel would touch 5 runs: 5 of counting"
    told = place.command("bulk", "cancel", *given, "--wait")
    action, words = told.stdout.split(maxsplit=1)
    assert words == "cancel runs DONE: 5 DONE\n"
    got = place.command("bulk", "get", action, "--targets=DONE", "--json", given[0])
    found, *targets = lines_of(got.stdout)
    assert (found["id"], found["state"]) == (action, "DONE")
    assert [target["state"] for target in targets] == ["DONE"] * len(DAYS)
    wrong = place.command("bulk", "cancel", given[0], "--why=x")
    assert wrong.returncode == 2
    assert "a filter is missing" in wrong.stderr
    nowhere = place.command("bulk", "list")
    assert "name one by --server" in nowhere.stderr
    with service.client() as client, pytest.raises(ParameterError, match="there is no redrive"):
        client.bulk("runs", "redrive", "x", kind="counting")
