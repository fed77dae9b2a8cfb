"""Handling the messages of a bucket: in order, each once, none held up by another customer's.

A transaction holds the row of the bucket's progress, with the epoch of this process's lease, from
its beginning to its end. So a process that has lost its lease finds that out before it does
anything, and another one that has taken over waits for the end of such a transaction.

Messages are handled in batches. If a batch fails, it is rolled back, and its messages are handled
one by one, so that one that fails is alone. It is *parked*: tried again later, with the later
messages of its customer behind it, while the bucket goes on with other customers.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.consumer.consumers import Consumer
from ledgerbeam.messages.consumer.progress import (
    BucketRows,
    Prepared,
    Step,
)
from ledgerbeam.messages.consumer.rollouts import Chooses, chooses_rules
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import to_datetime
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import PARKED, STREAM
from ledgerbeam.messages.store.send import insert_rows, outgoing_row
from ledgerbeam.transforms.concurrency.retry import Failure

_HANDLING = "ledgerbeam_handling"


class _FailedError(Exception):
    """One message of a transaction has failed."""

    def __init__(self, message: Prepared, error: Exception) -> None:
        super().__init__()
        self.message = message
        self.error = error


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
        super().__init__(database, consumer, handler.retry, handler.batch)
        self._handler = handler
        if not sa.event.contains(database.engine, "commit", _refuse_commit):
            sa.event.listen(database.engine, "commit", _refuse_commit)

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
        except _FailedError:
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
            except _FailedError as failure:
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
            heads = self._heads(connection, bucket)
            if not messages:
                return _Batch(0, 0, 0, heads)
            waiting = {head.customer for head in heads}
            behind = [message for message in messages if message.customer in waiting]
            if behind:
                rows = [
                    self._parked_row(Prepared(message), bucket, 0, 0, None) for message in behind
                ]
                connection.execute(PARKED.insert(), rows)
            free = [message for message in messages if message.customer not in waiting]
            handled = self._handle(connection, progress, free, now)
            connection.execute(self._move, {"in_bucket": bucket, "to": messages[-1].position})
        return _Batch(handled, 0, len(messages), heads)

    def _handle(
        self,
        connection: sa.Connection,
        progress: sa.Row[Any],
        messages: Sequence[sa.Row[Any]],
        now: int,
        tries: int = 0,
    ) -> int:
        """Handle those of the messages that the inbox doesn't have, and enter them; how many."""
        entry = None if progress.number is None else progress
        choose = chooses_rules(type(self._handler), entry)
        prepared = [self._prepare(message, choose) for message in messages]
        is_new = self._enter(connection, prepared, now)
        outbox = []
        for message in prepared:
            if message.row.message_id not in is_new:
                continue
            try:
                work = self._call(connection, message, now, tries)
                outbox += [outgoing_row(connection, *outgoing) for outgoing in work.outbox]
            except Exception as error:
                if isinstance(error, DBAPIError) and error.connection_invalidated:
                    raise
                raise _FailedError(message, error) from error
        failpoint("messages.handled")
        if outbox:
            insert_rows(connection, outbox)
        return len(is_new)

    def _prepare(self, row: sa.Row[Any], choose: Chooses) -> Prepared:
        try:
            model = self._handler.message_type.from_stored(row.payload, row.version)
            return Prepared(row, model, *choose(row.customer, model))
        except Exception as error:
            return Prepared(row, error=error)

    def _call(self, connection: sa.Connection, message: Prepared, now: int, tries: int) -> Work:
        row, model = message.row, message.model
        if model is None:
            assert message.error is not None
            raise message.error
        work = Work(
            connection,
            model,
            topic=self._handler.topic,
            message_id=row.message_id,
            customer=row.customer,
            key=row.key,
            due=to_datetime(row.due),
            now=to_datetime(now),
            tries=tries,
            rule=message.rule,
        )
        transaction = connection.get_transaction()
        connection.info[_HANDLING] = True
        try:
            self._handler.handle(model, work)
        finally:
            if not connection.invalidated:
                del connection.info[_HANDLING]
        if transaction is None or transaction is not connection.get_transaction():
            raise RuntimeError("the handler ended the transaction, which isn't its own to end")
        return work

    def _try_again(self, bucket: int, epoch: int, now: int, parked: sa.Row[Any]) -> bool:
        is_it = (PARKED.c.consumer == self._consumer.id) & (PARKED.c.position == parked.position)
        try:
            with self._progress(bucket, epoch) as (connection, progress):
                gone = connection.execute(PARKED.delete().where(is_it, PARKED.c.dead_at.is_(None)))
                if gone.rowcount:
                    message = connection.execute(
                        sa.select(STREAM).where(STREAM.c.position == parked.position)
                    ).one()
                    self._handle(connection, progress, [message], now, parked.tries)
        except _FailedError as failure:
            self._park(bucket, epoch, now, failure, parked.tries)
            return False
        return True

    def _park(
        self,
        bucket: int,
        epoch: int,
        now: int,
        failure: _FailedError,
        tries_before: int | None = None,
    ) -> None:
        """Record that a message has failed: to be tried again, or dead."""
        tries = (tries_before or 0) + 1
        retry, error = self._retry, failure.error
        is_mistake = isinstance(error, (*retry.never, UserError))
        is_final = tries >= retry.tries or (
            is_mistake and not getattr(error, "is_transient", False)
        )
        delay = retry.delay(tries, random.random())  # noqa: S311 - spreads retries
        row = self._parked_row(
            failure.message, bucket, tries, now + int(delay * 1_000_000), Failure.of(error, tries)
        )
        row["dead_at"] = now if is_final else None
        with self._progress(bucket, epoch) as (connection, _):
            if tries_before is None:
                connection.execute(PARKED.insert().values(row))
                connection.execute(
                    self._move, {"in_bucket": bucket, "to": failure.message.row.position}
                )
            else:
                is_it = PARKED.c.position == failure.message.row.position
                mine = PARKED.c.consumer == self._consumer.id
                connection.execute(PARKED.update().where(mine, is_it).values(row))


def _refuse_commit(connection: sa.Connection) -> None:
    # It would commit inbox entries of messages that the batch hasn't come to yet.
    if connection.info.get(_HANDLING):
        connection.invalidate()  # closed, it is rolled back
        raise RuntimeError("the handler ended the transaction, which isn't its own to end")
