"""Consumers on record: where each begins, whether it is paused, how fast it may go."""

from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.messages.consumer.rollouts import declare_rollout
from ledgerbeam.messages.define.handler import MessageHandler
from ledgerbeam.messages.model.message import BUCKETS, to_datetime
from ledgerbeam.messages.store.leases import declare_units
from ledgerbeam.messages.store.schema import CONSUMER, PROGRESS, REMOVAL, STREAM
from ledgerbeam.messages.store.topics import Topic, declare_topic
from ledgerbeam.messages.store.wake import STREAM_POSTED, wake


class Consumer(NamedTuple):
    """A consumer.

    Attributes:
        id: in the tables.
        name: its name.
        topic: number of its topic.
        first: it handles what stands behind this position of the stream.
        paused: whether it handles nothing for the time being.
        rate: messages a second at most, in all its processes together; None for no limit.
        last: where it ends; None if it goes on with the stream.
    """

    id: int
    name: str
    topic: int
    first: int
    paused: bool
    rate: float | None
    last: int | None = None


def removed_error(consumer: Consumer) -> UserError:
    """Why its processes end."""
    return UserError(
        f"consumer {consumer.name} was removed: `ledgerbeam messages removals` says by whom and why"
    )


def work_of(name: str) -> str:
    """What a consumer's leases are called."""
    return f"consume {name}"


def declare_consumer(
    connection: sa.Connection, handler: type[MessageHandler[Any]], since: int | None = None
) -> Consumer:
    """Put a consumer on record with its topic and its rollout, or find it.

    One that was made for runs on Beam goes on with the stream from now on.

    Args:
        connection: in a transaction that commits soon.
        handler: the consumer's.
        since: for a new one, it begins with what was posted from this moment on, in
            microseconds; None for the beginning of the stream.

    Raises:
        ParameterError: the name belongs to a consumer of another topic, or to one that was removed
            and `since` is None.
        DefinitionError: the handler's rules don't go on with the rollout on record.
    """
    first = 0 if since is None else position_before(connection, since)
    found = declare_part(connection, handler, first, None, returns=since is not None)
    if found.last is not None:
        is_it = CONSUMER.c.id == found.id
        connection.execute(CONSUMER.update().where(is_it).values(last=None))
    return found._replace(last=None)


def declare_part(
    connection: sa.Connection,
    handler: type[MessageHandler[Any]],
    first: int,
    last: int | None,
    returns: bool = False,
) -> Consumer:
    """Put a consumer of a part of the stream on record with its topic and rollout, or find it.

    Args:
        connection: in a transaction that commits soon.
        handler: the consumer's.
        first: a new one handles what stands behind this position.
        last: where a new one ends; None if it goes on with the stream.
        returns: whether a new one may have the name of one that was removed.

    Raises:
        ParameterError: as for `declare_consumer`.
        DefinitionError: as for `declare_consumer`.
    """
    topic = declare_topic(connection, handler.topic, handler.customer)
    found, _ = record_consumer(connection, handler.name, topic, first, last, returns)
    declare_rollout(connection, found.id, handler)
    return found


def record_consumer(
    connection: sa.Connection,
    name: str,
    topic: Topic,
    first: int,
    last: int | None = None,
    returns: bool = False,
) -> tuple[Consumer, bool]:
    """Put a consumer of a part of the stream on record, or find it; and whether it is new.

    Raises:
        ParameterError: the name belongs to a consumer of another topic, or to one that was removed
            and doesn't return.
    """
    found = known_consumer(connection, name)
    if found is None and connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE ledgerbeam_consumer IN SHARE ROW EXCLUSIVE MODE")
        found = known_consumer(connection, name)
    is_new = found is None
    if found is None:
        if not returns:
            _check_not_removed(connection, name)
        ids = sa.union_all(sa.select(CONSUMER.c.id), sa.select(REMOVAL.c.id)).subquery()
        number = connection.execute(sa.select(sa.func.max(ids.c.id))).scalar() or 0
        found = Consumer(number + 1, name, topic.id, first, False, None, last)
        connection.execute(CONSUMER.insert().values(**found._asdict()))
        blank = {"consumer": found.id, "epoch": 0, "position": first}
        connection.execute(
            PROGRESS.insert(), [{**blank, "bucket": bucket} for bucket in range(BUCKETS)]
        )
        declare_units(connection, work_of(name), range(BUCKETS))
    if found.topic != topic.id:
        raise ParameterError(
            f"consumer {name} is on record for another topic than {topic.name}: "
            "give it another name",
            parameter="name",
            value=name,
        )
    return found, is_new


def _check_not_removed(connection: sa.Connection, name: str) -> None:
    of_name = REMOVAL.select().where(REMOVAL.c.consumer == name)
    removed = connection.execute(of_name.order_by(REMOVAL.c.id.desc())).first()
    if removed is not None:
        raise ParameterError(
            f"consumer {name} was removed at {to_datetime(removed.at):%FT%TZ} by {removed.who}, "
            "and what it had handled is no longer known: give another name, or have it consume "
            "anew what was posted since a time, by --since",
            parameter="name",
            value=name,
        )


def find_consumer(connection: sa.Connection, name: str) -> Consumer:
    """A consumer by its name.

    Raises:
        ParameterError: there is none.
    """
    found = known_consumer(connection, name)
    if found is None:
        names = ", ".join(consumer.name for consumer in consumers(connection)) or "none"
        raise ParameterError(
            f"there is no consumer {name}: on record are {names}", parameter="consumer", value=name
        )
    return found


def consumers(connection: sa.Connection) -> list[Consumer]:
    """All consumers."""
    return [Consumer(*row) for row in connection.execute(CONSUMER.select().order_by(CONSUMER.c.id))]


def set_paused(connection: sa.Connection, name: str, paused: bool) -> None:
    """Pause a consumer, or let it go on; its processes follow within a second."""
    found = find_consumer(connection, name)
    connection.execute(CONSUMER.update().where(CONSUMER.c.id == found.id).values(paused=paused))
    wake(connection, STREAM_POSTED)


def set_rate(connection: sa.Connection, name: str, rate: float | None) -> None:
    """Limit the messages a second of a consumer; its processes follow within a second."""
    found = find_consumer(connection, name)
    connection.execute(CONSUMER.update().where(CONSUMER.c.id == found.id).values(rate=rate))
    wake(connection, STREAM_POSTED)


def known_consumer(connection: sa.Connection, name: str) -> Consumer | None:
    """A consumer by its name; None if there is none."""
    row = connection.execute(CONSUMER.select().where(CONSUMER.c.name == name)).first()
    return None if row is None else Consumer(*row)


def position_before(connection: sa.Connection, moment: int) -> int:
    """The last position of the stream that was posted before a moment; 0 if there is none."""
    select = sa.select(sa.func.max(STREAM.c.position)).where(STREAM.c.posted_at < moment)
    return connection.execute(select).scalar() or 0
