"""Resources that the threads of a process share while at least one of them needs them."""

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedByKey(Generic[T]):
    """Resources by key: opened for the first user, closed when the last user has released them.

    A forked process begins without any: it has none of its parent's threads, and must not use its
    parent's connections. Create one instance per module: instances live as long as the process.

        _engines = SharedByKey(sa.Engine.dispose)

        engine = _engines.acquire(url, lambda: sa.create_engine(url))   # in DoFn.setup
        _engines.release(url)                                           # in DoFn.teardown
    """

    def __init__(self, close: Callable[[T], None]) -> None:
        """Create an empty collection.

        Args:
            close: called with a resource that has no users any more.
        """
        self._close = close
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def acquire(self, key: str, open_: Callable[[], T]) -> T:
        """The resource of that key, opened if there is none.

        Args:
            key: the resource's key.
            open_: opens the resource; called once, however many threads ask at the same time. If it
                raises, nothing is shared.
        """
        with self._lock:
            resource, users = self._shared.get(key) or (open_(), 0)
            self._shared[key] = (resource, users + 1)
            return resource

    def release(self, key: str) -> None:
        """Give up the resource of that key; once for each `acquire`.

        Raises:
            KeyError: the resource isn't acquired.
        """
        with self._lock:
            resource, users = self._shared.pop(key)
            if users > 1:
                self._shared[key] = (resource, users - 1)
                return
        # Outside of the lock: closing may take long, and must not hold up other threads.
        self._close(resource)

    def _forget(self) -> None:
        self._shared: dict[str, tuple[T, int]] = {}
        self._lock = threading.Lock()
