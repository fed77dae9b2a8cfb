"""The payment requests of the example as processes: callers race with expiry, and some are killed.

Callers pay, extend and withdraw requests at about the moment at which they expire, while the
scheduler and the consumer that expires them are killed with -9 and started again.
"""

import datetime
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from payment_requests import PUSH, REQUEST
from tests.examples.conftest import EXAMPLE

pytestmark = pytest.mark.slow

SECONDS = 60
CALLERS = 4
REQUESTS = 40
HANDLERS = ("ExpirePaymentRequest", "NotifyPayer", "CountExpired")
_LEDGERBEAM = "from ledgerbeam.batch.cli import main; raise SystemExit(main())"


class Bank:
    """All processes of the example."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.log = folder / "log"
        self.started: list[subprocess.Popen[str]] = []
        self.engine = sa.create_engine(url)
        topics = [f"--topic=payment-request-{name}:payer" for name in ("due", "expired")]
        assert self.ledgerbeam("messages", "init", *topics).wait(SECONDS) == 0
        service = "payment_service:from_environment"
        self.start("-m", "uvicorn", "--factory", service, "--port=0")
        self.wait(lambda: "Uvicorn running" in self.log.read_text(), "the service")
        found = re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text())
        assert found is not None
        self.client = httpx.Client(base_url=found[0], timeout=SECONDS)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        environment = os.environ | {"PYTHONPATH": str(EXAMPLE), "PAYMENT_REQUESTS": self.url}
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=EXAMPLE,
                env=environment | {"LEDGERBEAM_MESSAGES": self.url},
                stdout=log,
                stderr=log,
                text=True,
            )
        self.started.append(process)
        return process

    def ledgerbeam(self, *arguments: str) -> "subprocess.Popen[str]":
        return self.start("-c", _LEDGERBEAM, *arguments)

    def scheduler(self) -> "subprocess.Popen[str]":
        return self.ledgerbeam("schedule-messages", "--lease-seconds=2")

    def consumer(self, handler: str) -> "subprocess.Popen[str]":
        return self.ledgerbeam("consume", f"payment_handlers:{handler}", "--lease-seconds=2")

    def rows(self, select: sa.Select[Any]) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(select))

    def has_expired(self, count: int) -> bool:
        """Whether so many requests have expired."""
        expired = sa.select(REQUEST.c.id).where(REQUEST.c.state == "expired")
        return len(self.rows(expired)) >= count

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, f"waited in vain: {what}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    url = f"sqlite:///{tmp_path}/bank.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("new_schema")()
    made = Bank(url, tmp_path)
    try:
        yield made
    finally:
        made.close()


def call(bank: Bank, seed: int) -> dict[str, set[str]]:
    """Make requests and do something about most of them; the final states that were answered."""
    chance, answered = random.Random(seed), dict[str, set[str]]()
    for number in range(REQUESTS):
        name = f"R{seed}-{number}"
        due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=chance.random() / 2)
        body = {
            "payer": f"P{chance.randrange(10)}",
            "payer_group": "business",
            "amount": "0.01",
            "currency": "EUR",
            "due": due.isoformat(),
        }
        assert bank.client.put(f"/payment-requests/{name}", json=body).status_code == 201
        answered[name] = set()
        for verb in chance.choices(["pay", "withdraw", "extend", "wait"], k=2):
            later = {"due": (due + datetime.timedelta(seconds=chance.random())).isoformat()}
            if verb == "wait":
                threading.Event().wait(chance.random() / 2)
                continue
            answer = bank.client.post(
                f"/payment-requests/{name}/{verb}", json=later if verb == "extend" else None
            )
            assert answer.status_code in (200, 409), answer.text
            if answer.status_code == 200:
                answered[name].add(answer.json()["state"])
    return answered


def test_each_request_ends_once_whoever_is_killed(bank: Bank) -> None:
    for handler in HANDLERS:
        bank.consumer(handler)
    bank.scheduler()
    expiring = bank.started[-4]
    with ThreadPoolExecutor(CALLERS) as pool:
        calls = [pool.submit(call, bank, seed) for seed in range(CALLERS)]
        for seen in (3, 12):
            bank.wait(partial(bank.has_expired, seen), "a beginning")
            for victim in (expiring, bank.started[-1]):
                victim.send_signal(signal.SIGKILL)
                assert victim.wait() == -signal.SIGKILL
            expiring = bank.consumer(HANDLERS[0])
            bank.scheduler()
        answered = {name: states for each in calls for name, states in each.result().items()}
    states = sa.select(REQUEST.c.id, REQUEST.c.state)
    bank.wait(lambda: "open" not in dict(bank.rows(states)).values(), "each request has ended")
    found = dict(bank.rows(states))
    assert found.keys() == answered.keys()
    for name, told in answered.items():
        # What was answered as paid stays paid, and never expires.
        assert told - {"open"} <= {found[name]}, (name, told, found[name])
    expired_ones = Counter(name for name, state in found.items() if state == "expired")
    assert expired_ones
    assert set(found.values()) >= {"paid", "withdrawn", "expired"}

    def told_of() -> Counter[str]:
        return Counter(text.split()[1] for (text,) in bank.rows(sa.select(PUSH.c.text)))

    bank.wait(lambda: told_of().total() >= len(expired_ones), "each payer is told")

    def counted() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = bank.client.get("/statistics").json()
        return rows

    bank.wait(lambda: counted()[0]["requests"] >= len(expired_ones), "each is counted")
    assert told_of() == expired_ones
    amount = f"{len(expired_ones) / 100:.2f}"
    assert counted() == [{"currency": "EUR", "requests": len(expired_ones), "amount": amount}]
    assert bank.ledgerbeam("messages", "verify").wait(SECONDS) == 0, bank.log.read_text()[-3000:]
