"""Run by `pytest` in this folder, with ledgerbeam and this package installed."""

import datetime
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from payment_requests import PUSH
from payment_service import create_app

NOW = datetime.datetime.now(datetime.UTC)
SOON, FUTURE = NOW - datetime.timedelta(hours=1), NOW + datetime.timedelta(days=400)


def ledgerbeam(url: str, *arguments: str) -> str:
    command = ["ledgerbeam", *arguments, f"--database={url}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path}/bank.db"
    topics = [f"--topic=payment-request-{name}:payer" for name in ("due", "expired")]
    ledgerbeam(found, "messages", "init", *topics)
    return found


@pytest.fixture
def bank(url: str) -> Iterator[TestClient]:
    with TestClient(create_app(url)) as client:
        yield client


def body(**changes: Any) -> dict[str, Any]:
    usual = {"payer": "P1", "payer_group": "business", "amount": "9.99", "currency": "EUR"}
    return usual | {"due": SOON.isoformat()} | changes


def state(bank: TestClient, request: str) -> str:
    return str(bank.get(f"/payment-requests/{request}").json()["state"])


def test_each_request_expires_at_its_own_moment(url: str, bank: TestClient) -> None:
    more = {"due": FUTURE.isoformat()}
    for number, due in enumerate([SOON, SOON, SOON, SOON, FUTURE]):
        made = bank.put(f"/payment-requests/R{number}", json=body(due=due.isoformat()))
        assert made.status_code == 201
    assert bank.post("/payment-requests/R1/pay").json()["state"] == "paid"
    assert bank.post("/payment-requests/R2/withdraw").json()["state"] == "withdrawn"
    assert bank.post("/payment-requests/R3/extend", json=more).status_code == 200
    bank.put("/payment-requests/R5", json=body(amount="100", currency="JPY"))
    ledgerbeam(url, "schedule-messages", "--once")
    # The messages of these two are on their way already.
    assert bank.post("/payment-requests/R5/extend", json=more).status_code == 200
    bank.put("/payment-requests/R6", json=body())
    ledgerbeam(url, "schedule-messages", "--once")
    assert bank.post("/payment-requests/R6/pay").status_code == 200
    ledgerbeam(url, "consume", "expire-payment-request", "--until-idle")
    ledgerbeam(url, "schedule-messages", "--once")
    for consumer in ("notify-payer", "count-expired"):
        assert "1 messages handled" in ledgerbeam(url, "consume", consumer, "--until-idle")
    states = [state(bank, f"R{number}") for number in range(7)]
    assert states == ["expired", "paid", "withdrawn", "open", "open", "open", "paid"]
    assert bank.get("/statistics").json() == [{"currency": "EUR", "requests": 1, "amount": "9.99"}]
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        (push,) = connection.execute(sa.select(PUSH.c.text)).scalars()
    engine.dispose()
    assert push == "Request R0 over 9.99 EUR has expired"
    assert "the books balance" in ledgerbeam(url, "messages", "verify")


def test_private_payers_get_a_day_of_grace_once_the_rule_is_theirs(
    url: str, bank: TestClient
) -> None:
    def expire(request: str, **changes: Any) -> str:
        bank.put(f"/payment-requests/{request}", json=body(**changes))
        ledgerbeam(url, "schedule-messages", "--once")
        ledgerbeam(url, "consume", "expire-payment-request", "--until-idle")
        return state(bank, request)

    promote = ("rollout", "promote", "expire-payment-request")
    assert expire("before", payer_group="private") == "expired"
    for stage in ("5%", "100%"):
        ledgerbeam(url, *promote, stage, "--why=agreed", "--force")
    assert expire("business") == "expired"
    assert expire("private", payer_group="private") == "open"
    ended = (SOON - datetime.timedelta(days=2)).isoformat()
    assert expire("later", payer_group="private", due=ended) == "open"
    ledgerbeam(url, "schedule-messages", "--once")
    ledgerbeam(url, "consume", "expire-payment-request", "--until-idle")
    assert state(bank, "later") == "expired"


def test_what_is_sent_twice_is_done_once(bank: TestClient) -> None:
    assert bank.put("/payment-requests/R1", json=body()).status_code == 201
    assert bank.put("/payment-requests/R1", json=body()).status_code == 200
    assert bank.put("/payment-requests/R1", json=body(amount="8.00")).status_code == 409
    for _ in range(2):
        assert bank.post("/payment-requests/R1/pay").status_code == 200
    refused = bank.post("/payment-requests/R1/withdraw")
    assert refused.status_code == 409
    assert refused.json()["detail"].startswith("request R1 is paid")


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 9.99},
        {"amount": "9.999"},
        {"amount": "1.5", "currency": "JPY"},
        {"amount": "-1"},
        {"currency": "ABC"},
        {"due": "2026-11-20T08:00:00"},
    ],
)
def test_what_is_not_right_is_refused(bank: TestClient, changes: dict[str, Any]) -> None:
    assert bank.put("/payment-requests/R1", json=body(**changes)).status_code == 422
    assert bank.get("/payment-requests/R1").status_code == 404
