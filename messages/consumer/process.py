"""The consumer's process: leases buckets, and handles their messages in a number of slots.

One thread looks what there is and leases; each slot is a thread that takes one step in one bucket
at a time, so that buckets take turns and a slow one holds up nobody.
"""

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import sqlalchemy as sa

from ledgerbeam.io.errors import DatabaseError
from ledgerbeam.messages.consumer.consumers import Consumer, removed_error, work_of
from ledgerbeam.messages.consumer.progress import BucketLostError, BucketRows, Step
from ledgerbeam.messages.model.message import BUCKETS
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.leases import Leases, new_owner
from ledgerbeam.messages.store.schema import PARKED
from ledgerbeam.messages.store.wake import LOOK_SECONDS, STREAM_POSTED, Watch

_BUSY_LOOK_SECONDS = 0.05
_ERROR_SECONDS = 1.0
_log = logging.getLogger(__name__)


class ConsumerProcess:
    """Handles messages until it is stopped."""

    def __init__(
        self,
        database: MessageDatabase,
        consumer: Consumer,
        buckets: BucketRows,
        slots: int = 4,
        lease_seconds: float = 15.0,
    ) -> None:
        """Make one.

        Args:
            database: of the messages, with a connection a slot and two more.
            consumer: on record.
            buckets: what is done in the consumer's buckets.
            slots: buckets that are worked on at the same time.
            lease_seconds: how long another process waits for this one if it is silent.
        """
        self._database = database
        self._consumer = consumer
        self._buckets = buckets
        self._slots = slots
        self._leases = Leases(work_of(consumer.name), new_owner(), lease_seconds)
        self._watch = Watch(database, "the stream", STREAM_POSTED, consumer.topic)
        self._ends_of_lanes = sa.text(f"""
            SELECT {database.clock} AS now, c.paused, c.rate, l.lane, l.position
            FROM ledgerbeam_consumer c JOIN ledgerbeam_cursor l ON l.topic = c.topic
            WHERE c.id = :consumer""")
        self._behind = sa.text("""
            SELECT p.bucket FROM ledgerbeam_consumer c
            JOIN ledgerbeam_progress p ON p.consumer = c.id
            WHERE c.id = :consumer AND EXISTS (
                SELECT 1 FROM ledgerbeam_stream s WHERE s.topic = c.topic AND s.bucket = p.bucket
                    AND s.position > p.position)""")
        self._taken: dict[int, int] = {}
        self._ready: dict[int, None] = {}  # in order of arrival
        self._later: dict[int, int] = {}
        self._steps: dict[int, Future[Step]] = {}
        self._charged: dict[int, int] = {}
        self._done = threading.Condition()
        self._ends: Mapping[int, int] = {}
        self._now = 0
        self._allowance, self._allowed_at = 0.0, time.monotonic()
        self.handled = self.failed = 0

    def run(self, stop: threading.Event, until_idle: bool = False) -> None:
        """Handle messages until `stop` is set; then finish what was begun, and give up the buckets.

        Args:
            stop: ends it.
            until_idle: also end when everything in the stream is handled, and nothing is parked.

        Raises:
            UserError: the consumer was removed.
        """
        renew_at = look_at = 0.0
        with ThreadPoolExecutor(self._slots, "slot") as pool:
            try:
                while not stop.is_set():
                    try:
                        if time.monotonic() >= renew_at:
                            self._renew()
                            renew_at = time.monotonic() + self._leases.seconds / 3
                        if time.monotonic() >= look_at or not (self._ready or self._steps):
                            self._look()
                            look_at = time.monotonic() + _BUSY_LOOK_SECONDS
                    except DatabaseError as error:
                        _log.warning("%s; trying again", error)
                        renew_at = 0.0
                        self._ends = {}  # what was being leased may be leased, or not
                        stop.wait(_ERROR_SECONDS)
                        continue
                    self._dispatch(pool)
                    if until_idle and not (self._ready or self._steps or self._later):
                        return
                    if self._steps:
                        with self._done:
                            self._done.wait(_BUSY_LOOK_SECONDS if not self._collect() else 0)
                    else:
                        seconds = min(self._seconds_to_look(), renew_at - time.monotonic())
                        if self._watch.wait(seconds, stop):
                            look_at = 0.0
            finally:
                for step in list(self._steps.values()):
                    step.exception()
                self._collect()
                self._watch.close()
                with self._database.begin("leases") as connection:
                    self._leases.release(connection)

    def _renew(self) -> None:
        with self._database.begin("leases") as connection:
            taken = self._leases.renew(connection, self._database.now(connection))
            # Somebody may have had dead letters tried again.
            parked = sa.select(PARKED.c.bucket).where(
                PARKED.c.consumer == self._consumer.id, PARKED.c.dead_at.is_(None)
            )
            retried = list(connection.execute(parked.distinct()).scalars())
        for bucket in [bucket for bucket in self._taken if bucket not in self._leases.epochs]:
            del self._taken[bucket]
        self._ready |= dict.fromkeys(retried)
        if taken:
            self._ends = {}  # there may be something in the stream for them

    def _look(self) -> None:
        """See what has come, and how the consumer is steered."""
        self._watch.forget()
        rows = self._watch.rows(self._ends_of_lanes, {"consumer": self._consumer.id})
        if not rows:
            raise removed_error(self._consumer)
        self._now = rows[0].now
        self._consumer = self._consumer._replace(paused=bool(rows[0].paused), rate=rows[0].rate)
        ends = {row.lane: row.position for row in rows}
        if ends != self._ends:
            behind = self._watch.rows(self._behind, {"consumer": self._consumer.id})
            self._ready |= dict.fromkeys(row.bucket for row in behind)
            self._ends = ends
        for bucket in [bucket for bucket, at in self._later.items() if at <= self._now]:
            del self._later[bucket]
            self._ready[bucket] = None

    def _seconds_to_look(self) -> float:
        """How long to sleep where nothing is under way: until something is tried again."""
        if self._ready and not self._consumer.paused:
            return _BUSY_LOOK_SECONDS  # its rate holds it back
        next_try = min(self._later.values(), default=self._now + int(LOOK_SECONDS * 1_000_000))
        return min(LOOK_SECONDS, (next_try - self._now) / 1_000_000)

    def _dispatch(self, pool: ThreadPoolExecutor) -> None:
        """Begin a step in each bucket that is ready, as far as slots and rate allow."""
        if self._consumer.paused:
            return
        for bucket in list(self._ready):
            epoch = self._leases.epochs.get(bucket)
            if epoch is None:
                del self._ready[bucket]
                continue
            if len(self._steps) >= self._slots:
                return
            if bucket in self._steps:
                continue
            limit = self._limit()
            if limit < 1:
                return
            del self._ready[bucket]
            step = pool.submit(self._step, bucket, epoch, self._now, limit)
            self._steps[bucket] = step
            self._charged[bucket] = limit
            self._allowance -= limit
            step.add_done_callback(self._wake)

    def _step(self, bucket: int, epoch: int, now: int, limit: int) -> Step:
        if self._taken.get(bucket) != epoch:
            with self._database.begin("a bucket") as connection:
                self._buckets.take(connection, bucket, epoch)
            self._taken[bucket] = epoch
        return self._buckets.step(bucket, epoch, now, limit)

    def _wake(self, _: Future[Step]) -> None:
        with self._done:
            self._done.notify()

    def _collect(self) -> bool:
        """Take note of the steps that have ended; whether there were any."""
        ended = {bucket: step for bucket, step in self._steps.items() if step.done()}
        for bucket, future in ended.items():
            del self._steps[bucket]
            unused = limit = self._charged.pop(bucket)
            error = future.exception()
            if isinstance(error, BucketLostError):
                _log.info("bucket %d is another process's", bucket)
                self._leases.epochs.pop(bucket, None)
            elif error is not None:
                # Nothing of the step was committed.
                _log.warning("bucket %d: %s; trying again", bucket, error, exc_info=error)
                self._later[bucket] = self._now + int(_ERROR_SECONDS * 1_000_000)
            else:
                step = future.result()
                self.handled += step.handled
                self.failed += step.failed
                unused -= step.handled + step.failed
                if step.read >= limit:
                    self._ready[bucket] = None  # there may be more; what comes later, a look finds
                if step.next_try_at is not None:
                    self._later[bucket] = step.next_try_at
            self._allowance += unused
        return bool(ended)

    def _limit(self) -> int:
        """How many messages may be begun now, by the consumer's rate."""
        rate = self._consumer.rate
        if rate is None:
            self._allowance = 0.0
            return self._buckets.batch
        share = rate * len(self._leases.epochs) / BUCKETS
        now = time.monotonic()
        gained = (now - self._allowed_at) * share
        self._allowance = min(self._allowance + gained, max(1.0, share))
        self._allowed_at = now
        return min(self._buckets.batch, int(self._allowance))
