"""Removing a consumer: what it has not handled is counted and named, and nothing waits for it.

That is one transaction, which holds all buckets: a step that is under way is finished before, and
none begins afterwards. What the consumer has recorded of messages goes with it, but for the entries
of its rollout. Its number is never given again, and its name only to one that says where it begins.
"""

import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.messages.consumer.consumers import Consumer, find_consumer, work_of
from ledgerbeam.messages.model.message import to_datetime
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import (
    ARCHIVED,
    CONSUMER,
    INBOX,
    LEASE,
    MEMBER,
    PARKED,
    PROGRESS,
    REMOVAL,
    RUN,
    SINK,
    STREAM,
    TOPIC,
)

EXAMPLES = 100
"""How many messages a removal names."""

_OWN = (PROGRESS, INBOX, PARKED, RUN, SINK)


class Removal(NamedTuple):
    """A consumer that was removed, or would be.

    Attributes:
        consumer: its name.
        topic: the topic that it handled.
        at: when it was removed.
        who: by whom.
        why: the reason.
        forced: whether that was to be done also while processes of it were running.
        handled: messages that it had handled.
        dead: its dead letters.
        unhandled: messages that were posted for it, and that it had neither handled nor given up.
        examples: numbers of the first messages among its dead letters and what was unhandled.
    """

    consumer: str
    topic: str
    at: datetime.datetime
    who: str
    why: str
    forced: bool
    handled: int
    dead: int
    unhandled: int
    examples: tuple[int, ...]


def remove_consumer(
    database: MessageDatabase,
    name: str,
    *,
    who: str,
    why: str,
    force: bool = False,
    dry_run: bool = False,
) -> Removal:
    """Remove a consumer, and put that on record.

    Args:
        database: of the messages.
        name: of the consumer, or of the sink.
        who: removes it.
        why: the reason.
        force: also while processes of it are running, which end.
        dry_run: only say what would be recorded.

    Raises:
        ParameterError: there is no such consumer, a process of it is running, or there is no
            reason.
        DatabaseError: the database can't be reached.
    """
    if not why.strip():
        raise ParameterError("--why is empty: give the reason, for the record", parameter="--why")
    with database.begin("the consumer") as connection:
        consumer = find_consumer(connection, name)
        # A step holds the row of its bucket, and so does a batch of a run on Beam.
        of_consumer = sa.select(PROGRESS.c.bucket).where(PROGRESS.c.consumer == consumer.id)
        connection.execute(of_consumer.order_by(PROGRESS.c.bucket).with_for_update()).all()
        now = database.now(connection)
        owners = _running(connection, consumer, now)
        if owners and not (force or dry_run):
            raise ParameterError(
                f"consumer {name} is running, as {', '.join(owners)}: end these processes, wait "
                "until a lease has run out if one of them was killed, or say --force",
                parameter="consumer",
                value=name,
            )
        removal = _count(connection, consumer, now, who, why, force)
        if dry_run:
            return removal
        connection.execute(REMOVAL.insert().values(_row(consumer, removal, now)))
        for table in _OWN:
            connection.execute(table.delete().where(table.c.consumer == consumer.id))
        for table in (LEASE, MEMBER):
            connection.execute(table.delete().where(table.c.work == work_of(name)))
        connection.execute(CONSUMER.delete().where(CONSUMER.c.id == consumer.id))
    return removal


def removals(database: MessageDatabase) -> list[Removal]:
    """The consumers that were removed, in the order in which they were."""
    with database.begin("removed consumers") as connection:
        rows = connection.execute(REMOVAL.select().order_by(REMOVAL.c.at, REMOVAL.c.id)).all()
    return [
        Removal(
            consumer=row.consumer,
            topic=row.topic,
            at=to_datetime(row.at),
            who=row.who,
            why=row.why,
            forced=row.forced,
            handled=row.handled,
            dead=row.dead,
            unhandled=row.unhandled,
            examples=tuple(map(int, row.examples.split())),
        )
        for row in rows
    ]


def _row(consumer: Consumer, removal: Removal, now: int) -> dict[str, Any]:
    examples = " ".join(map(str, removal.examples))
    return removal._asdict() | {"id": consumer.id, "at": now, "examples": examples}


def _running(connection: sa.Connection, consumer: Consumer, now: int) -> list[str]:
    """The processes of a consumer, as host and process id."""
    owners = sa.select(MEMBER.c.owner).where(
        MEMBER.c.work == work_of(consumer.name), MEMBER.c.expires_at >= now
    )
    return sorted(owner.rpartition(":")[0] for owner in connection.execute(owners).scalars())


def _count(
    connection: sa.Connection, consumer: Consumer, now: int, who: str, why: str, force: bool
) -> Removal:
    is_mine = (STREAM.c.topic == consumer.topic) & (STREAM.c.position > consumer.first)
    if consumer.last is not None:
        is_mine &= STREAM.c.position <= consumer.last
    of_message = (INBOX.c.consumer == consumer.id) & (INBOX.c.message_id == STREAM.c.message_id)
    is_dead = (PARKED.c.consumer == consumer.id) & PARKED.c.dead_at.is_not(None)
    left = sa.select(STREAM.c.message_id).where(is_mine, ~sa.exists().where(of_message))
    given_up = sa.exists().where(is_dead, PARKED.c.position == STREAM.c.position)
    unhandled = sa.select(sa.func.count()).select_from(left.where(~given_up).subquery())
    dead = sa.select(sa.func.count()).select_from(PARKED).where(is_dead)
    in_inbox = sa.select(sa.func.count()).select_from(INBOX)
    archived = sa.select(sa.func.coalesce(sa.func.sum(ARCHIVED.c.handled), 0))
    topic = sa.select(TOPIC.c.name).where(TOPIC.c.id == consumer.topic)
    return Removal(
        consumer=consumer.name,
        topic=connection.execute(topic).scalar_one(),
        at=to_datetime(now),
        who=who,
        why=why,
        forced=force,
        handled=_scalar(connection, in_inbox.where(INBOX.c.consumer == consumer.id))
        + _scalar(connection, archived.where(ARCHIVED.c.consumer == consumer.id)),
        dead=_scalar(connection, dead),
        unhandled=_scalar(connection, unhandled),
        examples=tuple(
            connection.execute(left.order_by(STREAM.c.position).limit(EXAMPLES)).scalars()
        ),
    )


def _scalar(connection: sa.Connection, select: sa.Select[Any]) -> int:
    return int(connection.execute(select).scalar_one())
