"""Handling messages in a transaction: entered into the inbox, given to the handler, outbox sent.

Whoever begins the transaction says which messages: a consumer's process, bucket by bucket, or a
run on Beam, customer by customer. Both hold the bucket's row of the progress meanwhile, so that
one of them comes first and the other one finds what it has done.
"""

import datetime
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.messages.consumer.progress import MessageRecords, Posted, Prepared
from ledgerbeam.messages.consumer.rollouts import Chooses, chooses_rules
from ledgerbeam.messages.define.handler import MessageHandler, Work
from ledgerbeam.messages.model.message import to_datetime
from ledgerbeam.messages.store.schema import PARKED
from ledgerbeam.messages.store.send import insert_rows, outgoing_row
from ledgerbeam.transforms.concurrency.retry import Failure

_HANDLING = "ledgerbeam_handling"


class MessageFailedError(Exception):
    """A message of a transaction has failed; the transaction has to be rolled back.

    Which one it is, is known if the transaction has no other message.
    """

    def __init__(self, message: Prepared, error: Exception) -> None:
        super().__init__()
        self.message = message
        self.error = error


class Handling:
    """Handles messages for one consumer. Threads may share one."""

    def __init__(self, records: MessageRecords, handler: MessageHandler[Any]) -> None:
        """Make one.

        Args:
            records: the consumer's, in the database that the handler writes to.
            handler: the consumer's.
        """
        self._handler = handler
        self._records = records
        engine = records.database.engine
        if not sa.event.contains(engine, "commit", _refuse_commit):
            sa.event.listen(engine, "commit", _refuse_commit)

    def handle(
        self,
        connection: sa.Connection,
        entry: sa.Row[Any],
        messages: Sequence[Posted],
        now: int,
        tries: int = 0,
    ) -> set[int]:
        """Handle those of the messages that the inbox doesn't have, and enter them.

        Args:
            connection: in a transaction that holds the progress of their bucket.
            entry: the last entry of the consumer's rollout; its `number` is None if there is none.
            messages: in the order of the stream.
            now: the present time in microseconds.
            tries: how often they were tried before.

        Returns:
            The numbers of those that were handled.

        Raises:
            MessageFailedError: one of them has failed.
        """
        choose = chooses_rules(type(self._handler), None if entry.number is None else entry)
        prepared = [self._prepare(message, choose) for message in messages]
        is_new = self._records.enter(connection, prepared, now)
        new = [message for message in prepared if message.row.message_id in is_new]
        moment = to_datetime(now)
        works = [self._work(connection, message, moment, tries) for message in new]
        for turn in self._turns(new, works):
            with _failing(turn[0].message):
                self._call(connection, turn)
        outbox: list[tuple[Any, ...]] = []
        for message, work in zip(new, works, strict=True):
            if work.outbox:
                with _failing(message):
                    outbox += [outgoing_row(connection, *outgoing) for outgoing in work.outbox]
        failpoint("messages.handled")
        if outbox:
            insert_rows(connection, outbox)
        return is_new

    def park(
        self,
        connection: sa.Connection,
        failure: MessageFailedError,
        bucket: int,
        tries_before: int | None,
        now: int,
    ) -> None:
        """Record that a message has failed: to be tried again, or dead.

        Nothing is recorded if somebody else has handled or parked it since its transaction was
        rolled back.

        Args:
            connection: in a transaction that holds the progress of the bucket.
            failure: which message, and its error.
            bucket: of its customer.
            tries_before: how often it was tried before; None if it wasn't parked yet.
            now: the present time in microseconds.
        """
        message = failure.message.row
        row = self._failed_row(failure, bucket, (tries_before or 0) + 1, now)
        mine = PARKED.c.consumer == self._records.consumer.id
        is_it = mine & (PARKED.c.position == message.position)
        if tries_before is not None:
            waits = PARKED.c.dead_at.is_(None) & (PARKED.c.tries == tries_before)
            connection.execute(PARKED.update().where(is_it, waits).values(row))
        elif not (
            self._records.known(connection, [message])
            or connection.execute(sa.select(PARKED.c.position).where(is_it)).first()
        ):
            connection.execute(PARKED.insert().values(row))

    def _failed_row(
        self, failure: MessageFailedError, bucket: int, tries: int, now: int
    ) -> dict[str, Any]:
        retry, error = self._handler.retry, failure.error
        is_mistake = isinstance(error, (*retry.never, UserError))
        is_final = tries >= retry.tries or (
            is_mistake and not getattr(error, "is_transient", False)
        )
        delay = retry.delay(tries, random.random())  # noqa: S311 - spreads retries
        next_try_at = now + int(delay * 1_000_000)
        dead_at = now if is_final else None
        what = Failure.of(error, tries)
        return self._records.failed_row(failure.message, bucket, what, next_try_at, dead_at)

    def _prepare(self, row: Posted, choose: Chooses) -> Prepared:
        try:
            model = self._handler.message_type.from_stored(row.payload, row.version)
            return Prepared(row, model, *choose(row.customer, model))
        except Exception as error:
            return Prepared(row, error=error)

    def _work(
        self, connection: sa.Connection, message: Prepared, now: datetime.datetime, tries: int
    ) -> Work:
        row, model = message.row, message.model
        if model is None:
            assert message.error is not None
            raise MessageFailedError(message, message.error)
        return Work(
            connection,
            model,
            topic=self._handler.topic,
            message_id=row.message_id,
            customer=row.customer,
            key=row.key,
            due=to_datetime(row.due),
            now=now,
            tries=tries,
            rule=message.rule,
        )

    def _turns(self, messages: Sequence[Prepared], works: Sequence[Work]) -> list[list["_Call"]]:
        """What is given to the handler at once: to one of many, one message of each customer."""
        calls = list(map(_Call, messages, works))
        if not self._handler.is_set_wise or len(calls) < 2:
            return [calls] if calls else []
        turns: list[list[_Call]] = []
        earlier: Counter[str] = Counter()
        for call in calls:
            turn = earlier[call.work.customer]
            earlier[call.work.customer] += 1
            if turn == len(turns):
                turns.append([])
            turns[turn].append(call)
        return turns

    def _call(self, connection: sa.Connection, turn: Sequence["_Call"]) -> None:
        transaction = connection.get_transaction()
        connection.info[_HANDLING] = True
        try:
            self._handler.handle_many([(call.message.model, call.work) for call in turn])
        finally:
            if not connection.invalidated:
                del connection.info[_HANDLING]
        if transaction is None or transaction is not connection.get_transaction():
            raise RuntimeError("the handler ended the transaction, which isn't its own to end")


@contextmanager
def _failing(message: Prepared) -> Iterator[None]:
    """Take errors for the message's, but not that the connection is lost."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise
        raise MessageFailedError(message, error) from error


class _Call(NamedTuple):
    """A message as it is given to the handler."""

    message: Prepared
    work: Work


def _refuse_commit(connection: sa.Connection) -> None:
    # It would commit inbox entries of messages that the batch hasn't come to yet.
    if connection.info.get(_HANDLING):
        connection.invalidate()  # closed, it is rolled back
        raise RuntimeError("the handler ended the transaction, which isn't its own to end")
