"""Notifications: who is woken on PostgreSQL, by which transactions, and what a look forgets."""

import datetime
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from tests.messages.senders import Bank, Due
from tests.support.postgres import postgres_server

from ledgerbeam.messages.consumer.bucket import Buckets
from ledgerbeam.messages.consumer.consumers import set_paused
from ledgerbeam.messages.consumer.process import ConsumerProcess
from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.store import wake
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import schedule
from ledgerbeam.messages.store.wake import MESSAGES_SENT, STREAM_POSTED, Watch

SECONDS = 60
LONG = 3_600.0


@pytest.fixture
def bank(fresh_postgres: Bank) -> Bank:
    return fresh_postgres.for_a_test()


@pytest.fixture
def heard(bank: Bank) -> Iterator[Callable[[int], int]]:
    """Waits for so many notifications of senders; how many have come."""
    yield from listening(bank.url)


def listening(url: str) -> Iterator[Callable[[int], int]]:
    plain = url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"LISTEN {MESSAGES_SENT}")

        def hear(count: int) -> int:
            return len(list(connection.notifies(timeout=SECONDS, stop_after=count)))

        yield hear


def send(bank: Bank, connection: sa.Connection, request: str) -> None:
    due = datetime.datetime.now(datetime.UTC)
    schedule(connection, bank.topic, Due(request=request, payer="P1"), due=due)


def test_whether_a_sender_notifies_is_decided_at_its_commit(
    bank: Bank, heard: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wake, "_DEBOUNCE_SECONDS", LONG)
    with bank.engine.connect() as first, bank.engine.connect() as second:
        send(bank, first, "first")
        first.commit()
        send(bank, second, "second")
        # The time within which the first one's notification is enough for both has passed.
        monkeypatch.setattr(wake, "_DEBOUNCE_SECONDS", 0.0)
        second.commit()
        # Nothing was sent in this one.
        second.execute(sa.text("SELECT 1"))
        second.commit()
        send(bank, first, "third")
        first.commit()
    assert heard(3) == 3


def test_a_sender_without_transactions_notifies_at_once(
    bank: Bank, heard: Callable[[int], int]
) -> None:
    engine = bank.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        send(bank, connection, "R1")
        assert heard(1) == 1


def test_the_commit_of_a_transaction_that_is_aborted_fails_and_leaves_the_connection_usable(
    bank: Bank,
) -> None:
    engine = sa.create_engine(bank.url, pool_size=1, max_overflow=0)
    with engine.connect() as connection:
        for request in ("first", "second"):
            send(bank, connection, request)
            with pytest.raises(DBAPIError, match="division by zero"):
                connection.execute(sa.text("SELECT 1 / 0"))
            with pytest.raises(DBAPIError, match="transaction is aborted"):
                connection.commit()
            connection.rollback()
        send(bank, connection, "third")
        connection.commit()
    with engine.connect() as connection:
        sent = sa.text("SELECT count(*) FROM ledgerbeam_message WHERE topic = :topic")
        assert connection.execute(sent, {"topic": bank.topic_id}).scalar() == 1
    engine.dispose()


def test_a_transaction_that_is_prepared_notifies_and_silences_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wake, "_DEBOUNCE_SECONDS", LONG)
    with postgres_server(["max_prepared_transactions = 5"]) as server:
        url = server.create_database()
        with MessageDatabase(url) as database, ExitStack() as stack:
            database.migrate()
            bank = Bank(url, database).for_a_test()
            first, second = (stack.enter_context(bank.engine.connect()) for _ in range(2))
            transaction = first.begin_twophase()
            send(bank, first, "prepared")
            transaction.prepare()
            transaction.commit()
            first.execute(sa.text("SELECT 1"))
            first.commit()
            for heard in listening(url):
                send(bank, second, "second")
                second.commit()
                assert heard(1) == 1
            bank.engine.dispose()


def test_a_look_forgets_the_notifications_that_came_before_it(bank: Bank) -> None:
    handler = bank.handler()()
    consumer = bank.declare(type(handler))
    buckets = Buckets(bank.database, consumer, handler)
    process, scheduler = ConsumerProcess(bank.database, consumer, buckets), Scheduler(bank.database)
    stop = threading.Event()
    scheduler.renew()
    looks: list[tuple[Callable[[], object], Watch, str]] = [
        (process._look, process._watch, STREAM_POSTED),
        (scheduler.look, scheduler._watch, MESSAGES_SENT),
    ]
    for look, watch, channel in looks:
        look()
        with bank.sender() as connection:
            wake.wake(connection, channel)
        # It has come, and a statement has the driver read it.
        watch._select(time.monotonic() + SECONDS, stop)
        watch.rows(sa.text("SELECT 1"), {})
        look()
        assert not watch.wait(0.0, stop)
        with bank.sender() as connection:
            wake.wake(connection, channel)
        assert watch.wait(SECONDS, stop)
        watch.close()


def test_a_posting_wakes_the_consumers_of_its_topic_alone(bank: Bank) -> None:
    handler = bank.handler()()
    consumer = bank.declare(type(handler))
    process = ConsumerProcess(bank.database, consumer, Buckets(bank.database, consumer, handler))
    watch, stop = process._watch, threading.Event()
    process._look()
    for other in (bank.for_a_test(), bank):
        other.send("R1")
        other.post()
        watch._select(time.monotonic() + SECONDS, stop)
        assert watch.wait(0.0, stop) == (other is bank)
    with bank.database.begin("consumer") as connection:
        set_paused(connection, handler.name, True)
    assert watch.wait(SECONDS, stop)
    watch.close()


def test_a_process_with_many_open_files_can_wait(bank: Bank) -> None:
    bank.database.engine.dispose()  # the next connection is a new one
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4_096)), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        files = [stack.enter_context(Path("/dev/null").open()) for _ in range(1_100)]
        assert files[-1].fileno() >= 1_024
        watch = Watch(bank.database, "the stream", STREAM_POSTED)
        stack.callback(watch.close)
        watch.rows(sa.text("SELECT 1"), {})
        assert watch._driver.fileno() >= 1_024
        assert not watch.wait(0.01, threading.Event())
