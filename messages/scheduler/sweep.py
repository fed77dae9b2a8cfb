"""How messages that are due get to the stream: each once, late commits included.

A message may be committed long after it was written, and after its due time has passed. A cursor by
time alone would pass it. So the cursor of a lane is a time C and a *snapshot* S: posted is what was
due by C **and** is visible in S. While a sweep is under way, with a snapshot S' of its own, it is

    what is due by C and seen by S, and what is due by D and seen by S'

A sweep takes a new snapshot S' and the present time T, and posts in order of due time what is due
by T, seen by S' and not posted yet: first what came late, then what has become due. It may take
several transactions, each of which moves D forward. At its end C becomes T, and S becomes S'. Each
transaction holds the cursor's row and moves it together with the rows that it posts, so that a
crash leaves both or neither.

On PostgreSQL each row has the id of the transaction that wrote it, and `pg_visible_in_snapshot`
says whether a snapshot sees that. SQLite has one writer at a time, so that a snapshot is the
largest id there is.

Senders that cancel or move a message lock its row. A sweep locks the rows that it posts, so that
one of the two comes first and the other one knows. A sweep doesn't wait for a sender: such messages
are held, and posted later if the sender's transaction is rolled back.
"""

from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import CURSOR, HELD
from ledgerbeam.messages.store.wake import STREAM_POSTED, wake

BATCH = 5_000
"""Messages that a transaction posts at most."""

HORIZON = 600_000_000
"""How far ahead a sweep looks for the next message, in microseconds."""

LAST_SEEN = {
    "postgresql": "CAST(pg_current_snapshot() AS text)",
    "sqlite": "(SELECT CAST(coalesce(max(id), 0) AS text) FROM ledgerbeam_message)",
}
"""SQL: a statement's snapshot as text, by dialect."""

_LAST_ID = 2**62
_LOCK_NOT_AVAILABLE = "55P03"
_INSERT = """
    INSERT INTO ledgerbeam_stream
        (message_id, topic, bucket, version, due, posted_at, customer, key, payload)
    SELECT id, topic, bucket, version, due, :now, customer, key, payload"""


class LaneLostError(Exception):
    """Another process works on the lane."""


class Posted(NamedTuple):
    """What a transaction has posted.

    Attributes:
        messages: how many messages.
        is_done: whether the sweep has ended: nothing more is due.
        next_due: when the next message is due, in microseconds; None if none is within `HORIZON`.
        holds: whether messages are held.
    """

    messages: int
    is_done: bool
    next_due: int | None
    holds: bool


def take_lane(connection: sa.Connection, lane: int, epoch: int) -> None:
    """Have no earlier owner of the lane post any more; waits for a transaction of theirs."""
    connection.execute(
        CURSOR.update().where(CURSOR.c.lane == lane, CURSOR.c.epoch < epoch).values(epoch=epoch)
    )


class Sweeper:
    """Posts what is due in a topic's lane."""

    def __init__(self, database: MessageDatabase) -> None:
        """Make one for the messages of a database."""
        self._database = database

    def post(
        self, topic: int, lane: int, epoch: int, now: int | None = None, limit: int = BATCH
    ) -> Posted:
        """Post messages in one transaction, in order of due time.

        Args:
            topic: number of the topic.
            lane: number of the lane.
            epoch: of this process's lease on the lane.
            now: the present time in microseconds; by default the database's.
            limit: messages that are posted at most.

        Raises:
            LaneLostError: the lane is another process's.
            DatabaseError: the database can't be reached.
        """
        failpoint("messages.before-post")
        try:
            posted = self._post(topic, lane, epoch, now, limit, skips_locked=False)
        except _LockedError:
            posted = self._post(topic, lane, epoch, now, limit, skips_locked=True)
        failpoint("messages.posted")
        return posted

    def _post(
        self, topic: int, lane: int, epoch: int, now: int | None, limit: int, skips_locked: bool
    ) -> Posted:
        with self._database.begin(f"lane {lane} of topic {topic}") as connection:
            cursor = self._begin_sweep(connection, topic, lane, epoch, now)
            values = cursor | {"topic": topic, "lane": lane, "limit": limit}
            values["now"] = self._database.now(connection) if now is None else now
            released, position = self._post_released(connection, values)
            batch = self._post_due(connection, values, skips_locked)
            failpoint("messages.inserted")
            changes = _moved(cursor, batch, is_done=batch.found < limit)
            if batch.position or position:
                changes["position"] = max(batch.position, position)
            connection.execute(
                CURSOR.update()
                .where(CURSOR.c.topic == topic, CURSOR.c.lane == lane)
                .values(changes)
            )
            if batch.posted or released:
                wake(connection, STREAM_POSTED, topic)
            held = connection.execute(
                sa.select(HELD.c.due).where(HELD.c.topic == topic, HELD.c.lane == lane).limit(1)
            )
            posted = Posted(
                messages=batch.posted + released,
                is_done=batch.found < limit,
                next_due=self._next_due(connection, values),
                holds=held.first() is not None,
            )
            failpoint("messages.before-commit")
        return posted

    def _begin_sweep(
        self, connection: sa.Connection, topic: int, lane: int, epoch: int, now: int | None
    ) -> dict[str, Any]:
        row = connection.execute(
            sa.select(CURSOR)
            .where(CURSOR.c.topic == topic, CURSOR.c.lane == lane, CURSOR.c.epoch == epoch)
            .with_for_update()
        ).first()
        if row is None:
            raise LaneLostError
        cursor = dict(row._mapping)
        if cursor["sweep_due"] is None:
            time = self._database.now(connection) if now is None else now
            # Where a clock was put back, what was due stays due.
            cursor["sweep_to"] = max(time, cursor["due"])
            cursor["sweep_snapshot"] = snapshot(connection)
            late = self._first_late(connection, cursor)
            if late is None:
                cursor["sweep_due"], cursor["sweep_id"] = cursor["due"], cursor["id"]
            else:
                cursor["sweep_due"], cursor["sweep_id"] = late, -1
        return cursor

    def _first_late(self, connection: sa.Connection, cursor: dict[str, Any]) -> int | None:
        """When the first message is due that the cursor has passed without having seen it."""
        statement = f"""
            SELECT min(due) FROM ledgerbeam_message
            WHERE due <= :due AND topic = :topic AND lane = :lane AND state = 0
                AND {unseen_condition(self._database.is_postgresql)}"""
        values = {name: cursor[name] for name in ("due", "topic", "lane")}
        values |= unseen_values(cursor["snapshot"], self._database.is_postgresql)
        found: int | None = connection.execute(sa.text(statement), values).scalar()
        return found

    def _due(self) -> str:
        """SQL: what a sweep has yet to post."""
        if self._database.is_postgresql:
            seen_before = "pg_visible_in_snapshot(written, CAST(:snapshot AS pg_snapshot))"
            seen_now = "pg_visible_in_snapshot(written, CAST(:sweep_snapshot AS pg_snapshot))"
        else:
            seen_before = "id <= CAST(:snapshot AS integer)"
            seen_now = "id <= CAST(:sweep_snapshot AS integer)"
        return f"""
            topic = :topic AND lane = :lane AND state = 0
            AND due >= :sweep_due AND (due, id) > (:sweep_due, :sweep_id) AND due <= :sweep_to
            AND {seen_now} AND NOT ((due, id) <= (:due, :id) AND {seen_before})"""

    def _post_due(
        self, connection: sa.Connection, values: dict[str, Any], skips_locked: bool
    ) -> "_Batch":
        condition, bounds = self._due(), values
        if not self._database.is_postgresql or skips_locked:
            batch = self._choose(connection, values)
            if batch.found == 0:
                return batch
            # The rows that this transaction has locked, or has seen to be locked.
            condition += """ AND (due, id) <= (:last_due, :last_id) AND NOT EXISTS (
                SELECT 1 FROM ledgerbeam_held h WHERE h.message_id = m.id)"""
            bounds = values | {"last_due": batch.due, "last_id": batch.id}
        select = f"SELECT * FROM ledgerbeam_message m WHERE {condition} ORDER BY due, id"
        if not self._database.is_postgresql:
            inserted = connection.execute(sa.text(f"{_INSERT} FROM ({select})"), bounds)
            return batch._replace(posted=inserted.rowcount, position=inserted.lastrowid)
        row = _execute_locking(
            connection,
            f"""
            WITH due AS MATERIALIZED ({select} LIMIT :limit FOR SHARE NOWAIT),
            posted AS ({_INSERT} FROM due RETURNING position)
            SELECT messages, last_position, due, id
            FROM (SELECT count(*) AS messages, max(position) AS last_position FROM posted) AS all_of
                -- One row beside one: a join with all of `due` would count again for each of them.
                CROSS JOIN (SELECT due, id FROM due ORDER BY due DESC, id DESC LIMIT 1) AS last""",
            bounds,
        )
        if skips_locked:
            return batch if row is None else batch._replace(posted=row[0], position=row[1])
        return _NOTHING if row is None else _Batch(row[0], row[0], row[2], row[3], row[1])

    def _choose(self, connection: sa.Connection, values: dict[str, Any]) -> "_Batch":
        """The next messages that are due; on PostgreSQL locked, or held where others lock them."""
        select = f"""SELECT due, id FROM ledgerbeam_message m
            WHERE {self._due()} ORDER BY due, id LIMIT :limit"""
        rows = connection.execute(sa.text(select), values).all()
        if not rows:
            return _NOTHING
        if self._database.is_postgresql:
            hold = f"""
                WITH due AS MATERIALIZED ({select}), free AS MATERIALIZED (
                    SELECT m.id FROM ledgerbeam_message m JOIN due USING (due, id)
                    WHERE m.topic = :topic AND m.lane = :lane FOR SHARE OF m SKIP LOCKED)
                INSERT INTO ledgerbeam_held (message_id, topic, lane, due)
                SELECT id, CAST(:topic AS smallint), CAST(:lane AS smallint), due FROM due
                WHERE id NOT IN (SELECT id FROM free)"""
            connection.execute(sa.text(hold), values)
            failpoint("messages.held")
        return _Batch(len(rows), 0, rows[-1][0], rows[-1][1], 0)

    def _post_released(self, connection: sa.Connection, values: dict[str, Any]) -> tuple[int, int]:
        """Post held messages whose senders have let them go; how many, and the last position."""
        if not self._database.is_postgresql:
            return 0, 0  # its senders have no transactions beside this one
        statement = f"""
            WITH free AS MATERIALIZED (
                SELECT m.* FROM ledgerbeam_held h JOIN ledgerbeam_message m ON m.topic = h.topic
                    AND m.lane = h.lane AND m.due = h.due AND m.id = h.message_id
                WHERE h.topic = :topic AND h.lane = :lane
                ORDER BY m.due, m.id LIMIT :limit FOR SHARE OF m SKIP LOCKED),
            posted AS ({_INSERT} FROM free WHERE state = 0 RETURNING position),
            gone AS (DELETE FROM ledgerbeam_held WHERE message_id IN (SELECT id FROM free))
            SELECT count(*), coalesce(max(position), 0) FROM posted"""
        row = connection.execute(sa.text(statement), values).one()
        return int(row[0]), int(row[1])

    def _next_due(self, connection: sa.Connection, values: dict[str, Any]) -> int | None:
        statement = """SELECT due FROM ledgerbeam_message
            WHERE topic = :topic AND lane = :lane AND state = 0
                AND due > :sweep_to AND due <= :horizon ORDER BY due LIMIT 1"""
        bounds = {name: values[name] for name in ("topic", "lane", "sweep_to")}
        bounds["horizon"] = values["sweep_to"] + HORIZON
        found: int | None = connection.execute(sa.text(statement), bounds).scalar()
        return found


class _LockedError(Exception):
    """A sender has locked one of the messages."""


class _Batch(NamedTuple):
    """Messages of a transaction: found and posted, the last one's due time and id, its position."""

    found: int
    posted: int
    due: int
    id: int
    position: int


_NOTHING = _Batch(0, 0, 0, 0, 0)


def _execute_locking(connection: sa.Connection, statement: str, values: dict[str, Any]) -> Any:
    """The first row of a statement, or None.

    Raises:
        _LockedError: one of the rows that it locks is locked.
    """
    try:
        return connection.execute(sa.text(statement), values).first()
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            raise _LockedError from None
        raise


def _moved(cursor: dict[str, Any], batch: _Batch, is_done: bool) -> dict[str, Any]:
    """The cursor's columns after a batch."""
    if is_done:
        blank = dict.fromkeys(("sweep_due", "sweep_id", "sweep_snapshot", "sweep_to"))
        # What is due at that very microsecond and is written later, comes late.
        time = {"due": cursor["sweep_to"], "id": _LAST_ID}
        return blank | time | {"snapshot": cursor["sweep_snapshot"]}
    kept = {name: cursor[name] for name in ("sweep_snapshot", "sweep_to")}
    return kept | {"sweep_due": batch.due, "sweep_id": batch.id}


def snapshot(connection: sa.Connection) -> str:
    """What this moment's statements see, as text."""
    statement = f"SELECT {LAST_SEEN[connection.dialect.name]}"
    return str(connection.exec_driver_sql(statement).scalar_one())


def unseen_condition(is_postgresql: bool) -> str:
    """SQL: whether a message isn't seen by a snapshot; found by index."""
    if is_postgresql:
        return "(written >= CAST(:xmax AS xid8) OR written = ANY(CAST(:active AS xid8[])))"
    return "id > :seen"


def unseen_values(snapshot: str, is_postgresql: bool) -> dict[str, Any]:
    """The values for `unseen_condition`."""
    if not is_postgresql:
        return {"seen": int(snapshot)}
    _, xmax, active = snapshot.split(":")
    return {"xmax": xmax, "active": "{" + active + "}"}
