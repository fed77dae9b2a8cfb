"""Whether the books balance, counted from the rows themselves, in one snapshot.

    scheduled = posted + canceled + moved + pending       of each topic and day of due time
    posted    = handled + dead + in flight                of each consumer

What was archived counts as it did when it was moved out of these tables.

Which messages were scheduled, posted and handled is known from three tables that are written by
three transactions: the sender's, the scheduler's and the consumer's. The cursors and positions say
what should stand there. A message that one table has and another lacks is named.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.messages.consumer.consumers import consumers
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import posted_condition
from ledgerbeam.messages.store.topics import topics

_EXAMPLES = 5
_NO_END = 2**62
_DAY = 86_400_000_000


class TopicDay(NamedTuple):
    """The books of a topic, for the messages that are due on one day in UTC."""

    topic: str
    day: str
    scheduled: int
    posted: int
    canceled: int
    moved: int
    pending: int


class ConsumerBooks(NamedTuple):
    """The books of a consumer, for what was posted since its beginning."""

    consumer: str
    posted: int
    handled: int
    dead: int
    in_flight: int


class Difference(NamedTuple):
    """Something that doesn't balance.

    Attributes:
        where: the topic or the consumer.
        what: what is wrong, for people.
        messages: how many of them.
        examples: numbers of some of them.
    """

    where: str
    what: str
    messages: int
    examples: tuple[int, ...]


class Books(NamedTuple):
    """The books, and what is wrong with them."""

    days: list[TopicDay]
    consumers: list[ConsumerBooks]
    differences: list[Difference]


def verify(database: MessageDatabase) -> Books:
    """Count everything, and compare.

    Raises:
        DatabaseError: the database can't be reached.
    """
    with database.snapshot("the books") as connection:
        names = {topic.id: topic.name for topic in topics(connection)}
        days = [
            TopicDay(names[row.topic], *row[1:]) for row in connection.execute(sa.text(_days()))
        ]
        of_consumers, differences = [], list(_topic_differences(connection, names))
        for consumer in consumers(connection):
            values = {
                "consumer": consumer.id,
                "topic": consumer.topic,
                "first": consumer.first,
                "last": _NO_END if consumer.last is None else consumer.last,
            }
            row = connection.execute(sa.text(_CONSUMER), values).one()
            of_consumers.append(ConsumerBooks(consumer.name, *row))
            differences += _consumer_differences(connection, consumer.name, values)
    return Books(days, of_consumers, differences)


def _days() -> str:
    # Days of UTC as numbers since 1970 are the same in both dialects.
    return f"""
        SELECT topic, day, CAST(sum(scheduled) AS bigint), CAST(sum(posted) AS bigint),
            CAST(sum(canceled) AS bigint), CAST(sum(moved) AS bigint),
            CAST(sum(pending) AS bigint)
        FROM (
            SELECT m.topic, m.due / {_DAY} AS day, count(*) AS scheduled,
                count(s.message_id) AS posted,
                sum(CASE WHEN m.state = 1 THEN 1 ELSE 0 END) AS canceled,
                sum(CASE WHEN m.state = 2 THEN 1 ELSE 0 END) AS moved,
                sum(CASE WHEN m.state = 0 AND s.message_id IS NULL THEN 1 ELSE 0 END) AS pending
            FROM ledgerbeam_message m LEFT JOIN ledgerbeam_stream s ON s.message_id = m.id
            GROUP BY m.topic, m.due / {_DAY}
            UNION ALL
            SELECT topic, day, posted + canceled + moved, posted, canceled, moved, 0
            FROM ledgerbeam_archived WHERE consumer = 0) AS books
        GROUP BY topic, day ORDER BY 1, 2"""


_CONSUMER = """
    SELECT count(s.position) + archived, count(i.message_id) + archived, count(p.dead_at),
        count(s.position) - count(i.message_id) - count(p.dead_at)
    FROM (SELECT CAST(coalesce(sum(handled), 0) AS bigint) AS archived FROM ledgerbeam_archived
        WHERE consumer = :consumer) AS a
    LEFT JOIN ledgerbeam_stream s
        ON s.topic = :topic AND s.position > :first AND s.position <= :last
    LEFT JOIN ledgerbeam_inbox i ON i.consumer = :consumer AND i.message_id = s.message_id
    LEFT JOIN ledgerbeam_parked p ON p.consumer = :consumer AND p.position = s.position
    GROUP BY archived"""


def _topic_differences(connection: sa.Connection, names: dict[int, str]) -> Iterator[Difference]:
    posted = posted_condition(connection.dialect.name)
    checks = {
        "passed by the scheduler, and not in the stream": f"""
            SELECT m.topic AS place, m.id FROM ledgerbeam_message m
            JOIN ledgerbeam_cursor c ON c.topic = m.topic AND c.lane = m.lane
            LEFT JOIN ledgerbeam_stream s ON s.message_id = m.id
            LEFT JOIN ledgerbeam_held h ON h.message_id = m.id
            WHERE m.state = 0 AND ({posted})
                AND s.message_id IS NULL AND h.message_id IS NULL""",
        "in the stream before the scheduler passed them": f"""
            SELECT m.topic AS place, m.id FROM ledgerbeam_message m
            JOIN ledgerbeam_cursor c ON c.topic = m.topic AND c.lane = m.lane
            JOIN ledgerbeam_stream s ON s.message_id = m.id
            WHERE NOT ({posted})""",
        "canceled or moved, and posted all the same": """
            SELECT m.topic AS place, m.id FROM ledgerbeam_message m
            JOIN ledgerbeam_stream s ON s.message_id = m.id WHERE m.state <> 0""",
        "posted twice": """
            SELECT topic AS place, message_id AS id FROM ledgerbeam_stream
            GROUP BY topic, message_id HAVING count(*) > 1""",
        "in the stream, and never scheduled": """
            SELECT s.topic AS place, s.message_id AS id FROM ledgerbeam_stream s
            LEFT JOIN ledgerbeam_message m ON m.id = s.message_id WHERE m.id IS NULL""",
    }
    for what, select in checks.items():
        found: dict[int, list[int]] = {}
        for row in connection.execute(sa.text(select)):
            found.setdefault(row.place, []).append(row.id)
        for topic, numbers in found.items():
            yield _difference(f"topic {names.get(topic, topic)}", what, numbers)


def _consumer_differences(
    connection: sa.Connection, name: str, values: dict[str, Any]
) -> Iterator[Difference]:
    joined = """
        FROM ledgerbeam_stream s
        JOIN ledgerbeam_progress g ON g.consumer = :consumer AND g.bucket = s.bucket
        LEFT JOIN ledgerbeam_inbox i ON i.consumer = :consumer AND i.message_id = s.message_id
        LEFT JOIN ledgerbeam_parked p ON p.consumer = :consumer AND p.position = s.position
        WHERE s.topic = :topic AND s.position > :first AND s.position <= :last"""
    checks = {
        "passed, and neither handled nor parked": f"""SELECT s.message_id {joined}
            AND s.position <= g.position AND i.message_id IS NULL AND p.position IS NULL""",
        "handled before the consumer passed them": f"""SELECT s.message_id {joined}
            AND s.position > g.position AND i.message_id IS NOT NULL AND i.run IS NULL""",
        "handled, and parked all the same": f"""SELECT s.message_id {joined}
            AND i.message_id IS NOT NULL AND p.position IS NOT NULL""",
        "handled, and not in the stream": """
            SELECT i.message_id FROM ledgerbeam_inbox i
            LEFT JOIN ledgerbeam_stream s ON s.message_id = i.message_id AND s.topic = :topic
            WHERE i.consumer = :consumer AND s.message_id IS NULL AND :first >= 0
                AND :last > 0""",
    }
    for what, select in checks.items():
        numbers = list(connection.execute(sa.text(select), values).scalars())
        if numbers:
            yield _difference(f"consumer {name}", what, numbers)


def _difference(where: str, what: str, numbers: list[int]) -> Difference:
    return Difference(where, what, len(numbers), tuple(sorted(numbers)[:_EXAMPLES]))
