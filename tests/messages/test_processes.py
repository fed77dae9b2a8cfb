"""Schedulers and consumers as they run: together, paused, at a rate, over several processes."""

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from tests.messages.senders import Bank, Due, noted

from ledgerbeam.io.errors import DatabaseError
from ledgerbeam.messages.consumer import process as consuming
from ledgerbeam.messages.consumer.bucket import Buckets
from ledgerbeam.messages.consumer.consumers import set_paused, set_rate, work_of
from ledgerbeam.messages.consumer.process import ConsumerProcess
from ledgerbeam.messages.define.handler import MessageHandler
from ledgerbeam.messages.model.message import bucket_of, lane_of
from ledgerbeam.messages.scheduler import process as scheduling
from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.scheduler.sweep import Sweeper
from ledgerbeam.messages.store import wake
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.leases import Leases
from ledgerbeam.messages.store.send import Outgoing, reschedule, schedule, schedule_many
from ledgerbeam.messages.store.topics import set_topic_rate

SECONDS = 60
LONG = 3_600.0  # of a lease


@contextmanager
def running(*runs: Callable[[threading.Event], None]) -> Iterator[None]:
    """Threads that run until the block ends."""
    stop = threading.Event()
    threads = [threading.Thread(target=run, args=(stop,)) for run in runs]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def database(bank: Bank) -> Iterator[MessageDatabase]:
    """With connections for all that a test runs."""
    with MessageDatabase.open(bank.url, 16) as database:
        yield database


def consumer_of(
    bank: Bank, database: MessageDatabase, handler: MessageHandler[Any], lease_seconds: float = 15.0
) -> ConsumerProcess:
    consumer = bank.declare(type(handler))
    buckets = Buckets(database, consumer, handler)
    return ConsumerProcess(database, consumer, buckets, 1, lease_seconds)


def send(bank: Bank, count: int) -> list[str]:
    names = [f"{number:03}" for number in range(count)]
    for number, name in enumerate(names):
        bank.send(name, f"P{number % 10}", minutes=-number)
    return names


def test_what_is_sent_is_posted_and_handled_by_several(
    bank: Bank, database: MessageDatabase
) -> None:
    first = bank.handler()()
    second = type(first)()
    names = send(bank, 20)
    schedulers = [Scheduler(database).run for _ in range(2)]
    processes = [consumer_of(bank, database, one).run for one in (first, second)]
    with running(*schedulers, *processes):
        wait(lambda: len(noted(bank, first)) == len(names))
        bank.send("late", "P3")
        wait(lambda: len(noted(bank, first)) == len(names) + 1)
    assert sorted(noted(bank, first)) == sorted([*names, "late"])
    early = "SELECT count(*) FROM ledgerbeam_stream WHERE posted_at < due"
    assert bank.rows(f"{early} AND topic = :topic", topic=bank.topic_id) == [(0,)]


def test_a_consumer_that_is_paused_begins_nothing_until_it_is_resumed(
    bank: Bank, database: MessageDatabase
) -> None:
    handler = bank.handler()()
    process = consumer_of(bank, database, handler)
    send(bank, 3)
    bank.post()
    with bank.database.begin("consumer") as connection:
        set_paused(connection, handler.name, True)
    with running(process.run):
        wait(lambda: bool(process._ready))
        assert noted(bank, handler) == []
        with bank.database.begin("consumer") as connection:
            set_paused(connection, handler.name, False)
        wait(lambda: len(noted(bank, handler)) == 3)


def test_a_consumer_keeps_to_its_rate(bank: Bank, database: MessageDatabase) -> None:
    handler = bank.handler()()
    process = consumer_of(bank, database, handler)
    send(bank, 30)
    bank.post()
    with bank.database.begin("consumer") as connection:
        set_rate(connection, handler.name, 20)
    start = time.monotonic()
    with running(process.run):
        wait(lambda: process.handled == 30)
        elapsed = time.monotonic() - start
    # At first as many as come together in a second.
    assert elapsed >= (30 - 20) / 20


def test_a_topic_is_posted_at_its_rate(bank: Bank, database: MessageDatabase) -> None:
    send(bank, 40)
    with bank.database.begin("topic") as connection:
        set_topic_rate(connection, bank.topic, 40)
    scheduler = Scheduler(database)
    start = time.monotonic()
    with running(scheduler.run):
        wait(lambda: len(bank.stream()) == 40)
        elapsed = time.monotonic() - start
    # It begins with nothing, and the payers' lanes share the rate.
    assert elapsed >= 0.5


def test_what_was_committed_since_another_process_began_a_sweep_is_posted_at_once(
    fresh: Bank,
) -> None:
    bank = fresh.for_a_test()
    bank.send("first")
    bank.send("second")
    lane = lane_of(bucket_of("P1"))
    # A sweep of a scheduler that dies in the middle of it.
    Sweeper(bank.database).post(bank.topic_id, lane, 0, limit=1)
    bank.send("later", minutes=-1)
    Scheduler(bank.database).run(threading.Event(), once=True)
    assert sorted(bank.stream()) == ["first", "later", "second"]


@pytest.fixture
def woken_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers and consumers don't look by themselves, unless they know that something is due."""
    for module in (scheduling, consuming):
        monkeypatch.setattr(module, "LOOK_SECONDS", 3_600.0)
    monkeypatch.setattr(scheduling, "_ARRIVING_SECONDS", 0.0)


def soon(seconds: float = 1.0) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)


@pytest.mark.usefixtures("woken_only")
def test_senders_wake_the_scheduler_and_it_wakes_the_consumer(
    bank: Bank, database: MessageDatabase
) -> None:
    handler = bank.handler()()
    process = consumer_of(bank, database, handler)
    bank.send("first")
    with running(Scheduler(database, LONG).run, process.run):
        wait(lambda: noted(bank, handler) == ["first"])
        with bank.sender() as connection:
            schedule(connection, bank.topic, Due(request="one", payer="P1"), due=soon())
        wait(lambda: noted(bank, handler) == ["first", "one"])
        with bank.sender() as connection:
            outgoing = Outgoing(Due(request="many", payer="P1"), soon(3_600), "many")
            schedule_many(connection, bank.topic, [outgoing, (outgoing.message, soon())])
        wait(lambda: noted(bank, handler) == ["first", "one", "many"])
        with bank.sender() as connection:
            assert reschedule(connection, bank.topic, "many", to=soon()) == 1
        wait(lambda: noted(bank, handler) == ["first", "one", "many", "many"])


@pytest.mark.usefixtures("woken_only")
def test_a_scheduler_sleeps_until_the_next_message_is_due(
    bank: Bank, database: MessageDatabase
) -> None:
    with bank.sender() as connection:
        schedule(connection, bank.topic, Due(request="R1", payer="P1"), due=soon(), key="R1")
    with running(Scheduler(database, LONG).run):
        wait(lambda: bank.stream() == ["R1"])
    early = "SELECT count(*) FROM ledgerbeam_stream WHERE posted_at < due"
    assert bank.rows(f"{early} AND topic = :topic", topic=bank.topic_id) == [(0,)]


@pytest.mark.usefixtures("woken_only")
def test_a_consumer_that_is_paused_sleeps_until_it_is_resumed(
    bank: Bank, database: MessageDatabase
) -> None:
    handler = bank.handler()()
    process = consumer_of(bank, database, handler)
    with bank.database.begin("consumer") as connection:
        set_paused(connection, handler.name, True)
    with running(process.run):
        bank.send("R1")
        bank.post()
        wait(lambda: bool(process._ready))
        with bank.database.begin("consumer") as connection:
            set_paused(connection, handler.name, False)
        wait(lambda: noted(bank, handler) == ["R1"])


@pytest.mark.usefixtures("woken_only")
def test_a_consumer_that_is_resumed_just_after_its_look_begins_at_once(
    bank: Bank, database: MessageDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = bank.handler()()
    process = consumer_of(bank, database, handler, LONG)
    with bank.database.begin("consumer") as connection:
        set_paused(connection, handler.name, True)
    bank.send("R1")
    bank.post()
    look = process._look

    def look_before_it_is_resumed() -> None:
        look()
        with bank.database.begin("consumer") as connection:
            set_paused(connection, handler.name, False)

    monkeypatch.setattr(process, "_look", look_before_it_is_resumed)
    with running(process.run):
        wait(lambda: noted(bank, handler) == ["R1"])


@pytest.mark.usefixtures("woken_only")
def test_what_lies_in_buckets_is_handled_though_the_commit_of_their_lease_was_not_confirmed(
    bank: Bank, database: MessageDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = bank.handler()()
    process = consumer_of(bank, database, handler, 0.6)
    other = Leases(work_of(handler.name), "another process", LONG)
    with bank.database.begin("leases") as connection:
        other.renew(connection, bank.database.now(connection))
    begin, lost = database.begin, threading.Event()

    @contextmanager
    def begin_and_lose(what: str) -> Iterator[sa.Connection]:
        had = set(process._leases.epochs)
        with begin(what) as connection:
            yield connection
        if what == "leases" and set(process._leases.epochs) - had and not lost.is_set():
            lost.set()
            raise DatabaseError("the connection was lost")

    monkeypatch.setattr(database, "begin", begin_and_lose)
    with running(process.run):
        wait(lambda: bool(process._ends))
        bank.send("R1")
        bank.post()
        # It has seen that something was posted, which isn't in its buckets.
        wait(lambda: any(process._ends.values()) and not process._ready)
        with bank.database.begin("leases") as connection:
            other.release(connection)
        wait(lambda: noted(bank, handler) == ["R1"])
    assert lost.is_set()


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_step_that_fails_is_tried_again_whatever_the_consumer_s_own_clock_says(
    bank: Bank, database: MessageDatabase, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    handler = bank.handler()()
    process = consumer_of(bank, database, handler)
    bank.send("R1")
    bank.post()
    step, tries = process._buckets.step, list[float]()

    def fail_twice(*args: Any) -> Any:
        tries.append(time.monotonic())
        if len(tries) <= 2:
            raise RuntimeError("the disk is full")
        return step(*args)

    monkeypatch.setattr(process._buckets, "step", fail_twice)
    real_time = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real_time() + hours * 3_600 * 10**9)
    with running(process.run):
        wait(lambda: noted(bank, handler) == ["R1"])
    # By the database's clock of the last look, which was just before.
    assert tries[1] - tries[0] > consuming._ERROR_SECONDS / 2


@pytest.mark.usefixtures("woken_only")
@pytest.mark.parametrize("ends", ["is open", "is rolled back", "is rolled back to a savepoint"])
def test_a_sender_that_has_notified_silences_nobody_before_its_commit(
    fresh_postgres: Bank, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(wake, "_DEBOUNCE_SECONDS", 3_600.0)
    sleeps = threading.Event()
    sleep = wake.Watch.wait

    def noted_sleep(watch: wake.Watch, seconds: float, stop: threading.Event) -> bool:
        sleeps.set()
        was_woken = sleep(watch, seconds, stop)
        sleeps.clear()
        return was_woken

    monkeypatch.setattr(wake.Watch, "wait", noted_sleep)
    bank = fresh_postgres.for_a_test()
    engine = sa.create_engine(bank.url)
    with running(Scheduler(bank.database, LONG).run), engine.connect() as sender:
        bank.send("begun")
        wait(lambda: bank.stream() == ["begun"] and sleeps.is_set())
        savepoint = sender.begin_nested() if ends == "is rolled back to a savepoint" else None
        schedule(sender, bank.topic, Due(request="first", payer="P1"), due=soon(0.0))
        if savepoint is not None:
            savepoint.rollback()
        elif ends == "is rolled back":
            sender.rollback()
        with engine.connect() if ends == "is open" else nullcontext(sender) as other:
            second = Due(request="second", payer="P2")
            schedule(other, bank.topic, second, due=soon(0.0), key="second")
            other.commit()
        wait(lambda: bank.stream() == ["begun", "second"])
    engine.dispose()
