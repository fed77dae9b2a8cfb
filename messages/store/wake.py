"""How schedulers and consumers learn at once that something has come.

What there is to do stands in the tables; being woken only saves the time until the next look, which
is taken every `LOOK_SECONDS` in any case. On PostgreSQL whoever commits something notifies a
channel. On SQLite who waits asks for the file's version, which costs microseconds.

PostgreSQL takes one lock at the commit of each transaction that notifies. So senders notify only of
messages that are due before the next look, and not within `_DEBOUNCE_SECONDS` of a commit of the
same process that did: a scheduler that was woken looks often for a while, and finds the others.
Each decides when it commits, not when it sends: its messages aren't there before.
"""

import selectors
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from ledgerbeam.io.errors import DatabaseError
from ledgerbeam.io.sql.engine import connect, database_errors
from ledgerbeam.messages.store.database import MessageDatabase

MESSAGES_SENT = "ledgerbeam_messages"
"""The channel of schedulers: messages have come that are due soon."""

STREAM_POSTED = "ledgerbeam_stream"
"""The channel of consumers: messages were posted, or a consumer is steered."""

LOOK_SECONDS = 2.0
"""Between two looks of those whom nobody wakes."""

SOON = 5_000_000
"""Microseconds ahead for which senders notify: the next look, and a sender's clock that is slow."""

_DEBOUNCE_SECONDS = 0.1
_NEVER = float("-inf")
_STOP_SECONDS = 0.25
_VERSION_SECONDS = 0.05
_NOTIFY = sa.text("SELECT pg_notify(:channel, :topic)")

_notified_at: "weakref.WeakKeyDictionary[sa.Engine, float]" = weakref.WeakKeyDictionary()
"""When a transaction of an engine has last notified schedulers, at its commit."""

_is_to_notify: "weakref.WeakKeyDictionary[sa.Connection, bool]" = weakref.WeakKeyDictionary()
"""Whether a connection's transaction is to notify schedulers; of each that has ever been."""


def wake(connection: sa.Connection, channel: str, topic: int | None = None) -> None:
    """Wake those who listen to a channel when the transaction commits.

    Args:
        connection: in its transaction.
        channel: that is notified.
        topic: number of the one whose watchers are woken; by default those of all topics.
    """
    if connection.dialect.name == "postgresql":
        of = "" if topic is None else str(topic)
        connection.execute(_NOTIFY, {"channel": channel, "topic": of})


def wake_schedulers(connection: sa.Connection, due: int) -> None:
    """Wake schedulers when the transaction commits, if they might look too late by themselves.

    Args:
        connection: a sender's, in its transaction.
        due: when the first of its messages is due, in microseconds.
    """
    if connection.dialect.name != "postgresql" or due > time.time_ns() // 1_000 + SOON:
        return
    # A transaction that is prepared for a commit in two phases can't notify.
    if isinstance(connection.get_transaction(), sa.TwoPhaseTransaction):
        return
    driver: Any = connection.connection.dbapi_connection
    if driver.autocommit:  # they are committed already
        _notify_schedulers(connection)
        return
    if connection not in _is_to_notify:
        sa.event.listen(connection, "commit", _end_by_commit)
        sa.event.listen(connection, "rollback", _end_by_rollback)
    _is_to_notify[connection] = True


def _end_by_commit(connection: sa.Connection) -> None:
    """Called in the transaction, just before its commit: what others committed before is known."""
    if _is_to_notify[connection]:
        _is_to_notify[connection] = False
        try:
            _notify_schedulers(connection)
        except BaseException:
            # SQLAlchemy takes it for a commit that has failed, and so for the transaction's end.
            connection.dialect.do_rollback(connection.connection)
            raise


def _end_by_rollback(connection: sa.Connection) -> None:
    _is_to_notify[connection] = False


def _notify_schedulers(connection: sa.Connection) -> None:
    now = time.monotonic()
    if now - _notified_at.get(connection.engine, _NEVER) >= _DEBOUNCE_SECONDS:
        wake(connection, MESSAGES_SENT)
        _notified_at[connection.engine] = now


class Watch:
    """Looks by single statements on one connection, outside of any transaction, and waits there."""

    def __init__(
        self, database: MessageDatabase, what: str, channel: str, topic: int | None = None
    ) -> None:
        """Connect to nothing yet.

        Args:
            database: of the messages.
            what: what is looked for, for messages.
            channel: that is listened to.
            topic: number of the one that is watched; by default all are.
        """
        options = {"isolation_level": "AUTOCOMMIT"} if database.is_postgresql else {"watches": True}
        self._engine = database.engine.execution_options(**options)
        self._what = what
        self._topic = topic
        self._listen = sa.text(f"LISTEN {channel}") if database.is_postgresql else None
        self._connection: sa.Connection | None = None
        self._version: Any = None

    def rows(self, statement: sa.Executable, values: dict[str, Any]) -> Sequence[sa.Row[Any]]:
        """The rows of a statement.

        Raises:
            DatabaseError: the database can't be reached; the next look connects again.
        """
        try:
            with database_errors(self._engine, self._what):
                if self._connection is None:
                    self._connection = connect(self._engine, self._what)
                    if self._listen is not None:
                        self._connection.execute(self._listen)
                rows = self._connection.execute(statement, values).all()
                self._connection.rollback()  # ends what SQLAlchemy counts as a transaction
                return rows
        except DatabaseError:
            self.close()
            raise

    def forget(self) -> None:
        """Forget what has come, just before a look, which sees it.

        Else the driver would keep the notifications of all the time that nobody waits.
        """
        self._was_woken()

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Wait until something has come that wasn't forgotten; whether it has.

        Args:
            seconds: for which it waits at most.
            stop: ends it.
        """
        deadline = time.monotonic() + seconds
        while not (was_woken := self._was_woken()) and not stop.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if self._listen is None or self._connection is None:
                stop.wait(min(left, _VERSION_SECONDS))
            else:
                self._select(deadline, stop)
        return was_woken

    def _select(self, deadline: float, stop: threading.Event) -> None:
        """Wait for anything from the server; asking the driver each time would cost more."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._driver.fileno(), selectors.EVENT_READ)
            while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
                if selector.select(min(left, _STOP_SECONDS)):
                    return

    @property
    def _driver(self) -> Any:
        assert self._connection is not None
        return self._connection.connection.driver_connection

    def _was_woken(self) -> bool:
        if self._connection is None:
            return False
        try:
            if self._listen is not None:
                topics = {notified.payload for notified in self._driver.notifies(timeout=0)}
                return bool(topics if self._topic is None else topics & {"", str(self._topic)})
            version = self._driver.execute("PRAGMA data_version").fetchone()
        except self._engine.dialect.loaded_dbapi.Error:
            self.close()
            return True  # the next look says what is wrong
        was_woken = version != self._version
        self._version = version
        return was_woken

    def close(self) -> None:
        """Give up the connection."""
        if self._connection is not None:
            self._connection.invalidate()  # nobody else is to listen
            self._connection.close()
            self._connection = None
