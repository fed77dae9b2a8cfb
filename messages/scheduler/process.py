"""The scheduler's process: sleeps until a message is due, or somebody has sent an earlier one.

Any number of processes share the lanes. Between two looks a process sleeps. A look is one statement
that finds by index what transactions have written since the last one; when the next message of a
lane is due is remembered, so that messages far ahead cost nothing, and a look is taken when it is.
Senders of what is due soon wake it; a look every `wake.LOOK_SECONDS` finds all else in time.
"""

import logging
import threading
import time

import sqlalchemy as sa

from ledgerbeam.io.errors import DatabaseError
from ledgerbeam.messages.model.message import LANES
from ledgerbeam.messages.scheduler.sweep import (
    BATCH,
    HORIZON,
    LAST_SEEN,
    LaneLostError,
    Sweeper,
    take_lane,
    unseen_condition,
    unseen_values,
)
from ledgerbeam.messages.store.database import MessageDatabase
from ledgerbeam.messages.store.leases import Leases, declare_units, new_owner
from ledgerbeam.messages.store.partitions import make_partitions
from ledgerbeam.messages.store.schema import LEASE
from ledgerbeam.messages.store.topics import NOTHING_SEEN, Topic, topics
from ledgerbeam.messages.store.wake import LOOK_SECONDS, MESSAGES_SENT, SOON, Watch

WORK = "schedule"
_HELD_SECONDS = 1.0
_PARTITION_SECONDS = 30.0
# While messages come, senders needn't notify of each: it looks for them.
_ARRIVING_SECONDS = 1.0
_ARRIVING_LOOK_SECONDS = 0.05
_log = logging.getLogger(__name__)


class Scheduler:
    """Posts what is due, until it is stopped."""

    def __init__(self, database: MessageDatabase, lease_seconds: float = 15.0) -> None:
        """Make one.

        Args:
            database: of the messages, with two connections.
            lease_seconds: how long another process waits for this one if it is silent.
        """
        self._database = database
        self._sweeper = Sweeper(database)
        self._leases = Leases(WORK, new_owner(), lease_seconds)
        self._topics: dict[int, Topic] = {}
        self._watch = Watch(database, "messages that have come", MESSAGES_SENT)
        self._arrivals = sa.text(f"""
            SELECT {database.clock} AS now, {LAST_SEEN[database.engine.dialect.name]} AS seen,
                topic, lane, due
            FROM (SELECT 1) AS one LEFT JOIN (
                SELECT topic, lane, min(due) AS due FROM ledgerbeam_message
                WHERE due <= :horizon AND state = 0 AND {unseen_condition(database.is_postgresql)}
                GROUP BY topic, lane) AS arrived ON true""")
        self._seen: str | None = None
        self._now = 0
        self._due: dict[tuple[int, int], int] = {}
        # Lanes whose sweep, maybe another process's, may have begun before the last look. They are
        # swept once more when it has ended: its snapshot hasn't seen what was committed since.
        self._again: set[tuple[int, int]] = set()
        self._allowance: dict[tuple[int, int], tuple[float, float]] = {}
        self._taken: dict[tuple[int, int], int] = {}
        self._are_units_declared = False
        self._partitions_at = 0.0
        self._arrived_at = 0.0
        self.posted = 0

    def run(self, stop: threading.Event, once: bool = False) -> None:
        """Post until `stop` is set; then give up the lanes.

        Args:
            stop: ends it.
            once: also end when nothing more is due, in the lanes that others don't have.
        """
        renew_at = 0.0
        try:
            while not stop.is_set():
                try:
                    if time.monotonic() >= renew_at:
                        self.renew()
                        renew_at = time.monotonic() + self._leases.seconds / 3
                    is_busy = self.look()
                except DatabaseError as error:
                    _log.warning("%s; trying again", error)
                    renew_at = 0.0
                    stop.wait(1)
                    continue
                if not is_busy:
                    if once:
                        return
                    seconds = min(self._seconds_to_look(), renew_at - time.monotonic())
                    self._watch.wait(seconds, stop)
        finally:
            self._watch.close()
            with self._database.begin("leases") as connection:
                self._leases.release(connection)

    def renew(self) -> None:
        """Renew leases, take lanes that are free, see which topics there are, make partitions."""
        with self._database.begin("leases") as connection:
            if not self._are_units_declared:
                self._declare_units(connection)
            self._leases.renew(connection, self._database.now(connection))
            self._topics = {topic.id: topic for topic in topics(connection)}
        self._are_units_declared = True
        epochs = self._leases.epochs
        lanes = {(topic, lane): epochs[lane] for topic in self._topics for lane in epochs}
        if lanes != self._taken:
            with self._database.begin("lanes") as connection:
                for lane, epoch in epochs.items():
                    take_lane(connection, lane, epoch)
            # Another process may have had a lane in between, and not ended its sweep.
            for key in lanes.items() - self._taken.items():
                self._due.pop(key[0], None)
            self._taken = lanes
        self._again = (self._again | (lanes.keys() - self._due.keys())) & lanes.keys()
        self._due = {lane: self._due.get(lane, 0) for lane in lanes}
        if self._database.is_postgresql and time.monotonic() >= self._partitions_at:
            with self._database.begin("partitions") as connection:
                make_partitions(connection, self._database.now(connection))
            self._partitions_at = time.monotonic() + _PARTITION_SECONDS

    def _declare_units(self, connection: sa.Connection) -> None:
        are_declared = sa.select(LEASE).where(LEASE.c.work == WORK).limit(1)
        if connection.execute(are_declared).first() is None:
            if self._database.is_postgresql:
                connection.exec_driver_sql(
                    "LOCK TABLE ledgerbeam_lease IN SHARE ROW EXCLUSIVE MODE"
                )
            if connection.execute(are_declared).first() is None:
                declare_units(connection, WORK, range(LANES))

    def look(self) -> bool:
        """Post what is due; whether there was anything."""
        now = self._look_for_arrivals()
        is_busy = False
        for topic, lane in sorted(key for key, due in self._due.items() if due <= now):
            limit = self._limit(topic, lane)
            if limit < 1:
                continue
            try:
                posted = self._sweeper.post(topic, lane, self._leases.epochs[lane], limit=limit)
            except LaneLostError:
                _log.info("lane %d is another process's", lane)
                self._leases.epochs.pop(lane, None)
                # If the lease is renewed after all, the lane is taken again.
                self._taken = {key: of for key, of in self._taken.items() if key[1] != lane}
                self._due = {key: due for key, due in self._due.items() if key[1] != lane}
                return True
            self._spend(topic, lane, posted.messages)
            self.posted += posted.messages
            is_busy = is_busy or posted.messages > 0
            if not posted.is_done:
                self._again.add((topic, lane))
            elif (topic, lane) in self._again:
                self._again.discard((topic, lane))
                is_busy = True
            else:
                sweep_at = now + (int(_HELD_SECONDS * 1_000_000) if posted.holds else HORIZON)
                # A cursor that is ahead of a clock that was put back knows only what is far ahead.
                self._due[topic, lane] = min(sweep_at, posted.next_due or sweep_at)
        return is_busy

    def _look_for_arrivals(self) -> int:
        """See what was committed since the last look; the present time."""
        is_postgresql = self._database.is_postgresql
        # At first, what was there before is found by a sweep of each lane.
        seen = self._seen or NOTHING_SEEN[self._database.engine.dialect.name]
        horizon = self._now + HORIZON if self._seen else -1
        values = unseen_values(seen, is_postgresql) | {"horizon": horizon}
        self._watch.forget()
        rows = self._watch.rows(self._arrivals, values)
        if any(row.topic is not None and row.topic not in self._topics for row in rows):
            self.renew()  # it is new: its lanes have to be taken as well
        if rows[0].now < self._now:  # the clock was put back, and all is due earlier than it was
            self._due = dict.fromkeys(self._due, 0)
        self._now, self._seen = rows[0].now, rows[0].seen
        for row in rows:
            if row.due is not None and row.due <= row.now + SOON:
                self._arrived_at = time.monotonic()
            if (row.topic, row.lane) in self._due:
                self._due[row.topic, row.lane] = min(self._due[row.topic, row.lane], row.due)
        return self._now

    def _seconds_to_look(self) -> float:
        """How long to sleep: until the next message is due, or new ones may have come."""
        is_arriving = time.monotonic() - self._arrived_at < _ARRIVING_SECONDS
        look = _ARRIVING_LOOK_SECONDS if is_arriving else LOOK_SECONDS
        if not self._due:
            return look
        next_due = (min(self._due.values()) - self._now) / 1_000_000
        # What is due already is held back by a rate.
        return min(look, next_due) if next_due > 0 else _ARRIVING_LOOK_SECONDS

    def _limit(self, topic: int, lane: int) -> int:
        """How many messages may be posted now, by the topic's rate."""
        rate = self._topics[topic].rate
        if rate is None:
            return BATCH
        left, at = self._allowance.get((topic, lane), (0.0, time.monotonic()))
        of_lane = rate / LANES
        now = time.monotonic()
        left = min(left + (now - at) * of_lane, max(1.0, of_lane))
        self._allowance[topic, lane] = left, now
        return min(BATCH, int(left))

    def _spend(self, topic: int, lane: int, count: int) -> None:
        if (topic, lane) in self._allowance:
            left, at = self._allowance[topic, lane]
            self._allowance[topic, lane] = left - count, at
