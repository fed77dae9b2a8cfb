"""Calls that no well-behaved client makes are refused as its fault, and harm nobody else."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.service.test_request_database import NOON
from tests.support.racers import play, submitted

from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.settings import Settings
from ledgerbeam.service.model import KindRecord
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.web.app import create_app

NINES = b"9" * 5_000


@pytest.fixture
def client(registry: Registry, registry_url: str, tmp_path: Path) -> Iterator[TestClient]:
    dispatch = Dispatch(registry.database)
    policy = QueuePolicy()
    kind = KindRecord(
        name="counting", description="", parameters_schema={}, code_version="1", policy=policy,
        seen_at=NOON,
    )  # fmt: skip
    dispatch.publish([kind])
    app = create_app(Settings(registry_url, tmp_path, 30), needs_key=False)
    with TestClient(app, "http://localhost:8017") as client:
        yield client


def cursor(*place: int | str) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (r'"\ud800"', "half a character"),
        (r'{"\udfff": 1}', "half a character"),
        (r'[["a", {"b": "\ud800"}]]', "half a character"),
        ("NaN", "nan is no number of JSON"),
        ("-1e400", "-inf is no number of JSON"),
        ("[" * 900 + "]" * 900, "more than 64 deep"),
    ],
    ids=str,
)
def test_parameters_that_others_could_not_read_are_refused(
    client: TestClient, value: str, told: str
) -> None:
    body = f'{{"kind": "counting", "parameters": {{"a": {value}}}}}'
    given = client.post("/v1/requests", content=body, headers={"Content-Type": "application/json"})
    assert given.status_code == 400, given.text
    assert told in given.json()["detail"]
    # One that was stored would have broken every list that it is in.
    assert client.get("/v1/requests").json()["items"] == []


def test_what_is_odd_but_readable_is_stored_as_it_is(client: TestClient) -> None:
    parameters = {"nul": "\0", "\0": 0, "wide": "\U0001f600", "deep": [[[[]]]], "big": 10**300}
    given = client.post("/v1/requests", json={"kind": "counting", "parameters": parameters})
    assert given.status_code == 202, given.text
    (item,) = client.get("/v1/requests").json()["items"]
    assert item["parameters"] == parameters


@pytest.mark.parametrize(
    ("time", "told"),
    [
        ("9999-12-31T23:59:59-14:00", "out of the years 1 to 9999"),
        ("0001-01-01T00:00:00+14:00", "out of the years 1 to 9999"),
        ("1800000000", "give a time with its zone"),
        (1_800_000_000, "give a time with its zone"),
    ],
)
def test_a_time_is_written_out_and_within_the_calendar(
    client: TestClient, time: str | int, told: str
) -> None:
    given = client.post("/v1/requests", json={"kind": "counting", "start_by": time})
    assert given.status_code == 400, given.text
    assert told in given.json()["detail"]
    assert client.get("/v1/runs", params={"since": time}).status_code == 400


@pytest.mark.parametrize("place", [-1, 2**63, 10**30])
@pytest.mark.parametrize("path", ["/v1/requests", "/v1/audit", "/v1/runs/{run}/rejects"])
def test_a_cursor_out_of_range_is_no_cursor(
    client: TestClient, registry: Registry, place: int, path: str
) -> None:
    path = path.format(run=submitted(registry).id)
    given = client.get(path, params={"cursor": cursor(place)})
    assert given.status_code == 400, given.text


@pytest.mark.parametrize("number", [b"\xb2", NINES])
def test_odd_numbers_in_headers_are_none(
    client: TestClient, registry: Registry, number: bytes
) -> None:
    run = submitted(registry).id
    waited = client.get(f"/v1/runs/{run}", headers={b"Prefer": b"wait=" + number})
    assert waited.status_code == 200
    matched = client.post(f"/v1/runs/{run}/pause", headers={b"If-Match": number})
    assert matched.status_code == 400
    canceled = client.post(f"/v1/runs/{run}/cancel")
    assert canceled.json()["status"] == "CANCELED", canceled.text
    path = f"/v1/runs/{run}/events"
    followed = client.get(path, headers={b"Last-Event-ID": number})
    assert followed.text.startswith("id: 1\n")


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("set-parallelism", {"parallelism": True}),
        ("set-parallelism", {"parallelism": "4"}),
        ("set-rate", {"rate": False}),
        ("set-rate", {"rate": "10"}),
        ("approve", {"approval": True}),
    ],
)
def test_nothing_is_taken_for_a_number_that_is_none(
    client: TestClient, registry: Registry, verb: str, body: dict[str, object]
) -> None:
    given = client.post(f"/v1/runs/{submitted(registry).id}/{verb}", json=body)
    assert given.status_code == 400, given.text
    submission = {"kind": "counting", "priority": True}
    assert client.post("/v1/requests", json=submission).status_code == 400
    # In JSON, 2.0 is a whole number.
    assert client.patch("/v1/queues/counting", json={"limit": 2.0}).status_code == 200
    for change in ({"limit": True}, {"lost_nodes": True}, {"held": 1}, {"held": "no"}):
        assert client.patch("/v1/queues/counting", json=change).status_code == 400


def test_methods_that_an_address_has_are_all_named(client: TestClient) -> None:
    for path, methods in (
        ("/v1/requests", "GET, POST"),
        ("/v1/queues/counting", "GET, PATCH"),
        ("/v1/runs/1/cancel", "POST"),
        ("/v1/openapi.json", "GET, HEAD"),
    ):
        given = client.delete(path)
        assert given.status_code == 405
        assert sorted(given.headers["Allow"].split(", ")) == methods.split(", ")


def test_the_document_says_what_is_answered(client: TestClient) -> None:
    document = client.get("/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    retry = document["paths"]["/v1/runs/{run}/retry"]["post"]["responses"]
    assert set(retry) == {
        *("202", "400", "401", "403", "404", "409", "410", "412", "413", "422", "502", "503")
    }
    assert set(retry["404"]["content"]) == {"application/problem+json"}
    assert set(retry["202"]["headers"]) == {"Location", "ETag"}
    link = retry["202"]["links"]["get_v1_runs__run__get"]
    assert link["parameters"] == {"path.run": "$response.body#/run_id"}
    change = document["components"]["schemas"]["QueueChange"]["properties"]
    assert change["held"] == {"type": "boolean", "title": "Held"}
    assert change["lost_nodes"] == {"type": "integer", "minimum": 1, "title": "Lost Nodes"}
    assert client.patch("/v1/queues/counting", json={"held": None}).status_code == 400


def test_a_retry_that_is_sent_twice_is_one_however_far_it_has_come(
    client: TestClient, registry: Registry
) -> None:
    run = submitted(registry).id
    play(registry, run, "start fail")
    path, key = f"/v1/runs/{run}/retry", {"Idempotency-Key": "night-7"}
    first = client.post(path, headers=key)
    assert first.status_code == 202, first.text
    play(registry, run, "retry start")
    again = client.post(path, headers=key)
    assert again.status_code == 202, again.text
    assert again.json()["id"] == first.json()["id"]
    assert client.post(path, headers={"Idempotency-Key": "another"}).status_code == 409
    other = client.post(path, headers=key, json={"why": "another reason"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-conflict")
