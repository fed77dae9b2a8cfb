"""What a sender does, on its own connection and in its own transaction.

Nothing here commits. If the sender's transaction is rolled back, nothing has happened.
"""

import datetime
import itertools
import json
import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic import BaseModel

from ledgerbeam.io.errors import DatabaseError, ParameterError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.model.local_time import LocalTime
from ledgerbeam.messages.model.message import (
    bucket_of,
    customer_of,
    lane_of,
    to_microseconds,
)
from ledgerbeam.messages.store.schema import CANCELED, MESSAGE, MOVED, PENDING
from ledgerbeam.messages.store.topics import Topic, find_topic
from ledgerbeam.messages.store.wake import wake_schedulers

Due = datetime.datetime | LocalTime
"""When a message is due: a moment with a time zone, or a time by somebody's clock."""

_COLUMNS = (
    "topic",
    "lane",
    "bucket",
    "state",
    "version",
    "due",
    "customer",
    "key",
    "payload",
    "local",
)
_POSTED = """
    ((m.due, m.id) <= (c.due, c.id) AND pg_visible_in_snapshot(m.written, c.snapshot::pg_snapshot))
    OR (c.sweep_due IS NOT NULL AND (m.due, m.id) <= (c.sweep_due, c.sweep_id)
        AND pg_visible_in_snapshot(m.written, c.sweep_snapshot::pg_snapshot))"""
_POSTED_SQLITE = """
    ((m.due, m.id) <= (c.due, c.id) AND m.id <= CAST(c.snapshot AS integer))
    OR (c.sweep_due IS NOT NULL AND (m.due, m.id) <= (c.sweep_due, c.sweep_id)
        AND m.id <= CAST(c.sweep_snapshot AS integer))"""


_COPIED_AT_ONCE = 1_000
_NEVER = 2**63 - 1
_due_of = operator.itemgetter(_COLUMNS.index("due"))


def posted_condition(dialect: str) -> str:
    """SQL: whether the message `m` was posted, by the cursor `c` of its topic and lane.

    A message that is in `ledgerbeam_held` wasn't, even so.
    """
    return _POSTED if dialect == "postgresql" else _POSTED_SQLITE


class Outgoing(NamedTuple):
    """A message to be scheduled, for `schedule_many`.

    Attributes:
        message: a pydantic model, or fields that JSON can hold.
        due: when it is due.
        key: the sender's own name for it, by which it can be canceled or moved.
        version: the schema version of fields; a model brings its own.
    """

    message: BaseModel | Mapping[str, Any]
    due: Due
    key: str | None = None
    version: int = 1


def schedule(
    connection: sa.Connection,
    topic: str,
    message: BaseModel | Mapping[str, Any],
    *,
    due: Due,
    key: str | None = None,
    version: int = 1,
) -> int:
    """Send a message to the moment at which it is due.

    It exists if the connection's transaction commits. If it is due in the past, it is posted at
    once.

    Args:
        connection: the sender's, to a database with the tables of messages.
        topic: declared by `ledgerbeam messages init`.
        message: a pydantic model, or fields that JSON can hold, with the topic's customer.
        due: a moment with a time zone, or a `LocalTime`.
        key: the sender's own name for it, by which it can be canceled or moved. Messages may share
            one; consumers see it.
        version: the schema version of fields; a model brings its own.

    Returns:
        The number of the message, which stays with it.

    Raises:
        ParameterError: the topic isn't declared, the customer is missing, or `due` has no zone.
    """
    row = _row(find_topic(connection, topic), Outgoing(message, due, key, version))
    values = dict(zip(_COLUMNS, row, strict=True))
    if connection.dialect.name == "postgresql":
        number: int = connection.execute(
            sa.insert(MESSAGE).values(values).returning(MESSAGE.c.id)
        ).scalar_one()
    else:
        number = connection.execute(sa.insert(MESSAGE).values(values)).lastrowid
    wake_schedulers(connection, values["due"])
    failpoint("messages.scheduled")
    return number


def schedule_many(
    connection: sa.Connection, topic: str, messages: Iterable[Outgoing | tuple[Any, ...]]
) -> int:
    """Send many messages, each to its own moment; by COPY on PostgreSQL.

    Args:
        connection: as for `schedule`.
        topic: as for `schedule`.
        messages: `Outgoing`, or tuples of its fields.

    Returns:
        How many there were.

    Raises:
        ParameterError: as for `schedule`; the transaction has to be rolled back then.
    """
    found = find_topic(connection, topic)
    rows = (_row(found, Outgoing(*message)) for message in messages)
    return insert_rows(connection, rows)


def insert_rows(connection: sa.Connection, rows: Iterable[tuple[Any, ...]]) -> int:
    """Insert rows of messages, in their order."""
    if connection.dialect.name != "postgresql":
        values = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        if values:
            connection.execute(sa.insert(MESSAGE), values)
        return len(values)
    if not connection.in_transaction():
        connection.begin()  # COPY goes past SQLAlchemy, which would have nothing to commit
    statement = f"COPY ledgerbeam_message ({', '.join(_COLUMNS)}) FROM STDIN"
    driver: Any = connection.connection.driver_connection
    remaining = iter(rows)
    count, first_due = 0, _NEVER
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        while block := list(itertools.islice(remaining, _COPIED_AT_ONCE)):
            copy.write("".join(map(_copy_line, block)))
            count += len(block)
            first_due = min(first_due, min(map(_due_of, block)))
    wake_schedulers(connection, first_due)
    return count


def outgoing_row(connection: sa.Connection, topic: str, message: Outgoing) -> tuple[Any, ...]:
    """A message as `insert_rows` takes it."""
    return _row(find_topic(connection, topic), message)


def cancel(
    connection: sa.Connection, topic: str, key: str, *, due: datetime.datetime | None = None
) -> int:
    """Cancel the messages of a key that haven't been posted.

    One that is canceled is never posted, if the transaction commits; one that was posted before
    isn't canceled.

    Args:
        connection: as for `schedule`. On PostgreSQL its isolation level is READ COMMITTED.
        topic: as for `schedule`.
        key: as given to `schedule`.
        due: when it is due, if that is known: less is searched.

    Returns:
        How many were canceled: 0 says that it is too late, or that there are none.

    Raises:
        DatabaseError: the isolation level is another one, in which this can't be known.
    """
    where, values = _of_key(find_topic(connection, topic), key, due)
    return len(_withdraw(connection, where, values, CANCELED))


def cancel_all(connection: sa.Connection, customer: str) -> int:
    """Cancel all messages of a customer that haven't been posted; how many.

    Args:
        connection: as for `cancel`.
        customer: whom they are about.

    Raises:
        DatabaseError: as for `cancel`.
    """
    where = "m.customer = :customer AND m.lane = :lane AND m.state = 0"
    values = {"customer": customer, "lane": lane_of(bucket_of(customer))}
    return len(_withdraw(connection, where, values, CANCELED))


def reschedule(
    connection: sa.Connection,
    topic: str,
    key: str,
    *,
    to: Due,
    due: datetime.datetime | None = None,
) -> int:
    """Move the messages of a key that haven't been posted to another moment.

    Args:
        connection: as for `cancel`.
        topic: as for `schedule`.
        key: as given to `schedule`.
        to: the new moment, or local time.
        due: when it is due so far, if that is known: less is searched.

    Returns:
        How many were moved: 0 says that it is too late, or that there are none.

    Raises:
        DatabaseError: as for `cancel`.
    """
    where, values = _of_key(find_topic(connection, topic), key, due)
    moment, local = _moment(to)
    withdrawn = _withdraw(connection, where, values, MOVED)
    # They get new numbers.
    kept = [{**row, "state": PENDING, "due": moment, "local": local} for row in withdrawn]
    if kept:
        connection.execute(sa.insert(MESSAGE), kept)
        wake_schedulers(connection, moment)
    return len(kept)


def move_message(connection: sa.Connection, row: sa.Row[Any], to: datetime.datetime) -> bool:
    """Move one message to another moment, which is the same local time; false if it is too late."""
    where = "m.topic = :topic AND m.lane = :lane AND m.due = :due AND m.id = :id AND m.state = 0"
    values = {"topic": row.topic, "lane": row.lane, "due": row.due, "id": row.id}
    withdrawn = _withdraw(connection, where, values, MOVED)
    for message in withdrawn:
        moved = {**message, "state": PENDING, "due": to_microseconds(to)}
        connection.execute(sa.insert(MESSAGE).values(moved))
        wake_schedulers(connection, moved["due"])
    return bool(withdrawn)


def _of_key(topic: Topic, key: str, due: datetime.datetime | None) -> tuple[str, dict[str, Any]]:
    """SQL: whether the message `m` is pending and has the key, and its values."""
    where = "m.topic = :topic AND m.key = :key AND m.state = 0"
    values: dict[str, Any] = {"topic": topic.id, "key": key}
    if due is not None:
        where += " AND m.due = :due"
        values["due"] = to_microseconds(due)
    return where, values


def _withdraw(
    connection: sa.Connection, where: str, values: dict[str, Any], state: int
) -> list[dict[str, Any]]:
    """Give messages another state, if they haven't been posted; their columns."""
    is_postgresql = connection.dialect.name == "postgresql"
    if is_postgresql:
        isolation = connection.exec_driver_sql("SHOW transaction_isolation").scalar_one()
        if isolation != "read committed":
            raise DatabaseError(
                f"messages are canceled and moved in READ COMMITTED, and this transaction is "
                f"{isolation.upper()}: it can't see whether they were posted since it began: use "
                "another transaction"
            )
        # If one of them is just being posted, this waits; the next statement sees that it was.
        lock = f"SELECT m.id FROM ledgerbeam_message m WHERE {where} FOR NO KEY UPDATE"
        if not connection.execute(sa.text(lock), values).all():
            return []
    table = "m." if is_postgresql else ""  # SQLite returns columns of the target alone
    statement = f"""
        UPDATE ledgerbeam_message AS m SET state = :state
        FROM ledgerbeam_cursor AS c
        WHERE {where} AND c.topic = m.topic AND c.lane = m.lane
            AND (NOT ({posted_condition(connection.dialect.name)})
                OR EXISTS (SELECT 1 FROM ledgerbeam_held h WHERE h.message_id = m.id))
        RETURNING {", ".join(f"{table}{name}" for name in _COLUMNS)}"""
    return [
        dict(zip(_COLUMNS, row, strict=True))
        for row in connection.execute(sa.text(statement), {**values, "state": state})
    ]


def _moment(due: Due) -> tuple[int, str | None]:
    if isinstance(due, LocalTime):
        try:
            return to_microseconds(due.moment()), due.model_dump_json(exclude_defaults=True)
        except ValueError as error:
            raise ParameterError(f"due: {error}", parameter="due", value=due) from error
    return to_microseconds(due), None


def _row(topic: Topic, outgoing: Outgoing) -> tuple[Any, ...]:
    message, due, key, version = outgoing
    customer = customer_of(message, topic.customer)
    bucket = bucket_of(customer)
    moment, local = _moment(due)
    if isinstance(message, BaseModel):
        payload = message.model_dump_json()
        version = getattr(type(message), "schema_version", 1)
    else:
        payload = json.dumps(message, separators=(",", ":"), default=str)
    return (
        topic.id,
        lane_of(bucket),
        bucket,
        PENDING,
        version,
        moment,
        customer,
        key,
        payload,
        local,
    )


def _copy_line(row: tuple[Any, ...]) -> str:
    """A row in COPY's text format."""
    topic, lane, bucket, state, version, due, *texts = row
    customer, key, payload, local = map(_copy_text, texts)
    return (
        f"{topic}\t{lane}\t{bucket}\t{state}\t{version}\t{due}"
        f"\t{customer}\t{key}\t{payload}\t{local}\n"
    )


def _copy_text(text: str | None) -> str:
    if text is None:
        return "\\N"
    if text.isprintable() and "\\" not in text:  # nearly every one
        return text
    # Several times as fast as translate().
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace("\t", "\\t").replace("\r", "\\r")
