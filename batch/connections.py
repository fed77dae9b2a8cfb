"""A worker process's connections to databases, and transactions of components over them."""

import os
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass

import sqlalchemy as sa

from ledgerbeam.batch.execution import current_fence
from ledgerbeam.io.secrets import resolve_url
from ledgerbeam.io.sql_engine import open_engine
from ledgerbeam.io.sql_write import ComponentTransaction, component_transaction


class Engines:
    """One engine a database, for all threads of a process."""

    def __init__(self, max_connections: int) -> None:
        """Open nothing yet.

        Args:
            max_connections: to each database; who asks for more waits.
        """
        self.max_connections = max_connections
        self._lock = threading.Lock()
        self._engines: dict[str, sa.Engine] = {}

    def of(self, url: str) -> sa.Engine:
        """The engine of a database.

        Args:
            url: of SQLAlchemy; what is secret of it as a reference.

        Raises:
            UserError: the URL can't be read or resolved.
        """
        with self._lock:
            if url not in self._engines:
                self._engines[url] = open_engine(resolve_url(url), self.max_connections)
            return self._engines[url]

    def dispose(self) -> None:
        """Close all connections that aren't in use; the others are closed when they are done."""
        with self._lock:
            for engine in self._engines.values():
                engine.dispose()
            self._engines.clear()


@dataclass(frozen=True)
class Transactions:
    """Begins transactions that commit once a component, however often it is tried.

    Attributes:
        instance: of the batch process, unique in the databases written to.
        engines: to write by.
    """

    instance: str
    engines: Engines

    def begin(self, url: str, component: str) -> AbstractContextManager[ComponentTransaction]:
        """The transaction of a component; see `component_transaction`.

        It doesn't commit any more once the component's call has overrun its time limit.
        """
        return component_transaction(
            self.engines.of(url), self.instance, component, current_fence().enter_commit
        )


@dataclass
class _Shared:
    engines: Engines
    users: int


_shared: dict[str, _Shared] = {}
_shared_lock = threading.Lock()


def acquire(attempt_uri: str, max_connections: int) -> Engines:
    """This process's engines for an attempt."""
    with _shared_lock:
        shared = _shared.setdefault(attempt_uri, _Shared(Engines(max_connections), 0))
        shared.users += 1
        return shared.engines


def release(attempt_uri: str) -> None:
    """Close the engines when all who acquired them have released them."""
    with _shared_lock:
        shared = _shared[attempt_uri]
        shared.users -= 1
        if not shared.users:
            del _shared[attempt_uri]
            shared.engines.dispose()


def _forget() -> None:
    """A forked process must not speak over its parent's connections."""
    global _shared_lock
    _shared.clear()
    _shared_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)
