"""A program that sends, schedules or consumes, and is killed: see `test_crashes`.

    python -m tests.messages.crashing ROLE URL

`send` sends messages that are due at once, in transactions of ten; each `N` of its request number
is noted in the table `sent` by the same transaction.
"""

import datetime
import sys
import threading
from typing import Any

import sqlalchemy as sa

from ledgerbeam.messages.consumer.bucket import Buckets
from ledgerbeam.messages.consumer.consumers import declare_consumer
from ledgerbeam.messages.consumer.process import ConsumerProcess
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import Message
from ledgerbeam.messages.scheduler.process import Scheduler
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import Outgoing, schedule, schedule_many
from ledgerbeam.transforms.concurrency.retry import Retry

TOPIC = "payment-due"
LEASE = 1.0
PAYERS = 40


class PaymentDue(Message):
    number: int
    payer: str


class Expire(MessageHandler[PaymentDue]):
    """Counts how often each request is expired; every seventh fails at its first try."""

    name = "expire"
    topic = TOPIC
    customer = "payer"
    retry = Retry(tries=5, first_delay=0.01)
    batch = 7

    def handle(self, message: PaymentDue, work: Work) -> None:
        count = "INSERT INTO expired (number, payer) VALUES (:number, :payer)"
        work.connection.execute(sa.text(count), message.model_dump())
        if message.number % 7 == 0 and not work.tries:
            raise OSError("the bank is closed")
        if message.number < 1_000_000:
            notice = PaymentDue(number=message.number + 1_000_000, payer=message.payer)
            work.publish(TOPIC, notice, key=f"notice {message.number}")


def send(url: str, first: int, count: int) -> None:
    engine = sa.create_engine(url)
    for start in range(first, first + count, 10):
        with engine.begin() as connection:
            now = datetime.datetime.now(datetime.UTC)
            numbers = range(start, start + 10)
            sent = "INSERT INTO sent (number) VALUES (:number)"
            connection.execute(sa.text(sent), [{"number": number} for number in numbers])
            one, *others = (PaymentDue(number=n, payer=f"P{n % PAYERS}") for n in numbers)
            schedule(connection, TOPIC, one, due=now, key=str(one.number))
            schedule_many(
                connection, TOPIC, [Outgoing(other, now, str(other.number)) for other in others]
            )
    engine.dispose()


def run(role: str, url: str, *arguments: Any) -> None:
    if role == "send":
        send(url, *map(int, arguments))
        return
    with MessageDatabase.open(url, 4) as database:
        if role == "schedule":
            Scheduler(database, LEASE).run(threading.Event())
        else:
            with database.begin("consumer") as connection:
                consumer = declare_consumer(connection, Expire)
            buckets = Buckets(database, consumer, Expire())
            ConsumerProcess(database, consumer, buckets, 2, LEASE).run(threading.Event())


if __name__ == "__main__":
    run(*sys.argv[1:])
