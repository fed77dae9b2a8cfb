"""The launcher: starts a run's attempts in processes of their own, and answers for how they end.

    claim the attempt in the registry ─▶ tell workers ─▶ start its process ─▶ record its job
        ─▶ let it work ─▶ renew the lease, heed what is asked for ─▶ record how it ended

What an attempt has come to is read from object storage, never from the launcher's memory, so that
any launcher can finish what another one began. A launcher that lost its lease touches nothing more.
"""

import argparse
import contextlib
import datetime
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tenacity

from ledgerbeam.batch import fate, logs
from ledgerbeam.batch.alarm import Alarm
from ledgerbeam.batch.attempt_process import Order
from ledgerbeam.batch.database import RegistryUnavailableError
from ledgerbeam.batch.events import Event
from ledgerbeam.batch.failures import failure_event
from ledgerbeam.batch.fate import Fate
from ledgerbeam.batch.jobs import Job, JobId, ProcessId
from ledgerbeam.batch.records import AttemptKind, AttemptOutcome, RunAttempt, RunRecord
from ledgerbeam.batch.registry import Registry
from ledgerbeam.batch.settings import REGISTRY, Settings, whoami
from ledgerbeam.batch.started_job import StartedJob
from ledgerbeam.batch.status import RunStatus
from ledgerbeam.io import control
from ledgerbeam.io.attempts import attempts
from ledgerbeam.io.control import State, Steering
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint

GRACE_SECONDS = 5.0
"""How long a job that is to stop is given to do so by itself."""

_REPORT_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_STATES: dict[RunStatus, State] = {
    RunStatus.EXECUTING: "run",
    RunStatus.PAUSED: "pause",
    RunStatus.CANCELING: "cancel",
}
_log = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """Somebody else has taken the attempt over, or ended it."""


class _Wish(NamedTuple):
    """What somebody wants an attempt for.

    Attributes:
        kind: of the attempt.
        retry_failed: whether components that failed before are tried again.
    """

    kind: AttemptKind
    retry_failed: bool


class Launcher:
    """Launches one run, in this process.

    Attributes:
        was_interrupted: whether Ctrl-C has canceled the run.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        run_id: str,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        """Make a launcher that has begun nothing."""
        self._registry = registry
        self._settings = settings
        self._run_id = run_id
        self._now = now
        self._who = whoami("launcher")
        self._id = str(ProcessId.of(os.getpid()))
        self._steering: Steering | None = None
        self.was_interrupted = False

    def launch(self) -> RunStatus:
        """Bring the run to its end, unless another launcher does.

        A live attempt is taken over if its launcher is silent; else attempts are begun.

        Returns:
            Where the run stands then.

        Raises:
            LeaseLostError: another launcher has taken it over.
        """
        alarm = Alarm(self._registry, self._run_id, self._who, self._now)
        with alarm.watching(_LOOK_SECONDS):
            status = self._launch()
        alarm.tell()
        return status

    def _launch(self) -> RunStatus:
        why = ""
        while True:
            run = self._get()
            if run.live_attempt is not None:
                attempt = self._take_over(run, run.live_attempt)
            elif not run.status.is_final:
                attempt = self._claim(run, why)
            else:
                attempt = None
            if attempt is None:
                return run.status
            logs.configure(run.id, attempt.number)
            with self._job(run, attempt) as job:
                end = self._answer_for(run, attempt, job)
            if end.to is not None:
                return end.to
            why = end.error or ""

    def _take_over(self, run: RunRecord, attempt: RunAttempt) -> RunAttempt | None:
        if not _patiently(
            self._registry.take_over,
            run.id,
            attempt.number,
            old_launcher=attempt.launcher,
            new_launcher=self._id,
            lease_until=self._lease(),
            who=self._who,
            at=self._now(),
        ):
            return self._own_attempt()
        failpoint("launcher: taken over")
        return self._own_attempt()

    def _claim(self, run: RunRecord, why: str) -> RunAttempt | None:
        # Looked up first: once the claim is lost to a silent launcher's successor, a later number
        # would cancel that one's attempt.
        stored = 1 + max((record.number for record in attempts(run.uri)), default=0)
        now = self._now()
        seconds = run.options.get("attempt_deadline_seconds", 24 * 3600)
        _patiently(
            self._registry.start_attempt,
            run.id,
            len(run.attempts) + 1,
            launcher=self._id,
            lease_until=self._lease(),
            deadline=now + datetime.timedelta(seconds=seconds),
            runner=run.options.get("runner", ""),
            kind=self._wish().kind,
            who=self._who,
            at=now,
            why=why,
        )
        attempt = self._own_attempt()
        if attempt is not None:
            failpoint("launcher: claimed")
            self._steer(run.uri, self._get().status, stored)
            failpoint("launcher: workers told")
        return attempt

    def _own_attempt(self) -> RunAttempt | None:
        """The live attempt, if it is this launcher's; a call that broke off may have made it so."""
        attempt = self._get().live_attempt
        return attempt if attempt is not None and attempt.launcher == self._id else None

    def _wish(self) -> _Wish:
        """Why the next attempt is to be made, or the live one was."""
        asked, is_new = AttemptKind.FIRST, True
        for event in _patiently(self._registry.events, self._run_id):
            if event.type == "status" and "kind" in event.detail:
                asked, is_new = AttemptKind(event.detail["kind"]), True
            elif event.type == "attempt_ended":
                is_new = False
        # What follows a lost attempt is to do what that one was to do.
        kind = asked if is_new else AttemptKind.RECONCILE
        return _Wish(kind, retry_failed=asked is AttemptKind.RETRY)

    @contextlib.contextmanager
    def _job(self, run: RunRecord, attempt: RunAttempt) -> Iterator[Job | None]:
        """The attempt's job: the one on record, or else a new one; None where there is none."""
        was_taken_over = run.live_attempt is not None
        if was_taken_over or self._get().status is RunStatus.CANCELING:
            known = JobId.parse(attempt.job_id) if attempt.job_id else None
            yield Job(known, run.beam_flags) if known is not None and known.can_be_seen else None
            return
        order = Order(
            process=run.process,
            parameters=run.all_parameters,
            beam_flags=run.beam_flags,
            run=run.id,
            launch=attempt.number,
            retry_failed=self._wish().retry_failed,
        )
        environment = self._settings.environment_of_workers()
        job = StartedJob(order, environment, run.options.get("folder", ""))
        try:
            failpoint("launcher: job started")
            yield job
        finally:
            job.let_go()

    def _answer_for(self, run: RunRecord, attempt: RunAttempt, job: Job | None) -> Fate:
        """Watch an attempt to its end, and record that.

        Raises:
            LeaseLostError: somebody else answers for it now.
        """
        while True:
            try:
                ended_by = "" if job is None else self._watch(run, attempt, job)
                break
            except KeyboardInterrupt:
                # Of a run that is launched from a terminal; the second time it is an error.
                self.was_interrupted = True
                self._registry.move(
                    run.id,
                    RunStatus.CANCELING,
                    who=self._who,
                    at=self._now(),
                    why="interrupted",
                )
        failpoint("launcher: job ended")
        status = self._get().status
        end = fate.find_out(run, attempt, job, status, ended_by, self._who, self._now())
        failpoint("launcher: fate known")
        self._record(run, attempt, end)
        failpoint("launcher: end recorded")
        return end

    def _watch(self, run: RunRecord, attempt: RunAttempt, job: Job) -> str:
        """Wait for the end of a job; gives why it was ended, if it was."""
        ended_by = ""
        look_at = time.monotonic()
        is_own = isinstance(job, StartedJob)
        while True:
            is_alive = job.is_alive()
            if isinstance(job, StartedJob):
                job.hear(_REPORT_SECONDS if is_alive else 0)
                if job.waits:
                    self._let_work(run, attempt, job)
            if not is_alive:
                break
            if not is_own:
                time.sleep(_REPORT_SECONDS)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + min(_LOOK_SECONDS, self._settings.lease_seconds / 3)
                ended_by = self._look(run, attempt)
            if ended_by:
                failpoint("launcher: stopping")
                job.stop(GRACE_SECONDS)
                failpoint("launcher: stopped")
        job.stop(0)  # worker processes that have outlived it
        return ended_by

    def _let_work(self, run: RunRecord, attempt: RunAttempt, job: StartedJob) -> None:
        recorded = _patiently(
            self._registry.record_job,
            run.id,
            attempt.number,
            launcher=self._id,
            job_id=str(job.id),
            who=self._who,
            at=self._now(),
        )
        if not recorded:
            raise LeaseLostError
        failpoint("launcher: job recorded")
        job.let_work()

    def _look(self, run: RunRecord, attempt: RunAttempt) -> str:
        """Renew the lease, and see whether the attempt is to be stopped, and why."""
        try:
            if not self._registry.renew(
                run.id, attempt.number, launcher=self._id, lease_until=self._lease()
            ):
                raise LeaseLostError
            status = self._registry.get(run.id).status
        except RegistryUnavailableError as error:
            _log.warning("the registry can't be reached, the job goes on: %s", error)
            return ""
        if status is RunStatus.CANCELING:
            return "canceled"
        if self._now() > attempt.deadline:
            return f"its deadline of {attempt.deadline:%Y-%m-%d %H:%M:%S} UTC has passed"
        try:
            self._steer(run.uri, status)
        except UserError as error:
            _log.warning("workers can't be told that the run is %s: %s", status, error)
        return ""

    def _steer(self, uri: str, status: RunStatus, attempt: int | None = None) -> None:
        """Tell workers what is on record, if whoever put it there has died before he could.

        Args:
            uri: of the run's folder.
            status: of the run.
            attempt: the first attempt in storage that may work, where this is to be said.
        """
        before = self._steering
        latest = control.latest(uri) if before is None else control.newer(uri, before.number)
        self._steering = steering = latest or before
        assert steering is not None
        changes: control.Changes = {}
        if status in _STATES and steering.state != _STATES[status]:
            changes["state"] = _STATES[status]
        if attempt is not None:
            first = max(attempt, steering.earliest_attempt)
            if first > steering.earliest_attempt or changes:
                changes["earliest_attempt"] = first
        if changes:
            why = f"the run is {status} on record"
            self._steering = control.steer(uri, self._now(), self._who, why, **changes)

    def _record(self, run: RunRecord, attempt: RunAttempt, end: Fate) -> None:
        expire_after = run.options.get("results_expire_after_seconds")
        now = self._now()
        if end.outcome is AttemptOutcome.SUCCESS:
            self._tell_of_failures(run, attempt, now)
        expire_at = None
        if end.to is not None and expire_after is not None:
            expire_at = now + datetime.timedelta(seconds=expire_after)
        if end.warning:
            self._warn(run, attempt, end.warning)
        if not _patiently(
            self._registry.end_attempt,
            run.id,
            attempt.number,
            launcher=self._id,
            outcome=end.outcome,
            who=self._who,
            at=now,
            to=end.to,
            error=end.error,
            results_expire_at=expire_at,
        ):
            # The connection may have broken behind the call that recorded it.
            recorded = self._get().attempts[attempt.number - 1]
            if (recorded.launcher, recorded.outcome) != (self._id, end.outcome):
                raise LeaseLostError
        _log.info("attempt %d: %s %s", attempt.number, end.outcome, end.error or "")

    def _warn(self, run: RunRecord, attempt: RunAttempt, warning: str) -> None:
        _log.warning("%s", warning)
        event = Event(
            run=run.id,
            process=run.process,
            instance=run.instance,
            attempt=attempt.number,
            at=self._now(),
            who=self._who,
            type="warning",
            why=warning,
        )
        _patiently(self._registry.append, event)

    def _get(self) -> RunRecord:
        run: RunRecord = _patiently(self._registry.get, self._run_id)
        return run

    def _tell_of_failures(
        self, run: RunRecord, attempt: RunAttempt, now: datetime.datetime
    ) -> None:
        event = failure_event(run, attempt.number, self._who, now)
        # A launcher that died behind this may have been here before.
        if event is not None and event.type not in {
            each.type for each in _patiently(self._registry.events, run.id)
        }:
            _patiently(self._registry.append, event)

    def _lease(self) -> datetime.datetime:
        return self._now() + datetime.timedelta(seconds=self._settings.lease_seconds)


_patient = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type(RegistryUnavailableError),
    wait=tenacity.wait_exponential(0.2, max=10) + tenacity.wait_random(0, 0.2),
    stop=tenacity.stop_after_delay(600),
    reraise=True,
)


def _patiently(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the registry; wait for it where it can't be reached."""
    return _patient.copy()(call, *args, **kwargs)


def spawn(settings: Settings, run_id: str) -> None:
    """Start a launcher that outlives this process."""
    log = settings.log_of(run_id)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "ledgerbeam.batch.launcher", run_id],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Not on the command line, which everybody can read.
            env={**os.environ, REGISTRY: settings.registry_url},
            start_new_session=True,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The launcher as a process, given a run's id; the registry is named by the environment."""
    parser = argparse.ArgumentParser(prog="ledgerbeam-launcher")
    parser.add_argument("run")
    asked = parser.parse_args(arguments)
    logs.configure(asked.run)
    settings = Settings.from_environment()
    try:
        with _patiently(Registry.open, settings.registry_url) as registry:
            Launcher(registry, settings, asked.run).launch()
    except UserError as error:
        _log.error("%s", error)
        return 1
    except LeaseLostError:
        _log.warning("somebody else answers for the attempt now")
        return 1
    return 0


if __name__ == "__main__":
    # Not from here: `LeaseLostError` would be two classes.
    from ledgerbeam.batch.launcher import main as importable_main

    sys.exit(importable_main())
