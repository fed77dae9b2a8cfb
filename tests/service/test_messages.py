"""Messages over REST: scheduled, canceled, moved, and done once however often they are called."""

import datetime
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from tests.service.test_request_database import NOON

from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.settings import REGISTRY, Settings
from ledgerbeam.io.failpoints import FAILPOINT
from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.cli.options import DATABASE
from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.store.database import MessageDatabase, create_sqlite_file
from ledgerbeam.messages.store.topics import declare_topic
from ledgerbeam.service.model import MAX_BODY, Role
from ledgerbeam.service.store.keys import Keys
from ledgerbeam.service.web.app import create_app

TOPIC = "payment-request-due"
PAST, FUTURE = "2026-11-20T08:00:00+00:00", "2099-11-20T08:00:00Z"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MessageDatabase]:
    url = f"sqlite:///{tmp_path}/messages.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("new_schema")()
    request.getfixturevalue("monkeypatch").setenv(DATABASE, url)
    create_sqlite_file(url)
    with MessageDatabase(url) as opened:
        opened.migrate()
        with opened.begin("topics") as connection:
            declare_topic(connection, TOPIC, "payer")
        yield opened


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(f"sqlite:///{tmp_path}/registry.db", tmp_path, 30)


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    with Registry.open(settings.registry_url) as registry:
        yield registry


@pytest.fixture
def service(
    database: MessageDatabase, settings: Settings, registry: Registry
) -> Iterator[TestClient]:
    with TestClient(create_app(settings, needs_key=False), "http://localhost:8017") as client:
        yield client


def body(**changes: Any) -> dict[str, Any]:
    message = {"request": "R1", "payer": "P1", "amount": "9.99"}
    return {"topic": TOPIC, "message": message, "due": PAST, "key": "R1"} | changes


def rows(database: MessageDatabase, columns: str = "id, key, state") -> list[tuple[Any, ...]]:
    with database.begin("messages") as connection:
        select = sa.text(f"SELECT {columns} FROM ledgerbeam_message ORDER BY id")
        return [tuple(row) for row in connection.execute(select)]


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    found = answer.json()
    assert (answer.status_code, found["code"]) == (status, code), found
    return str(found["detail"])


def test_a_message_is_scheduled_and_posted_when_it_is_due(
    service: TestClient, database: MessageDatabase
) -> None:
    first = service.post("/v1/messages", json=body(schema_version=3))
    assert first.status_code == 201
    service.post("/v1/messages", json=body(due=FUTURE, key="R2"))
    Scheduler(database).run(threading.Event(), once=True)
    with database.begin("the stream") as connection:
        select = "SELECT message_id, key, version, payload FROM ledgerbeam_stream"
        (posted,) = connection.exec_driver_sql(select).all()
    assert tuple(posted[:3]) == (first.json()["id"], "R1", 3)
    assert json.loads(posted.payload) == body()["message"]
    assert verify(database).differences == []


def test_a_message_is_due_by_the_clocks_of_a_place(
    service: TestClient, database: MessageDatabase
) -> None:
    local = {"date": "2027-01-31", "time": "08:00", "zone": "Australia/Sydney"}
    assert service.post("/v1/messages", json=body(due=local)).status_code == 201
    ((due, text),) = rows(database, "due, local")
    moment = datetime.datetime(2027, 1, 30, 21, tzinfo=datetime.UTC)
    assert due == int(moment.timestamp()) * 1_000_000
    assert json.loads(text)["zone"] == "Australia/Sydney"
    nowhere = service.post("/v1/messages", json=body(due=local | {"zone": "Mars"}))
    assert "there is no time zone" in refused(nowhere, 400, "bad-request")


def test_many_are_scheduled_or_none(service: TestClient, database: MessageDatabase) -> None:
    def entry(number: int, **message: Any) -> dict[str, Any]:
        fields = {"payer": f"P{number}"} | message
        return {"message": fields, "due": FUTURE, "key": f"R{number}"}

    many = {"topic": TOPIC, "messages": [entry(number) for number in range(500)]}
    done = service.post("/v1/messages/batch", json=many)
    assert (done.status_code, done.json()) == (201, {"scheduled": 500})
    wrong = {"topic": TOPIC, "messages": [entry(1), entry(2, payer=None)]}
    refused(service.post("/v1/messages/batch", json=wrong), 422, "invalid-parameter")
    assert len(rows(database)) == 500
    too_many = {"topic": TOPIC, "messages": [{"message": {"payer": "P"}, "due": FUTURE}] * 1_001}
    refused(service.post("/v1/messages/batch", json=too_many), 400, "bad-request")
    large = {"topic": TOPIC, "messages": [entry(1, text="x" * MAX_BODY)]}
    refused(service.post("/v1/messages/batch", json=large), 413, "body-too-large")


def test_messages_are_canceled_and_moved_by_their_key(
    service: TestClient, database: MessageDatabase
) -> None:
    service.post("/v1/messages", json=body(due=FUTURE))
    service.post("/v1/messages", json=body(due=FUTURE, key="R2"))
    other = {"topic": TOPIC, "key": "R1"}
    assert service.post("/v1/messages/cancel", json=other).json() == {"canceled": 1}
    assert service.post("/v1/messages/cancel", json=other).json() == {"canceled": 0}
    move = {"topic": TOPIC, "key": "R2", "due": FUTURE, "to": PAST}
    assert service.post("/v1/messages/reschedule", json=move).json() == {"moved": 1}
    Scheduler(database).run(threading.Event(), once=True)
    with database.begin("the stream") as connection:
        keys = connection.exec_driver_sql("SELECT key FROM ledgerbeam_stream").scalars().all()
    assert keys == ["R2"]
    late = {"topic": TOPIC, "key": "R2", "to": FUTURE}
    assert service.post("/v1/messages/reschedule", json=late).json() == {"moved": 0}


@pytest.mark.parametrize("route", ["", "/batch", "/cancel", "/reschedule"])
def test_what_is_called_twice_is_done_once(
    route: str, service: TestClient, database: MessageDatabase
) -> None:
    service.post("/v1/messages", json=body(due=FUTURE))
    bodies = {
        "": body(),
        "/batch": {"topic": TOPIC, "messages": [{"message": {"payer": "P"}, "due": FUTURE}]},
        "/cancel": {"topic": TOPIC, "key": "R1"},
        "/reschedule": {"topic": TOPIC, "key": "R1", "to": "2098-11-20T08:00:00Z"},
    }
    key = {"Idempotency-Key": "call-1"}
    first = service.post(f"/v1/messages{route}", json=bodies[route], headers=key)
    stored = rows(database)
    again = service.post(f"/v1/messages{route}", json=bodies[route], headers=key)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert first.is_success
    assert 0 not in first.json().values()
    assert rows(database) == stored
    other = bodies[route] | {"topic": "another"}
    told = refused(
        service.post(f"/v1/messages{route}", json=other, headers=key), 422, "idempotency-conflict"
    )
    assert "give each call a key of its own" in told


def test_of_calls_at_the_same_time_with_a_key_one_is_done(
    service: TestClient, database: MessageDatabase
) -> None:
    def call(_: int) -> int:
        key = {"Idempotency-Key": "at once"}
        answer = service.post("/v1/messages", json=body(), headers=key)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    with ThreadPoolExecutor(6) as pool:
        numbers = set(pool.map(call, range(24)))
    assert len(numbers) == 1
    assert len(rows(database)) == 1


def test_a_key_is_forgotten_after_a_day_and_with_a_call_that_failed(
    service: TestClient, database: MessageDatabase
) -> None:
    key = {"Idempotency-Key": "K"}
    refused(
        service.post("/v1/messages", json=body(topic="none"), headers=key), 422, "invalid-parameter"
    )
    assert service.post("/v1/messages", json=body(), headers=key).status_code == 201
    with database.begin("a day") as connection:
        connection.exec_driver_sql("UPDATE ledgerbeam_call SET expires_at = 1")
    assert service.post("/v1/messages", json=body(), headers=key).status_code == 201
    assert len(rows(database)) == 2
    with database.begin("keys") as connection:
        connection.exec_driver_sql("UPDATE ledgerbeam_call SET expires_at = 1")
    service.post("/v1/messages", json=body(), headers={"Idempotency-Key": "other"})
    with database.begin("keys") as connection:
        left = connection.exec_driver_sql("SELECT key FROM ledgerbeam_call").scalars().all()
    assert left == ["other"]


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"topic": "no-such-topic"}, "invalid-parameter", "there is no topic no-such-topic"),
        ({"message": {"request": "R1"}}, "invalid-parameter", "as its customer, in 'payer'"),
        ({"message": {"payer": "P", "a": [{"b": 9.99}]}}, "bad-request", "a.0.b is a number"),
        ({"message": {"payer": "P\0"}}, "bad-request", "NUL"),
        ({"message": []}, "bad-request", "message"),
        ({"due": "2026-11-20T08:00:00"}, "bad-request", "due"),
        ({"due": "tomorrow"}, "bad-request", "due"),
        ({"more": 1}, "bad-request", "more"),
    ],
)
def test_what_is_not_right_is_refused_and_stores_nothing(
    changes: dict[str, Any], code: str, told: str, service: TestClient, database: MessageDatabase
) -> None:
    answer = service.post("/v1/messages", json=body(**changes))
    status = 422 if code == "invalid-parameter" else 400
    assert told in refused(answer, status, code)
    assert rows(database) == []


def test_callers_need_a_role_for_the_topic(
    database: MessageDatabase, settings: Settings, registry: Registry
) -> None:
    def key(**roles: Role) -> dict[str, str]:
        given = {name.replace("_", "-"): role for name, role in roles.items()}
        made = Keys(registry.database).create("ada", given, who="root", at=NOON)
        return {"Authorization": f"Bearer {made}"}

    app = create_app(settings, needs_key=True)
    with TestClient(app, "http://batch.example.com") as client:
        post: Callable[..., httpx.Response] = client.post
        refused(post("/v1/messages", json=body()), 401, "unauthenticated")
        other = key(another_topic=Role.SUBMITTER)
        refused(post("/v1/messages", json=body(), headers=other), 403, "access-denied")
        viewer = key(payment_request_due=Role.VIEWER)
        for route in ("cancel", "reschedule"):
            call = {"topic": TOPIC, "key": "R1"} | ({"to": FUTURE} if route != "cancel" else {})
            answer = post(f"/v1/messages/{route}", json=call, headers=viewer)
            refused(answer, 403, "access-denied")
        sender = key(payment_request_due=Role.SUBMITTER)
        assert post("/v1/messages", json=body(), headers=sender).status_code == 201


def test_the_routes_are_there_where_messages_are_configured(
    service: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = service.get("/v1/openapi.json").json()["paths"]
    own = {path for path in described if path.startswith("/v1/messages")}
    assert own == {f"/v1/messages{end}" for end in ("", "/batch", "/cancel", "/reschedule")}
    monkeypatch.delenv(DATABASE)
    with TestClient(create_app(settings, needs_key=False), "http://localhost:8017") as without:
        assert without.post("/v1/messages", json=body()).status_code == 404
        assert "/v1/messages" not in without.get("/v1/openapi.json").json()["paths"]


@pytest.mark.slow
def test_a_call_that_was_cut_off_is_repeated_and_done_once(
    database: MessageDatabase, settings: Settings, registry: Registry, tmp_path: Path
) -> None:
    variables = {
        REGISTRY: settings.registry_url,
        DATABASE: database.engine.url.render_as_string(hide_password=False),
    }
    key = {"Idempotency-Key": "cut off"}

    def call(**more: str) -> httpx.Response:
        """Call a front end that is a process."""
        command = [sys.executable, "-m", "ledgerbeam.service.commands", "serve", "--port=0"]
        environment = os.environ | variables | more
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                url = process.stdout.readline().split()[1]
                return httpx.post(f"{url}/v1/messages", json=body(), headers=key, timeout=60)
            finally:
                process.kill()

    with pytest.raises(httpx.TransportError):
        call(**{FAILPOINT: "calls.done"})
    assert rows(database) == []
    first, again = call(), call()
    assert (first.status_code, again.json()) == (201, first.json())
    assert len(rows(database)) == 1
