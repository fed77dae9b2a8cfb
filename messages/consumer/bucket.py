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
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.consumer.consumers import Consumer
from ledgerbeam.messages.consumer.rollouts import Chooses, chooses_rules
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import Message, to_datetime
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import INBOX, PARKED, PROGRESS, ROLLOUT, STREAM
from ledgerbeam.messages.store.send import insert_rows, outgoing_row
from ledgerbeam.transforms.concurrency.retry import Failure

_HANDLING = "ledgerbeam_handling"
_ENTER = sa.text("""
    INSERT INTO ledgerbeam_inbox (consumer, message_id, handled_at, rule, move)
    SELECT :consumer, number, :now, rule, move
    FROM unnest(CAST(:numbers AS bigint[]), CAST(:rules AS smallint[]), CAST(:moves AS integer[]))
        AS entered (number, rule, move)
    ON CONFLICT DO NOTHING RETURNING message_id""")


class BucketLostError(Exception):
    """Another process has the bucket."""


class Step(NamedTuple):
    """What a step has done.

    Attributes:
        handled: messages that were handled.
        failed: messages that have failed.
        read: messages of the stream that were passed, whatever became of them.
        next_try_at: when the next parked message is to be tried, in microseconds; None if none is
            parked.
    """

    handled: int
    failed: int
    read: int
    next_try_at: int | None


class _Prepared(NamedTuple):
    """A message that is about to be handled.

    Attributes:
        row: as it stands in the stream.
        model: the message; None if there is an error.
        rule: number of the rule of its customer; None if the handler has no rules.
        move: number of the rollout's entry by which that is the new rule.
        error: why it can't be handled.
    """

    row: sa.Row[Any]
    model: Message | None = None
    rule: int | None = None
    move: int | None = None
    error: Exception | None = None


class _FailedError(Exception):
    """One message of a transaction has failed."""

    def __init__(self, message: _Prepared, error: Exception) -> None:
        super().__init__()
        self.message = message
        self.error = error


class _Batch(NamedTuple):
    """What a transaction has done, and the first parked message of each customer before it."""

    handled: int
    failed: int
    read: int
    heads: list[sa.Row[Any]]


class Buckets:
    """Handles the messages of buckets for one consumer. Threads may share one."""

    def __init__(
        self, database: MessageDatabase, consumer: Consumer, handler: MessageHandler[Any]
    ) -> None:
        self._database = database
        self._consumer = consumer
        self._handler = handler
        self._what = f"consumer {consumer.name}"
        # Made once: SQLAlchemy takes longer to build a statement than PostgreSQL to execute it.
        bucket: sa.BindParameter[int] = sa.bindparam("in_bucket")
        mine = (PROGRESS.c.consumer == consumer.id) & (PROGRESS.c.bucket == bucket)
        last = sa.select(sa.func.max(ROLLOUT.c.number)).where(ROLLOUT.c.consumer == consumer.id)
        entry = (ROLLOUT.c.consumer == consumer.id) & (ROLLOUT.c.number == last.scalar_subquery())
        columns = (ROLLOUT.c.number, ROLLOUT.c.rule, ROLLOUT.c.old_rule, ROLLOUT.c.stage)
        self._position: sa.Select[Any] = (
            sa.select(PROGRESS.c.position, *columns)
            .select_from(PROGRESS.outerjoin(ROLLOUT, entry))
            .where(mine, PROGRESS.c.epoch == sa.bindparam("in_epoch"))
            .with_for_update(of=PROGRESS)
        )
        self._move = PROGRESS.update().where(mine).values(position=sa.bindparam("to"))
        self._next = (
            sa.select(STREAM)
            .where(
                STREAM.c.topic == consumer.topic,
                STREAM.c.bucket == bucket,
                STREAM.c.position > sa.bindparam("behind"),
            )
            .order_by(STREAM.c.position)
            .limit(sa.bindparam("limit"))
        )
        self._parked = (
            sa.select(PARKED)
            .where(
                PARKED.c.consumer == consumer.id,
                PARKED.c.bucket == bucket,
                PARKED.c.dead_at.is_(None),
            )
            .order_by(PARKED.c.position)
        )
        if not sa.event.contains(database.engine, "commit", _refuse_commit):
            sa.event.listen(database.engine, "commit", _refuse_commit)

    def take(self, connection: sa.Connection, bucket: int, epoch: int) -> None:
        """Have no earlier owner work on the bucket any more; waits for a transaction of theirs."""
        connection.execute(
            PROGRESS.update()
            .where(
                PROGRESS.c.consumer == self._consumer.id,
                PROGRESS.c.bucket == bucket,
                PROGRESS.c.epoch < epoch,
            )
            .values(epoch=epoch)
        )

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
        limit = min(limit, self._handler.batch)
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

    @contextmanager
    def _progress(self, bucket: int, epoch: int) -> Iterator[tuple[sa.Connection, sa.Row[Any]]]:
        """A transaction that holds the bucket; how far that has come, and the rollout's entry."""
        values = {"in_bucket": bucket, "in_epoch": epoch}
        with self._database.begin(self._what) as connection:
            progress = connection.execute(self._position, values).first()
            if progress is None:
                raise BucketLostError
            yield connection, progress
            failpoint("messages.before-handled-commit")
        failpoint("messages.handled-commit")

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
                    self._parked_row(_Prepared(message), bucket, 0, 0, None) for message in behind
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

    def _prepare(self, row: sa.Row[Any], choose: Chooses) -> _Prepared:
        try:
            model = self._handler.message_type.from_stored(row.payload, row.version)
            return _Prepared(row, model, *choose(row.customer, model))
        except Exception as error:
            return _Prepared(row, error=error)

    def _call(self, connection: sa.Connection, message: _Prepared, now: int, tries: int) -> Work:
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

    def _enter(
        self, connection: sa.Connection, messages: Sequence[_Prepared], now: int
    ) -> set[int]:
        """Enter messages into the inbox with their rules; those that weren't in it."""
        if not messages:
            return set()
        by_number = {message.row.message_id: message for message in messages}
        numbers = sorted(by_number)
        if self._database.is_postgresql:
            values = {
                "consumer": self._consumer.id,
                "now": now,
                "numbers": numbers,
                "rules": [by_number[number].rule for number in numbers],
                "moves": [by_number[number].move for number in numbers],
            }
            return set(connection.execute(_ENTER, values).scalars())
        known = sa.select(INBOX.c.message_id).where(
            INBOX.c.consumer == self._consumer.id, INBOX.c.message_id.in_(numbers)
        )
        new = set(numbers) - set(connection.execute(known).scalars())
        rows = [
            {
                "consumer": self._consumer.id,
                "message_id": number,
                "handled_at": now,
                "rule": by_number[number].rule,
                "move": by_number[number].move,
            }
            for number in sorted(new)
        ]
        if rows:
            connection.execute(INBOX.insert(), rows)
        return new

    def _heads(self, connection: sa.Connection, bucket: int) -> list[sa.Row[Any]]:
        """The first parked message of each customer."""
        heads: dict[str, sa.Row[Any]] = {}
        for row in connection.execute(self._parked, {"in_bucket": bucket}):
            heads.setdefault(row.customer, row)
        return list(heads.values())

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
        retry, error = self._handler.retry, failure.error
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

    def _parked_row(
        self,
        message: _Prepared,
        bucket: int,
        tries: int,
        next_try_at: int,
        failure: Failure | None,
    ) -> dict[str, Any]:
        return {
            "consumer": self._consumer.id,
            "position": message.row.position,
            "message_id": message.row.message_id,
            "bucket": bucket,
            "customer": message.row.customer,
            "tries": tries,
            "next_try_at": next_try_at,
            "dead_at": None,
            "error": failure.error if failure else None,
            "code": failure.code if failure else None,
            "rule": message.rule,
            "move": message.move,
        }


def _refuse_commit(connection: sa.Connection) -> None:
    # It would commit inbox entries of messages that the batch hasn't come to yet.
    if connection.info.get(_HANDLING):
        connection.invalidate()  # closed, it is rolled back
        raise RuntimeError("the handler ended the transaction, which isn't its own to end")
