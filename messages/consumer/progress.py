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
from ledgerbeam.transforms.concurrency.retry import Failure

_ENTER = sa.text("""
    INSERT INTO ledgerbeam_inbox (consumer, message_id, handled_at, rule, move, run)
    SELECT :consumer, number, :now, rule, move, :run
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


class StreamRow(NamedTuple):
    """What is known of a message that was posted, in the stream or in its archive."""

    position: int
    message_id: int
    bucket: int
    version: int
    due: int
    customer: str
    key: str | None
    payload: str


Posted = StreamRow | sa.Row[Any]
"""A message as it stands in the stream."""


class Prepared(NamedTuple):
    """A message that is about to be handled.

    Attributes:
        row: as it stands in the stream.
        model: the message; None if there is an error.
        rule: number of the rule of its customer; None if the handler has no rules.
        move: number of the rollout's entry by which that is the new rule.
        error: why it can't be handled.
    """

    row: Posted
    model: Message | None = None
    rule: int | None = None
    move: int | None = None
    error: Exception | None = None


def select_progress(consumer: Consumer) -> sa.Select[Any]:
    """How far a consumer has come in the bucket `in_bucket`, which is held until the commit.

    With the last entry of its rollout, whose `number` is None if there is none.
    """
    last = sa.select(sa.func.max(ROLLOUT.c.number)).where(ROLLOUT.c.consumer == consumer.id)
    entry = (ROLLOUT.c.consumer == consumer.id) & (ROLLOUT.c.number == last.scalar_subquery())
    columns = (ROLLOUT.c.number, ROLLOUT.c.rule, ROLLOUT.c.old_rule, ROLLOUT.c.stage)
    return (
        sa.select(PROGRESS.c.position, *columns)
        .select_from(PROGRESS.outerjoin(ROLLOUT, entry))
        .where(PROGRESS.c.consumer == consumer.id, PROGRESS.c.bucket == sa.bindparam("in_bucket"))
        .with_for_update(of=PROGRESS)
    )


class MessageRecords:
    """What a consumer records of messages: the inbox, and those that are parked.

    Attributes:
        database: of the messages.
        consumer: on record there.
    """

    def __init__(
        self, database: MessageDatabase, consumer: Consumer, run: int | None = None
    ) -> None:
        """Make them.

        Args:
            database: of the messages.
            consumer: on record there.
            run: number of the run on Beam that handles; None for the consumer's own processes.
        """
        self.database = database
        self.consumer = consumer
        self._run = run

    def known(self, connection: sa.Connection, messages: Sequence[Posted]) -> dict[int, int | None]:
        """Those of the messages that the inbox has, and by which run on Beam each was handled."""
        numbers = [message.message_id for message in messages]
        rows = connection.execute(
            sa.select(INBOX.c.message_id, INBOX.c.run).where(
                INBOX.c.consumer == self.consumer.id, INBOX.c.message_id.in_(numbers)
            )
        )
        return {row.message_id: row.run for row in rows}

    def enter(self, connection: sa.Connection, messages: Sequence[Prepared], now: int) -> set[int]:
        """Enter messages into the inbox with their rules; those that weren't in it."""
        if not messages:
            return set()
        by_number = {message.row.message_id: message for message in messages}
        numbers = sorted(by_number)
        if self.database.is_postgresql:
            values = {
                "consumer": self.consumer.id,
                "now": now,
                "numbers": numbers,
                "rules": [by_number[number].rule for number in numbers],
                "moves": [by_number[number].move for number in numbers],
                "run": self._run,
            }
            return set(connection.execute(_ENTER, values).scalars().all())
        new = set(numbers) - self.known(connection, [message.row for message in messages]).keys()
        rows = [
            {
                "consumer": self.consumer.id,
                "message_id": number,
                "handled_at": now,
                "rule": by_number[number].rule,
                "move": by_number[number].move,
                "run": self._run,
            }
            for number in sorted(new)
        ]
        if rows:
            connection.execute(INBOX.insert(), rows)
        return new

    def waiting_row(self, message: Posted, bucket: int) -> dict[str, Any]:
        """The row of `PARKED` for a message that wasn't tried, and waits behind another one."""
        return {
            "consumer": self.consumer.id,
            "position": message.position,
            "message_id": message.message_id,
            "bucket": bucket,
            "customer": message.customer,
            "tries": 0,
            "next_try_at": 0,
            "dead_at": None,
            "error": None,
            "code": None,
            "rule": None,
            "move": None,
        }

    def failed_row(
        self,
        message: Prepared,
        bucket: int,
        failure: Failure,
        next_try_at: int,
        dead_at: int | None,
    ) -> dict[str, Any]:
        """The row of `PARKED` for a message that has failed.

        Args:
            message: the message.
            bucket: of its customer.
            failure: its error, and how often it was tried.
            next_try_at: in microseconds.
            dead_at: since when it isn't tried any more, in microseconds; None if it is.
        """
        return self.waiting_row(message.row, bucket) | {
            "tries": failure.tries,
            "next_try_at": next_try_at,
            "dead_at": dead_at,
            "error": failure.error,
            "code": failure.code,
            "rule": message.rule,
            "move": message.move,
        }


class BucketRows(ABC):
    """The rows of a consumer's buckets. Threads may share one.

    Attributes:
        batch: messages that a step begins with at most.
    """

    def __init__(self, database: MessageDatabase, consumer: Consumer, batch: int) -> None:
        """Make one.

        Args:
            database: of the messages.
            consumer: on record.
            batch: messages that a step begins with at most.
        """
        self.batch = batch
        self._database = database
        self._records = MessageRecords(database, consumer)
        self._consumer = consumer
        self._what = f"consumer {consumer.name}"
        # Made once: SQLAlchemy takes longer to build a statement than PostgreSQL to execute it.
        bucket: sa.BindParameter[int] = sa.bindparam("in_bucket")
        mine = (PROGRESS.c.consumer == consumer.id) & (PROGRESS.c.bucket == bucket)
        self._position = select_progress(consumer).where(
            PROGRESS.c.epoch == sa.bindparam("in_epoch")
        )
        # A run on Beam, which handles what this consumer hasn't come to, has parked it.
        is_parked = sa.exists().where(
            PARKED.c.consumer == consumer.id, PARKED.c.position == STREAM.c.position
        )
        waits = (
            (PARKED.c.consumer == consumer.id)
            & (PARKED.c.bucket == bucket)
            & PARKED.c.dead_at.is_(None)
        )
        any_waits = sa.exists().where(waits)
        self._move = PROGRESS.update().where(mine).values(position=sa.bindparam("to"))
        self._next = (
            sa.select(STREAM, is_parked.label("is_parked"), any_waits.label("any_waits"))
            .where(
                STREAM.c.topic == consumer.topic,
                STREAM.c.bucket == bucket,
                STREAM.c.position > sa.bindparam("behind"),
            )
            .order_by(STREAM.c.position)
            # Written out, so that a plan that is kept knows that few rows are wanted.
            .limit(sa.bindparam("limit", type_=sa.Integer, literal_execute=True))
        )
        self._parked = sa.select(PARKED).where(waits).order_by(PARKED.c.position)

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

    def _heads(
        self, connection: sa.Connection, bucket: int, messages: Sequence[sa.Row[Any]]
    ) -> list[sa.Row[Any]]:
        """The first parked message of each customer, as seen when the next messages were read."""
        if messages and not messages[0].any_waits:
            return []
        heads: dict[str, sa.Row[Any]] = {}
        for row in connection.execute(self._parked, {"in_bucket": bucket}):
            heads.setdefault(row.customer, row)
        return list(heads.values())
