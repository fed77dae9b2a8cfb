"""What is to come, by topic and hour; and how far behind consumers are."""

import datetime
from typing import NamedTuple

import sqlalchemy as sa

from ledgerbeam.messages.consumer.consumers import consumers
from ledgerbeam.messages.model.message import to_datetime, to_microseconds
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import PARKED, PROGRESS, STREAM
from ledgerbeam.messages.store.send import posted_condition
from ledgerbeam.messages.store.topics import topics

_HOUR = 3_600_000_000


class Hour(NamedTuple):
    """Messages of a topic that are due in the hour that begins then, in UTC."""

    topic: str
    begins_at: datetime.datetime
    messages: int


class Standing(NamedTuple):
    """How a consumer stands.

    Attributes:
        consumer: its name.
        topic: the name of its topic.
        paused: whether it is paused.
        rate: its limit, messages a second; None for none.
        lag: messages of the stream that it hasn't come to.
        age: seconds for which the oldest of these stands in the stream; None if there is none.
        parked: messages that have failed and are tried again, and those that wait behind them.
        dead: dead letters.
    """

    consumer: str
    topic: str
    paused: bool
    rate: float | None
    lag: int
    age: float | None
    parked: int
    dead: int


def forecast(
    database: MessageDatabase, first: datetime.datetime, end: datetime.datetime
) -> list[Hour]:
    """How many pending messages are due, by topic and hour.

    Args:
        database: of the messages.
        first: from this moment on.
        end: up to this moment, excluded.
    """
    with database.begin("the forecast") as connection:
        names = {topic.id: topic.name for topic in topics(connection)}
        statement = f"""
            SELECT m.topic, m.due / {_HOUR} AS hour, count(*) FROM ledgerbeam_message m
            JOIN ledgerbeam_cursor c ON c.topic = m.topic AND c.lane = m.lane
            WHERE m.due >= :first AND m.due < :end AND m.state = 0
                AND NOT ({posted_condition(connection.dialect.name)})
            GROUP BY m.topic, m.due / {_HOUR} ORDER BY 2, 1"""
        bounds = {"first": to_microseconds(first), "end": to_microseconds(end)}
        rows = connection.execute(sa.text(statement), bounds).all()
    return [Hour(names[topic], to_datetime(hour * _HOUR), count) for topic, hour, count in rows]


def standings(database: MessageDatabase) -> list[Standing]:
    """How each consumer stands."""
    found = []
    with database.snapshot("consumers") as connection:
        now = database.now(connection)
        names = {topic.id: topic.name for topic in topics(connection)}
        for consumer in consumers(connection):
            behind = sa.select(sa.func.count(), sa.func.min(STREAM.c.posted_at)).where(
                PROGRESS.c.consumer == consumer.id,
                STREAM.c.topic == consumer.topic,
                STREAM.c.bucket == PROGRESS.c.bucket,
                STREAM.c.position > PROGRESS.c.position,
            )
            if consumer.last is not None:  # only runs on Beam handle for it
                behind = behind.where(sa.false())
            lag, since = connection.execute(behind).one()
            parked = sa.select(sa.func.count(), sa.func.count(PARKED.c.dead_at)).where(
                PARKED.c.consumer == consumer.id
            )
            total, dead = connection.execute(parked).one()
            age = None if since is None else (now - since) / 1_000_000
            found.append(
                Standing(
                    consumer.name,
                    names[consumer.topic],
                    consumer.paused,
                    consumer.rate,
                    lag,
                    age,
                    total - dead,
                    dead,
                )
            )
    return found
