"""Runs and their attempts, as the registry takes and gives them."""

import datetime
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ledgerbeam.batch.events import Event
from ledgerbeam.batch.status import RunStatus


class AttemptKind(StrEnum):
    """Why an attempt was started."""

    FIRST = "first"
    RETRY = "retry"
    RESTART = "restart"
    RECONCILE = "reconcile"


class AttemptOutcome(StrEnum):
    """How an attempt ended. `LOST`: its launcher died, and the runner doesn't know its job."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELED = "CANCELED"
    LOST = "LOST"


class _Recorded(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunDraft(_Recorded):
    """A run as it is submitted.

    Attributes:
        id: a UUID in its usual form, also the correlation id of the run's log lines.
        process: name of the batch process.
        code_version: of the package that defines it.
        instance: name of the instance, unique within the process.
        identity: the parameters that identify the instance.
        business_date: the day that the instance is for.
        run_number: from 1; each is one more than that of the instance's run before.
        parameters: all others than run number and reason, as JSON can hold them.
        output: URI of the root that results are put under.
        uri: of the run's own folder below it.
        beam_flags: flags that go to Beam.
        reason: why the instance is run again; needed from run number 2 on.
        submitted_by: `user@host`.
        submitted_at: time in UTC.
        must_start_by: when its first attempt has to be under way, if that matters.
        must_finish_by: when it has to be done, if that matters.
        results_expire_at: when its results may be deleted; None keeps them.
        options: further settings, as JSON can hold them.
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
    options: dict[str, Any] = {}


class RunAttempt(_Recorded):
    """One launch of a run.

    Attributes:
        number: from 1, without gaps.
        launcher: who owns the attempt: `host:pid:start-time`. Nobody else records anything of it.
        lease_until: from when on another may take it over, unless it is renewed.
        deadline: when it is ended, whatever it has got to.
        runner: Beam's name of it.
        job_id: the runner's name of the job, once there is one.
        kind: why it was started.
        started_at: time in UTC.
        ended_at: time in UTC; None while the attempt is live.
        outcome: how it ended.
        error: why it ended so.
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
    """A run as it is recorded: what was submitted, and what became of it.

    Attributes:
        status: where it stands.
        error: the last one, of a run that failed and hasn't succeeded since.
        results_expired_at: when its results were deleted.
        attempts: by number.
    """

    status: RunStatus
    error: str | None
    results_expired_at: AwareDatetime | None
    attempts: tuple[RunAttempt, ...]

    @property
    def all_parameters(self) -> dict[str, Any]:
        """What the definition's model is made from."""
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


class RecordedEvent(Event):
    """An event as it is recorded.

    Attributes:
        sequence: orders the events of a run, and those of several runs roughly.
    """

    sequence: int


def run_name(process: str, instance: str, run_number: int) -> str:
    """How people call a run: `process/instance`, then `/2` for the second and so on."""
    return f"{process}/{instance}" + (f"/{run_number}" if run_number > 1 else "")
