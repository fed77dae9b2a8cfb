"""Dead letters: messages that have failed for good, until a person has them tried again."""

import datetime
from typing import NamedTuple

import sqlalchemy as sa

from ledgerbeam.messages.consumer.consumers import find_consumer
from ledgerbeam.messages.model.message import to_datetime
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import PARKED, STREAM


class DeadLetter(NamedTuple):
    """A message that has failed for good.

    Attributes:
        message_id: number of the message.
        customer: whom it is about.
        key: the sender's name for it.
        tries: how often it was tried.
        died_at: when it was given up.
        error: the last error, one line.
        payload: the message as JSON.
    """

    message_id: int
    customer: str
    key: str | None
    tries: int
    died_at: datetime.datetime
    error: str
    payload: str


def dead_letters(
    database: MessageDatabase,
    consumer: str,
    *,
    message_id: int | None = None,
    customer: str | None = None,
    error: str | None = None,
) -> list[DeadLetter]:
    """The dead letters of a consumer, in the order of the stream.

    Args:
        database: of the messages.
        consumer: its name.
        message_id: only this one.
        customer: only this customer's.
        error: only those whose error has this text in it.

    Raises:
        ParameterError: there is no such consumer.
    """
    with database.begin("dead letters") as connection:
        where = _where(connection, consumer, message_id, customer, error)
        # What a run on Beam has read from elsewhere isn't in the stream.
        select = (
            sa.select(PARKED, STREAM.c.key, sa.func.coalesce(STREAM.c.payload, "").label("payload"))
            .select_from(PARKED.outerjoin(STREAM, STREAM.c.position == PARKED.c.position))
            .where(where)
            .order_by(PARKED.c.position)
        )
        return [
            DeadLetter(
                row.message_id,
                row.customer,
                row.key,
                row.tries,
                to_datetime(row.dead_at),
                row.error,
                row.payload,
            )
            for row in connection.execute(select)
        ]


def redrive(
    database: MessageDatabase,
    consumer: str,
    *,
    message_id: int | None = None,
    customer: str | None = None,
    error: str | None = None,
) -> list[int]:
    """Have dead letters tried again; see `dead_letters` for what they are chosen by.

    Returns:
        The numbers of the messages, exactly those that `dead_letters` lists.
    """
    with database.begin("dead letters") as connection:
        where = _where(connection, consumer, message_id, customer, error)
        alive = {"dead_at": None, "tries": 0, "next_try_at": 0}
        statement = PARKED.update().where(where).values(alive).returning(PARKED.c.message_id)
        return sorted(connection.execute(statement).scalars())


def _where(
    connection: sa.Connection,
    consumer: str,
    message_id: int | None,
    customer: str | None,
    error: str | None,
) -> sa.ColumnElement[bool]:
    found = find_consumer(connection, consumer)
    conditions = [PARKED.c.consumer == found.id, PARKED.c.dead_at.is_not(None)]
    if message_id is not None:
        conditions.append(PARKED.c.message_id == message_id)
    if customer is not None:
        conditions.append(PARKED.c.customer == customer)
    if error is not None:
        conditions.append(PARKED.c.error.contains(error, autoescape=True))
    return sa.and_(*conditions)
