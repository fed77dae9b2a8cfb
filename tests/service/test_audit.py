"""The audit as an export: all that was done, by whom, in the order in which it was sealed."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.service.front_ends import KIND, NewKey, problem
from tests.service.front_ends import guarded as guarded
from tests.service.front_ends import local as local
from tests.service.front_ends import new_key as new_key
from tests.service.front_ends import registry as registry
from tests.service.front_ends import settings as settings
from tests.service.test_request_database import NOON
from tests.support.racers import submitted

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.settings import Settings
from ledgerbeam.service.model import Submission
from ledgerbeam.service.store.intake import Intake

LINES = {"Accept": "application/x-ndjson"}


@pytest.fixture
def runs(settings: Settings, registry: Registry) -> Iterator[Runs]:
    with Runs(settings, who="ada", now=lambda: NOON) as runs:
        yield runs


def lines(client: TestClient, headers: dict[str, str] | None = None, **asked: Any) -> list[Any]:
    answer = client.get("/v1/audit", params=asked, headers=LINES | (headers or {}))
    assert answer.headers["content-type"].startswith("application/x-ndjson"), answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_it_has_runs_and_requests_in_one_order(runs: Runs, local: TestClient) -> None:
    run = submitted(runs.registry)
    runs.cancel(run.id, "a wrong file")
    asked, _ = Intake(runs.registry.database).accept(Submission(kind=KIND), who="bob", at=NOON)
    found = lines(local)
    assert [(e["who"], e["action"], e["subject"]) for e in found] == [
        ("ada@bank", "run.submitted", run.id),
        ("ada", "run.status", run.id),
        ("bob", "request.received", asked.id),
    ]
    canceled = found[1]
    assert (canceled["name"], canceled["kind"]) == (run.name, run.process)
    assert (canceled["why"], canceled["detail"]) == (
        "a wrong file",
        {"from": RunStatus.INITIATED, "to": RunStatus.CANCELED},
    )
    assert [e["number"] for e in found] == [1, 2, 3]
    assert local.get("/v1/audit/chain").json() == {
        "entries": 3,
        "unsealed": 0,
        "head": found[-1]["sha256"],
    }


def test_whoever_goes_on_behind_the_last_one_misses_none(runs: Runs, local: TestClient) -> None:
    submitted(runs.registry)
    (first,) = lines(local)
    assert lines(local, after=first["number"]) == []
    other = submitted(runs.registry)
    (second,) = lines(local, after=first["number"])
    assert second["subject"] == other.id
    assert [entry.model_dump(mode="json") for entry in runs.audit(1)] == [second]
    assert lines(local, since="2100-01-01T00:00:00Z") == []


def test_as_csv_it_has_the_same_fields(runs: Runs, local: TestClient) -> None:
    empty = local.get("/v1/audit", headers={"Accept": "text/csv"})
    assert empty.text.startswith("number,at,who,action")
    run = submitted(runs.registry)
    runs.cancel(run.id, 'he said "stop",\nand went')
    text = local.get("/v1/audit", headers={"Accept": "text/csv"}).text
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    as_json = lines(local)
    assert [row["sha256"] for row in found] == [entry["sha256"] for entry in as_json]
    assert found[1]["why"] == as_json[1]["why"]
    assert json.loads(found[1]["detail"]) == as_json[1]["detail"]


def test_of_kinds_that_one_may_not_see_nothing_is_exported(
    runs: Runs, guarded: TestClient, new_key: NewKey
) -> None:
    mine = submitted(runs.registry, process=KIND)
    submitted(runs.registry, process="other")
    ada = new_key("ada", delivery_marking="viewer")
    assert [e["subject"] for e in lines(guarded, ada)] == [mine.id]
    problem(
        guarded.get("/v1/audit", params={"kind": "other"}, headers=LINES | ada),
        403,
        "access-denied",
    )
    problem(guarded.get("/v1/audit/chain", headers=ada), 403, "access-denied")


def test_what_was_changed_is_told(runs: Runs, local: TestClient) -> None:
    submitted(runs.registry)
    head = lines(local)[-1]["sha256"]
    assert local.get("/v1/audit/chain", params={"head": head}).status_code == 200
    told = problem(
        local.get("/v1/audit/chain", params={"head": "0" * 63 + "1"}), 409, "audit-mismatch"
    )
    assert "none of 1 entries has the hash" in told["detail"]
