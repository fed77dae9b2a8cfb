"""Worlds in which messages are written, committed and posted: a model, and real databases.

The model is PostgreSQL's visibility and the protocol of `messages.scheduler.sweep`, in forty lines
of Python. The same state machine drives all of them.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from ledgerbeam.io.sql.engine import open_engine
from ledgerbeam.messages.model.message import bucket_of, lane_of, to_datetime
from ledgerbeam.messages.scheduler.sweep import Sweeper, take_lane
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.send import cancel, reschedule, schedule
from ledgerbeam.messages.store.topics import declare_topic

CUSTOMER = "C1"
LANE = lane_of(bucket_of(CUSTOMER))
_names = (f"topic-{number}" for number in itertools.count())


class World(Protocol):
    """Where senders' transactions and the scheduler meet. Times are small numbers."""

    def begin(self) -> Any: ...
    def schedule(self, transaction: Any, key: str, due: int) -> None: ...
    def cancel(self, transaction: Any, key: str) -> bool: ...
    def move(self, transaction: Any, key: str, due: int) -> bool: ...
    def commit(self, transaction: Any) -> None: ...
    def rollback(self, transaction: Any) -> None: ...
    def post(self, now: int, limit: int) -> bool:
        """Post a batch; whether the sweep has ended."""
        ...

    def posted(self) -> list[tuple[str, int]]:
        """Keys and due times in the stream, in its order."""
        ...

    def close(self) -> None: ...


class Row(NamedTuple):
    due: int
    id: int
    key: str
    written: int


@dataclass
class Model:
    """Transactions have numbers; a snapshot is the set of numbers whose end is still to come.

    `forget_snapshot` breaks the protocol on purpose: the cursor is a time alone.
    """

    forget_snapshot: bool = False
    rows: list[Row] = field(default_factory=list)
    active: set[int] = field(default_factory=set)
    undone: set[int] = field(default_factory=set)
    stream: list[Row] = field(default_factory=list)
    next: int = 1
    cursor: tuple[int, int] = (0, 0)
    seen: tuple[int, frozenset[int]] = (1, frozenset())
    sweep: tuple[tuple[int, int], tuple[int, frozenset[int]], int] | None = None
    withdrawn: dict[int, int] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)

    def begin(self) -> int:
        self.active.add(self.next)
        self.next += 1
        return self.next - 1

    def schedule(self, transaction: int, key: str, due: int) -> None:
        self.rows.append(Row(due, len(self.rows), key, transaction))

    def cancel(self, transaction: int, key: str) -> bool:
        found = [
            row
            for row in self.rows
            if row.key == key
            and (row.written == transaction or self._sees(self._snapshot(), row.written))
            and row.id not in self.withdrawn
            and (row.id in self.held or not self._is_posted(row))
        ]
        self.withdrawn |= {row.id: transaction for row in found}
        return bool(found)

    def move(self, transaction: int, key: str, due: int) -> bool:
        if self.cancel(transaction, key):
            self.schedule(transaction, key, due)
            return True
        return False

    def commit(self, transaction: int) -> None:
        self.active.remove(transaction)

    def rollback(self, transaction: int) -> None:
        self.active.remove(transaction)
        self.undone.add(transaction)
        self.withdrawn = {i: by for i, by in self.withdrawn.items() if by != transaction}

    def post(self, now: int, limit: int) -> bool:
        if self.sweep is None:
            snapshot = self._snapshot()
            late = [
                row.due
                for row in self.rows
                if (row.due, row.id) <= self.cursor
                and self._sees(snapshot, row.written)
                and not self._is_posted(row)
            ]
            first = (min(late), -1) if late and not self.forget_snapshot else self.cursor
            self.sweep = first, snapshot, max(now, self.cursor[0])
        behind, snapshot, until = self.sweep
        for row in sorted(row for row in self.rows if row.id in self.held):
            if self.withdrawn.get(row.id) not in self.active:
                self.held.remove(row.id)
                if row.id not in self.withdrawn:
                    self.stream.append(row)
        batch = sorted(
            row
            for row in self.rows
            if behind < (row.due, row.id)
            and row.due <= until
            and self._sees(snapshot, row.written)
            and not self._is_posted(row)
            and (row.id not in self.withdrawn or self.withdrawn[row.id] in self.active)
        )[:limit]
        self.held |= {row.id for row in batch if row.id in self.withdrawn}
        self.stream += [row for row in batch if row.id not in self.withdrawn]
        if len(batch) < limit:
            self.cursor, self.seen, self.sweep = (until, 10**9), snapshot, None
            return True
        self.sweep = (batch[-1].due, batch[-1].id), snapshot, until
        return False

    def posted(self) -> list[tuple[str, int]]:
        return [(row.key, row.due) for row in self.stream]

    def close(self) -> None:
        pass

    def _snapshot(self) -> tuple[int, frozenset[int]]:
        return self.next, frozenset(self.active)

    def _sees(self, snapshot: tuple[int, frozenset[int]], transaction: int) -> bool:
        end, active = snapshot
        is_ended = transaction < end and transaction not in active
        return is_ended and transaction not in self.undone

    def _is_posted(self, row: Row) -> bool:
        if (row.due, row.id) <= self.cursor and self._sees(self.seen, row.written):
            return True
        if self.sweep is None:
            return False
        behind, snapshot, _ = self.sweep
        return (row.due, row.id) <= behind and self._sees(snapshot, row.written)


class Real:
    """A database, a topic of its own, and a connection a transaction."""

    def __init__(self, url: str, database: MessageDatabase) -> None:
        self._database = database
        self._sweeper = Sweeper(database)
        self._senders = open_engine(url, 8)
        self._name = next(_names)
        with database.begin("topic") as connection:
            self._topic = declare_topic(connection, self._name, "customer").id
            take_lane(connection, LANE, 1)

    def begin(self) -> sa.Connection:
        connection = self._senders.connect()
        connection.begin()
        return connection

    def schedule(self, transaction: sa.Connection, key: str, due: int) -> None:
        message = {"customer": CUSTOMER, "key": key}
        schedule(transaction, self._name, message, due=to_datetime(due), key=key)

    def cancel(self, transaction: sa.Connection, key: str) -> bool:
        return cancel(transaction, self._name, key) > 0

    def move(self, transaction: sa.Connection, key: str, due: int) -> bool:
        return reschedule(transaction, self._name, key, to=to_datetime(due)) > 0

    def commit(self, transaction: sa.Connection) -> None:
        transaction.commit()
        transaction.close()

    def rollback(self, transaction: sa.Connection) -> None:
        transaction.rollback()
        transaction.close()

    def post(self, now: int, limit: int) -> bool:
        return self._sweeper.post(self._topic, LANE, 1, now, limit).is_done

    def posted(self) -> list[tuple[str, int]]:
        select = sa.text(
            "SELECT key, due FROM ledgerbeam_stream WHERE topic = :topic ORDER BY position"
        )
        with self._senders.connect() as connection:
            rows = connection.execute(select, {"topic": self._topic})
            return [(row.key, row.due) for row in rows]

    def close(self) -> None:
        self._senders.dispose()
