"""Run by `pytest` in this folder, with ledgerbeam and this package installed."""

import datetime
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from payment_messages import PUSH, REQUEST, STATISTICS, create, extend, metadata, pay, withdraw

NOW = datetime.datetime.now(datetime.UTC)
PAST, FUTURE = NOW - datetime.timedelta(hours=1), NOW + datetime.timedelta(days=400)


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
def engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_each_request_expires_at_its_own_moment(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for number, due in enumerate([PAST, PAST, PAST, PAST, FUTURE]):
            create(connection, f"R{number}", "P1", Decimal("9.99"), "EUR", due)
        assert pay(connection, "R1")
        assert withdraw(connection, "R2")
        assert extend(connection, "R3", FUTURE)
    ledgerbeam(url, "schedule-messages", "--once")
    with engine.begin() as connection:
        # This one's message is on its way already.
        create(connection, "R5", "P1", Decimal("1.00"), "USD", PAST)
    ledgerbeam(url, "schedule-messages", "--once")
    with engine.begin() as connection:
        assert extend(connection, "R5", FUTURE)
    ledgerbeam(url, "consume", "expire-payment-request", "--until-idle")
    ledgerbeam(url, "schedule-messages", "--once")
    for consumer in ("notify-payer", "count-expired"):
        assert "1 messages handled" in ledgerbeam(url, "consume", consumer, "--until-idle")
    with engine.connect() as connection:
        states = dict(connection.execute(sa.select(REQUEST.c.id, REQUEST.c.state)).all())
        assert connection.execute(sa.select(STATISTICS)).all() == [("EUR", 1)]
        (push,) = connection.execute(sa.select(PUSH.c.text)).scalars()
    assert push == "Request R0 over 9.99 EUR has expired"
    open_ones = dict.fromkeys(("R3", "R4", "R5"), "open")
    assert states == {"R0": "expired", "R1": "paid", "R2": "withdrawn", **open_ones}
    assert "the books balance" in ledgerbeam(url, "messages", "verify")
