"""Verbs that need more than a registry, over a service: replace, give up, fill in many days."""

import dataclasses
from collections.abc import Iterator

import httpx
import pytest
from tests.support.json_lines import lines_of
from tests.support.recorded import NewPlace, held, job_of, until
from tests.support.service import Service, service_of

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.model.run import AttemptOutcome
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io import machine
from ledgerbeam.io.errors import (
    AlreadyPublishedError,
    ApprovalNeededError,
    IllegalMoveError,
    ParameterError,
)
from ledgerbeam.service.client import Client
from ledgerbeam.service.model import Role
from ledgerbeam.service.store.keys import Keys

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lease() -> float:
    return 8.0


@pytest.fixture
def service(new_place: NewPlace, lease: float) -> Iterator[Service]:
    with service_of(new_place(), lease) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    service.serve()
    service.route()
    with service.client() as client:
        yield client


def test_a_run_that_goes_on_is_replaced_also_in_a_queue_that_serves_one(
    service: Service, client: Client
) -> None:
    place = service.place
    place.set("hold")
    service.work("--slots=2")
    first = client.submit("counting", place.parameters(max_rejects=0))
    one = {"limit": 1, "why": "one after the other"}
    httpx.patch(f"{service.server}/v1/queues/counting", json=one).raise_for_status()
    until(place.calls, "the first call")
    with pytest.raises(ParameterError, match="say why"):
        client.submit("counting", place.parameters(), replace=True)
    place.unset("hold")
    second = client.submit("counting", place.parameters(), replace=True, why="three are bad")
    assert second.id != first.id
    assert client.wait(second.id).run.status is RunStatus.SUCCESS
    assert client.get(first.id).run.status in (RunStatus.CANCELED, RunStatus.FAILURE)
    (submitted, *_) = client.events(second.id)
    assert (submitted.why, submitted.detail["replaces"]) == ("three are bad", first.id)
    with pytest.raises(AlreadyPublishedError):
        client.submit("counting", place.parameters(shards=2), replace=True, why="again")


def test_what_replaces_is_approved_by_a_second_person(service: Service, client: Client) -> None:
    place = dataclasses.replace(service.place, process="approved")
    service.work("--kinds=approved")
    keys = Keys(place.runs.registry.database)
    made = {
        name: keys.create(name, {"*": Role.APPROVER}, who="root", at=utc_now())
        for name in ("ann", "bob")
    }
    with Client(service.server, made["ann"]) as ann, Client(service.server, made["bob"]) as bob:
        wrong = ann.submit("approved", place.parameters(max_rejects=0))
        assert ann.wait(wrong.id).run.status is RunStatus.FAILURE
        with pytest.raises(ApprovalNeededError, match="another person approves it"):
            ann.submit("approved", place.parameters(), replace=True, why="three are bad")
        right = bob.approve(wrong.id)
        assert right.id != wrong.id
        assert bob.wait(right.id).run.status is RunStatus.SUCCESS


def test_an_attempt_whose_machine_is_gone_is_given_up_by_a_node(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = service.place
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv(machine.HOST, "elsewhere")
        run, launcher = held(place)
    for process in (launcher, job_of(run)):
        process.kill()
    launcher.wait()
    place.unset("hold")
    service.work()
    with pytest.raises(ParameterError, match="say why it is forced"):
        client.restart(run.id, force=True)
    client.restart(run.id, "its machine burnt down", force=True)
    view = client.wait(run.id)
    assert view.run.status is RunStatus.SUCCESS
    assert [attempt.outcome for attempt in view.run.attempts] == [
        AttemptOutcome.LOST,
        AttemptOutcome.SUCCESS,
    ]
    with pytest.raises(IllegalMoveError):
        client.restart(run.id, "again", force=True)


def test_many_days_are_filled_in_and_the_audit_is_checked(service: Service, client: Client) -> None:
    place = service.place
    service.work("--slots=2")
    at = f"--server={service.server}"
    given = [f for f in place.flags() if not f.startswith("--business-date")]
    days = ["--from=2026-11-05", "--to=2026-11-09", "--in-flight=2"]
    filled = place.command("backfill", "counting", *days, *given, at, "--json")
    assert filled.returncode == 0, filled.stderr
    found = {line["business_date"] for line in lines_of(filled.stdout)}
    assert found == {"2026-11-05", "2026-11-06", "2026-11-09"}
    printed = place.command("audit", "--all", at, "--json")
    entries = lines_of(printed.stdout)
    actions = [entry["action"] for entry in entries]
    assert actions.count("run.submitted") == actions.count("request.success") == 3
    behind = place.command("audit", "--all", f"--after={len(entries) - 1}", at, "--json")
    assert lines_of(behind.stdout)[:1] == entries[-1:]
    checked = place.command("audit", "--verify", f"--head={entries[-1]['sha256']}", at, "--json")
    (chain,) = lines_of(checked.stdout)
    assert chain["entries"] >= len(entries)
    wrong = place.command("audit", "--verify", "--all", at)
    assert "give a RUN, or --all, or --verify" in wrong.stderr
