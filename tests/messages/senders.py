"""What tests of messages send, and handlers that note what they are given."""

import datetime
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import sqlalchemy as sa

from ledgerbeam.io.sql.engine import open_engine
from ledgerbeam.messages.consumer.bucket import Buckets
from ledgerbeam.messages.consumer.consumers import Consumer, declare_consumer
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import BUCKETS, LANES, Message, to_microseconds
from ledgerbeam.messages.scheduler.sweep import Sweeper
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import schedule
from ledgerbeam.messages.store.topics import declare_topic
from ledgerbeam.transforms.concurrency.retry import Retry

NOON = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC)
_numbers = itertools.count(1)


class Due(Message):
    """A payment request is due."""

    request: str
    payer: str


class Bank:
    """A database of messages, with a topic of its own for each test."""

    def __init__(self, url: str, database: MessageDatabase) -> None:
        self.url = url
        self.database = database
        self.engine = open_engine(url, 4)
        self.topic = ""
        self.topic_id = 0

    def for_a_test(self) -> "Bank":
        bank = Bank(self.url, self.database)
        bank.topic = f"due-{next(_numbers)}"
        with self.database.begin("topic") as connection:
            bank.topic_id = declare_topic(connection, bank.topic, "payer").id
        return bank

    @contextmanager
    def sender(self) -> Iterator[sa.Connection]:
        """A sender's transaction."""
        with self.engine.begin() as connection:
            yield connection

    def send(self, request: str, payer: str = "P1", minutes: float = 0, **options: Any) -> int:
        """Schedule a message for so many minutes after noon, in a transaction of its own."""
        with self.sender() as connection:
            due = NOON + datetime.timedelta(minutes=minutes)
            message = Due(request=request, payer=payer)
            return schedule(connection, self.topic, message, due=due, key=request, **options)

    def post(self, minutes: float = 0) -> int:
        """Post what is due so many minutes after noon; how many."""
        now = to_microseconds(NOON + datetime.timedelta(minutes=minutes))
        sweeper, count = Sweeper(self.database), 0
        for lane in range(LANES):
            while True:
                posted = sweeper.post(self.topic_id, lane, 0, now, limit=3)
                count += posted.messages
                if posted.is_done:
                    break
        return count

    def stream(self) -> list[str]:
        """The keys in the topic's stream, in order."""
        select = "SELECT key FROM ledgerbeam_stream WHERE topic = :topic ORDER BY position"
        with self.engine.connect() as connection:
            return list(connection.execute(sa.text(select), {"topic": self.topic_id}).scalars())

    def rows(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement), values)]

    def execute(self, statement: str, **values: Any) -> None:
        with self.sender() as connection:
            connection.execute(sa.text(statement), values)

    def handler(self, **members: Any) -> type["Noting"]:
        """A consumer of the topic, with a name of its own."""
        name = f"consumer-{next(_numbers)}"
        return type("OfTest", (Noting,), {"name": name, "topic": self.topic, **members})

    def declare(self, handler: type[MessageHandler[Any]]) -> Consumer:
        with self.database.begin("consumer") as connection:
            return declare_consumer(connection, handler)

    def consume(self, handler: MessageHandler[Any], minutes: float = 0, limit: int = 100) -> int:
        """Take a step in each bucket until there is nothing left to read; handled messages."""
        return self.running(handler)(minutes, limit)

    def running(self, handler: MessageHandler[Any]) -> Callable[..., int]:
        """A consumer that is declared now, and at each call does what `consume` does."""
        buckets = Buckets(self.database, self.declare(type(handler)), handler)
        return partial(self._consume, buckets)

    def _consume(self, buckets: Buckets, minutes: float = 0, limit: int = 100) -> int:
        now = to_microseconds(NOON + datetime.timedelta(minutes=minutes))
        handled = 0
        for bucket in range(BUCKETS):
            while True:
                step = buckets.step(bucket, 0, now, limit)
                handled += step.handled
                if not (step.read or step.handled):
                    break
        return handled


class Noting(MessageHandler[Due]):
    """Writes what it is given into the table `noted`, and fails where it is told to."""

    customer = "payer"
    retry = Retry(tries=3, first_delay=60, longest_delay=600)

    def __init__(self) -> None:
        self.fails: dict[str, Exception] = {}
        self.calls: list[str] = []

    def handle(self, message: Due, work: Work) -> None:
        self.calls.append(message.request)
        note(work.connection, self.name, message.request)
        if message.request in self.fails:
            raise self.fails[message.request]
        self.then(message, work)

    def then(self, message: Due, work: Work) -> None:
        """What a test adds."""


def note(connection: sa.Connection, consumer: str, request: str) -> None:
    insert = "INSERT INTO noted (consumer, request) VALUES (:consumer, :request)"
    connection.execute(sa.text(insert), {"consumer": consumer, "request": request})


def noted(bank: Bank, handler: MessageHandler[Any]) -> list[str]:
    """What a handler has written and committed, in order."""
    select = "SELECT request FROM noted WHERE consumer = :consumer ORDER BY number"
    return [row[0] for row in bank.rows(select, consumer=handler.name)]


def create_noted(bank: Bank) -> None:
    number = "bigserial" if "postgresql" in bank.url else "INTEGER"
    bank.execute(
        f"CREATE TABLE IF NOT EXISTS noted (number {number} PRIMARY KEY, consumer text, "
        "request text)"
    )
