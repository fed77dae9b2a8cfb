"""Runs on Beam on record: for which consumer each handles, and whether it may.

A run may handle what a consumer of this stream hasn't come to, in its place or beside it. It may
not handle a customer's messages in front of earlier ones, nor, under a name by which they were
handled before, messages whose inbox entries have gone to an archive with them.
"""

from typing import Any

import sqlalchemy as sa

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.messages.consumer.consumers import (
    Consumer,
    declare_part,
    known_consumer,
    position_before,
)
from ledgerbeam.messages.define.handler import MessageHandler
from ledgerbeam.messages.model.message import to_datetime
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import CONSUMER, INBOX, PARKED, PROGRESS, RUN, STREAM

ELSEWHERE = 0
"""`last` of a consumer that has handled what doesn't stand in this database's stream."""


def begin_run(
    database: MessageDatabase,
    handler: type[MessageHandler[Any]],
    instance: str,
    first: int,
    end: int,
    is_own: bool,
) -> tuple[Consumer, int]:
    """Put a run and its consumer on record, or find them.

    Args:
        database: that the handler writes to.
        handler: of the consumer; its name is the consumer's.
        instance: URI of the run's instance: all attempts of a run are one.
        first: it handles what was posted from this moment on, in microseconds.
        end: up to this moment, excluded.
        is_own: whether it reads the stream of this database.

    Returns:
        The consumer, and the number of the run.

    Raises:
        ParameterError: the run may not handle for this consumer.
    """
    with database.begin("the run") as connection:
        if is_own and end > database.now(connection):
            raise ParameterError(
                f"--to={to_datetime(end):%FT%TZ} lies ahead: more may be posted before that: give "
                "a time that is past",
                parameter="--to",
            )
        known = known_consumer(connection, handler.name)
        if is_own:
            consumer = _of_stream(connection, handler, known, first, end)
        elif known is not None and known.last != ELSEWHERE:
            raise ParameterError(
                f"consumer {known.name} handles the stream of {database.place}, and may have "
                "handled before what is read here from elsewhere: give another name by --consumer",
                parameter="--consumer",
                value=known.name,
            )
        else:
            consumer = declare_part(connection, handler, 0, ELSEWHERE)
        number = connection.execute(
            sa.select(RUN.c.id).where(RUN.c.instance == instance, RUN.c.consumer == consumer.id)
        ).scalar()
        if number is None:
            if database.is_postgresql:
                connection.exec_driver_sql("LOCK TABLE ledgerbeam_run IN SHARE ROW EXCLUSIVE MODE")
            last = connection.execute(sa.select(sa.func.max(RUN.c.id))).scalar() or 0
            number = last + 1
            row = {"id": number, "consumer": consumer.id, "instance": instance}
            connection.execute(RUN.insert().values(**row, began_at=database.now(connection)))
    return consumer, number


def _of_stream(
    connection: sa.Connection,
    handler: type[MessageHandler[Any]],
    known: Consumer | None,
    first: int,
    end: int,
) -> Consumer:
    """The consumer of a run over this database's stream."""
    before, last = position_before(connection, first), position_before(connection, end)
    if known is not None and known.last == ELSEWHERE:
        raise ParameterError(
            f"consumer {known.name} has handled messages from elsewhere: give another name by "
            "--consumer",
            parameter="--consumer",
            value=known.name,
        )
    # At the beginning of an empty stream there would be nothing to end with.
    consumer = declare_part(connection, handler, before, max(last, before, 1))
    if consumer.last is not None and consumer.last < last:
        is_it = CONSUMER.c.id == consumer.id
        connection.execute(CONSUMER.update().where(is_it).values(last=last))
        consumer = consumer._replace(last=last)
    of_range = sa.select(STREAM.c.message_id).where(
        STREAM.c.topic == consumer.topic, STREAM.c.posted_at >= first, STREAM.c.posted_at < end
    )
    early = connection.execute(of_range.where(STREAM.c.position <= consumer.first).limit(1)).first()
    if early is not None:
        raise ParameterError(
            f"consumer {consumer.name} begins behind message {early.message_id}, which was posted "
            "after --from: give a later time, or another name by --consumer",
            parameter="--from",
        )
    waiting = connection.execute(_unhandled_before(consumer, first, before)).first()
    if waiting is not None:
        raise ParameterError(
            f"message {waiting.message_id}, which was posted at "
            f"{to_datetime(waiting.posted_at):%FT%TZ} and so before --from, isn't handled by "
            f"{consumer.name} yet, and a customer's messages are handled in their order: give an "
            "earlier time, let the consumer come so far, or give another name by --consumer",
            parameter="--from",
        )
    return consumer


def _unhandled_before(consumer: Consumer, moment: int, position: int) -> sa.Select[Any]:
    """A message that was posted before a moment, and that nobody has handled or parked.

    Args:
        consumer: of whom.
        moment: in microseconds.
        position: none behind it was posted before the moment.
    """
    is_handled = sa.exists().where(
        INBOX.c.consumer == consumer.id, INBOX.c.message_id == STREAM.c.message_id
    )
    is_parked = sa.exists().where(
        PARKED.c.consumer == consumer.id, PARKED.c.position == STREAM.c.position
    )
    return (
        sa.select(STREAM.c.message_id, STREAM.c.posted_at)
        .where(
            PROGRESS.c.consumer == consumer.id,
            STREAM.c.topic == consumer.topic,
            STREAM.c.bucket == PROGRESS.c.bucket,
            STREAM.c.position > PROGRESS.c.position,
            STREAM.c.position <= position,
            STREAM.c.posted_at < moment,
            ~is_handled,
            ~is_parked,
        )
        .limit(1)
    )
