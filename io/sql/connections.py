"""A worker process's connections to databases, and transactions of components over them."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import sqlalchemy as sa

from ledgerbeam.io.secrets import resolve_url
from ledgerbeam.io.shared import SharedByKey
from ledgerbeam.io.sql.engine import open_engine
from ledgerbeam.io.sql.write import ComponentTransaction, component_transaction


class Engines:
    """One engine per database, for all threads of a process."""

    def __init__(self, max_connections: int) -> None:
        """Create a collection without any engine.

        Args:
            max_connections: connections to each database; a thread that needs another one waits.
        """
        self.max_connections = max_connections
        self._lock = threading.Lock()
        self._engines: dict[str, sa.Engine] = {}

    def of(self, url: str) -> sa.Engine:
        """The engine of a database.

        Args:
            url: SQLAlchemy URL, with its secret parts as references.

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
    """Begins transactions that commit once per component, however often it is tried.

    Attributes:
        instance: name of the batch process's instance, unique in the databases written to.
        engines: engines of the databases written to.
        before_commit: called right before COMMIT, in the thread that executes the component; if it
            raises, the transaction is rolled back.
    """

    instance: str
    engines: Engines
    before_commit: Callable[[], None] | None = None

    def begin(self, url: str, component: str) -> AbstractContextManager[ComponentTransaction]:
        """The transaction of a component; see `component_transaction`."""
        return component_transaction(
            self.engines.of(url), self.instance, component, self.before_commit
        )


_shared = SharedByKey(Engines.dispose)


def acquire(attempt_uri: str, max_connections: int) -> Engines:
    """This process's engines for an attempt."""
    return _shared.acquire(attempt_uri, lambda: Engines(max_connections))


def release(attempt_uri: str) -> None:
    """Give up the engines; they are closed when all users have released them."""
    _shared.release(attempt_uri)
