"""Moving what is past its retention out of the database: first to files, then away.

A batch is one transaction. It writes the batch's files and their manifest, notes in the books what
leaves, deletes the rows, and commits. A process may be killed anywhere: before the commit, all rows
are there, and the next one deletes the files, which stand on record as begun; after it, all is
done. So every message is in the database or in an archive that is on record, and in one of them.

A message leaves when it was posted long enough ago and each consumer of its topic has handled it.
Dead letters stay, and so does what is in flight. On PostgreSQL a partition of the stream of which
little is left behind is dropped as a whole, and what stays goes to the default partition; else
rows are deleted, up to `ROWS` at a time.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from ledgerbeam.io.errors import DatabaseError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.storage import uris
from ledgerbeam.messages.archive.files import (
    INBOX,
    ROWS_PER_FILE,
    STREAM,
    WITHDRAWN,
    ArchivedFile,
    ArchiveManifest,
    delete_files,
    write_file,
    write_manifest,
)
from ledgerbeam.messages.consumer.consumers import consumers
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.partitions import drop_empty_weeks, passed_stream_partitions
from ledgerbeam.messages.store.schema import ARCHIVE, ARCHIVED
from ledgerbeam.messages.store.topics import Topic, topics

ROWS = 100_000
"""Messages of a batch that is deleted row by row."""

LEFT_BEHIND = 10_000
"""A partition is dropped if at most so many of its rows stay."""

_DAY = 86_400_000_000
_LOCK_TRIES = 10
_ARCHIVING = 5_303_178_130  # a lock that is held while rows are on their way to files
_WHOLE = "ledgerbeam_stream"
_LEAVING, _LEAVING_WITHDRAWN = "ledgerbeam_leaving", "ledgerbeam_leaving_withdrawn"
_STREAM_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("position", "message_id", "due", "posted_at")]
    + [(name, pa.int64()) for name in ("bucket", "version")]
    + [(name, pa.string()) for name in ("customer", "key", "payload")]
)
_INBOX_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("message_id", "handled_at", "rule", "move", "run")]
)
_WITHDRAWN_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("id", "due", "state", "bucket", "version")]
    + [(name, pa.string()) for name in ("customer", "key", "payload", "local")]
)
# Inbox entries of consumers whose range has the position: others have handled something else.
_ENTRIES = """
    FROM ledgerbeam_inbox i
    JOIN ledgerbeam_leaving l ON l.message_id = i.message_id
    JOIN ledgerbeam_consumer c ON c.id = i.consumer AND c.topic = l.topic
        AND l.position > c.first AND (c.last IS NULL OR l.position <= c.last)"""


class Batch(NamedTuple):
    """A batch that was archived.

    Attributes:
        number: its number.
        uri: its folder.
        messages: how many messages have left the stream.
        withdrawn: how many that were canceled or moved have left.
    """

    number: int
    uri: str
    messages: int
    withdrawn: int


def archive(database: MessageDatabase, before: int, output: str) -> Iterator[Batch]:
    """Archive what was posted before a moment, batch by batch.

    Args:
        database: of the messages.
        before: in microseconds; what a topic's retention holds stays longer.
        output: URI of the folder that batches go to.

    Raises:
        DatabaseError: another process archives or erases, or the database can't be reached.
        StorageError: a file can't be written.
    """
    root = uris.absolute(output)
    delete_unfinished(database)
    parts = [_WHOLE]
    if database.is_postgresql:
        with database.begin("partitions") as connection:
            parts = [*passed_stream_partitions(connection), *parts]
    for part in parts:
        is_there = True
        while is_there and (done := _archive(database, before, root, part)) is not None:
            batch, is_there = done
            yield batch
    if database.is_postgresql:
        with database.begin("partitions") as connection:
            drop_empty_weeks(connection, database.now(connection))


def delete_unfinished(database: MessageDatabase) -> None:
    """Delete what processes have left that were killed while they archived."""
    with database.begin("archives") as connection:
        unfinished = sa.select(ARCHIVE).where(ARCHIVE.c.archived_at.is_(None))
        for row in connection.execute(unfinished.with_for_update(skip_locked=True)).all():
            delete_files(row.uri)
            connection.execute(ARCHIVE.delete().where(ARCHIVE.c.number == row.number))


def lock_archives(connection: sa.Connection) -> None:
    """Have others who archive or erase wait for the end of this transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ARCHIVING)))


def _archive(
    database: MessageDatabase, before: int, root: str, part: str
) -> tuple[Batch, bool] | None:
    """Archive one batch of a part of the stream, and say whether the part is still there.

    None if there is nothing.
    """
    what = "the archive"
    with database.begin(what) as connection:
        lock_archives(connection)
        known = topics(connection)
        eligible = _Eligible(known, before, database.now(connection))
        if eligible.is_empty(connection, part):
            return None
        last = connection.execute(sa.select(sa.func.max(ARCHIVE.c.number))).scalar() or 0
        number = last + 1
        uri = uris.join(root, f"batch-{number:05d}")
        begun = {"number": number, "uri": uri, "begun_at": database.now(connection)}
        connection.execute(ARCHIVE.insert().values(begun))
    failpoint("archive.begun")
    with database.begin(what) as connection:
        lock_archives(connection)
        is_it = ARCHIVE.c.number == number
        mine = sa.select(ARCHIVE).where(is_it, ARCHIVE.c.uri == uri).with_for_update()
        if connection.execute(mine).first() is None:
            raise DatabaseError(
                f"{database.place}: another process archives, and has taken over: try again when "
                "it has ended",
                database=database.place,
            )
        is_dropped = eligible.collect(connection, part)
        write_manifest(uri, ArchiveManifest(version=1, files=list(_files(connection, uri, known))))
        _note(connection, number)
        counts = [_count(connection, table) for table in (_LEAVING, _LEAVING_WITHDRAWN)]
        _delete(connection, part, is_dropped)
        done = {"archived_at": database.now(connection), "messages": sum(counts)}
        connection.execute(ARCHIVE.update().where(is_it).values(done))
        failpoint("archive.before-commit")
    failpoint("archive.committed")
    return Batch(number, uri, *counts), not is_dropped


class _Eligible:
    """What may leave."""

    def __init__(self, known: list[Topic], before: int, now: int) -> None:
        """Derive from when on the messages of each topic stay."""
        limits = {
            topic.id: min(before, now - topic.retention * _DAY)
            for topic in known
            if topic.retention is not None
        }
        cases = "".join(f" WHEN {topic} THEN {limit}" for topic, limit in limits.items())
        self._limit = f"(CASE {{0}}.topic{cases} ELSE {before} END)" if cases else str(before)
        self._before = before

    def _posted(self, part: str) -> str:
        """SQL: positions of the stream's messages that leave, in order."""
        return f"""
            SELECT s.position, s.message_id, s.topic, s.due FROM {part} s
            WHERE s.posted_at < {self._before} AND s.posted_at < {self._limit.format("s")}
                AND NOT EXISTS (
                    SELECT 1 FROM ledgerbeam_consumer c WHERE c.topic = s.topic
                        AND s.position > c.first AND (c.last IS NULL OR s.position <= c.last)
                        AND NOT EXISTS (SELECT 1 FROM ledgerbeam_inbox i
                            WHERE i.consumer = c.id AND i.message_id = s.message_id))
                AND NOT EXISTS (SELECT 1 FROM ledgerbeam_parked p WHERE p.position = s.position
                    AND p.message_id = s.message_id)"""

    def _withdrawn(self) -> str:
        return f"""
            SELECT m.id AS message_id, m.topic, m.due FROM ledgerbeam_message m
            WHERE m.state <> 0 AND m.due < {self._before} AND m.due < {self._limit.format("m")}"""

    def is_empty(self, connection: sa.Connection, part: str) -> bool:
        """Whether nothing leaves; messages that were withdrawn leave after the others."""
        selects = [self._posted(part), *([self._withdrawn()] if part == _WHOLE else [])]
        return not any(
            connection.exec_driver_sql(f"{select} LIMIT 1").first() for select in selects
        )

    def collect(self, connection: sa.Connection, part: str) -> bool:
        """Put what leaves into temporary tables; whether the part may be dropped afterwards."""
        is_partition = part != _WHOLE
        if is_partition:
            connection.exec_driver_sql(f"LOCK TABLE {part} IN SHARE MODE")
        limit = "" if is_partition else f" ORDER BY s.position LIMIT {ROWS}"
        connection.exec_driver_sql(f"CREATE TEMP TABLE {_LEAVING} AS {self._posted(part)}{limit}")
        withdrawn = f"{self._withdrawn()} LIMIT {0 if is_partition else ROWS}"
        connection.exec_driver_sql(f"CREATE TEMP TABLE {_LEAVING_WITHDRAWN} AS {withdrawn}")
        if not is_partition:
            return False
        for table in (_LEAVING, _LEAVING_WITHDRAWN):
            connection.exec_driver_sql(f"ANALYZE {table}")
        if _count(connection, part) - _count(connection, _LEAVING) <= LEFT_BEHIND:
            return True
        connection.exec_driver_sql(
            f"DELETE FROM {_LEAVING} WHERE position NOT IN "
            f"(SELECT position FROM {_LEAVING} ORDER BY position LIMIT {ROWS})"
        )
        return False


def _files(connection: sa.Connection, uri: str, known: list[Topic]) -> Iterator[ArchivedFile]:
    """Write what leaves."""
    for topic in known:
        select = f"""SELECT {", ".join(f"s.{name}" for name in _STREAM_SCHEMA.names)}
            FROM ledgerbeam_stream s JOIN {_LEAVING} l ON l.position = s.position
            WHERE l.topic = {topic.id} AND s.position > :after ORDER BY s.position LIMIT :rows"""
        for chunk, rows in enumerate(_chunks(connection, select, _STREAM_SCHEMA)):
            at = pc.min_max(rows.column("posted_at")).as_py()
            file = write_file(uri, STREAM, topic.id, chunk, 1, rows)
            yield ArchivedFile(
                table=STREAM, of=topic.name, first=at["min"], last=at["max"], file=file
            )
        select = f"""SELECT {", ".join(f"m.{name}" for name in _WITHDRAWN_SCHEMA.names)}
            FROM ledgerbeam_message m JOIN {_LEAVING_WITHDRAWN} l
                ON l.message_id = m.id AND l.topic = m.topic AND l.due = m.due
            WHERE m.topic = {topic.id} AND m.id > :after ORDER BY m.id LIMIT :rows"""
        for chunk, rows in enumerate(_chunks(connection, select, _WITHDRAWN_SCHEMA)):
            file = write_file(uri, WITHDRAWN, topic.id, chunk, 1, rows)
            yield ArchivedFile(table=WITHDRAWN, of=topic.name, first=0, last=0, file=file)
    for consumer in consumers(connection):
        select = f"""SELECT {", ".join(f"i.{name}" for name in _INBOX_SCHEMA.names)} {_ENTRIES}
            WHERE i.consumer = {consumer.id} AND i.message_id > :after
            ORDER BY i.message_id LIMIT :rows"""
        for chunk, rows in enumerate(_chunks(connection, select, _INBOX_SCHEMA)):
            file = write_file(uri, INBOX, consumer.id, chunk, 1, rows)
            yield ArchivedFile(table=INBOX, of=consumer.name, first=0, last=0, file=file)


def _chunks(connection: sa.Connection, select: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a select, in tables of so many rows; the first column is what it is sorted by."""
    after = -1
    while True:
        rows = connection.execute(sa.text(select), {"after": after, "rows": ROWS_PER_FILE}).all()
        if not rows:
            return
        columns = zip(*rows, strict=True)
        yield pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema)
        after = rows[-1][0]


def _note(connection: sa.Connection, number: int) -> None:
    """Note in the books what leaves."""
    selects = {
        "posted": f"SELECT topic, due / {_DAY}, 0, count(*) FROM {_LEAVING} GROUP BY 1, 2",
        "canceled": _withdrawn_by_day(1),
        "moved": _withdrawn_by_day(2),
        "handled": f"""SELECT l.topic, l.due / {_DAY}, i.consumer, count(*) {_ENTRIES}
            GROUP BY 1, 2, 3""",
    }
    books: dict[tuple[int, int, int], dict[str, int]] = {}
    for what, select in selects.items():
        for topic, day, consumer, count in connection.exec_driver_sql(select):
            blank = dict.fromkeys(selects, 0)
            books.setdefault((topic, day, consumer), blank)[what] = count
    rows = [
        {"archive": number, "topic": topic, "day": day, "consumer": consumer, **counts}
        for (topic, day, consumer), counts in books.items()
    ]
    if rows:
        connection.execute(ARCHIVED.insert(), rows)


def _withdrawn_by_day(state: int) -> str:
    return f"""SELECT m.topic, m.due / {_DAY}, 0, count(*)
        FROM ledgerbeam_message m JOIN {_LEAVING_WITHDRAWN} l
            ON l.message_id = m.id AND l.topic = m.topic AND l.due = m.due
        WHERE m.state = {state} GROUP BY 1, 2"""


def _delete(connection: sa.Connection, part: str, is_dropped: bool) -> None:
    """Delete what leaves, or drop the part of the stream that it is in."""
    if connection.dialect.name == "postgresql":
        _delete_joined(connection)
    else:
        connection.exec_driver_sql(
            f"DELETE FROM ledgerbeam_inbox WHERE (consumer, message_id) IN "
            f"(SELECT i.consumer, i.message_id {_ENTRIES})"
        )
        connection.exec_driver_sql(
            f"DELETE FROM ledgerbeam_message WHERE id IN (SELECT message_id FROM {_LEAVING} "
            f"UNION ALL SELECT message_id FROM {_LEAVING_WITHDRAWN})"
        )
    if is_dropped:
        _drop(connection, part)
    else:
        connection.exec_driver_sql(
            f"DELETE FROM {part} WHERE position IN (SELECT position FROM {_LEAVING})"
        )
    for table in (_LEAVING, _LEAVING_WITHDRAWN):
        connection.exec_driver_sql(f"DROP TABLE {table}")


def _delete_joined(connection: sa.Connection) -> None:
    connection.exec_driver_sql(
        f"DELETE FROM ledgerbeam_inbox d USING (SELECT i.consumer, i.message_id {_ENTRIES}) e "
        "WHERE d.consumer = e.consumer AND d.message_id = e.message_id"
    )
    for table in (_LEAVING, _LEAVING_WITHDRAWN):
        first, last = connection.exec_driver_sql(f"SELECT min(due), max(due) FROM {table}").one()
        if first is None:
            continue
        # With bounds of due times, other weeks aren't searched.
        connection.exec_driver_sql(
            f"DELETE FROM ledgerbeam_message m USING {table} l WHERE m.id = l.message_id "
            f"AND m.topic = l.topic AND m.due = l.due AND m.due BETWEEN {first} AND {last}"
        )


def _drop(connection: sa.Connection, part: str) -> None:
    connection.exec_driver_sql(
        f"CREATE TEMP TABLE ledgerbeam_staying ON COMMIT DROP AS SELECT * FROM {part} "
        f"WHERE position NOT IN (SELECT position FROM {_LEAVING})"
    )
    connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
    for tries_left in reversed(range(_LOCK_TRIES)):
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"ALTER TABLE {_WHOLE} DETACH PARTITION {part}")
            break
        except OperationalError:  # somebody reads the stream, for longer than others should wait
            if not tries_left:
                raise
            time.sleep(1)
    connection.exec_driver_sql(f"DROP TABLE {part}")
    connection.exec_driver_sql(f"INSERT INTO {_WHOLE} SELECT * FROM ledgerbeam_staying")


def _count(connection: sa.Connection, table: str) -> int:
    return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())
