"""How far a consumer has come in its buckets, and what it records of messages.

A transaction holds the row of the bucket's progress, with the epoch of this process's lease. So a
process that has lost its lease finds that out before it records anything, and another one that has
taken over waits for the end of such a transaction.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.consumer.consumers import Consumer
from ledgerbeam.messages.model.message import Message
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import INBOX, PARKED, PROGRESS, ROLLOUT, STREAM
from ledgerbeam.transforms.concurrency.retry import Failure, Retry

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


class Prepared(NamedTuple):
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


class BucketRows(ABC):
    """The rows of a consumer's buckets. Threads may share one.

    Attributes:
        batch: messages that a step begins with at most.
    """

    def __init__(
        self, database: MessageDatabase, consumer: Consumer, retry: Retry, batch: int
    ) -> None:
        """Make one.

        Args:
            database: of the messages.
            consumer: on record.
            retry: how often a message is tried, and how long it waits in between.
            batch: messages that a step begins with at most.
        """
        self.batch = batch
        self._retry = retry
        self._database = database
        self._consumer = consumer
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

    @abstractmethod
    def step(self, bucket: int, epoch: int, now: int, limit: int) -> Step:
        """Go on with the next messages of a bucket, and with those that are to be tried again.

        Args:
            bucket: number of the bucket.
            epoch: of this process's lease on it.
            now: the present time in microseconds.
            limit: messages that are begun at most.

        Raises:
            BucketLostError: the bucket is another process's.
            DatabaseError: the database can't be reached.
        """

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

    def _enter(self, connection: sa.Connection, messages: Sequence[Prepared], now: int) -> set[int]:
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

    def _parked_row(
        self,
        message: Prepared,
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
