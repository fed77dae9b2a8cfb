"""What has become of an attempt whose job has ended: read from object storage, settled there."""

import datetime
import logging
from typing import NamedTuple

from ledgerbeam.batch.attempt_process import Report
from ledgerbeam.batch.jobs import Job
from ledgerbeam.batch.records import AttemptKind, AttemptOutcome, RunAttempt, RunRecord
from ledgerbeam.batch.runner_jobs import error_of
from ledgerbeam.batch.started_job import StartedJob
from ledgerbeam.batch.status import RunStatus
from ledgerbeam.io.attempts import (
    Attempt,
    LostError,
    attempts,
    complete_publication,
    ending_of,
    fence,
    find_manifest,
)
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.records import AttemptRecord, Fence

_log = logging.getLogger(__name__)


class Fate(NamedTuple):
    """How an attempt has ended.

    Attributes:
        outcome: for the registry.
        to: what becomes of the run; None where another attempt is to follow.
        error: why it isn't a success.
        warning: what a person has to look at, whatever the outcome.
    """

    outcome: AttemptOutcome
    to: RunStatus | None
    error: str | None = None
    warning: str = ""


def find_out(
    run: RunRecord,
    attempt: RunAttempt,
    job: Job | None,
    status: RunStatus,
    ended_by: str,
    who: str,
    at: datetime.datetime,
) -> Fate:
    """Find out how an attempt has ended; when this returns, nothing of it can be committed.

    Args:
        run: that it belongs to.
        attempt: whose job doesn't go on any more.
        job: that job; None where it is unknown, or there was none.
        status: of the run now.
        ended_by: why the job was stopped; empty where it ended by itself.
        who: gives the attempt up, if it has to be.
        at: time in UTC.
    """
    words = job.last_words if isinstance(job, StartedJob) else Report()
    if job is not None and not ended_by and words == Report():
        words = _by_engine(job.failure())
    is_canceled = status is RunStatus.CANCELING
    error, is_lost, warning = words.error, not ended_by and not words.error, ""
    record = _stored(run, attempt)
    if record is not None:
        stored = Attempt(run.uri, record)
        ending = ending_of(stored.uri)
        if ending is None or is_canceled:
            # From here on nothing of it can be committed, whatever may still be running.
            why = "canceled" if is_canceled else (ended_by or "its process is gone")
            ending = fence(run.uri, record, Fence(fenced_at=at, who=who, why=why))
            failpoint("launcher: fenced")
        # One that died in front of the last step of its publication has won all the same.
        complete_publication(run.uri, ending)
        error = error or ending.error
        is_lost = is_lost and ending.outcome == "fenced"
        warning = _clean_up(run, stored)
    manifest = find_manifest(run.uri)
    if manifest is not None:
        # Published by somebody else, it is this run's result only if the job has found it to be.
        found_it = isinstance(job, StartedJob) and job.has_done_its_work()
        if manifest.attempt.run == run.id or found_it:
            return Fate(AttemptOutcome.SUCCESS, RunStatus.SUCCESS, warning=warning)
    if is_canceled:
        return Fate(AttemptOutcome.CANCELED, RunStatus.CANCELED, warning=warning)
    if is_lost:
        return _lost(run, attempt, words.lost or "its process is gone")._replace(warning=warning)
    return Fate(AttemptOutcome.FAILURE, RunStatus.FAILURE, ended_by or error, warning)


def _by_engine(failure: str) -> Report:
    """What a driver that is gone would have reported of its job's failure on the engine."""
    if not failure:
        return Report()
    error = error_of(failure)
    return Report(lost=str(error)) if isinstance(error, LostError) else Report(error=str(error))


def _lost(run: RunRecord, attempt: RunAttempt, why: str) -> Fate:
    why = f"attempt {attempt.number}: {why}"
    lost = 1
    if attempt.kind is AttemptKind.RECONCILE:
        for earlier in reversed(run.attempts[: attempt.number - 1]):
            lost += earlier.outcome is AttemptOutcome.LOST
            if earlier.kind is not AttemptKind.RECONCILE:
                break
    if lost < run.options.get("lost_attempts", 3):
        return Fate(AttemptOutcome.LOST, None, why)
    return Fate(AttemptOutcome.LOST, RunStatus.FAILURE, f"{why}, and {lost} attempts got lost")


def _stored(run: RunRecord, attempt: RunAttempt) -> AttemptRecord | None:
    """What the attempt has recorded of itself, if it got so far."""
    found = [r for r in attempts(run.uri) if r.run == run.id and r.launch == attempt.number]
    return found[-1] if found else None


def _clean_up(run: RunRecord, attempt: Attempt) -> str:
    """Call the definition's hook, if the attempt's process didn't live to do so.

    Returns:
        What a person has to look at; empty where all is well.
    """
    if not run.options.get("has_cleanup") or attempt.is_cleaned:
        return ""
    # Imports the workload, and with it Beam.
    from ledgerbeam.batch.launch import clean_up
    from ledgerbeam.batch.workloads import load_workload

    try:
        kind = load_workload(run.process).PROCESS
        is_done = clean_up(kind(kind.parameters_type.model_validate(run.all_parameters)), attempt)
    except Exception as error:
        _log.exception("cleanup failed")
        return f"cleanup failed: {type(error).__name__}, see the log: clean up by hand"
    if is_done:
        return ""
    return "cleanup was begun once, and nobody knows how far it got: look, and clean up by hand"
