"""The vocabulary of actions on many, as it travels over REST and stands in the request database."""

from enum import StrEnum
from typing import Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.service.model import Moment, RequestState, Stored

MAX_TARGETS = 10_000
"""How many an action on many may be for."""


class BulkOf(StrEnum):
    """What an action on many is about."""

    RUNS = "runs"
    REQUESTS = "requests"
    QUEUES = "queues"


class BulkVerb(StrEnum):
    """What is done with each of many.

    `CANCEL` runs or requests, `RETRY` runs, `REDRIVE` requests, `RELEASE` queues that are held.
    """

    CANCEL = "cancel"
    RETRY = "retry"
    REDRIVE = "redrive"
    RELEASE = "release"


class BulkState(StrEnum):
    """Where an action on many stands.

    `WAITING`: for the approval of a second person. `RUNNING`: a router carries it out. `DONE`: with
    all of its targets. `CANCELED`: with those that it had reached by then. `REFUSED`: by a second
    person, before it began.
    """

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    CANCELED = "CANCELED"
    REFUSED = "REFUSED"


class TargetState(StrEnum):
    """What became of one of many.

    `PENDING`: nothing yet. `DONE`: what was asked for. `SKIPPED`: it was no more as it had been
    when the action was asked for, and was left alone. `FAILED`: by an error.
    """

    PENDING = "PENDING"
    DONE = "DONE"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"


FILTERS = {
    BulkOf.RUNS: {"kind", "status", "since", "where", "requester", "error"},
    BulkOf.REQUESTS: {"kind", "state", "requester", "error"},
    BulkOf.QUEUES: {"kind"},
}
BULKS = {
    (BulkOf.RUNS, BulkVerb.CANCEL),
    (BulkOf.RUNS, BulkVerb.RETRY),
    (BulkOf.REQUESTS, BulkVerb.CANCEL),
    (BulkOf.REQUESTS, BulkVerb.REDRIVE),
    (BulkOf.QUEUES, BulkVerb.RELEASE),
}


class BulkFilter(BaseModel):
    """Which ones an action is for: what the lists of runs and of requests can be asked for.

    Attributes:
        kind: name of the workload.
        status: of runs.
        since: only runs that were submitted at that time or later.
        where: `NAME=VALUE`: only runs with that parameter.
        state: of requests.
        requester: who has submitted the runs, or sent the requests.
        error: a text in the error.
    """

    model_config = ConfigDict(extra="forbid")

    kind: str | None = None
    status: RunStatus | None = None
    since: Moment | None = None
    where: list[str] = Field(default=[], max_length=20)
    state: RequestState | None = None
    requester: str | None = None
    error: str | None = None


class BulkAsk(BaseModel):
    """An action on many: on all that the filter finds now, and that it can be done with.

    Attributes:
        of: what it is about.
        verb: what is done with each.
        filter: which ones.
        why: the reason, for the record of each.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "of": "runs",
                    "verb": "retry",
                    "filter": {"kind": "delivery-marking", "status": "FAILURE"},
                    "why": "the prices were late, and are there now",
                }
            ]
        },
    )

    of: BulkOf
    verb: BulkVerb
    filter: BulkFilter = BulkFilter()
    why: str = Field(min_length=1, max_length=2000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name for name, value in self.filter if value not in (None, "", [])}
        if (self.of, self.verb) not in BULKS:
            fits = ", ".join(f"{verb} {of}" for of, verb in sorted(BULKS))
            raise ValueError(f"there is no {self.verb} of {self.of}: there is {fits}")
        if other := given - FILTERS[self.of]:
            known = ", ".join(sorted(FILTERS[self.of]))
            raise ValueError(f"{self.of} have no filter {min(other)}: they have {known}")
        if not given and self.of is not BulkOf.QUEUES:
            raise ValueError(f"a filter is missing: not all {self.of} there are can be meant")
        return self


class BulkTarget(Stored):
    """One of many, and what became of it.

    Attributes:
        id: of the run or the request; of a queue, its kind.
        kind: name of the workload.
        name: for people: of the run, or of what was asked for.
        state: what became of it.
        done_at: when, in UTC; None before that.
        request_id: of the request that has come of it, where it was retried.
        told: why it was left alone, or by which error it failed.
    """

    id: str
    kind: str
    name: str
    state: TargetState = TargetState.PENDING
    done_at: AwareDatetime | None = None
    request_id: str | None = None
    told: str | None = None


class BulkRecord(Stored):
    """An action on many, as it stands.

    Attributes:
        id: a UUID.
        sequence: a number that grows from one to the next.
        of: what it is about.
        verb: what is done with each.
        filter: which ones were meant.
        why: the reason.
        requester: who asks.
        kinds: of its targets.
        state: where it stands.
        asked_at: time in UTC, as all others.
        approved_by: the second person, where one was needed.
        ended_at: None before its end.
        targets: how many there are, by what became of them.
        version: counts changes of its state; it is its `ETag`.
    """

    id: str
    sequence: int
    of: BulkOf
    verb: BulkVerb
    filter: dict[str, Any]
    why: str
    requester: str
    kinds: tuple[str, ...]
    state: BulkState
    asked_at: AwareDatetime
    approved_by: str | None
    ended_at: AwareDatetime | None
    targets: dict[TargetState, int]
    version: int


class BulkPreview(Stored):
    """What an action on many would touch now.

    Attributes:
        count: how many.
        kinds: how many of each kind.
        targets: the first of them.
        approval: whether a second person has to approve it.
    """

    count: int
    kinds: dict[str, int]
    targets: tuple[BulkTarget, ...]
    approval: bool
