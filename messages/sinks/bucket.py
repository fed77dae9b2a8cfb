"""Posting the messages of a bucket to a sink: in order, each at least once.

A consumer's handler works in the transaction that records what it has handled. A sink is outside of
the database, so nothing is gained by a transaction that waits for it; on SQLite all senders would
wait as well. So a step reads in one transaction, posts, and records in a second one what was taken.
Who is killed in between has it posted again, with the same ids.

A process that was stopped and has lost its lease posts nothing more: it may post only while the
lease lasts that it has read, by a clock that goes on while it is stopped.
"""

import random
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.consumer.consumers import work_of
from ledgerbeam.messages.consumer.progress import (
    BucketLostError,
    BucketRows,
    Prepared,
    Step,
)
from ledgerbeam.messages.sinks.posting import RETRY, Poster, RefusedError, Sent, envelope_of
from ledgerbeam.messages.sinks.sinks import Sink
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.schema import LEASE, PARKED, STREAM
from ledgerbeam.transforms.concurrency.retry import Failure, Retry

_PAUSE = Retry(tries=2, first_delay=0.5, longest_delay=60.0)


class _Read(NamedTuple):
    """What a step has before it: the next messages, those that are parked, and its time."""

    position: int
    messages: Sequence[sa.Row[Any]]
    heads: list[sa.Row[Any]]
    until: float


class SinkBuckets(BucketRows):
    """Posts the messages of buckets to a sink. Threads may share one."""

    def __init__(self, database: MessageDatabase, sink: Sink, poster: Poster) -> None:
        """Make one.

        Args:
            database: of the messages.
            sink: on record.
            poster: what posts to it.
        """
        super().__init__(database, sink.consumer, poster.batch)
        self._sink = sink
        self._poster = poster
        self._pause = _Pause()
        self._lease = sa.select(LEASE.c.expires_at).where(
            LEASE.c.work == work_of(sink.consumer.name), LEASE.c.unit == sa.bindparam("in_bucket")
        )

    def step(self, bucket: int, epoch: int, now: int, limit: int) -> Step:
        """Post the next messages of the stream, then try again what is parked and due."""
        waits = self._pause.seconds()
        if waits > 0:
            return Step(0, 0, 0, now + int(waits * 1_000_000))
        read = self._read(bucket, epoch, min(limit, self.batch))
        waiting = {head.customer for head in read.heads}
        free = [message for message in read.messages if message.customer not in waiting]
        sent = self._post(free, read.until)
        passed = self._passed(read.messages, free, sent)
        if passed:
            self._record(bucket, epoch, now, passed, free, sent)
        handled, failed = sent.taken, int(sent.error is not None)
        due_again = [head for head in read.heads if head.next_try_at <= now]
        for head in due_again:
            if self._pause.seconds() > 0:
                break
            succeeds = self._try_again(bucket, epoch, now, head)
            handled, failed = handled + succeeds, failed + (not succeeds)
        next_tries = [head.next_try_at for head in read.heads]
        if failed or due_again or len(passed) < len(read.messages):
            next_tries.append(now + int(self._pause.seconds() * 1_000_000))
        return Step(handled, failed, len(passed), min(next_tries, default=None))

    def _read(self, bucket: int, epoch: int, limit: int) -> _Read:
        began = time.monotonic()
        values = {"in_bucket": bucket, "in_epoch": epoch}
        with self._database.begin(self._what) as connection:
            progress = connection.execute(self._position, values).first()
            if progress is None:
                raise BucketLostError
            bounds = {"in_bucket": bucket, "behind": progress.position, "limit": limit}
            messages = connection.execute(self._next, bounds).all()
            expires_at = connection.execute(self._lease, {"in_bucket": bucket}).scalar_one()
            until = began + (expires_at - self._database.now(connection)) / 1_000_000
            return _Read(
                progress.position, messages, self._heads(connection, bucket, messages), until
            )

    def _post(self, messages: Sequence[sa.Row[Any]], until: float) -> Sent:
        failpoint("sink.before-post")
        source, topic = self._sink.source, self._sink.topic
        envelopes = [envelope_of(source, topic, message) for message in messages]
        sent = self._poster.post(envelopes, until) if envelopes else Sent(0, None)
        if sent.taken or isinstance(sent.error, RefusedError):
            self._pause.end()
        if sent.error is not None and not isinstance(sent.error, RefusedError):
            self._pause.begin()
        failpoint("sink.posted")
        return sent

    def _passed(
        self, messages: Sequence[sa.Row[Any]], free: Sequence[sa.Row[Any]], sent: Sent
    ) -> Sequence[sa.Row[Any]]:
        """The messages of which it is known what becomes of them."""
        done = sent.taken + (sent.error is not None)
        if done == len(free):
            return messages
        return [message for message in messages if message.position < free[done].position]

    def _record(
        self,
        bucket: int,
        epoch: int,
        now: int,
        passed: Sequence[sa.Row[Any]],
        free: Sequence[sa.Row[Any]],
        sent: Sent,
    ) -> None:
        """Record which messages were taken, which one failed, and which wait behind another."""
        taken = free[: sent.taken]
        parked = []
        if sent.error is not None:
            parked.append(self._failed_row(free[sent.taken], bucket, 1, now, sent.error))
        settled = {message.position for message in free[: sent.taken + len(parked)]}
        parked += [
            self._records.waiting_row(message, bucket)
            for message in passed
            if message.position not in settled
        ]
        with self._progress(bucket, epoch) as (connection, _):
            self._records.enter(connection, [Prepared(message) for message in taken], now)
            if parked:
                connection.execute(PARKED.insert(), parked)
            connection.execute(self._move, {"in_bucket": bucket, "to": passed[-1].position})
            failpoint("sink.before-commit")
        failpoint("sink.committed")

    def _try_again(self, bucket: int, epoch: int, now: int, parked: sa.Row[Any]) -> bool:
        """Post a parked message; whether the sink has taken it."""
        is_it = (PARKED.c.consumer == self._consumer.id) & (PARKED.c.position == parked.position)
        is_alive = PARKED.c.dead_at.is_(None)
        read = self._read(bucket, epoch, 1)
        of_stream = STREAM.select().where(STREAM.c.position == parked.position)
        with self._database.begin(self._what) as connection:
            message = connection.execute(of_stream).one()
        sent = self._post([message], read.until)
        if not sent.taken and sent.error is None:
            return False
        with self._progress(bucket, epoch) as (connection, _):
            if sent.taken:
                if connection.execute(PARKED.delete().where(is_it, is_alive)).rowcount:
                    self._records.enter(connection, [Prepared(message)], now)
            else:
                assert sent.error is not None
                row = self._failed_row(message, bucket, parked.tries + 1, now, sent.error)
                connection.execute(PARKED.update().where(is_it, is_alive).values(row))
            failpoint("sink.retried")
        return sent.taken == 1

    def _failed_row(
        self, message: sa.Row[Any], bucket: int, tries: int, now: int, error: Exception
    ) -> dict[str, Any]:
        delay = RETRY.delay(tries, random.random())  # noqa: S311 - spreads retries
        is_final = isinstance(error, RefusedError) or tries >= RETRY.tries
        return self._records.failed_row(
            Prepared(message),
            bucket,
            Failure.of(error, tries),
            now + int(delay * 1_000_000),
            now if is_final else None,
        )


class _Pause:
    """For how long nothing is posted, since the sink doesn't take anything.

    So one that is down isn't given message after message, each of which would have to be tried
    again by itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0

    def seconds(self) -> float:
        """How long it still lasts."""
        return max(0.0, self._until - time.monotonic())

    def begin(self) -> None:
        """A message wasn't taken: wait, and longer each time."""
        with self._lock:
            if self.seconds() > 0:
                return  # another thread has found that out already
            self._failures = min(self._failures + 1, 20)
            delay = _PAUSE.delay(self._failures, random.random())  # noqa: S311 - spreads retries
            self._until = time.monotonic() + delay

    def end(self) -> None:
        """A message was taken."""
        with self._lock:
            self._failures, self._until = 0, 0.0
