"""A worker node: takes requests of its kinds, and answers for them until they have ended.

    take, under a lease ─▶ record the run ─▶ link it to the request ─▶ start its launcher
        ─▶ wait for its end ─▶ end the request

Launchers outlive the node. Another node that takes over a lost request finds its run on record, and
waits for its end like the first one, or has it launched again where its launcher is gone too. That
a run never publishes twice is the commit protocol's doing.
"""

import contextlib
import logging
import queue
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import tenacity

from ledgerbeam.batch import traces
from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.launch.spawn import start_launcher
from ledgerbeam.batch.model.run import AttemptKind, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.runs.reconcile import see_to_launcher
from ledgerbeam.batch.settings import Settings, whoami
from ledgerbeam.io.errors import IllegalMoveError, RegistryUnavailableError, UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.secrets import redact
from ledgerbeam.service.ahead import LaunchersAhead
from ledgerbeam.service.at_once.errands import ErrandRunner
from ledgerbeam.service.model import RequestRecord, RequestState, Submission, Verb, again_of
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.store.wake import Bell, Waiter

_POLL_SECONDS = 1.0
_ENDS = {
    RunStatus.SUCCESS: RequestState.SUCCESS,
    RunStatus.FAILURE: RequestState.FAILURE,
    RunStatus.CANCELED: RequestState.CANCELED,
}
_KINDS = {Verb.RETRY: AttemptKind.RETRY, Verb.RESTART: AttemptKind.RESTART}
_log = logging.getLogger(__name__)


class Node:
    """Serves queues, in this process.

    Attributes:
        name: unique among all nodes there are and were.
    """

    def __init__(
        self,
        runs: Runs,
        settings: Settings,
        kinds: Sequence[str],
        slots: int,
        beam_flags: Sequence[str] = (),
        ahead: int = 0,
        now: Clock = utc_now,
    ) -> None:
        """Make a node that has taken nothing.

        Args:
            runs: the registry's runs.
            settings: for the launchers that it starts.
            kinds: names of the workloads that it serves.
            slots: how many runs it answers for at once.
            beam_flags: for the runs that it records, such as `--runner=FlinkRunner`.
            ahead: how many launchers wait for runs, with Beam imported.
            now: the present time in UTC.
        """
        self.name = f"{whoami('node')}:{uuid.uuid4().hex[:8]}"
        self._runs = runs
        self._settings = settings
        self._kinds = kinds
        self._slots = slots
        self._beam_flags = list(beam_flags)
        self._now = now
        self._dispatch = Dispatch(runs.registry.database)
        self._bell = Bell(runs.registry.database)
        self._launchers = LaunchersAhead(settings, ahead)
        self._errands = ErrandRunner(runs, settings, self.name, slots, self._adopt, now)
        self._errands.appear(kinds)
        self._adopted: queue.SimpleQueue[tuple[RequestRecord, threading.Thread]]
        self._adopted = queue.SimpleQueue()
        self._at_work: dict[str, tuple[RequestRecord, threading.Thread]] = {}
        self._renew_at = 0.0

    def run(
        self, stopping: threading.Event, *, until_empty: bool = False, drain_seconds: float = 60.0
    ) -> None:
        """Serve, until it is to stop.

        Then nothing is taken any more, and what is at work may end in `drain_seconds`; what hasn't
        by then is handed over.

        Args:
            stopping: set to have it stop.
            until_empty: whether it stops when its queues are empty.
            drain_seconds: see above.
        """
        database = self._runs.registry.database
        with Waiter(database, stopping) as waiter:
            while not stopping.is_set():
                self._launchers.fill()
                try:
                    if self.step():
                        waiter.found()
                    elif until_empty and not self._at_work and self._is_empty():
                        break
                except RegistryUnavailableError as error:
                    # What is at work goes on; its lease runs out where this lasts.
                    _log.warning("%s", error)
                patience = None
                if self._at_work or database.kind == "sqlite":
                    patience = self._settings.lease_seconds / 3
                waiter.wait(at_most=1.0 if until_empty else patience)
        self._errands.leave()
        self._drain(time.monotonic() + drain_seconds)
        self._launchers.close()
        self._errands.close()
        self._bell.close()

    def step(self) -> bool:
        """Renew leases, and take what there are slots for; gives whether anything was taken."""
        self._at_work = {id_: held for id_, held in self._at_work.items() if held[1].is_alive()}
        while not self._adopted.empty():
            request, thread = self._adopted.get()
            self._at_work[request.id] = request, thread
        self._renew()
        answers = self._errands.step(self._kinds)
        free = self._slots - len(self._at_work)
        if free <= 0:
            return answers
        taken = self._dispatch.take(
            self._kinds, free, node=self.name, now=self._now(), lease_until=self._lease()
        )
        for request in taken:
            thread = threading.Thread(target=self._answer_for, args=[request], daemon=True)
            self._at_work[request.id] = request, thread
            thread.start()
        # The kind that had to wait this time is asked for first the next time.
        self._kinds = [*self._kinds[1:], *self._kinds[:1]]
        return bool(taken) or answers

    def _adopt(self, submission: Submission, who: str) -> RequestRecord:
        """Answer for a run at once that an errand asks for; called by its thread."""
        now, lease = self._now(), self._lease()
        request = self._dispatch.adopt(
            submission, who=who, node=self.name, now=now, lease_until=lease
        )
        thread = threading.Thread(target=self._answer_for, args=[request], daemon=True)
        thread.start()
        self._adopted.put((request, thread))
        return request

    def _renew(self) -> None:
        if not self._at_work or time.monotonic() < self._renew_at:
            return
        epochs = {id_: request.epoch for id_, (request, _) in self._at_work.items()}
        kept = {r.id for r in self._dispatch.renew(epochs, self.name, self._lease())}
        for lost in epochs.keys() - kept:
            # Its thread may be about to end it, and finds out by itself where it isn't.
            _log.warning("request %s isn't this node's any more", lost)
            del self._at_work[lost]
        self._renew_at = time.monotonic() + self._settings.lease_seconds / 3

    def _drain(self, deadline: float) -> None:
        while self._at_work and time.monotonic() < deadline:
            self._at_work = {i: held for i, held in self._at_work.items() if held[1].is_alive()}
            self._renew()
            time.sleep(0.2)
        for request, _ in self._at_work.values():
            self._dispatch.hand_over(request.id, request.epoch, self.name, self._now())

    def _is_empty(self) -> bool:
        queues = [self._dispatch.queue(name) for name in self._kinds]
        return not any(queue.queued for queue in queues if queue.held_why is None)

    def _lease(self) -> Any:
        return self._now() + timedelta(seconds=self._settings.lease_seconds)

    def _answer_for(self, request: RequestRecord) -> None:
        parent = request.traceparent or ""
        if request.epoch == 1 and request.queued_at is not None and request.started_at is not None:
            traces.past("queue", parent, request.queued_at, request.started_at)
        with traces.span("run", parent, request=request.id, workload=request.kind) as own:
            self._execute_and_end(request, replace(self._settings, traceparent=own))

    def _execute_and_end(self, request: RequestRecord, settings: Settings) -> None:
        try:
            state, code, error = self._execute(request, settings)
        except UserError as failure:
            state, code, error = RequestState.FAILURE, failure.code, redact(str(failure))
        except Exception as bug:
            _log.exception("request %s failed by a bug", request.id)
            told = redact(f"{type(bug).__name__}: {bug}")
            state, code, error = RequestState.FAILURE, "bug", told
        failpoint("work: run ended")
        _patiently(
            self._dispatch.finish,
            request.id,
            request.epoch,
            self.name,
            state,
            self._now(),
            code,
            error,
        )
        self._bell.ring()

    def _execute(
        self, request: RequestRecord, settings: Settings
    ) -> tuple[RequestState, str | None, str | None]:
        """Have a request's run executed, and give how it has ended."""
        runs = self._runs.signed_by(request.requester)
        policy = self._dispatch.queue(request.kind).policy
        if request.lost >= policy.lost_nodes:
            return self._give_up(request, runs, settings)
        run, is_to_launch = _patiently(self._recorded, request, runs)
        failpoint("work: recorded")
        linked = _patiently(self._dispatch.link, request.id, request.epoch, self.name, run.id)
        failpoint("work: linked")
        if linked is not None and linked.cancel_why is not None:
            _cancel(runs, run, linked.cancel_why)
        launcher = None
        if is_to_launch:
            # The run is on record: where no process can be started now, one is later.
            with _logged(f"run {run.id} can't be launched yet"):
                launcher = start_launcher(
                    runs.registry, settings, run, self._now(), self._launchers.launch
                )
        failpoint("work: launched")
        return self._end_of(self._wait(run, launcher, settings))

    def _recorded(self, request: RequestRecord, runs: Runs) -> tuple[RunRecord, bool]:
        """The request's run, and whether it needs a launcher now."""
        if request.verb is Verb.SUBMIT:
            run, is_new = runs.record(request.kind, request.parameters, self._beam_flags)
            # One that was recorded long before may have a launcher, though it hasn't begun.
            return run, is_new or (run.status is RunStatus.INITIATED and request.epoch == 1)
        if request.verb is Verb.REPLACE:
            run = self._replaced(request, runs)
            return run, run.status is RunStatus.INITIATED
        run = self._runs.registry.get(str(request.run_id))
        after = request.parameters["after"]
        moves = [e for e in self._runs.registry.events(run.id) if e.sequence > after]
        if any("kind" in event.detail and event.to_status is not None for event in moves):
            return run, False  # a node that was lost since has done so
        try:
            kind = _KINDS[request.verb]
            return runs.reopen(run.id, kind, request.why, **again_of(request)), True
        except IllegalMoveError:
            if not self._runs.registry.get(run.id).status.is_final:
                return run, False
            raise

    def _replaced(self, request: RequestRecord, runs: Runs) -> RunRecord:
        """The run that takes another's place; the one that a lost node has recorded, if it has."""
        given = request.parameters
        if request.run_id is not None:
            before = runs.registry.get(request.run_id)
            by = runs.registry.successor(before.id)
            if by is not None:
                return runs.registry.get(by)
            if "approval" not in given:
                return before  # it was linked already
            asked = runs.to_be_approved(before, given["approval"])
            return runs.replace_approved(before, asked, request.why)
        before, is_it = runs.begin_replacing(request.kind, given, request.why)
        if is_it:
            return before
        return runs.record(request.kind, given, self._beam_flags, replace=True, why=request.why)[0]

    def _wait(
        self, run: RunRecord, launcher: "subprocess.Popen[bytes] | None", settings: Settings
    ) -> RunRecord:
        """Wait for a run's end, and have it launched again where its launcher has died."""
        if launcher is not None:
            launcher.wait()
        while True:
            run = _patiently(self._runs.registry.get, run.id)
            if run.status.is_final:
                return run
            with _logged(f"run {run.id} has no launcher"):
                see_to_launcher(self._runs.registry, settings, run, self._now())
            time.sleep(_POLL_SECONDS)

    def _end_of(self, run: RunRecord) -> tuple[RequestState, str | None, str | None]:
        code = self._runs.get(run.id).code if run.status is RunStatus.FAILURE else None
        return _ENDS[run.status], code, run.error

    def _give_up(
        self, request: RequestRecord, runs: Runs, settings: Settings
    ) -> tuple[RequestState, str | None, str | None]:
        """Put a request aside with which node after node was lost; its run is stopped before."""
        told = f"{request.lost} nodes were lost with it, one after the other"
        if request.lost == 1:
            told = "a node was lost with it"
        if request.run_id is not None:
            run = self._runs.registry.get(request.run_id)
            _cancel(runs, run, told)
            run = self._wait(run, None, settings)
            if run.status is not RunStatus.CANCELED:
                return self._end_of(run)
        return RequestState.DEAD, "attempt-lost", f"{told}: find out why, then redrive it"


def _cancel(runs: Runs, run: RunRecord, why: str) -> None:
    """Cancel a run, unless it ends before that."""
    with contextlib.suppress(IllegalMoveError):
        _patiently(runs.cancel, run.id, why)


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Go on after an error: what a run comes to is told by its record alone."""
    try:
        yield
    except Exception:
        _log.exception("%s", what)


_patient = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type(RegistryUnavailableError),
    wait=tenacity.wait_exponential(0.2, max=10) + tenacity.wait_random(0, 0.2),
    stop=tenacity.stop_after_delay(600),
    reraise=True,
)


def _patiently(call: Callable[..., Any], *args: Any) -> Any:
    """Call the database; wait for it where it can't be reached."""
    return _patient.copy()(call, *args)
