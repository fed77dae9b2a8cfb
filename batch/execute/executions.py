"""What a process executes at this moment, for heartbeats and for its log."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from ledgerbeam.batch import logs
from ledgerbeam.io.commit.control_log import Executing
from ledgerbeam.transforms.concurrency.executor import CallControl

MAX_ERROR_LENGTH = 500
"""How many characters of an error a heartbeat holds at most."""


class Snapshot(NamedTuple):
    """What is being executed at a moment.

    Attributes:
        executing: the components in flight.
        waiting: those that have failed and wait for their next try.
    """

    executing: tuple[Executing, ...] = ()
    waiting: tuple[Executing, ...] = ()


class ShardControl(CallControl, Protocol):
    """What the execution of shards needs of its process."""

    def own_threads(self) -> int:
        """How many shards execute side by side in this process, each in a thread of its own."""


class Executions:
    """The components in flight in this process; used from several threads."""

    def __init__(self) -> None:
        self._noting = threading.Lock()
        self._executing: dict[object, Executing] = {}
        self._waiting: dict[tuple[int, str], Executing] = {}
        self._tracked: dict[object, tuple[int, Callable[[], str | None]]] = {}

    @contextmanager
    def executing(
        self, shard: int, component: str, tries: int = 1, error: str | None = None
    ) -> Iterator[None]:
        """Report a component while it is executed; see `Executing`."""
        token = object()
        if error is not None:
            error = error[:MAX_ERROR_LENGTH]
        # Not validated, since this runs once per component; readers of heartbeats validate them.
        reported = Executing.model_construct(
            shard=shard, component=component, tries=tries, error=error
        )
        with self._noting:
            self._waiting.pop((shard, component), None)
            self._executing[token] = reported
        try:
            with logs.executing(lambda: component):
                yield
        finally:
            with self._noting:
                del self._executing[token]

    @contextmanager
    def tracking(self, shard: int, component: Callable[[], str | None]) -> Iterator[None]:
        """Report in each heartbeat the component that is being executed at that moment.

        Args:
            shard: the number of the components' shard.
            component: returns the name of the component that is being executed, or None; called
                in another thread.
        """
        token = object()
        with self._noting:
            self._tracked[token] = (shard, component)
        try:
            with logs.executing(component):
                yield
        finally:
            with self._noting:
                del self._tracked[token]

    def waiting(self, shard: int, component: str, tries: int, error: str) -> None:
        """Report a component that has failed and waits for its next try."""
        reported = Executing.model_construct(
            shard=shard, component=component, tries=tries, error=error[:MAX_ERROR_LENGTH]
        )
        with self._noting:
            self._waiting[shard, component] = reported

    def snapshot(self) -> Snapshot:
        """What is being executed now."""
        with self._noting:
            executing = [*self._executing.values()]
            for shard, component in self._tracked.values():
                if (name := component()) is not None:
                    executing.append(Executing(shard=shard, component=name))
            return Snapshot(tuple(executing), tuple(self._waiting.values()))
