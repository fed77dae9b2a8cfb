"""The payment requests of the example: the service, the scheduler and the consumers, in any order.

A plain model says what becomes of each request when calls of the service, the scheduler's posts,
the consumers' steps and moves of the roll-out come in any order while time goes on. No request is
both paid and expired, and each that has expired is told of once and counted once.
"""

import datetime
import shutil
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import payment_handlers
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from payment_requests import DUE, EXPIRED, PUSH
from payment_service import create_app

from ledgerbeam.messages.books.verify import verify
from ledgerbeam.messages.consumer.bucket import Buckets
from ledgerbeam.messages.consumer.consumers import declare_consumer
from ledgerbeam.messages.consumer.rollout_moves import promote, roll_back
from ledgerbeam.messages.define.handler import MessageHandler
from ledgerbeam.messages.model.message import LANES, bucket_of, to_microseconds
from ledgerbeam.messages.scheduler.sweep import Sweeper
from ledgerbeam.messages.store.database import MessageDatabase, create_sqlite_file
from ledgerbeam.messages.store.topics import declare_topic, find_topic

NOON = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
EXPIRE = payment_handlers.ExpirePaymentRequest
assert EXPIRE.rollout is not None
INCLUDES = EXPIRE.rollout.includes
# Some who come first, and some who come last.
NAMES = [f"P{number}" for number in range(200)]
PAYERS = [
    *[name for name in NAMES if INCLUDES("5%", name)][:2],
    *[name for name in NAMES if not INCLUDES("5%", name)][:2],
]
GRACE_HOURS = 24
NUMBERS = st.integers(0, 2)
DUES = st.integers(-4, 40)


def moment(hours: int) -> datetime.datetime:
    return NOON + datetime.timedelta(hours=hours)


class Modelled(NamedTuple):
    """A request: its state, when it is due, and where its message is, of which due time."""

    payer: str
    group: str
    amount: Decimal
    state: str
    due: int
    waiting: int | None = None
    in_stream: int | None = None


class Bank:
    """The service, a scheduler and the three consumers over a database of their own."""

    def __init__(self, file: Path) -> None:
        self.database = MessageDatabase.open(f"sqlite:///{file}")
        self.app = TestClient(create_app(f"sqlite:///{file}"))
        for engine in (self.database.engine, self.app.app.state.engine):  # type: ignore[attr-defined]
            sa.event.listen(engine, "connect", _wait_for_no_disk)
            engine.dispose()
        self.sweeper = Sweeper(self.database)
        self.buckets = {bucket_of(payer) for payer in PAYERS}
        with self.database.begin("consumers") as connection:
            self.topics = [find_topic(connection, name).id for name in (DUE, EXPIRED)]
            self.consumers = {
                handler.name: Buckets(
                    self.database, declare_consumer(connection, handler), handler()
                )
                for handler in _handlers()
            }

    def post(self, hours: int) -> None:
        for topic in self.topics:
            for lane in range(LANES):
                while not self.sweeper.post(
                    topic, lane, 0, to_microseconds(moment(hours)), limit=2
                ).is_done:
                    pass

    def consume(self, consumer: str, hours: int) -> None:
        for bucket in self.buckets:
            while self.consumers[consumer].step(bucket, 0, to_microseconds(moment(hours)), 3).read:
                pass

    def notices(self) -> Counter[str]:
        with self.database.begin("notices") as connection:
            return Counter(
                text.split()[1] for text in connection.execute(sa.select(PUSH.c.text)).scalars()
            )

    def close(self) -> None:
        self.database.close()
        self.app.app.state.engine.dispose()  # type: ignore[attr-defined]


def _wait_for_no_disk(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def _handlers() -> list[type[MessageHandler[Any]]]:
    return [EXPIRE, payment_handlers.NotifyPayer, payment_handlers.CountExpired]


class Payments(RuleBasedStateMachine):
    """What services, schedulers, consumers and people do, and time that goes on."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        file = self.folder / "bank.db"
        shutil.copyfile(self.folder / "empty.db", file)
        self.bank = Bank(file)
        self.now = 0
        self.stage = "none"
        self.requests: dict[str, Modelled] = {}
        self.expired: Counter[str] = Counter()

    def teardown(self) -> None:
        try:
            self.now = 100
            for _ in range(2):
                self.post()
                self.expire()
            self.post()
            for consumer in ("notify-payer", "count-expired"):
                self.bank.consume(consumer, self.now)
            self.check_each()
            assert not [one for one in self.requests.values() if one.state == "open"]
            assert self.bank.notices() == self.expired
            assert not self.expired or max(self.expired.values()) == 1
            counted = sum((self.requests[name].amount for name in self.expired), Decimal(0))
            told = self.bank.app.get("/statistics").json()
            assert sum((Decimal(row["amount"]) for row in told), Decimal(0)) == counted
            assert sum(row["requests"] for row in told) == len(self.expired)
            assert verify(self.bank.database).differences == []
        finally:
            self.bank.close()

    @rule(
        number=NUMBERS,
        payer=st.sampled_from(PAYERS),
        group=st.sampled_from(["private", "business"]),
        cents=st.integers(1, 10**14),
        due=DUES,
    )
    def create(self, number: int, payer: str, group: str, cents: int, due: int) -> None:
        name, amount = f"R{number}", Decimal(cents).scaleb(-2)
        body = {"payer": payer, "payer_group": group, "amount": str(amount), "currency": "EUR"}
        answer = self.bank.app.put(
            f"/payment-requests/{name}", json=body | {"due": moment(due).isoformat()}
        )
        known = self.requests.get(name)
        if known is None:
            assert answer.status_code == 201
            self.requests[name] = Modelled(payer, group, amount, "open", due, waiting=due)
        else:
            is_same = (payer, group, amount) == (known.payer, known.group, known.amount)
            assert answer.status_code == (200 if is_same else 409)

    def on_its_way(self) -> str | None:
        """An open request whose message is in the stream already."""
        for name, known in self.requests.items():
            if known.state == "open" and known.in_stream is not None:
                return name
        return None

    @precondition(lambda self: self.requests)
    @rule(number=NUMBERS, verb=st.sampled_from(["pay", "withdraw"]))
    def close(self, number: int, verb: str) -> None:
        self._close(f"R{number}", verb)

    @precondition(lambda self: self.on_its_way() is not None)
    @rule(verb=st.sampled_from(["pay", "withdraw"]))
    def close_late(self, verb: str) -> None:
        self._close(str(self.on_its_way()), verb)

    def _close(self, name: str, verb: str) -> None:
        state = {"pay": "paid", "withdraw": "withdrawn"}[verb]
        answer = self.bank.app.post(f"/payment-requests/{name}/{verb}")
        known = self.requests.get(name)
        if known is None:
            assert answer.status_code == 404
        elif known.state == "open":
            assert answer.status_code == 200
            self.requests[name] = known._replace(state=state, waiting=None)
        else:
            assert answer.status_code == (200 if known.state == state else 409)

    @precondition(lambda self: self.requests)
    @rule(number=NUMBERS, due=DUES)
    def extend(self, number: int, due: int) -> None:
        self._extend(f"R{number}", due)

    @precondition(lambda self: self.on_its_way() is not None)
    @rule(due=DUES)
    def extend_late(self, due: int) -> None:
        self._extend(str(self.on_its_way()), due)

    def _extend(self, name: str, due: int) -> None:
        body = {"due": moment(due).isoformat()}
        answer = self.bank.app.post(f"/payment-requests/{name}/extend", json=body)
        known = self.requests.get(name)
        if known is None:
            assert answer.status_code == 404
        elif known.state == "open" and due >= known.due:
            assert answer.status_code == 200
            moves = known.waiting is not None and due > known.due
            self.requests[name] = known._replace(due=due, waiting=due if moves else known.waiting)
        else:
            assert answer.status_code == 409

    @rule(hours=st.integers(1, 20))
    def wait(self, hours: int) -> None:
        self.now += hours

    @rule()
    def post(self) -> None:
        self.bank.post(self.now)
        for name, known in self.requests.items():
            if known.waiting is not None and known.waiting <= self.now:
                self.requests[name] = known._replace(waiting=None, in_stream=known.waiting)

    @rule()
    def expire(self) -> None:
        self.bank.consume(EXPIRE.name, self.now)
        for name, known in self.requests.items():
            if known.in_stream is None:
                continue
            has_grace = known.group == "private" and INCLUDES(self.stage, known.payer)
            at = known.due + GRACE_HOURS * has_grace
            changed = known._replace(in_stream=None)
            if known.state == "open" and at > known.in_stream:
                changed = changed._replace(waiting=at)
            elif known.state == "open":
                changed = changed._replace(state="expired")
                self.expired[name] += 1
            self.requests[name] = changed

    @rule(consumer=st.sampled_from(["notify-payer", "count-expired"]))
    def follow(self, consumer: str) -> None:
        self.bank.consume(consumer, self.now)

    @rule()
    def move_rollout(self) -> None:
        self.stage = {"none": "5%", "5%": "100%", "100%": "none"}[self.stage]
        if self.stage == "none":
            roll_back(self.bank.database, EXPIRE.name, who="ada", why="test")
        else:
            promote(self.bank.database, EXPIRE.name, self.stage, who="ada", why="test", force=True)

    @invariant()
    def check_each(self) -> None:
        for name, known in self.requests.items():
            found = self.bank.app.get(f"/payment-requests/{name}").json()
            assert found["state"] == known.state, name
            assert Decimal(found["amount"]) == known.amount
            assert datetime.datetime.fromisoformat(found["due"]) == moment(known.due)
        assert not self.bank.notices() - self.expired


@pytest.mark.slow
def test_whatever_the_order_each_request_ends_once(tmp_path: Path) -> None:
    empty = f"sqlite:///{tmp_path}/empty.db"
    create_sqlite_file(empty)
    with MessageDatabase(empty) as database:
        database.migrate()
        with database.begin("topics") as connection:
            for topic in (DUE, EXPIRED):
                declare_topic(connection, topic, "payer")
        with database.engine.connect() as connection:  # so that one file alone is copied
            connection.connection.driver_connection.execute(  # type: ignore[union-attr]
                "PRAGMA wal_checkpoint(TRUNCATE)"
            )
    machine = type("OfThisTest", (Payments,), {"folder": tmp_path})
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=30, stateful_step_count=30, phases=[Phase.generate]),
    )
