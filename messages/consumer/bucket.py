"""Handling the messages of a bucket: in order, each once, none held up by another customer's.

A transaction holds the row of the bucket's progress, with the epoch of this process's lease, from
its beginning to its end. So a process that has lost its lease finds that out before it does
anything, and another one that has taken over waits for the end of such a transaction.

Messages are handled in batches. If a batch fails, it is rolled back, and its messages are handled
one by one, so that one that fails is alone. It is *parked*: tried again later, with the later
messages of its customer behind it, while the bucket goes on with other customers.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.messages.consumer.consumers import Consumer
from ledgerbeam.messages.consumer.handling import Handling, MessageFailedError
from ledgerbeam.messages.consumer.progress import BucketRows, Step
from ledgerbeam.messages.define.handler import MessageHandler
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import PARKED, STREAM


class _Batch(NamedTuple):
    """What a transaction has done, and the first parked message of each customer before it."""

    handled: int
    failed: int
    read: int
    heads: list[sa.Row[Any]]


class Buckets(BucketRows):
    """Handles the messages of buckets for one consumer. Threads may share one."""

    def __init__(
        self, database: MessageDatabase, consumer: Consumer, handler: MessageHandler[Any]
    ) -> None:
        super().__init__(database, consumer, handler.batch)
        self._handling = Handling(self._records, handler)

    def step(self, bucket: int, epoch: int, now: int, limit: int) -> Step:
        """Try what is parked and due again, then handle the next messages of the stream.

        Args:
            bucket: number of the bucket.
            epoch: of this process's lease on it.
            now: the present time in microseconds.
            limit: messages that are handled at most.

        Raises:
            BucketLostError: the bucket is another process's.
            DatabaseError: the database can't be reached.
        """
        limit = min(limit, self.batch)
        try:
            batches = [self._handle_next(bucket, epoch, now, limit)]
        except MessageFailedError:
            batches = list(self._one_by_one(bucket, epoch, now, limit))
        handled = sum(batch.handled for batch in batches)
        failed = sum(batch.failed for batch in batches)
        due_again = [head for head in batches[-1].heads if head.next_try_at <= now]
        for head in due_again:
            succeeds = self._try_again(bucket, epoch, now, head)
            handled, failed = handled + succeeds, failed + (not succeeds)
        next_tries = [head.next_try_at for head in batches[-1].heads]
        if failed or due_again:
            next_tries.append(now)  # others may be next now
        return Step(
            handled, failed, sum(batch.read for batch in batches), min(next_tries, default=None)
        )

    def _one_by_one(self, bucket: int, epoch: int, now: int, limit: int) -> "Iterator[_Batch]":
        for _ in range(limit):
            try:
                batch = self._handle_next(bucket, epoch, now, 1)
            except MessageFailedError as failure:
                self._park(bucket, epoch, now, failure)
                batch = _Batch(0, 1, 1, [])
            yield batch
            if not batch.read:
                return

    def _handle_next(self, bucket: int, epoch: int, now: int, limit: int) -> "_Batch":
        """Handle messages of the stream in one transaction."""
        with self._progress(bucket, epoch) as (connection, progress):
            values = {"in_bucket": bucket, "behind": progress.position, "limit": limit}
            messages = connection.execute(self._next, values).all()
            heads = self._heads(connection, bucket, messages)
            if not messages:
                return _Batch(0, 0, 0, heads)
            waiting = {head.customer for head in heads}
            new = [message for message in messages if not message.is_parked]
            behind = [message for message in new if message.customer in waiting]
            if behind:
                known = self._records.known(connection, behind)
                behind = [message for message in behind if message.message_id not in known]
                rows = [self._records.waiting_row(message, bucket) for message in behind]
                if rows:
                    connection.execute(PARKED.insert(), rows)
            free = [message for message in new if message.customer not in waiting]
            handled = self._handling.handle(connection, progress, free, now)
            connection.execute(self._move, {"in_bucket": bucket, "to": messages[-1].position})
        return _Batch(len(handled), 0, len(messages), heads)

    def _try_again(self, bucket: int, epoch: int, now: int, parked: sa.Row[Any]) -> bool:
        is_it = (PARKED.c.consumer == self._consumer.id) & (PARKED.c.position == parked.position)
        try:
            with self._progress(bucket, epoch) as (connection, progress):
                gone = connection.execute(PARKED.delete().where(is_it, PARKED.c.dead_at.is_(None)))
                if gone.rowcount:
                    message = connection.execute(
                        sa.select(STREAM).where(STREAM.c.position == parked.position)
                    ).one()
                    self._handling.handle(connection, progress, [message], now, parked.tries)
        except MessageFailedError as failure:
            self._park(bucket, epoch, now, failure, parked.tries)
            return False
        return True

    def _park(
        self,
        bucket: int,
        epoch: int,
        now: int,
        failure: MessageFailedError,
        tries_before: int | None = None,
    ) -> None:
        """Record that a message has failed, and pass it if that is the first time."""
        with self._progress(bucket, epoch) as (connection, _):
            self._handling.park(connection, failure, bucket, tries_before, now)
            if tries_before is None:
                passed = {"in_bucket": bucket, "to": failure.message.row.position}
                connection.execute(self._move, passed)
