"""Runs and their attempts, as the registry takes and gives them."""

import datetime
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.status import RunStatus


class AttemptKind(StrEnum):
    """Why an attempt was started.

    `FIRST` is a run's first attempt. `RETRY` and `RESTART` were asked for by a person or a program.
    `RECONCILE` follows an attempt that was lost.
    """

    FIRST = "first"
    RETRY = "retry"
    RESTART = "restart"
    RECONCILE = "reconcile"


class AttemptOutcome(StrEnum):
    """How an attempt has ended.

    `LOST` means that its process, its machine or its engine was killed.
    """

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELED = "CANCELED"
    LOST = "LOST"


class _Recorded(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunOptions(BaseModel):
    """What a definition and a command line say of how a run is launched.

    Options that a run on record doesn't have take their defaults; those that only another version
    of the code knows are ignored.

    Attributes:
        runner: Beam's name of it, or `local`.
        attempt_deadline_seconds: how long an attempt may take.
        lost_attempts: with so many attempts lost one after the other, the run fails.
        failure_event: type of the event that lists failed components of a run that has published.
        has_cleanup: whether the definition has a hook that is called after each attempt.
        results_expire_after_seconds: how long after the run's end results are kept; None for ever.
        folder: that parameters name files relative to; empty where that is of no matter.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    runner: str = ""
    attempt_deadline_seconds: float = 24 * 3600
    lost_attempts: int = 3
    failure_event: str = "components_failed"
    has_cleanup: bool = False
    results_expire_after_seconds: float | None = None
    folder: str = ""


class RunDraft(_Recorded):
    """A run as it is submitted.

    Attributes:
        id: a UUID in its usual form, also the correlation id of the run's log lines.
        process: name of the batch process.
        code_version: version of the code that defines it.
        instance: name of the instance, unique within the process.
        identity: the parameters that identify the instance.
        business_date: the day that the instance is for.
        run_number: 1 for the instance's first run, and one more for each later one.
        parameters: all parameters except run number and reason, as JSON can hold them.
        output: URI of the folder that holds the results of all processes.
        uri: URI of the run's own folder in it.
        beam_flags: flags that go to Beam.
        reason: why the instance is run again; needed from run number 2 on.
        submitted_by: `user@host`.
        submitted_at: time in UTC.
        must_start_by: time in UTC by which the first attempt must have started; None for no limit.
        must_finish_by: time in UTC by which the run must have ended; None for no limit.
        results_expire_at: time in UTC from which on results may be deleted; None keeps them.
        options: how the run is launched.
    """

    id: str
    process: str
    code_version: str
    instance: str
    identity: dict[str, Any]
    business_date: datetime.date
    run_number: int = Field(default=1, ge=1)
    parameters: dict[str, Any]
    output: str
    uri: str
    beam_flags: list[str] = []
    reason: str = ""
    submitted_by: str
    submitted_at: AwareDatetime
    must_start_by: AwareDatetime | None = None
    must_finish_by: AwareDatetime | None = None
    results_expire_at: AwareDatetime | None = None
    options: RunOptions = RunOptions()


class RunAttempt(_Recorded):
    """One launch of a run.

    Attributes:
        number: counts the attempts of a run from 1, without gaps.
        launcher: the process that owns the attempt, as `host:pid:start-time`. No other process
            records anything of the attempt.
        lease_until: time in UTC from which on another launcher may take the attempt over. The owner
            renews it while it lives.
        deadline: time in UTC at which the attempt is ended if it still runs.
        runner: Beam's name of the runner, or `local`.
        job_id: the job's name; None before there is one.
        kind: why the attempt was started.
        started_at: time in UTC.
        ended_at: time in UTC; None while the attempt is live.
        outcome: how the attempt has ended; None while it is live.
        error: one line that says why it isn't a success; None if it is one, or is live.
    """

    number: int
    launcher: str
    lease_until: AwareDatetime
    deadline: AwareDatetime
    runner: str
    job_id: str | None
    kind: AttemptKind
    started_at: AwareDatetime
    ended_at: AwareDatetime | None
    outcome: AttemptOutcome | None
    error: str | None


class RunRecord(RunDraft):
    """A run as it is recorded: what was submitted, and how it stands.

    Attributes:
        status: the run's status.
        error: one line that says why the run has failed; None if it hasn't, or has succeeded since.
        results_expired_at: time in UTC at which the results were deleted; None if they weren't.
        next_kind: the kind of the next attempt or, where none is to follow, of the last one.
        attempts: all attempts, in the order of their numbers.
        launcher_started_at: time in UTC at which a launcher was started that hasn't come yet; None
            if there is none.
        launcher_process: that launcher, as `host:pid:start-time`; None if that isn't known.
    """

    status: RunStatus
    error: str | None
    results_expired_at: AwareDatetime | None
    next_kind: AttemptKind
    attempts: tuple[RunAttempt, ...]
    # How launchers are started is nothing that anybody else has to know.
    launcher_started_at: AwareDatetime | None = Field(default=None, exclude=True)
    launcher_process: str | None = Field(default=None, exclude=True)

    @property
    def all_parameters(self) -> dict[str, Any]:
        """All parameters, run number and reason included, as the definition's model takes them."""
        return self.parameters | {"run_number": self.run_number, "reason": self.reason}

    @property
    def name(self) -> str:
        """`process/instance`, with the run number where it isn't the first."""
        return run_name(self.process, self.instance, self.run_number)

    @property
    def live_attempt(self) -> RunAttempt | None:
        """The attempt that hasn't ended, if there is one; it is the last."""
        if self.attempts and self.attempts[-1].ended_at is None:
            return self.attempts[-1]
        return None

    @property
    def request(self) -> Sequence[RunAttempt]:
        """The attempts since the last submission, retry or restart, which follow lost ones."""
        asked = [a.number for a in self.attempts if a.kind is not AttemptKind.RECONCILE]
        return self.attempts[asked[-1] - 1 :] if asked else ()


class RecordedEvent(Event):
    """An event as it is recorded.

    Attributes:
        sequence: a number that grows from one event of a run to the next, and roughly so over
            several runs.
    """

    sequence: int


def run_name(process: str, instance: str, run_number: int) -> str:
    """How people call a run: `process/instance`, then `/2` for the second and so on."""
    return f"{process}/{instance}" + (f"/{run_number}" if run_number > 1 else "")
