"""Handling all messages of some customers, in order, beside the consumer's own processes.

Each transaction holds the progress of its bucket, as those of the consumer's processes do, so that
what both come to is handled by one of them, and the other one finds it in the inbox. The progress
itself stays where it is: a process passes later what was handled or given up here.

A message that fails is parked, and tried again here or by a process of the consumer's, whoever
comes first, until it succeeds or is a dead letter; its customer's later messages wait for that.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.io.errors import DatabaseError, UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.consumer.consumers import Consumer, removed_error
from ledgerbeam.messages.consumer.handling import Handling, MessageFailedError
from ledgerbeam.messages.consumer.progress import MessageRecords, StreamRow, select_progress
from ledgerbeam.messages.define.handler import MessageHandler
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import PARKED


class Outcome(StrEnum):
    """What became of a message in a run.

    `HANDLED` by this run, in whichever of its attempts. `DUPLICATE`: it was handled before, or by
    somebody else meanwhile. `DEAD`: it is a dead letter.
    """

    HANDLED = "handled"
    DUPLICATE = "duplicate"
    DEAD = "dead"


class Ended(NamedTuple):
    """What became of a message, and the error of a dead one."""

    outcome: Outcome
    error: str | None = None


class Customers:
    """Handles messages for one consumer. Threads may share one."""

    def __init__(
        self, database: MessageDatabase, consumer: Consumer, handler: MessageHandler[Any], run: int
    ) -> None:
        """Make one.

        Args:
            database: with the inbox, and with what the handler writes.
            consumer: on record there.
            handler: the consumer's.
            run: number of the run.
        """
        self._database = database
        self._consumer = consumer
        self._handler = handler
        self._run = run
        self._records = MessageRecords(database, consumer, run)
        self._handling = Handling(self._records, handler)
        # Made once: SQLAlchemy takes longer to build a statement than PostgreSQL to execute it.
        now: sa.ColumnElement[int] = sa.literal_column(database.clock, sa.BigInteger)
        # The time is asked for outside of what locks the row, which may have to wait for that.
        held = select_progress(consumer).cte("held")
        self._progress = sa.select(held, now.label("now"))
        first, last = (sa.bindparam(name, type_=sa.BigInteger) for name in ("first", "last"))
        self._waiting = (
            sa.select(PARKED)
            .where(
                PARKED.c.consumer == consumer.id,
                PARKED.c.bucket == sa.bindparam("in_bucket"),
                PARKED.c.dead_at.is_(None) | PARKED.c.position.between(first, last),
            )
            .order_by(PARKED.c.position)
        )
        self._lost = threading.Event()

    def handle(self, rows: Sequence[StreamRow]) -> dict[int, Ended]:
        """Handle messages of whole customers; what became of each, by its position.

        Args:
            rows: the messages in the order of the stream, for each customer.

        Raises:
            UserError: a customer has one that isn't among these and must be handled
                first. All other customers' messages are handled.
            DatabaseError: the database can't be reached, also not in several tries.
        """
        if self._lost.is_set():
            raise DatabaseError(f"{self._database.place}: it was lost before, in this attempt")
        by_bucket: dict[int, list[StreamRow]] = {}
        for row in rows:
            by_bucket.setdefault(row.bucket, []).append(row)
        ended: dict[int, Ended] = {}
        too_early: list[str] = []
        for bucket, of_bucket in by_bucket.items():
            left = sorted(of_bucket, key=lambda row: row.position)
            while left:
                left = self._pass(bucket, left, ended)
                if left:
                    left = self._try_again(bucket, left, too_early)
        if too_early:
            raise UserError("; ".join(too_early))
        return ended

    def _pass(
        self, bucket: int, rows: Sequence[StreamRow], ended: dict[int, Ended]
    ) -> list[StreamRow]:
        """Handle what doesn't wait for anything; the messages that do."""
        left: list[StreamRow] = []
        for start in range(0, len(rows), self._handler.batch):
            batch = rows[start : start + self._handler.batch]
            try:
                left += self._batch(bucket, batch, ended)
            except MessageFailedError:
                for row in batch:
                    left += self._alone(bucket, row, ended)
        return left

    def _alone(self, bucket: int, row: StreamRow, ended: dict[int, Ended]) -> list[StreamRow]:
        try:
            return self._batch(bucket, [row], ended)
        except MessageFailedError as failure:
            self._park(bucket, failure, None)
            return [row]

    def _batch(
        self, bucket: int, rows: Sequence[StreamRow], ended: dict[int, Ended]
    ) -> list[StreamRow]:
        """Handle messages in one transaction; those that wait."""

        def handle() -> dict[int, Ended]:
            now_ended: dict[int, Ended] = {}
            with self._held(bucket) as (connection, progress):
                parked = self._parked(connection, bucket, rows[0].position, rows[-1].position)
                heads = _heads(parked)
                free = []
                for row in rows:
                    of_row = parked.get(row.position)
                    if of_row is not None and of_row.dead_at is not None:
                        now_ended[row.position] = Ended(Outcome.DEAD, of_row.error)
                    elif row.customer not in heads or row.position < heads[row.customer].position:
                        free.append(row)
                handled = self._handling.handle(connection, progress, free, progress.now)
                others = [row for row in free if row.message_id not in handled]
                known = self._records.known(connection, others) if others else {}
                for row in free:
                    is_own = row.message_id in handled or known[row.message_id] == self._run
                    outcome = Outcome.HANDLED if is_own else Outcome.DUPLICATE
                    now_ended[row.position] = Ended(outcome)
            return now_ended

        ended |= self._persistent(handle)
        return [row for row in rows if row.position not in ended]

    def _try_again(
        self, bucket: int, rows: Sequence[StreamRow], too_early: list[str]
    ) -> list[StreamRow]:
        """Try the first parked message of each customer again when it is time, once.

        Returns:
            The messages that are left, without those of customers that can't be gone on with.
        """

        def look() -> tuple[int, dict[int, sa.Row[Any]]]:
            with self._database.begin("parked messages") as connection:
                first, last = rows[0].position, rows[-1].position
                return self._database.now(connection), self._parked(connection, bucket, first, last)

        now, parked = self._persistent(look)
        of_rows = {row.position: row for row in rows}
        customers = {row.customer for row in rows}
        mine = [head for head in _heads(parked).values() if head.customer in customers]
        lost = {head.customer for head in mine if head.position not in of_rows}
        too_early += [
            f"customer {head.customer}: message {head.message_id} isn't among those of this run, "
            "has failed and is tried again: let the consumer's processes handle it first"
            for head in mine
            if head.customer in lost
        ]
        mine = [head for head in mine if head.customer not in lost]
        if mine:
            time.sleep(max(0, min(head.next_try_at for head in mine) - now) / 1_000_000)
        at = now if not mine else max(now, min(head.next_try_at for head in mine))
        for head in mine:
            if head.next_try_at <= at:
                self._try_head(bucket, of_rows[head.position], head.tries)
        return [row for row in rows if row.customer not in lost]

    def _try_head(self, bucket: int, row: StreamRow, tries: int) -> None:
        def handle() -> None:
            is_it = (PARKED.c.consumer == self._consumer.id) & (PARKED.c.position == row.position)
            with self._held(bucket) as (connection, progress):
                gone = connection.execute(PARKED.delete().where(is_it, PARKED.c.dead_at.is_(None)))
                if gone.rowcount:
                    self._handling.handle(connection, progress, [row], progress.now, tries)

        try:
            self._persistent(handle)
        except MessageFailedError as failure:
            self._park(bucket, failure, tries)

    def _park(self, bucket: int, failure: MessageFailedError, tries: int | None) -> None:
        def park() -> None:
            with self._held(bucket) as (connection, progress):
                self._handling.park(connection, failure, bucket, tries, progress.now)

        self._persistent(park)

    @contextmanager
    def _held(self, bucket: int) -> Iterator[tuple[sa.Connection, sa.Row[Any]]]:
        """A transaction that holds the bucket; the rollout's entry, and the present time, `now`."""
        with self._database.begin(f"consumer {self._consumer.name}") as connection:
            progress = connection.execute(self._progress, {"in_bucket": bucket}).first()
            if progress is None:
                raise removed_error(self._consumer)
            yield connection, progress
            failpoint("replay.before-handled-commit")
        failpoint("replay.handled-commit")

    def _parked(
        self, connection: sa.Connection, bucket: int, first: int, last: int
    ) -> dict[int, sa.Row[Any]]:
        """What is to be tried again in the bucket, and what is parked between two positions."""
        values = {"in_bucket": bucket, "first": first, "last": last}
        rows = connection.execute(self._waiting, values)
        return {row.position: row for row in rows}

    def _persistent(self, act: Callable[[], Any]) -> Any:
        """What `act` gives, which is called again if the database is away for a moment."""
        retry, tries = self._handler.retry, 0
        while True:
            try:
                return act()
            except DatabaseError as error:
                tries += 1
                if tries >= retry.tries or not error.is_transient:
                    self._lost.set()
                    raise
                time.sleep(retry.delay(tries, 0))


def _heads(parked: Mapping[int, sa.Row[Any]]) -> dict[str, sa.Row[Any]]:
    """The first message of each customer that is to be tried again."""
    heads: dict[str, sa.Row[Any]] = {}
    for row in parked.values():
        if row.dead_at is None:
            heads.setdefault(row.customer, row)
    return heads
