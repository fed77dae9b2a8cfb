"""How routers and nodes learn that there is something to do.

What is to be done stands in the table of requests; being woken only saves the time until the next
look. On PostgreSQL a front end notifies a channel, at most once in 50 ms: a notification in each
transaction would have all of them wait for one lock when they commit. On SQLite whoever waits asks
for the file's version, which costs microseconds.
"""

import contextlib
import logging
import select
import threading
import time
from typing import Any, Self

import sqlalchemy as sa

from ledgerbeam.batch.registry.database import Database
from ledgerbeam.io.errors import RegistryUnavailableError

CHANNEL = "ledgerbeam_requests"
_DEBOUNCE_SECONDS = 0.05
_VERSION_SECONDS = 0.05
_CHECK_SECONDS = 1.0
_SHORTEST_SECONDS = 0.25
_LONGEST_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Bell:
    """Wakes those who wait; rung after a commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rung = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        if database.kind == "postgresql":
            self._thread = threading.Thread(target=self._notify, name="bell", daemon=True)
            self._thread.start()

    def ring(self) -> None:
        """Have those who wait look, soon."""
        self._rung.set()

    def close(self) -> None:
        """Ring no more."""
        self._closed = True
        self._rung.set()
        if self._thread is not None:
            self._thread.join()

    def _notify(self) -> None:
        while not self._closed:
            self._rung.wait()
            self._rung.clear()
            try:
                with self._database.asking() as connection:
                    connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))
            except RegistryUnavailableError as error:
                _log.warning("nobody was woken, they look by themselves: %s", error)
            time.sleep(_DEBOUNCE_SECONDS)


class Waiter:
    """Waits until there may be something to do.

    Where nothing happens, the time between two looks doubles, up to 30 seconds.
    """

    def __init__(
        self,
        database: Database,
        stopping: threading.Event,
        shortest: float = _SHORTEST_SECONDS,
    ) -> None:
        """Listen to nothing yet.

        Args:
            database: of the requests.
            stopping: set where nobody is to wait any more.
            shortest: seconds between two looks, as long as something happens.
        """
        self._database = database
        self._stopping = stopping
        self._shortest = shortest
        self._seconds = 0.0
        self._connection: Any = None
        self._version: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def found(self) -> None:
        """The last look has found something: look again soon."""
        self._seconds = 0.0

    def wait(self, at_most: float | None = None) -> None:
        """Wait for a notification, or for the time until the next look.

        Args:
            at_most: seconds; None for as long as it thinks right.
        """
        self._seconds = max(self._shortest, min(2 * self._seconds, _LONGEST_SECONDS))
        seconds = self._seconds if at_most is None else min(self._seconds, at_most)
        try:
            if self._connection is None:
                # What came before it listened, it hasn't seen: look once more.
                self._connection = self._database.own_connection()
                if self._database.kind == "postgresql":
                    self._connection.dbapi_connection.execute(f"LISTEN {CHANNEL}")
                    return
            woken = self._listen(seconds)
        except (self._database.driver_error, RegistryUnavailableError) as error:
            _log.warning("the request database can't be listened to: %s", error)
            self._close()
            self._stopping.wait(min(seconds, 1.0))
            return
        if woken:
            self._seconds = 0.0

    def _listen(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._stopping.is_set():
            if self._was_notified(max(0.0, deadline - time.monotonic())):
                return True
            if time.monotonic() >= deadline:
                break
        return False

    def _was_notified(self, at_most: float) -> bool:
        connection = self._connection.dbapi_connection
        if self._database.kind == "postgresql":
            # While it waits, `notifies` wakes ten times a second, which a day of idling pays for.
            select.select([connection.fileno()], [], [], min(at_most, _CHECK_SECONDS))
            return any(True for _ in connection.notifies(timeout=0))
        version = connection.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version = version
            return True
        self._stopping.wait(min(at_most, _VERSION_SECONDS))
        return False

    def _close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(Exception):  # one that is broken
                connection.dbapi_connection.close()
