"""What a handler would do with messages: handled in transactions that are rolled back.

Nothing of it remains: neither what the handler writes nor an inbox entry; what it would publish or
reschedule is captured as rows. What it does outside of the database can't be withheld.
"""

import datetime
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import BUCKETS, to_datetime
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import STREAM, TOPIC
from ledgerbeam.messages.store.send import Outgoing, outgoing_row
from ledgerbeam.transforms.concurrency.retry import error_line

HANDLED, FAILED, PUBLISHED, RESCHEDULED = "handled", "failed", "published", "rescheduled"

CAPTURED = pa.schema(
    [
        ("customer", pa.string()),
        ("message_id", pa.int64()),
        ("number", pa.int64()),
        ("what", pa.string()),
        ("key", pa.string()),
        ("to_topic", pa.string()),
        ("to_key", pa.string()),
        ("due", pa.string()),
        ("payload", pa.string()),
        ("error", pa.string()),
    ]
)
"""Row 0 of a message says whether it is handled, or by which error it fails; the rows behind it are
what it would publish, in its order, with the payload as JSON with sorted names."""


class StreamRange(NamedTuple):
    """A part of the stream.

    Attributes:
        first: what was posted from this moment on, in microseconds.
        end: and before this one.
    """

    first: int
    end: int


def capture(
    database: MessageDatabase,
    handler: MessageHandler[Any],
    rule: int | None,
    posted: StreamRange,
    now: datetime.datetime,
) -> Iterator[pa.Table]:
    """What a handler would do with messages, as tables with the columns of `CAPTURED`.

    All messages of one customer are handled in one transaction, in the order of the stream, so that
    each sees what those before it have written. One that fails is rolled back alone.

    Args:
        database: of the messages; no transaction of its engine can be committed any more.
        handler: that is called.
        rule: the rule by which all are handled; None for a handler without rules.
        posted: which messages.
        now: what it is told as the present time, so that two rules are told the same.

    Raises:
        ParameterError: there is no such rule.
        DatabaseError: the database can't be reached.
    """
    if rule is not None and rule not in handler.rules:
        known = ", ".join(map(str, sorted(handler.rules))) or "none"
        raise ParameterError(
            f"{handler.name} has no rule {rule}: it has {known}", parameter="--rule", value=rule
        )
    sa.event.listen(database.engine, "commit", _refuse_commit)
    for bucket in range(BUCKETS):
        messages = _messages(database, handler.topic, bucket, posted)
        rows: list[dict[str, Any]] = []
        for _, of_customer in itertools.groupby(messages, lambda message: message.customer):
            rows += _handled(database, handler, rule, list(of_customer), now)
        if rows:
            yield pa.Table.from_pylist(rows, CAPTURED)


def _messages(
    database: MessageDatabase, topic: str, bucket: int, posted: StreamRange
) -> list[sa.Row[Any]]:
    """The messages of a bucket, by customer and in the order of the stream."""
    select = (
        sa.select(STREAM)
        .join(TOPIC, TOPIC.c.id == STREAM.c.topic)
        .where(
            TOPIC.c.name == topic,
            STREAM.c.bucket == bucket,
            STREAM.c.posted_at >= posted.first,
            STREAM.c.posted_at < posted.end,
        )
        .order_by(STREAM.c.customer, STREAM.c.position)
    )
    with database.engine.connect() as connection:
        found = [*connection.execute(select)]
        connection.rollback()
    return found


def _handled(
    database: MessageDatabase,
    handler: MessageHandler[Any],
    rule: int | None,
    messages: list[sa.Row[Any]],
    now: datetime.datetime,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with database.engine.connect() as connection:
        try:
            for message in messages:
                rows += _of_message(connection, handler, rule, message, now)
        finally:
            connection.rollback()
    return rows


def _of_message(
    connection: sa.Connection,
    handler: MessageHandler[Any],
    rule: int | None,
    message: sa.Row[Any],
    now: datetime.datetime,
) -> Iterator[dict[str, Any]]:
    head = {"customer": message.customer, "message_id": message.message_id, "number": 0}
    savepoint = connection.begin_nested()
    try:
        model = handler.message_type.from_stored(message.payload, message.version)
        work = Work(
            connection,
            model,
            topic=handler.topic,
            message_id=message.message_id,
            customer=message.customer,
            key=message.key,
            due=to_datetime(message.due),
            now=now,
            rule=rule,
        )
        handler.handle(model, work)
        for topic, outgoing in work.outbox:
            outgoing_row(connection, topic, outgoing)  # refuses what couldn't be sent
        savepoint.commit()
    except Exception as error:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise
        # One that has tried to end the transaction has ended it, by a rollback.
        (savepoint if savepoint.is_active else connection).rollback()
        yield head | {"what": FAILED, "key": message.key, "error": error_line(error)}
        return
    yield head | {"what": HANDLED, "key": message.key}
    for number, (topic, outgoing) in enumerate(work.outbox, 1):
        yield head | {
            "number": number,
            "what": RESCHEDULED if outgoing.message is model else PUBLISHED,
            "key": message.key,
            "to_topic": topic,
            "to_key": outgoing.key,
            "due": str(outgoing.due),
            "payload": _json(outgoing),
        }


def _json(outgoing: Outgoing) -> str:
    message = outgoing.message
    fields = message.model_dump(mode="json") if isinstance(message, BaseModel) else dict(message)
    return json.dumps(fields, sort_keys=True, default=str)


def _refuse_commit(_: sa.Connection) -> None:
    raise RuntimeError("the handler ended the transaction, which isn't its own to end")
