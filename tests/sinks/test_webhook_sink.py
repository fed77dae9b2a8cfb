"""A topic's messages posted to a webhook, by the command and to a server that really listens."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sinks.world import (
    NAME,
    SECRET,
    TOPIC,
    Receiver,
    World,
    check_posted,
    receiver,
    world,
)

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.secrets import Secret
from ledgerbeam.messages.books.forecast import standings
from ledgerbeam.messages.consumer.consumers import set_paused
from ledgerbeam.messages.consumer.dead_letters import dead_letters, redrive
from ledgerbeam.messages.sinks.sinks import WebhookSink, declare_sink, sinks

pytestmark = pytest.mark.slow


def sink_of(server: Receiver, **changes: Any) -> WebhookSink:
    given = {"url": server.url, "secret": Secret("env:SINK_SECRET"), "allow_private": True}
    return WebhookSink(**(given | changes))


@pytest.fixture
def outside() -> Iterator[Receiver]:
    with receiver() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    url = f"sqlite:///{tmp_path}/bank.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("new_schema")()
    with world(url, tmp_path) as made:
        yield made


def test_what_is_in_the_stream_is_posted_signed_and_in_order(
    bank: World, outside: Receiver
) -> None:
    bank.declare(sink_of(outside))
    bank.send(60, amount="12345678901234567.89")
    assert bank.post_all() == f"{NAME}: 60 messages posted, 0 tries failed\n"
    check_posted(outside.taken, 60)
    _, body = outside.taken[0]
    assert body.keys() == {
        *("id", "topic", "customer", "key", "due", "posted_at", "schema_version", "message")
    }
    assert body["id"].startswith(f"{bank.source}-")
    assert (body["topic"], body["customer"]) == (TOPIC, body["message"]["payer"])
    assert body["message"]["amount"] == "12345678901234567.89"
    assert bank.books()[1:] == (60, 60, 0, 0)
    bank.send(3, first=60)
    assert standings(bank.database)[0].lag == 3
    bank.post_all()
    check_posted(outside.taken, 63)
    assert standings(bank.database)[0].lag == 0


def test_who_is_down_is_not_given_one_after_another(bank: World, outside: Receiver) -> None:
    outside.answers = lambda body: 503
    bank.declare(sink_of(outside))
    bank.send(100, payers=40)
    process = bank.start(lease=10)
    bank.wait(lambda: len(outside.seen) >= 6, "some tries")
    (standing,) = standings(bank.database)
    # Those that were tried stand aside; the others stay in the stream.
    assert standing.lag + standing.parked == 100
    assert standing.parked < 50
    assert standing.dead == 0
    outside.answers = lambda body: 200
    bank.wait(lambda: bank.books().handled == 100, "all is posted")
    process.terminate()
    assert process.wait(60) == 0
    check_posted(outside.taken, 100, 40)
    assert len(outside.taken) == 100


def test_one_customer_whose_message_fails_holds_up_no_other(bank: World, outside: Receiver) -> None:
    outside.answers = lambda body: 500 if body["message"]["number"] == 2 else 200
    bank.declare(sink_of(outside))
    bank.send(25)
    bank.start(lease=10)
    others = [number for number in range(25) if number % 5 != 2]
    bank.wait(lambda: len(outside.taken) == len(others), "the others")
    assert sorted(body["message"]["number"] for _, body in outside.taken) == others
    bank.wait(lambda: bank.books().handled == len(others), "it is recorded")
    assert bank.books()[1:] == (25, 20, 0, 5)
    outside.answers = lambda body: 200
    bank.wait(lambda: len(outside.taken) == 25, "that customer's")
    check_posted(outside.taken, 25)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_message_that_is_refused_is_a_dead_letter_until_it_is_redriven(
    status: int, bank: World, outside: Receiver
) -> None:
    outside.answers = lambda body: status if body["message"]["number"] == 2 else 200
    bank.declare(sink_of(outside))
    bank.send(10)
    assert "9 messages posted, 1 tries failed" in bank.post_all()
    assert outside.seen.count(2) == 1
    (letter,) = dead_letters(bank.database, NAME)
    assert (letter.key, letter.tries) == ("K2", 1)
    assert f"answered {status}" in letter.error
    assert bank.books()[1:] == (10, 9, 1, 0)
    outside.answers = lambda body: 200
    redrive(bank.database, NAME)
    assert "1 messages posted" in bank.post_all()
    assert outside.seen.count(2) == 2
    assert bank.books()[1:] == (10, 10, 0, 0)


@pytest.mark.parametrize("status", [302, 401, 404])
def test_redirects_and_wrong_addresses_lose_nothing(
    status: int, bank: World, outside: Receiver
) -> None:
    outside.answers = lambda body: status
    bank.declare(sink_of(outside))
    bank.send(10)
    bank.start(lease=10)
    bank.wait(lambda: len(outside.seen) >= 2, "tries")
    assert outside.taken == []
    assert bank.books()[1:] == (10, 0, 0, 10)
    outside.answers = lambda body: 200
    bank.wait(lambda: bank.books().handled == 10, "all is posted")
    check_posted(outside.taken, 10)


def test_a_private_address_is_refused_unless_it_is_meant(bank: World, outside: Receiver) -> None:
    bank.declare(sink_of(outside, allow_private=False))
    bank.send(5)
    bank.start(lease=10)
    select = "SELECT error FROM ledgerbeam_parked WHERE error IS NOT NULL"

    def errors() -> list[str]:
        with bank.database.begin("errors") as connection:
            return list(connection.exec_driver_sql(select).scalars())

    bank.wait(lambda: bool(errors()), "a try")
    assert "private address" in errors()[0]
    assert outside.seen == []
    # Where it posts to is changed while it runs; it goes on where it was when it is started again.
    bank.processes[-1].terminate()
    assert bank.processes[-1].wait(60) == 0
    bank.declare(sink_of(outside))
    bank.start(lease=10)
    bank.wait(lambda: bank.books().handled == 5, "all is posted")
    check_posted(outside.taken, 5)


def test_a_receiver_that_says_nothing_is_left_in_time(bank: World, outside: Receiver) -> None:
    answers = threading.Event()

    def answer(body: dict[str, Any]) -> int:
        if body["message"]["number"] == 0 and not answers.is_set():
            answers.wait(30)
        return 200

    outside.answers = answer
    bank.declare(sink_of(outside))
    bank.send(10)
    bank.start(lease=2)
    bank.wait(lambda: standings(bank.database)[0].parked > 0, "its time is up")
    # A sender needn't wait for the receiver, on SQLite either.
    bank.send(5, first=10)
    answers.set()
    bank.wait(lambda: bank.books().handled == 15, "all is posted")
    check_posted(outside.taken, 15)


def test_it_is_paused_and_goes_on(bank: World, outside: Receiver) -> None:
    bank.declare(sink_of(outside))
    with bank.database.begin("a pause") as connection:
        set_paused(connection, NAME, True)
    bank.send(5)
    bank.start(lease=10)
    held = "SELECT count(*) FROM ledgerbeam_lease WHERE owner IS NOT NULL"

    def leases() -> int:
        with bank.database.begin("leases") as connection:
            return int(connection.exec_driver_sql(held).scalar_one())

    bank.wait(lambda: leases() == 64, "it runs")
    assert outside.seen == []
    with bank.database.begin("a pause") as connection:
        set_paused(connection, NAME, False)
    bank.wait(lambda: bank.books().handled == 5, "all is posted")


def test_two_sinks_of_a_topic_give_a_message_the_same_id(bank: World, outside: Receiver) -> None:
    bank.declare(sink_of(outside))
    with bank.database.begin("another sink") as connection:
        other = declare_sink(connection, TOPIC, "other", sink_of(outside))
        assert [sink.consumer.name for sink in sinks(connection)] == [NAME, "other"]
    assert other.source == bank.source


def test_secrets_are_references_in_the_database(bank: World, outside: Receiver) -> None:
    bank.declare(sink_of(outside))
    with bank.database.begin("sinks") as connection:
        (text,) = connection.exec_driver_sql("SELECT definition FROM ledgerbeam_sink").scalars()
    assert "env:SINK_SECRET" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--webhook=http://h/x"], "--secret is missing"),
        (["--webhook=h/x", "--secret=env:S"], "--webhook url: give http://"),
        (["--webhook=http://u:p@h/x", "--secret=env:S"], "no user or password"),
        (["--webhook=http://h/x", "--secret=literal"], "a secret is given by reference"),
        (["--kafka=localhost"], "give HOST:PORT"),
        (["--kafka=localhost:9092", "--kafka-option=acks=0"], "acks is set by ledgerbeam"),
        (["--kafka=localhost:9092", "--kafka-option=sasl.password=abc"], "given by reference"),
        (["--kafka=localhost:9092", "--webhook=http://h/x"], "give one of"),
        (["--kafka=localhost:9092", "--name=handled"], "handled is a consumer with a handler"),
    ],
)
def test_what_is_not_right_is_told_in_one_line(
    flags: list[str], told: str, tmp_path: Path, run_ledgerbeam: Callable[..., Any]
) -> None:
    url = f"sqlite:///{tmp_path}/bank.db"
    with world(url, tmp_path) as made:
        made.execute(
            "INSERT INTO ledgerbeam_consumer (id, name, topic, first, paused) "
            "VALUES (1, 'handled', 1, 0, false)"
        )
    done: subprocess.CompletedProcess[str] = run_ledgerbeam(url, "messages", "sink", TOPIC, *flags)
    assert done.returncode in (1, 2), done.stderr
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_topic_that_nobody_declared_has_no_sink(bank: World, outside: Receiver) -> None:
    with (
        bank.database.begin("the sink") as connection,
        pytest.raises(ParameterError, match="there is no topic nothing"),
    ):
        declare_sink(connection, "nothing", NAME, sink_of(outside))
