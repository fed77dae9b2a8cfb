"""The vocabulary of the service, as it travels over REST and stands in the request database."""

import datetime
import functools
import logging
import math
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
)

from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.batch.model.sla import Sla

KEY_SECONDS = 24 * 3600
"""How long an `Idempotency-Key` is remembered."""

MAX_BODY = 256 * 1024
"""Bytes of a request's body at most. Input is named by URI, never sent."""

_log = logging.getLogger(__name__)
_SLA = "x-sla"
"""In the JSON Schema of a kind's parameters, what its definition says of deadlines."""

_DEEPEST = 64
"""How deep lists and objects may stand in each other; readers of JSON have their limits."""


def _readable(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what Python takes for JSON, and what no database or no other reader takes."""
    _check_readable(value, 1)
    return value


def _check_readable(value: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"lists and objects stand in each other more than {_DEEPEST} deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON: leave it out, or give it as a text")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("half a character (a lone surrogate) stands in a text") from error
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_readable(name, depth)
            _check_readable(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check_readable(each, depth + 1)


def _written_out(value: Any) -> Any:
    # A number could be seconds or milliseconds.
    if isinstance(value, int | float) or (
        isinstance(value, str) and value.strip("-+.eE0123456789") == ""
    ):
        raise ValueError("give a time with its zone, such as 2026-11-20T22:00:00Z")
    return value


def _in_calendar(value: datetime.datetime) -> datetime.datetime:
    try:
        value.astimezone(datetime.UTC)
    except OverflowError as error:
        raise ValueError("in UTC it is out of the years 1 to 9999") from error
    return value


def _a_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("give a number")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_readable)]
"""A JSON object that can be stored, and given to others as it is."""

NUMBER = BeforeValidator(_a_number)
"""For numbers: neither `true` nor a text is taken for one."""

Positive = Annotated[int, Field(ge=1), NUMBER]

Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_calendar)]
"""A time with its zone, as callers send it."""

MAX_ANSWER = 4 << 20
"""Bytes of what a node answers at once, at most."""


class RequestState(StrEnum):
    """Where a request stands.

    `RECEIVED`: it is stored, and waits for the router. `QUEUED`: it waits for a node. `RUNNING`: a
    node has it. `REJECTED`: the router has refused it, with the reasons. `EXPIRED`: no node was
    free before its `start_by`. `DEAD`: it was put aside because node after node was lost with it; a
    person can have it queued again. The others are how its run has ended.
    """

    RECEIVED = "RECEIVED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    DEAD = "DEAD"

    @property
    def is_final(self) -> bool:
        """Whether nothing moves it on but a person."""
        return self not in (RequestState.RECEIVED, RequestState.QUEUED, RequestState.RUNNING)


class Verb(StrEnum):
    """What is asked for: a run, another attempt of one, or that a component be resolved.

    `REPLACE`: a run in the place of one whose parameters were wrong.
    """

    SUBMIT = "submit"
    REPLACE = "replace"
    RETRY = "retry"
    RESTART = "restart"
    RESOLVE = "resolve"


class Role(StrEnum):
    """What somebody may do with a kind; each may do what those before it may."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"


class Stored(BaseModel):
    """Base of what is recorded."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(Stored):
    """What is wrong with one parameter.

    Attributes:
        parameter: its name; empty where several together don't fit.
        message: what is wrong with it.
    """

    parameter: str
    message: str


class Submission(BaseModel):
    """What is sent to submit a run.

    Attributes:
        kind: name of the workload, as `GET /v1/kinds` lists it.
        parameters: its parameters, as the kind's JSON Schema describes them.
        priority: higher ones are taken first, except in a queue that is served in order.
        start_by: time until which it is of use; not started by then, it is `EXPIRED`.
        why: for the record.
        replace: whether it takes the place of a run of the same instance and number that hasn't
            published, because its parameters were wrong; needs `why`. One that goes on is canceled.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "kind": "delivery-marking",
                    "parameters": {
                        "trades": "s3://trades/2026-11-20/*.parquet",
                        "trade_date": "2026-11-20",
                        "output": "s3://results",
                    },
                }
            ]
        },
    )

    kind: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")
    parameters: JsonObject = {}
    priority: Annotated[int, Field(ge=-100, le=100), NUMBER] = 0
    start_by: Moment | None = None
    why: str = Field(default="", max_length=2000)
    replace: StrictBool = False


class RequestRecord(Stored):
    """A request, as it is recorded.

    Attributes:
        id: a UUID.
        sequence: a number that grows from one request to the next.
        kind: name of the workload.
        verb: what is asked for.
        state: where it stands.
        parameters: as they were given.
        priority: higher ones are taken first.
        turn: its place among requests of the same priority.
        requester: who asks.
        why: the reason, for people.
        received_at: time in UTC, as all others.
        start_by: until when it may be started; None for no limit.
        queued_at: when the router had found it right; None before.
        started_at: when a node first took it; None before.
        ended_at: None before its end.
        run_id: the run that came of it; None before there is one.
        node: who has it, or had it last.
        epoch: how often a node took it; one that took it before has no say any more.
        lost: how often a node was lost with it.
        lease_until: when another node may take it over; None where no node has it.
        cancel_why: why it is to be canceled, where that was asked for.
        code: code of the error by which it has ended, where it has one.
        error: one line that says why it has ended so.
        problems: what is wrong with its parameters, where it is rejected.
        version: counts changes; it is the request's `ETag`.
        traceparent: the trace that it belongs to, for those who go on with it; not told to callers.
    """

    id: str
    sequence: int
    kind: str
    verb: Verb
    state: RequestState
    parameters: dict[str, Any]
    priority: int
    turn: int
    requester: str
    why: str
    received_at: AwareDatetime
    start_by: AwareDatetime | None
    queued_at: AwareDatetime | None
    started_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    run_id: str | None
    node: str | None
    epoch: int
    lost: int
    lease_until: AwareDatetime | None
    cancel_why: str | None
    code: str | None
    error: str | None
    problems: tuple[Problem, ...]
    version: int
    traceparent: str | None = Field(default=None, exclude=True)


def again_of(request: RequestRecord) -> dict[str, Any]:
    """What a request for another attempt says of it: for `reopen`."""
    given = request.parameters
    return {name: given[name] for name in ("components", "parameters", "approval") if name in given}


class ErrandKind(StrEnum):
    """What a node is to answer at once.

    `INLINE`: a component executed now. `LOGS`: the lines of a log. `RESTART`: that a live attempt
    was given up, and another begun.
    """

    INLINE = "inline"
    LOGS = "logs"
    RESTART = "restart"


class InlineAsk(BaseModel):
    """One component that is to be executed at once.

    Attributes:
        key: of the component, as `components` prints it.
        parameters: of the workload, as for a request; without `publish` no `output` is needed.
        publish: whether it is recorded, and published in `output`, as an instance of its own.
        seconds: that the caller waits at most; without `publish` it is ended then.
        why: for the record.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "key": "L000123",
                    "parameters": {
                        "loans": "s3://results/loan-close-of-business/2026-11-19",
                        "transactions": "s3://bank/transactions/*.parquet",
                        "business_date": "2026-11-20",
                    },
                    "why": "the customer is on the phone",
                }
            ]
        },
    )

    key: str = Field(min_length=1, max_length=500, pattern=r"^[^\x00]+$")
    parameters: dict[str, Any] = {}
    publish: bool = False
    seconds: float = Field(default=30.0, ge=1, le=60)
    why: str = Field(default="", max_length=2000)


class InlineAnswer(Stored):
    """What has become of a component that was executed at once.

    Attributes:
        kind: name of the workload.
        key: of the component.
        state: `SUCCESS`, `FAILURE`, or `RUNNING` where its run goes on.
        results: its rows; decimals and dates as text. At most 1,000.
        tables: the rows of extra tables, by their names.
        rejects: rows that were rejected, with file, row and reason.
        failures: the component, where it has failed, with its error.
        code: of the error by which all of it has failed; None where it hasn't.
        error: one line that says why.
        request_id: of the request that was recorded, where it was to be published.
        run_id: of its run.
    """

    kind: str
    key: str
    state: str
    results: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    rejects: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    code: str | None = None
    error: str | None = None
    request_id: str | None = None
    run_id: str | None = None


class Errand(Stored):
    """What a node is to answer at once.

    Attributes:
        id: a UUID.
        what: is asked for.
        kind: name of the workload, which the node has to serve.
        host: of the node that alone can answer; None for any.
        given: arguments.
        requester: who asks.
        why: the reason.
        deadline: when the caller waits no more, in UTC.
        node: who has taken it; None where nobody has.
        answered_at: time in UTC; None before that.
        answer: what was asked for; None where it can't be given.
        code: of the error by which it can't.
        error: one line that says why.
    """

    id: str
    what: ErrandKind
    kind: str
    host: str | None
    given: dict[str, Any]
    requester: str
    why: str
    deadline: AwareDatetime
    node: str | None
    answered_at: AwareDatetime | None
    answer: dict[str, Any] | None
    code: str | None
    error: str | None


class KindRecord(Stored):
    """A workload, as its router has published it.

    Attributes:
        name: of the workload.
        description: for people, one line or several.
        parameters_schema: JSON Schema of its parameters; `x-sla` in it are the kind's deadlines.
        code_version: of the package that defines it.
        policy: how its queue is served, unless people have changed that.
        approvals: what a second person has to approve.
        seen_at: when a router last published it, in UTC.
    """

    name: str
    description: str
    parameters_schema: dict[str, Any]
    code_version: str
    policy: QueuePolicy
    approvals: tuple[str, ...] = ()
    seen_at: AwareDatetime

    @property
    def sla(self) -> Sla | None:
        """When its runs must have started and finished; None where they needn't.

        None as well where this program can't read it, for want of a time zone or by its version.
        """
        given = self.parameters_schema.get(_SLA)
        try:
            return None if given is None else _sla_adapter().validate_python(given)
        except ValidationError as error:
            _log.warning("the deadlines of %s can't be read: %s", self.name, error)
            return None


def schema_of(schema: dict[str, Any], sla: Sla | None) -> dict[str, Any]:
    """The schema of a kind's parameters, with its deadlines, as `KindRecord.sla` reads it."""
    if sla is None:
        return schema
    return {**schema, _SLA: _sla_adapter().dump_python(sla, mode="json")}


@functools.cache
def _sla_adapter() -> TypeAdapter[Sla]:
    return TypeAdapter(Sla)


class QueueRecord(Stored):
    """The queue of a kind, as it stands.

    Attributes:
        kind: name of the workload.
        policy: how it is served now.
        held_why: why nothing is taken from it; None where it is served.
        queued: how many requests wait in it.
        running: how many nodes have.
        oldest_at: since when the oldest one waits, in UTC; None where none does.
        version: counts changes; it is the queue's `ETag`.
    """

    kind: str
    policy: QueuePolicy
    held_why: str | None
    queued: int
    running: int
    oldest_at: AwareDatetime | None
    version: int


class AuditEntry(Stored):
    """Who did what, when and why.

    Attributes:
        sequence: a number that grows from one entry to the next.
        at: time in UTC.
        who: the name of a key, or a process such as `router@host`.
        action: what was done: `request.received`, `queue.changed`, `key.created`, ….
        kind: of what it was done to; None where that has none.
        subject: its id or name.
        why: the reason, for people.
        detail: more facts.
    """

    sequence: int
    at: AwareDatetime
    who: str
    action: str
    kind: str | None
    subject: str
    why: str
    detail: dict[str, Any]


class Principal(Stored):
    """Who calls.

    Attributes:
        name: signs what they do.
        roles: role by kind; `*` stands for every kind that isn't named.
        key_id: of the API key; None where there is none.
    """

    name: str
    roles: dict[str, Role]
    key_id: str | None = None

    def may(self, role: Role, kind: str = "*") -> bool:
        """Whether they have at least that role with a kind."""
        has = self.roles.get(kind) or self.roles.get("*")
        ranks = list(Role)
        return has is not None and ranks.index(has) >= ranks.index(role)


class KeyRecord(Stored):
    """An API key, without its secret.

    Attributes:
        id: begins the key.
        name: of its owner, who signs what is done with it.
        roles: role by kind; `*` stands for every kind that isn't named.
        created_at: time in UTC.
        created_by: who made it.
        expires_at: None where it doesn't expire.
        revoked_at: None where it wasn't revoked.
    """

    id: str
    name: str
    roles: dict[str, Role]
    created_at: datetime.datetime
    created_by: str
    expires_at: datetime.datetime | None
    revoked_at: datetime.datetime | None
