"""Erasing one customer's payloads, wherever they are kept, while the books stay as they are.

Erased are what a message says (its payload becomes `{}`), the sender's name for it, and the errors
of its dead letters, which may quote it. What stays is what the books count and what order depends
on: numbers, due times, and the customer's own name.

What is in the database is erased by one transaction with the entry that says so. Then come the
files of archives, one batch after another: each file with a message of the customer is written
again under another name, the next manifest names it, and the old file is deleted. A process may be
killed anywhere; the same command again goes on, and the entry is finished when all is done.
"""

import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.archive.files import (
    INBOX,
    ArchivedFile,
    ArchiveManifest,
    delete_files,
    find_manifest,
    read_rows,
    write_file,
    write_manifest,
)
from ledgerbeam.messages.archive.leave import delete_unfinished, lock_archives
from ledgerbeam.messages.consumer.consumers import consumers
from ledgerbeam.messages.model.message import bucket_of, lane_of, to_datetime
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import (
    ARCHIVE,
    ERASURE,
    MESSAGE,
    PARKED,
    PENDING,
    PROGRESS,
    STREAM,
)
from ledgerbeam.messages.store.schema import (
    INBOX as INBOX_TABLE,
)
from ledgerbeam.messages.store.send import cancel_all, posted_condition

ERASED = "{}"
"""What stands in the place of a payload."""

_ERROR = "erased"


class Erasure(NamedTuple):
    """An entry of the record of erased payloads.

    Attributes:
        number: of the entry.
        at: when.
        customer: whose payloads were erased.
        who: by whom.
        why: the reason.
        messages: messages in the database whose payloads were erased.
        canceled: messages that were withdrawn from the scheduler and from consumers for that.
        archived: messages in archives; None while that isn't done.
    """

    number: int
    at: datetime.datetime
    customer: str
    who: str
    why: str
    messages: int
    canceled: int
    archived: int | None


def erase(
    database: MessageDatabase, customer: str, *, who: str, why: str, cancel: bool = False
) -> Erasure:
    """Erase the payloads of a customer's messages in the database and in its archives.

    Args:
        database: of the messages.
        customer: whose.
        who: asks for it.
        why: the reason, for the record.
        cancel: whether messages that wait to be posted are canceled, and those that consumers
            haven't handled become dead letters; else there must be none of these.

    Raises:
        ParameterError: there is no reason, or messages are due or in flight.
        DamagedFileError: a file of an archive is gone, or has changed.
    """
    if not why.strip():
        raise ParameterError("--why is empty: say why, for the record", parameter="--why")
    with database.begin("the erasure") as connection:
        lock_archives(connection)
        number = _begin(connection, customer, who, why, cancel, database.now(connection))
    failpoint("erase.begun")
    delete_unfinished(database)
    with database.begin("archives") as connection:
        batches = list(connection.execute(sa.select(ARCHIVE.c.number).order_by("number")).scalars())
    archived = sum(_erase_batch(database, batch, customer) for batch in batches)
    is_it = ERASURE.c.number == number
    with database.begin("the erasure") as connection:
        connection.execute(ERASURE.update().where(is_it).values(archived=archived))
        return _entry(connection.execute(sa.select(ERASURE).where(is_it)).one())


def erasures(database: MessageDatabase) -> list[Erasure]:
    """The record of erased payloads, in the order in which they were."""
    with database.begin("erasures") as connection:
        rows = connection.execute(sa.select(ERASURE).order_by(ERASURE.c.number))
        return [_entry(row) for row in rows]


def _entry(row: sa.Row[Any]) -> Erasure:
    return Erasure(**{**row._mapping, "at": to_datetime(row.at)})


def _begin(
    connection: sa.Connection, customer: str, who: str, why: str, cancel: bool, now: int
) -> int:
    """Erase what is in the database, and put that on record; the entry's number."""
    pending, in_flight = _pending(connection, customer), _in_flight(connection, customer)
    if (pending or in_flight) and not cancel:
        raise ParameterError(
            f"customer {customer} has {pending:,} messages that are due later and {in_flight:,} "
            "that consumers haven't handled: wait until they are handled, or have them withdrawn "
            "by --cancel",
            parameter="--customer",
            value=customer,
        )
    canceled = 0
    if cancel:
        canceled = cancel_all(connection, customer) + _give_up(connection, customer, now)
    bucket = bucket_of(customer)
    of_messages = MESSAGE.update().where(
        MESSAGE.c.lane == lane_of(bucket),
        MESSAGE.c.customer == customer,
        MESSAGE.c.payload != ERASED,
    )
    erased = connection.execute(of_messages.values(payload=ERASED, key=None)).rowcount
    of_stream = STREAM.update().where(STREAM.c.bucket == bucket, STREAM.c.customer == customer)
    connection.execute(of_stream.values(payload=ERASED, key=None))
    has_error = PARKED.c.customer == customer, PARKED.c.error.is_not(None)
    connection.execute(PARKED.update().where(*has_error).values(error=_ERROR))
    # One that was killed before it was done with the archives is gone on with.
    unfinished = connection.execute(
        sa.select(ERASURE).where(ERASURE.c.customer == customer, ERASURE.c.archived.is_(None))
    ).first()
    if unfinished is not None:
        more = {
            "messages": unfinished.messages + erased,
            "canceled": unfinished.canceled + canceled,
        }
        is_it = ERASURE.c.number == unfinished.number
        connection.execute(ERASURE.update().where(is_it).values(more))
        return int(unfinished.number)
    last = connection.execute(sa.select(sa.func.max(ERASURE.c.number))).scalar() or 0
    entry = Erasure(last + 1, to_datetime(now), customer, who, why, erased, canceled, None)
    connection.execute(ERASURE.insert().values({**entry._asdict(), "at": now}))
    return entry.number


def _pending(connection: sa.Connection, customer: str) -> int:
    """How many of the customer's messages haven't been posted."""
    statement = f"""
        SELECT count(*) FROM ledgerbeam_message m
        JOIN ledgerbeam_cursor c ON c.topic = m.topic AND c.lane = m.lane
        WHERE m.lane = :lane AND m.customer = :customer AND m.state = {PENDING}
            AND (NOT ({posted_condition(connection.dialect.name)})
                OR EXISTS (SELECT 1 FROM ledgerbeam_held h WHERE h.message_id = m.id))"""
    values = {"lane": lane_of(bucket_of(customer)), "customer": customer}
    return int(connection.execute(sa.text(statement), values).scalar_one())


def _in_flight(connection: sa.Connection, customer: str) -> int:
    """How many are posted and not handled, over all consumers; dead letters aren't in flight."""
    count = 0
    for consumer in consumers(connection):
        dead = sa.exists().where(
            PARKED.c.consumer == consumer.id,
            PARKED.c.position == STREAM.c.position,
            PARKED.c.dead_at.is_not(None),
        )
        unhandled = _unhandled(consumer.id, consumer.topic, consumer.first, consumer.last, customer)
        select = sa.select(sa.func.count()).select_from(STREAM).where(*unhandled, ~dead)
        count += connection.execute(select).scalar_one()
    return count


def _unhandled(
    consumer: int, topic: int, first: int, last: int | None, customer: str
) -> list[sa.ColumnElement[bool]]:
    known = sa.exists().where(
        INBOX_TABLE.c.consumer == consumer, INBOX_TABLE.c.message_id == STREAM.c.message_id
    )
    conditions = [
        STREAM.c.topic == topic,
        STREAM.c.bucket == bucket_of(customer),
        STREAM.c.customer == customer,
        STREAM.c.position > first,
        ~known,
    ]
    return conditions if last is None else [*conditions, STREAM.c.position <= last]


def _give_up(connection: sa.Connection, customer: str, now: int) -> int:
    """Make dead letters of what consumers haven't handled; how many."""
    count = 0
    bucket = bucket_of(customer)
    for consumer in consumers(connection):
        held = PROGRESS.c.consumer == consumer.id, PROGRESS.c.bucket == bucket
        connection.execute(sa.select(PROGRESS).where(*held).with_for_update())
        dead = {"dead_at": now, "error": _ERROR}
        alive = PARKED.c.consumer == consumer.id, PARKED.c.dead_at.is_(None)
        given_up = PARKED.update().where(*alive, PARKED.c.customer == customer).values(dead)
        count += connection.execute(given_up).rowcount
        parked = sa.exists().where(
            PARKED.c.consumer == consumer.id, PARKED.c.position == STREAM.c.position
        )
        unhandled = _unhandled(consumer.id, consumer.topic, consumer.first, consumer.last, customer)
        columns = (STREAM.c.position, STREAM.c.message_id)
        rows = [
            {"position": row.position, "message_id": row.message_id, "tries": 0, "next_try_at": 0}
            | {"consumer": consumer.id, "bucket": bucket, "customer": customer, **dead}
            for row in connection.execute(sa.select(*columns).where(*unhandled, ~parked)).all()
        ]
        if rows:
            connection.execute(PARKED.insert(), rows)
        count += len(rows)
    return count


def _erase_batch(database: MessageDatabase, number: int, customer: str) -> int:
    """Erase payloads in an archived batch; how many messages have none now."""
    with database.begin("an archive") as connection:
        held = sa.select(ARCHIVE).where(ARCHIVE.c.number == number).with_for_update()
        row = connection.execute(held).first()
        manifest = None if row is None else find_manifest(row.uri)
        if row is None or manifest is None:
            return 0
        # What a process that was killed had written, or hadn't deleted.
        delete_files(row.uri, [each.file.name for each in manifest.files])
        version = manifest.version + 1
        files = [_erased(row.uri, each, customer, version) for each in manifest.files]
        if [file for file, _ in files] != manifest.files:
            erased = ArchiveManifest(version=version, files=[file for file, _ in files])
            write_manifest(row.uri, erased)
            delete_files(row.uri, [each.file.name for each in erased.files])
            failpoint("erase.old-deleted")
        return sum(count for _, count in files)


def _erased(
    batch: str, archived: ArchivedFile, customer: str, version: int
) -> tuple[ArchivedFile, int]:
    """A file without the customer's payloads, and how many messages of the customer it has."""
    if archived.table == INBOX:
        return archived, 0
    rows = read_rows(batch, archived)
    is_theirs = pc.equal(rows.column("customer"), customer)
    count = pc.sum(is_theirs).as_py() or 0
    has_payload = pc.and_(is_theirs, pc.not_equal(rows.column("payload"), ERASED))
    if not pc.any(has_payload).as_py():
        return archived, count
    for name, value in (("payload", ERASED), ("key", None)):
        changed = pc.if_else(is_theirs, pa.scalar(value, pa.string()), rows.column(name))
        rows = rows.set_column(rows.column_names.index(name), name, changed)
    table, topic, chunk, _ = archived.file.name.removesuffix(".parquet").split("-")
    file = write_file(batch, table, int(topic), int(chunk), version, rows)
    return archived.model_copy(update={"file": file}), count
