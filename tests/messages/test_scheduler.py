"""The scheduler's looks and sweeps: nothing that is due is forgotten, whatever comes in between."""

import datetime
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.messages.senders import Bank, Due

from ledgerbeam.io.errors import DatabaseError
from ledgerbeam.messages.model.message import LANES, bucket_of, lane_of
from ledgerbeam.messages.scheduler import process as scheduling
from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.store import database as databases
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import schedule
from ledgerbeam.messages.store.topics import set_topic_rate

LANE = lane_of(bucket_of("P1"))
HORIZON = 600


class Clock:
    """The clock of a database, which a test sets."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        bank.execute("CREATE TABLE clock_ahead (seconds bigint)")
        bank.execute("INSERT INTO clock_ahead VALUES (0)")

    def put(self, seconds: int) -> None:
        """Put it ahead of the real time by so many seconds."""
        self._bank.execute("UPDATE clock_ahead SET seconds = :seconds", seconds=seconds)


@pytest.fixture
def clock(fresh: Bank, monkeypatch: pytest.MonkeyPatch) -> Clock:
    kind = fresh.engine.dialect.name
    ahead = "(SELECT seconds FROM clock_ahead) * 1000000"
    monkeypatch.setitem(databases._CLOCKS, kind, f"({databases._CLOCKS[kind]} + {ahead})")
    return Clock(fresh)


@pytest.fixture
def bank(fresh: Bank, clock: Clock) -> Iterator[Bank]:
    """With the clock, and a topic."""
    with MessageDatabase.open(fresh.url, 8) as database:
        yield Bank(fresh.url, database).for_a_test()


def send(bank: Bank, request: str, seconds: float, payer: str = "P1") -> None:
    """Send what is due in so many seconds of real time."""
    due = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    with bank.sender() as connection:
        schedule(connection, bank.topic, Due(request=request, payer=payer), due=due, key=request)


def look(scheduler: Scheduler) -> None:
    """Have a scheduler post all that it knows to be due."""
    while scheduler.look():
        pass


def begun(bank: Bank, lease_seconds: float = 15.0) -> Scheduler:
    """A scheduler that knows all lanes."""
    scheduler = Scheduler(bank.database, lease_seconds)
    scheduler.renew()
    look(scheduler)
    return scheduler


def test_what_is_committed_while_a_lane_is_swept_is_posted_after_the_sweep(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "BATCH", 3)
    scheduler = begun(bank)
    for number in range(7):
        send(bank, str(number), -5)
    scheduler.look()
    assert len(bank.stream()) == 3
    send(bank, "late", -2)
    look(scheduler)
    assert len(bank.stream()) == 8


def test_what_becomes_due_in_a_sweep_that_takes_longer_than_it_looked_ahead_is_posted(
    bank: Bank, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "BATCH", 3)
    scheduler = begun(bank)
    for number in range(7):
        send(bank, str(number), -5)
    scheduler.look()
    send(bank, "later", HORIZON + 5)
    with bank.database.begin("topic") as connection:
        set_topic_rate(connection, bank.topic, 0.001)
    scheduler.renew()
    for seconds in (0, HORIZON + 1):
        clock.put(seconds)
        scheduler.look()
    assert len(bank.stream()) == 3
    with bank.database.begin("topic") as connection:
        set_topic_rate(connection, bank.topic, None)
    scheduler.renew()
    look(scheduler)
    clock.put(HORIZON + 10)
    look(scheduler)
    assert bank.stream()[7:] == ["later"]


def test_a_lane_that_was_another_s_in_between_is_swept_as_a_new_one(
    bank: Bank, clock: Clock
) -> None:
    stopped = begun(bank, 10)
    clock.put(20)
    dying = Scheduler(bank.database, 10)
    dying.renew()
    for request in ("first", "second"):
        send(bank, request, -5)
    dying._sweeper.post(bank.topic_id, LANE, dying._leases.epochs[LANE], limit=1)
    send(bank, "late", -2)
    clock.put(40)
    stopped.renew()
    assert set(stopped._leases.epochs.values()) == {3}
    look(stopped)
    assert sorted(bank.stream()) == ["first", "late", "second"]


def test_a_look_that_fails_at_a_new_topic_loses_nothing_of_the_others(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = begun(bank)
    new = bank.for_a_test()
    send(bank, "known", 0)
    send(new, "new", 0)
    rows = scheduler._watch.rows

    def new_topic_first(*args: Any) -> list[Any]:
        return sorted(rows(*args), key=lambda row: -(row.topic or 0))

    def fail() -> None:
        raise DatabaseError("the connection is cut")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler._watch, "rows", new_topic_first)
        patch.setattr(scheduler, "renew", fail)
        with pytest.raises(DatabaseError, match="cut"):
            scheduler.look()
    scheduler.renew()
    look(scheduler)
    assert bank.stream() == ["known"]
    assert new.stream() == ["new"]


def test_a_new_topic_s_message_in_a_lane_that_is_given_up_is_left_to_its_new_owner(
    bank: Bank,
) -> None:
    first = begun(bank)
    second = Scheduler(bank.database)
    second.renew()
    new = bank.for_a_test()
    lanes = {lane_of(bucket_of(f"P{number}")): f"P{number}" for number in range(100)}
    send(new, "R1", -1, lanes[LANES - 1])
    look(first)
    assert sorted(first._leases.epochs) == [0, 1]
    assert new.stream() == []
    second.run(threading.Event(), once=True)
    assert new.stream() == ["R1"]


def test_a_clock_that_was_ahead_and_is_put_back_makes_nothing_late(
    bank: Bank, clock: Clock
) -> None:
    scheduler = begun(bank)
    clock.put(86_400)
    look(scheduler)
    clock.put(0)
    look(scheduler)
    send(bank, "in a quarter of an hour", 900)
    look(scheduler)
    clock.put(900)
    look(scheduler)
    assert bank.stream() == ["in a quarter of an hour"]
