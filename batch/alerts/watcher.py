"""What a launcher and `reconcile` do about alerts: find SLA breaches, notify the listeners."""

import datetime
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

from ledgerbeam.batch.alerts.breaches import BreachKind, RunFacts, Sample, breaches
from ledgerbeam.batch.alerts.delivery import deliver
from ledgerbeam.batch.alerts.listeners import Listener, event_id, load_listeners
from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.sla import Deadlines
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.observe.progress import ProgressReader
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.io.errors import RegistryUnavailableError, UserError
from ledgerbeam.io.failpoints import failpoint

BREACH = "sla_breach"
"""Type of the event of a deadline that was missed, or will be."""

_AT_ONCE = 100
_SAMPLE_EVERY = datetime.timedelta(seconds=5)
_MANY_SAMPLES = 30
_log = logging.getLogger(__name__)


class AlertWatcher:
    """Watches one run, and notifies listeners of all events that they weren't notified of."""

    def __init__(
        self,
        registry: Registry,
        run_id: str,
        who: str,
        now: Callable[[], datetime.datetime],
    ) -> None:
        """Begin without samples of how far the run is."""
        self._registry = registry
        self._run_id = run_id
        self._who = who
        self._now = now
        self._samples: list[Sample] = []
        self._attempt = 0
        self._lock = threading.Lock()
        self._done: set[tuple[str, str]] = set()
        self._reader: ProgressReader | None = None

    @contextmanager
    def watching(self, seconds: float) -> Iterator[None]:
        """Watch at an interval while the `with` lasts, in a thread of its own.

        A listener that doesn't answer must not keep a launcher from renewing its lease.
        """
        stop = threading.Event()

        def work() -> None:
            said = ""
            while not stop.wait(seconds):
                try:
                    self.watch()
                    said = ""
                except Exception as error:
                    if said != str(error):
                        _log.warning("nobody can be notified of anything: %s", error)
                    said = str(error)

        # Who still doesn't answer when the run has ended doesn't keep the process from it.
        thread = threading.Thread(target=work, name="watcher", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()

    def watch(self) -> None:
        """Record a breach of the run's deadlines, known or foreseen, and notify the listeners."""
        with self._lock:
            self._watch()
            self._tell()

    def notify(self) -> None:
        """Notify the listeners of what they weren't notified of; if that fails, others will."""
        with self._lock:
            try:
                self._tell()
            except RegistryUnavailableError as error:
                _log.warning("nobody is notified of anything now: %s", error)

    def _watch(self) -> None:
        run = self._registry.get(self._run_id)
        deadlines = Deadlines(run.must_start_by, run.must_finish_by)
        if deadlines != (None, None):
            now = self._now()
            events = self._registry.events(run.id)
            if run.status is RunStatus.PAUSED or len(run.attempts) != self._attempt:
                self._attempt = len(run.attempts)
                self._samples.clear()
            if run.live_attempt is not None and run.status is not RunStatus.PAUSED:
                began = run.live_attempt.started_at
                has_paused = any(e.to_status is RunStatus.PAUSED and e.at >= began for e in events)
                self._sample(run.uri, now, None if has_paused else began)
            known = {BreachKind(e.detail["kind"]) for e in events if e.type == BREACH}
            ended = run.attempts[-1].ended_at if run.attempts else None
            facts = RunFacts(
                deadlines,
                started_at=run.attempts[0].started_at if run.attempts else None,
                finished_at=ended if run.status is RunStatus.SUCCESS else None,
                samples=self._samples,
            )
            for breach in breaches(now, facts, known):
                self._registry.append(
                    Event(
                        run=run.id,
                        process=run.process,
                        instance=run.instance,
                        at=now,
                        who=self._who,
                        type=BREACH,
                        why=breach.why,
                        detail={"kind": breach.kind, "deadline": breach.deadline.isoformat()},
                    )
                )

    def _tell(self) -> None:
        notify(self._registry, self._listeners, self._done)

    @cached_property
    def _listeners(self) -> list[Listener] | None:
        return known_listeners()

    def _sample(self, uri: str, now: datetime.datetime, began: datetime.datetime | None) -> None:
        # At first every time, so that a run of a minute can be foreseen to be late, too.
        is_many = len(self._samples) > _MANY_SAMPLES
        if is_many and now - self._samples[-1].at < _SAMPLE_EVERY:
            return
        self._reader = self._reader or ProgressReader(uri)
        progress = self._reader.read(now)
        if progress.shards_total is not None:
            if not self._samples and began is not None:
                # The first check may come late: what was done by then was done since the beginning.
                self._samples.append(Sample(began, progress.shards_before, progress.shards_total))
            self._samples.append(Sample(now, progress.shards_done, progress.shards_total))


def known_listeners() -> list[Listener] | None:
    """The listeners that are configured; None where the configuration is wrong, which is logged.

    A run isn't held up by those who are only notified of it.
    """
    try:
        return load_listeners()
    except UserError as error:
        _log.error("no listener is notified of anything until this is corrected: %s", error)
        return None


def notify(
    registry: Registry, listeners: list[Listener] | None, done: set[tuple[str, str]]
) -> None:
    """Notify listeners of recorded events, each at least once; `done` is added to.

    Where the listeners are not known (None), the events wait for a caller who knows them.
    """
    while listeners is not None and (events := registry.undelivered(_AT_ONCE)):
        deliveries = deliver(events, listeners, done)
        done |= {delivery.key for delivery in deliveries if delivery.is_done}
        waiting = {delivery.event for delivery in deliveries if not delivery.is_done}
        delivered = [event.sequence for event in events if event_id(event) not in waiting]
        failpoint("watcher: notified")
        registry.mark_delivered(delivered)
        if not delivered:
            return
