"""The launcher: starts a run's attempts in processes of their own, and answers for how they end.

    claim the attempt in the registry ─▶ steer its workers ─▶ start its process ─▶ record its job
        ─▶ let it start ─▶ renew the lease, stop it where that is asked for ─▶ record its end

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
from typing import Any

import tenacity

from ledgerbeam.batch import logs, traces
from ledgerbeam.batch.alerts.watcher import AlertWatcher
from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.interrupts import Terminated
from ledgerbeam.batch.launch.conclude import Conclusion, conclude
from ledgerbeam.batch.launch.driver import AttemptRequest
from ledgerbeam.batch.launch.driver_job import StartedJob
from ledgerbeam.batch.launch.job import Job, JobId
from ledgerbeam.batch.launch.leases import has_run_out
from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.run import AttemptKind, AttemptOutcome, RunAttempt, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.observe.failures import failure_event
from ledgerbeam.batch.observe.rejections import rejected_rows
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.settings import Settings, whoami
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.attempts import attempts
from ledgerbeam.io.commit.control_log import State, Steering
from ledgerbeam.io.commit.on_record import put_on_record
from ledgerbeam.io.errors import (
    CanceledError,
    DeadlinePassedError,
    LeaseLostError,
    RegistryUnavailableError,
    UserError,
)
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.machine import ProcessId
from ledgerbeam.io.temporary import remove_left_behind

GRACE_SECONDS = 5.0
"""How long a job that is to stop is given to do so by itself."""

_MESSAGE_SECONDS = 0.2
_POLL_SECONDS = 1.0
_STATES: dict[RunStatus, State] = {
    RunStatus.EXECUTING: "run",
    RunStatus.PAUSED: "pause",
    RunStatus.CANCELING: "cancel",
}
_ASKED = (AttemptKind.RETRY, AttemptKind.RESTART)
_log = logging.getLogger(__name__)


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
        now: Clock = utc_now,
        driver: "subprocess.Popen[bytes] | None" = None,
        driver_log: str = "",
    ) -> None:
        """Make a launcher that has begun nothing.

        Args:
            registry: where the run is on record.
            settings: for its lease.
            run_id: of the run.
            now: the present time in UTC.
            driver: a process that was started ahead, for the first attempt that it begins.
            driver_log: file for the log of that one, where its standard error isn't the place.
        """
        self._registry = registry
        self._settings = settings
        self._run_id = run_id
        self._now = now
        self._who = whoami("launcher")
        self._id = str(ProcessId.of(os.getpid()))
        self._steering: Steering | None = None
        self._driver = driver
        self._driver_log = driver_log
        self.was_interrupted = False

    def launch(self) -> RunStatus:
        """Bring the run to its end, unless another launcher does.

        A live attempt is taken over if its launcher is silent; else attempts are begun.

        Returns:
            Where the run stands then.

        Raises:
            LeaseLostError: another launcher has taken it over.
        """
        remove_left_behind()
        watcher = AlertWatcher(self._registry, self._run_id, self._who, self._now)
        with watcher.watching(_POLL_SECONDS):
            status = self._launch()
        watcher.notify()
        return status

    def _launch(self) -> RunStatus:
        why = ""
        while True:
            run = self._get()
            live = run.live_attempt
            if live is not None:
                self._take_over(run, live)
            elif not run.status.is_final:
                self._claim(run, why)
            # A call that broke off may have been recorded all the same.
            run = self._get()
            attempt = self._own_attempt(run)
            if attempt is None:
                return run.status
            logs.configure(run.id, attempt.number)
            with self._job(run, attempt, is_new=live is None) as job:
                end = self._answer_for(run, attempt, job)
            if end.to is not None:
                return end.to
            why = end.error or ""

    def _take_over(self, run: RunRecord, attempt: RunAttempt) -> None:
        now = self._now()
        if not has_run_out(run, attempt, now, self._settings.lease_seconds):
            return
        if _patiently(
            self._registry.take_over,
            run.id,
            attempt.number,
            old_launcher=attempt.launcher,
            new_launcher=self._id,
            lease_until=self._lease(),
            who=self._who,
            at=now,
            force=attempt.lease_until >= now,
        ):
            failpoint("launcher: taken over")

    def _claim(self, run: RunRecord, why: str) -> None:
        # Whoever submitted it may have died before that.
        put_on_record(run.uri, run.id, run.name, run.submitted_by, self._now())
        # Looked up first: once the claim is lost to a silent launcher's successor, a later number
        # would cancel that one's attempt.
        stored = 1 + max((record.number for record in attempts(run.uri)), default=0)
        now = self._now()
        limit = datetime.timedelta(seconds=run.options.attempt_deadline_seconds)
        _patiently(
            self._registry.start_attempt,
            run.id,
            len(run.attempts) + 1,
            launcher=self._id,
            lease_until=self._lease(),
            deadline=now + limit,
            runner=run.options.runner,
            who=self._who,
            at=now,
            why=why,
        )
        run = self._get()
        if self._own_attempt(run) is not None:
            failpoint("launcher: claimed")
            self._steer(run.uri, run.status, stored)
            failpoint("launcher: workers steered")

    def _own_attempt(self, run: RunRecord) -> RunAttempt | None:
        """The live attempt, if it is this launcher's."""
        attempt = run.live_attempt
        return attempt if attempt is not None and attempt.launcher == self._id else None

    @contextlib.contextmanager
    def _job(self, run: RunRecord, attempt: RunAttempt, is_new: bool) -> Iterator[Job | None]:
        """The attempt's job: the one on record, or else a new one; None where there is none."""
        if not is_new or run.status is RunStatus.CANCELING:
            known = JobId.parse(attempt.job_id) if attempt.job_id else None
            yield Job(known, run.beam_flags) if known is not None and known.can_be_seen else None
            return
        driver, self._driver = self._driver, None
        if driver is not None and driver.poll() is not None:
            driver = None  # it has died while it waited
        request = AttemptRequest(
            process=run.process,
            parameters=run.all_parameters,
            beam_flags=run.beam_flags,
            run=run.id,
            launch=attempt.number,
            # What follows a lost attempt is to do what that one was to do. Before the first attempt
            # of a run, only others have failed: those of a run in whose place it was submitted.
            retry_failed=run.request[0].kind is AttemptKind.RETRY or attempt.number == 1,
            components=self._chosen(),
            folder=run.options.folder,
            log="" if driver is None else self._driver_log,
            traceparent=os.environ.get(traces.TRACEPARENT, ""),
        )
        environment = self._settings.environment_of_workers()
        job = StartedJob(request, environment, run.options.folder, driver)
        try:
            failpoint("launcher: job started")
            yield job
        finally:
            job.detach()

    def _chosen(self) -> list[str]:
        """The components that the last retry was asked for; none for all that failed."""
        events = _patiently(self._registry.events, self._run_id)
        asked = [e.detail for e in events if e.type == "status" and e.detail.get("kind") in _ASKED]
        return [str(name) for name in asked[-1].get("components", ())] if asked else []

    def _answer_for(self, run: RunRecord, attempt: RunAttempt, job: Job | None) -> Conclusion:
        """Watch an attempt to its end, and record that.

        Raises:
            LeaseLostError: somebody else answers for it now.
            Terminated: this process is to end; that the attempt was lost is on record.
        """
        terminated = None
        while True:
            try:
                ended_by = None if job is None else self._watch(run, attempt, job)
                break
            except Terminated as told:
                # The machine is shut down, or the like: the run goes on elsewhere, or later.
                terminated, ended_by = told, None
                assert job is not None
                job.stop(GRACE_SECONDS)
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
        run = self._get()
        (attempt,) = (each for each in run.attempts if each.number == attempt.number)
        end = conclude(run, attempt, job, ended_by, self._who, self._now())
        failpoint("launcher: concluded")
        self._record(run, attempt, end)
        failpoint("launcher: end recorded")
        if terminated is not None:
            raise terminated
        return end

    def _watch(self, run: RunRecord, attempt: RunAttempt, job: Job) -> UserError | None:
        """Wait for the end of a job; gives why it was ended, if it was."""
        ended_by = None
        poll_at = time.monotonic()
        while True:
            is_alive = job.is_alive()
            job.poll(
                _MESSAGE_SECONDS if is_alive else 0,
                lambda job_id: self._record_job(run, attempt, job_id),
            )
            if not is_alive:
                break
            if time.monotonic() >= poll_at:
                poll_at = time.monotonic() + min(_POLL_SECONDS, self._settings.lease_seconds / 3)
                ended_by = self._track(run, attempt)
            if ended_by is not None:
                failpoint("launcher: stopping")
                job.stop(GRACE_SECONDS)
                failpoint("launcher: stopped")
        job.stop(0)  # worker processes that have outlived it
        return ended_by

    def _record_job(self, run: RunRecord, attempt: RunAttempt, job_id: JobId) -> None:
        recorded = _patiently(
            self._registry.record_job,
            run.id,
            attempt.number,
            launcher=self._id,
            job_id=str(job_id),
            who=self._who,
            at=self._now(),
        )
        if not recorded:
            raise _lease_lost(attempt)
        failpoint("launcher: job recorded")

    def _track(self, run: RunRecord, attempt: RunAttempt) -> UserError | None:
        """Renew the lease, and see whether the attempt is to be stopped, and why."""
        try:
            if not self._registry.renew(
                run.id, attempt.number, launcher=self._id, lease_until=self._lease()
            ):
                raise _lease_lost(attempt)
            status = self._registry.get(run.id).status
        except RegistryUnavailableError as error:
            _log.warning("the registry can't be reached, the job goes on: %s", error)
            return None
        if status is RunStatus.CANCELING:
            return CanceledError("canceled")
        if self._now() > attempt.deadline:
            return DeadlinePassedError(
                f"its deadline of {attempt.deadline:%Y-%m-%d %H:%M:%S} UTC has passed"
            )
        try:
            self._steer(run.uri, status)
        except UserError as error:
            _log.warning("workers can't be steered: the run is %s: %s", status, error)
        return None

    def _steer(self, uri: str, status: RunStatus, attempt: int | None = None) -> None:
        """Steer workers by what is on record, where whoever recorded it has died before doing so.

        Args:
            uri: of the run's folder.
            status: of the run.
            attempt: the first attempt in storage that may work, where this is to be said.
        """
        before = self._steering
        latest = (
            control_log.latest(uri) if before is None else control_log.newer(uri, before.number)
        )
        self._steering = steering = latest or before
        assert steering is not None
        changes: control_log.Changes = {}
        if status in _STATES and steering.state != _STATES[status]:
            changes["state"] = _STATES[status]
        if attempt is not None:
            first = max(attempt, steering.earliest_attempt)
            if first > steering.earliest_attempt or changes:
                changes["earliest_attempt"] = first
        if changes:
            why = f"the run is {status} on record"
            self._steering = control_log.steer(uri, self._now(), self._who, why, **changes)

    def _record(self, run: RunRecord, attempt: RunAttempt, end: Conclusion) -> None:
        expire_after = run.options.results_expire_after_seconds
        now = self._now()
        if end.outcome is AttemptOutcome.SUCCESS:
            self._notify_of_failures(run, attempt, now)
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
            detail=_detail(run, end),
        ):
            # The connection may have broken behind the call that recorded it.
            recorded = self._get().attempts[attempt.number - 1]
            if (recorded.launcher, recorded.outcome) != (self._id, end.outcome):
                raise _lease_lost(attempt)
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

    def _notify_of_failures(
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


def _detail(run: RunRecord, end: Conclusion) -> dict[str, Any] | None:
    """What is on record with the end of an attempt, besides why."""
    detail: dict[str, Any] = {"code": end.code} if end.code else {}
    if end.to is not None:
        try:
            rejected = rejected_rows(run.uri)
        except UserError as error:
            _log.warning("rejected rows can't be counted: %s", error)
            rejected = 0
        if rejected:
            detail["rejected"] = rejected
    return detail or None


def _lease_lost(attempt: RunAttempt) -> LeaseLostError:
    return LeaseLostError(f"somebody else answers for attempt {attempt.number} now")


def main(arguments: Sequence[str] | None = None) -> int:
    """The launcher as a process, given a run's id; the registry is named by the environment."""
    parser = argparse.ArgumentParser(prog="ledgerbeam-launcher")
    parser.add_argument("run")
    return launch(parser.parse_args(arguments).run)


def launch(run_id: str, driver: "subprocess.Popen[bytes] | None" = None) -> int:
    """Launch a run in this process, which is for nothing else; gives its exit status.

    Args:
        run_id: of the run.
        driver: a process that was started ahead, for the first attempt.
    """
    logs.configure(run_id)
    settings = Settings.from_environment()
    try:
        with _patiently(Registry.open, settings.registry_url) as registry:
            failpoint("launcher: begun")
            with traces.of_process("launch"):
                traces.note(run=run_id)
                log = "" if driver is None else str(settings.log_of(run_id))
                Launcher(registry, settings, run_id, driver=driver, driver_log=log).launch()
    except UserError as error:
        _log.error("%s", error)
        return 1
    except LeaseLostError as error:
        _log.warning("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
