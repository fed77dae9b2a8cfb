"""What has become of an attempt whose job has ended: read from object storage, concluded there."""

import datetime
import logging
from typing import NamedTuple

from ledgerbeam.batch.launch.job import Job, JobResult
from ledgerbeam.batch.model.run import AttemptOutcome, RunAttempt, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.commit import control_log
from ledgerbeam.io.commit.attempts import (
    Attempt,
    attempts,
    complete_publication,
    ending_of,
    fence,
    find_manifest,
)
from ledgerbeam.io.commit.records import AttemptRecord, Fence
from ledgerbeam.io.errors import AttemptLostError, OutOfMemoryError, UserError
from ledgerbeam.io.failpoints import failpoint

_OUT_OF_MEMORY = 2
"""With so many attempts lost, the run fails where the last one was for want of memory."""

_log = logging.getLogger(__name__)


class Conclusion(NamedTuple):
    """How an attempt has ended.

    Attributes:
        outcome: for the registry.
        to: what becomes of the run; None where another attempt is to follow.
        error: why it isn't a success.
        code: of that error, where it is known.
        warning: what a person has to check, whatever the outcome.
    """

    outcome: AttemptOutcome
    to: RunStatus | None
    error: str | None = None
    code: str | None = None
    warning: str = ""


def conclude(
    run: RunRecord,
    attempt: RunAttempt,
    job: Job | None,
    ended_by: UserError | None,
    who: str,
    at: datetime.datetime,
) -> Conclusion:
    """Find out how an attempt has ended; when this returns, nothing of it can be committed.

    Args:
        run: that it belongs to, as it is now.
        attempt: whose job doesn't go on any more.
        job: that job; None where it is unknown, or there was none.
        ended_by: why the job was stopped; None where it ended by itself.
        who: gives the attempt up, if it has to be.
        at: time in UTC.
    """
    result = JobResult() if job is None or ended_by is not None else job.result()
    is_canceled = run.status is RunStatus.CANCELING
    error, is_lost, warning = result.error, not ended_by and not result.error, ""
    record = _stored(run, attempt)
    if record is not None:
        stored = Attempt(run.uri, record)
        ending = ending_of(stored.uri)
        if ending is None or is_canceled:
            # From here on nothing of it can be committed, whatever may still be running.
            why = "canceled" if is_canceled else str(ended_by or "its process is gone")
            ending = fence(run.uri, record, Fence(fenced_at=at, who=who, why=why))
            failpoint("launcher: fenced")
        # One that died in front of the last step of its publication has won all the same.
        complete_publication(run.uri, ending)
        error = error or ending.error
        is_lost = is_lost and ending.outcome == "fenced"
        control_log.forget_workers(stored.uri, at)
        warning = _clean_up(run, stored)
    elif run.options.has_cleanup and attempt.job_id is not None:
        # Its job is recorded only after the attempt is stored.
        warning = (
            f"cleanup was not called: attempt {attempt.number} is no longer found in {run.uri}: "
            "check, and clean up by hand"
        )
    manifest = find_manifest(run.uri)
    if manifest is not None:
        # Published by somebody else, it is this run's result only if the job has found it to be.
        found_it = job is not None and job.has_published()
        if manifest.attempt.run == run.id or found_it:
            return Conclusion(AttemptOutcome.SUCCESS, RunStatus.SUCCESS, warning=warning)
    if is_canceled:
        return Conclusion(AttemptOutcome.CANCELED, RunStatus.CANCELED, warning=warning)
    if is_lost:
        return _lost(run, attempt, result)._replace(warning=warning)
    code = result.code if result.error or result.code == OutOfMemoryError.code else None
    if ended_by is not None:
        error, code = str(ended_by), ended_by.code
    return Conclusion(AttemptOutcome.FAILURE, RunStatus.FAILURE, error, code, warning)


def _lost(run: RunRecord, attempt: RunAttempt, result: JobResult) -> Conclusion:
    why = f"attempt {attempt.number}: {result.lost or 'its process is gone'}"
    lost = 1 + sum(earlier.outcome is AttemptOutcome.LOST for earlier in run.request)
    code = AttemptLostError.code
    most = run.options.lost_attempts
    if result.code == OutOfMemoryError.code:
        # Maybe others have taken the memory; if not, each further attempt would end like this one.
        code, most = OutOfMemoryError.code, min(most, _OUT_OF_MEMORY)
    if lost < most:
        return Conclusion(AttemptOutcome.LOST, None, why, code)
    return Conclusion(
        AttemptOutcome.LOST, RunStatus.FAILURE, f"{why}, and {lost} attempts got lost", code
    )


def _stored(run: RunRecord, attempt: RunAttempt) -> AttemptRecord | None:
    """What the attempt has recorded of itself, if it got so far."""
    found = [r for r in attempts(run.uri) if r.run == run.id and r.launch == attempt.number]
    return found[-1] if found else None


def _clean_up(run: RunRecord, attempt: Attempt) -> str:
    """Call the definition's hook, if the attempt's process didn't live to do so.

    Returns:
        What a person has to check; empty where all is well.
    """
    if not run.options.has_cleanup or attempt.is_cleaned:
        return ""
    # Imports the workload, and with it Beam.
    from ledgerbeam.batch.attempt.run import clean_up
    from ledgerbeam.batch.define.workloads import load_workload

    try:
        kind = load_workload(run.process)
        is_done = clean_up(kind(kind.parameters_type.model_validate(run.all_parameters)), attempt)
    except Exception as error:
        _log.exception("cleanup failed")
        return f"cleanup failed: {type(error).__name__}, see the log: clean up by hand"
    if is_done:
        return ""
    return "cleanup was begun once, and nobody knows how far it got: check, and clean up by hand"
