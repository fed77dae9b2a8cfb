"""The launcher: starts a run's attempts in processes of their own, and answers for how they end.

    claim the attempt in the registry ─▶ start its process ─▶ record its job ─▶ let it work
        ─▶ renew the lease, heed cancellation, deadline and SLA ─▶ record how it ended

What an attempt has come to is read from object storage, never from the launcher's memory, so that
any launcher can finish what another one began. A launcher that lost its lease touches nothing more.
"""

import argparse
import contextlib
import datetime
import json
import logging
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import tenacity

from ledgerbeam.batch import logs
from ledgerbeam.batch.alarm import Alarm
from ledgerbeam.batch.attempt_process import GO, Order
from ledgerbeam.batch.database import RegistryUnavailableError
from ledgerbeam.batch.failures import failure_event
from ledgerbeam.batch.jobs import LocalJob, ProcessId
from ledgerbeam.batch.records import AttemptKind, AttemptOutcome, RunAttempt, RunRecord
from ledgerbeam.batch.registry import Registry
from ledgerbeam.batch.settings import REGISTRY, Settings, whoami
from ledgerbeam.batch.status import RunStatus
from ledgerbeam.io.attempts import Attempt, attempts, ending_of, fence, find_manifest
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.records import AttemptRecord, Fence

GRACE_SECONDS = 5.0
"""How long a job that is to stop is given to do so by itself."""

_REPORT_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Fate(NamedTuple):
    """How an attempt has ended.

    Attributes:
        outcome: for the registry.
        to: what becomes of the run; None where another attempt is to follow.
        error: why it isn't a success.
    """

    outcome: AttemptOutcome
    to: RunStatus | None
    error: str | None = None


class LeaseLostError(Exception):
    """Somebody else has taken the attempt over, or ended it."""


class Launcher:
    """Launches one run, in this process."""

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
        self._alarm = Alarm(registry, run_id, self._who, now)

    def launch(self, kind: AttemptKind, why: str = "") -> RunStatus:
        """Run attempts until the run has ended; nothing is done where another launcher does it.

        Returns:
            Where the run stands then.
        """
        while True:
            run = self._registry.get(self._run_id)
            attempt = self._claim(run, kind, why)
            if attempt is None:
                return self._registry.get(self._run_id).status
            logs.configure(run.id, attempt.number)
            failpoint("launcher: claimed")
            with self._start(run, attempt, kind) as process:
                job = LocalJob(ProcessId.of(process.pid))
                failpoint("launcher: job started")
                fate = self._answer_for(run, attempt, job, process)
            if fate.to is not None:
                return fate.to
            kind, why = AttemptKind.RECONCILE, fate.error or ""

    def attach(self) -> RunStatus:
        """Take over a live attempt whose launcher is dead, and answer for it.

        Returns:
            Where the run stands then.
        """
        run = self._registry.get(self._run_id)
        attempt = run.live_attempt
        now = self._now()
        if attempt is None or not self._registry.take_over(
            run.id,
            attempt.number,
            old_launcher=attempt.launcher,
            new_launcher=self._id,
            lease_until=self._lease(),
            who=self._who,
            at=now,
        ):
            return run.status
        failpoint("launcher: taken over")
        logs.configure(run.id, attempt.number)
        job = LocalJob(ProcessId.parse(attempt.job_id)) if attempt.job_id else None
        fate = self._answer_for(run, attempt, job, None)
        if fate.to is not None:
            return fate.to
        return self.launch(AttemptKind.RECONCILE, fate.error or "")

    def _claim(self, run: RunRecord, kind: AttemptKind, why: str) -> RunAttempt | None:
        now = self._now()
        hours = run.options.get("attempt_deadline_seconds", 24 * 3600)
        return self._registry.start_attempt(
            run.id,
            len(run.attempts) + 1,
            launcher=self._id,
            lease_until=self._lease(),
            deadline=now + datetime.timedelta(seconds=hours),
            runner=run.options.get("runner", ""),
            kind=kind,
            who=self._who,
            at=now,
            why=why,
        )

    @contextlib.contextmanager
    def _start(
        self, run: RunRecord, attempt: RunAttempt, kind: AttemptKind
    ) -> Iterator["subprocess.Popen[bytes]"]:
        process = subprocess.Popen(
            [sys.executable, "-m", "ledgerbeam.batch.attempt_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._settings.environment_of_workers(),
            start_new_session=True,  # a group of its own, which can be stopped as one
        )
        order = Order(
            process=run.process,
            parameters=run.parameters,
            beam_flags=run.beam_flags,
            run=run.id,
            launch=attempt.number,
            retry_failed=kind is not AttemptKind.RESTART,
        )
        try:
            _write(process, order.model_dump_json())
            yield process
        finally:
            # Whoever has the lease answers for the job; this process only lets go of it.
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _answer_for(
        self,
        run: RunRecord,
        attempt: RunAttempt,
        job: LocalJob | None,
        process: "subprocess.Popen[bytes] | None",
    ) -> Fate:
        """Watch an attempt to its end, and record that.

        Raises:
            LeaseLostError: somebody else answers for it now.
        """
        reports = _Reports(process)
        ended_by = ""
        look_at = time.monotonic()
        while True:
            alive = job is not None and job.is_alive()
            for report in reports.read(_REPORT_SECONDS if alive else 0):
                if "attempt" in report and process is not None and job is not None:
                    self._let_work(run, attempt, process)
            if not alive or job is None:
                break
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + min(_LOOK_SECONDS, self._settings.lease_seconds / 3)
                ended_by = self._look(run, attempt)
            if ended_by:
                failpoint("launcher: stopping")
                job.stop(GRACE_SECONDS)
                failpoint("launcher: stopped")
        if job is not None:
            job.stop(0)  # worker processes that have outlived it
        if process is not None:
            process.wait()
        failpoint("launcher: job ended")
        fate = self._fate(run, attempt, ended_by, reports.error)
        failpoint("launcher: fate known")
        self._record(run, attempt, fate)
        failpoint("launcher: end recorded")
        self._alarm.tell()
        return fate

    def _let_work(
        self, run: RunRecord, attempt: RunAttempt, process: "subprocess.Popen[bytes]"
    ) -> None:
        recorded = _patiently(
            self._registry.record_job,
            run.id,
            attempt.number,
            launcher=self._id,
            job_id=str(ProcessId.of(process.pid)),
            who=self._who,
            at=self._now(),
        )
        if not recorded:
            raise LeaseLostError
        failpoint("launcher: job recorded")
        _write(process, GO)

    def _look(self, run: RunRecord, attempt: RunAttempt) -> str:
        """Renew the lease, and see whether the attempt is to be stopped, and why."""
        try:
            if not self._registry.renew(
                run.id, attempt.number, launcher=self._id, lease_until=self._lease()
            ):
                raise LeaseLostError
            status = self._registry.get(run.id).status
            self._alarm.watch()
        except RegistryUnavailableError as error:
            _log.warning("the registry can't be reached, the job goes on: %s", error)
            return ""
        if status is RunStatus.CANCELING:
            return "canceled"
        if self._now() > attempt.deadline:
            return f"its deadline of {attempt.deadline:%Y-%m-%d %H:%M:%S} UTC has passed"
        return ""

    def _fate(self, run: RunRecord, attempt: RunAttempt, ended_by: str, error: str) -> Fate:
        """What has become of an attempt whose job doesn't go on any more."""
        canceling = self._registry_status(run.id) is RunStatus.CANCELING
        record = _storage_attempt(run, attempt)
        if record is not None:
            stored = Attempt(run.uri, record)
            ending = ending_of(stored.uri)
            if ending is None or canceling:
                # From here on nothing of it can be committed, whatever may still be running.
                why = "canceled" if canceling else (ended_by or "its process is gone")
                by = Fence(fenced_at=self._now(), who=self._who, why=why)
                ending = fence(run.uri, record, by)
                failpoint("launcher: fenced")
            _clean_up(run, stored)
            error = error or ending.error
            is_lost = ending.outcome == "fenced" and not ended_by and not error
        else:
            is_lost = not ended_by and not error
        if find_manifest(run.uri) is not None:
            return Fate(AttemptOutcome.SUCCESS, RunStatus.SUCCESS)
        if canceling:
            return Fate(AttemptOutcome.CANCELED, RunStatus.CANCELED)
        if is_lost:
            lost = 1 + sum(a.outcome is AttemptOutcome.LOST for a in run.attempts)
            most = run.options.get("lost_attempts", 3)
            why = f"attempt {attempt.number}: its process is gone"
            if lost < most:
                return Fate(AttemptOutcome.LOST, None, why)
            return Fate(AttemptOutcome.LOST, RunStatus.FAILURE, f"{why}, as {lost} were before")
        return Fate(AttemptOutcome.FAILURE, RunStatus.FAILURE, error or ended_by)

    def _registry_status(self, run_id: str) -> RunStatus:
        run: RunRecord = _patiently(self._registry.get, run_id)
        return run.status

    def _record(self, run: RunRecord, attempt: RunAttempt, fate: Fate) -> None:
        expire_after = run.options.get("results_expire_after_seconds")
        now = self._now()
        if fate.outcome is AttemptOutcome.SUCCESS:
            self._tell_of_failures(run, attempt, now)
        expire_at = None
        if fate.to is not None and expire_after is not None:
            expire_at = now + datetime.timedelta(seconds=expire_after)
        if not _patiently(
            self._registry.end_attempt,
            run.id,
            attempt.number,
            launcher=self._id,
            outcome=fate.outcome,
            who=self._who,
            at=now,
            to=fate.to,
            error=fate.error,
            results_expire_at=expire_at,
        ):
            raise LeaseLostError
        _log.info("attempt %d: %s %s", attempt.number, fate.outcome, fate.error or "")

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


class _Reports:
    """What an attempt's process reports, read without waiting for it for long."""

    def __init__(self, process: "subprocess.Popen[bytes] | None") -> None:
        self.error = ""
        self._begun = b""
        self._selector = selectors.DefaultSelector()
        if process is not None and process.stdout is not None:
            self._selector.register(process.stdout, selectors.EVENT_READ)

    def read(self, wait: float) -> list[dict[str, Any]]:
        """What has come within so many seconds."""
        if not self._selector.get_map():
            time.sleep(wait)
            return []
        reports: list[dict[str, Any]] = []
        while ready := self._selector.select(wait):
            wait = 0
            data = os.read(ready[0][0].fd, 1 << 16)
            if not data:
                self._selector.unregister(ready[0][0].fileobj)
                break
            *lines, self._begun = (self._begun + data).split(b"\n")
            reports += map(json.loads, lines)
        for report in reports:
            self.error = report.get("error", self.error)
        return reports


def _write(process: "subprocess.Popen[bytes]", line: str) -> None:
    """Tell an attempt's process something; one that is dead is seen by other means."""
    pipe: IO[bytes] | None = process.stdin
    assert pipe is not None
    with contextlib.suppress(BrokenPipeError):
        pipe.write(line.encode() + b"\n")
        pipe.flush()


def _storage_attempt(run: RunRecord, attempt: RunAttempt) -> AttemptRecord | None:
    """What the attempt has recorded of itself, if it got so far."""
    found = [r for r in attempts(run.uri) if r.run == run.id and r.launch == attempt.number]
    return found[-1] if found else None


def _clean_up(run: RunRecord, attempt: Attempt) -> None:
    """Call the definition's hook, if the attempt's process didn't live to do so."""
    if not run.options.get("has_cleanup") or attempt.cleanup_claimed:
        return
    from ledgerbeam.batch.launch import clean_up
    from ledgerbeam.batch.workloads import load_workload

    process_type = load_workload(run.process).PROCESS
    try:
        clean_up(process_type(process_type.parameters_type.model_validate(run.parameters)), attempt)
    except Exception:
        _log.exception("cleanup failed")


_patient = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type(RegistryUnavailableError),
    wait=tenacity.wait_exponential(0.2, max=10) + tenacity.wait_random(0, 0.2),
    stop=tenacity.stop_after_delay(600),
    reraise=True,
)


def _patiently(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the registry; wait for it where it can't be reached."""
    return _patient(call, *args, **kwargs)


def spawn(settings: Settings, run_id: str, kind: AttemptKind | None) -> None:
    """Start a launcher that outlives this process; `kind` None attaches to a live attempt."""
    log = settings.log_of(run_id)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "ledgerbeam.batch.launcher", run_id, kind or "attach"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Not on the command line, which everybody can read.
            env={**os.environ, REGISTRY: settings.registry_url},
            start_new_session=True,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The launcher as a process: `RUN KIND`, the registry named by the environment."""
    parser = argparse.ArgumentParser(prog="ledgerbeam-launcher")
    parser.add_argument("run")
    parser.add_argument("kind", choices=[*AttemptKind, "attach"])
    asked = parser.parse_args(arguments)
    logs.configure(asked.run)
    settings = Settings.from_environment()
    try:
        with Registry.open(settings.registry_url) as registry:
            launcher = Launcher(registry, settings, asked.run)
            if asked.kind == "attach":
                launcher.attach()
            else:
                launcher.launch(AttemptKind(asked.kind))
    except UserError as error:
        _log.error("%s", error)
        return 1
    except LeaseLostError:
        _log.warning("somebody else answers for the attempt now")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
