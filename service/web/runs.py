"""`/v1/runs`: every verb that the command line has, with the same words and rules.

They are the methods of `Runs`. Only what takes a node is asked for as a request, and answered by
`202`: another attempt, and resolving a component, for which the definition is needed.
"""

import asyncio
import datetime
import itertools
import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, StrictFloat
from starlette.concurrency import run_in_threadpool

from ledgerbeam.batch.json_lines import text_of
from ledgerbeam.batch.model.run import RecordedEvent, RunRecord
from ledgerbeam.batch.model.status import MOVES, ComponentStatus, RunStatus
from ledgerbeam.batch.registry.search import RunFilter
from ledgerbeam.batch.runs.body import ListedRun, RunBody, fields_of, listed
from ledgerbeam.io.commit.control_log import Steering
from ledgerbeam.io.errors import IllegalMoveError, ParameterError
from ledgerbeam.io.storage import uris
from ledgerbeam.service.access.front import (
    AFront,
    Caller,
    Front,
    demand,
    etag_of,
    is_number,
    seconds_to_wait,
    visible_kinds,
)
from ledgerbeam.service.errors import ChangedMeanwhileError
from ledgerbeam.service.model import (
    JsonObject,
    Moment,
    Positive,
    Principal,
    RequestRecord,
    Role,
    Submission,
    Verb,
)
from ledgerbeam.service.store.reading import cursor_of, place_of
from ledgerbeam.service.web.requests import (
    Cursor,
    IdempotencyKey,
    IfMatch,
    Limit,
    Prefer,
    Reason,
    accept,
)

_POLL_SECONDS = 0.5
_ARROW = "application/vnd.apache.arrow.stream"

# A run's name has slashes in it, so everything about one stands under its id. What names it by
# `process/instance` asks `GET /v1/runs?name=…`.
router = APIRouter(prefix="/v1/runs", tags=["runs"])


class ServedRun(RunBody):
    """A run, and what can be done with it now."""

    allowed: list[str]


class RunList(BaseModel):
    """A page of runs, newest first.

    A page looks at some thousand runs at most. If it has come to its end with fewer items than were
    asked for, `looked_back_to` is when the last of these was submitted, and `next` goes on there.
    """

    items: list[ListedRun]
    next: str | None
    looked_back_to: datetime.datetime | None = None


class ComponentList(BaseModel):
    """A page of components, ordered by shard and then by name."""

    items: list[dict[str, Any]]
    next: str | None


class Again(Reason):
    """What another attempt tries again, and with which parameters.

    Attributes:
        components: which of the failed ones, by their keys; none for all.
        parameters: new values of parameters that were wrong, by name; they need a reason.
    """

    components: list[str] = Field(default_factory=list)
    parameters: JsonObject = Field(default_factory=dict)


class RejectList(BaseModel):
    """A page of rejected rows, file by file."""

    items: list[dict[str, Any]]
    next: str | None


class Rows(BaseModel):
    """The first rows that a run has published, and the types of their columns in Arrow's words."""

    columns: list[dict[str, str]]
    rows: list[dict[str, Any]]


class Parallelism(Reason):
    """How many components may be in flight over the whole run; None for the default."""

    parallelism: Positive | None = None


class Rate(Reason):
    """How many components a second may be begun over the whole run; None for no limit.

    A ramp begins at `ramp_from` now, and reaches `rate` after `ramp_seconds`.
    """

    rate: StrictFloat | None = None
    ramp_from: StrictFloat | None = None
    ramp_seconds: StrictFloat | None = None


class Resolution(Reason):
    """How the call of a component that is `UNKNOWN` has ended."""

    component: str
    status: ComponentStatus
    results: str | None = Field(
        default=None, description="URI of the rows that it would have given"
    )


def _found(run: str, front: AFront, caller: Caller) -> RunRecord:
    """The run that a path names.

    Raises:
        RunNotFoundError: there is none.
        AccessDeniedError: the caller may not see it.
    """
    record = front.runs.registry.find(run)
    demand(caller, Role.VIEWER, record.process)
    return record


def _operated(
    record: "Found", front: AFront, caller: Caller, if_match: IfMatch = None
) -> RunRecord:
    """The run that a path names, for a caller who may change it and has seen how it stands."""
    demand(caller, Role.OPERATOR, record.process)
    check_unchanged(front, record, etag_of(if_match))
    return record


Found = Annotated[RunRecord, Depends(_found)]
Operated = Annotated[RunRecord, Depends(_operated)]


@router.get("")
def find(
    front: AFront,
    caller: Caller,
    kind: str | None = None,
    status: RunStatus | None = None,
    name: Annotated[str | None, Query(description="`process/instance[/run-number]`")] = None,
    since: Annotated[
        Moment | None, Query(description="only those submitted at that time or later")
    ] = None,
    where: Annotated[
        list[str] | None, Query(description="`NAME=VALUE`: only those with that parameter")
    ] = None,
    requester: Annotated[
        str | None, Query(description="only those that were submitted by them")
    ] = None,
    error: Annotated[str | None, Query(description="text in the error")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> RunList:
    """Runs, newest first."""
    kinds = visible_kinds(caller, kind)
    before = None if cursor is None else str(place_of(cursor, str)[0])
    if name is not None:
        record = front.runs.registry.find(name)
        found = [record] if kinds is None or record.process in kinds else []
        return RunList(items=[listed(run) for run in found], next=None)
    if kinds is not None and kind is None and len(kinds) != 1:
        raise ParameterError(
            f"name a kind, one of {', '.join(kinds)}: your key is for these", parameter="kind"
        )
    only = None if kinds is None else kinds[0]
    pairs = dict(map(pair_of, where or ()))
    wanted = RunFilter(only, status, requester, since, pairs, error)
    page = front.runs.registry.search(wanted, limit, before)
    return RunList(
        items=[listed(run) for run in page.runs],
        next=None if page.next is None else cursor_of(page.next),
        looked_back_to=page.looked_back_to,
    )


def pair_of(text: str) -> tuple[str, str]:
    """Name and value of a parameter, given as `NAME=VALUE`.

    Raises:
        ParameterError: it isn't.
    """
    name, ispair_of, value = text.partition("=")
    if not ispair_of:
        raise ParameterError(f"where={text}: give NAME=VALUE", parameter="where", value=text)
    return name, value


@router.get("/{run}")
async def get(record: Found, front: AFront, response: Response, prefer: Prefer = None) -> ServedRun:
    """How a run stands; with `Prefer: wait=N`, how it stands at its end or after N seconds."""
    deadline = time.monotonic() + seconds_to_wait(prefer)
    while not record.status.is_final and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
        record = await run_in_threadpool(front.runs.registry.get, record.id)
    return await run_in_threadpool(answer, front, record, response)


@router.post("/{run}/cancel")
def cancel(
    record: Operated,
    front: AFront,
    caller: Caller,
    response: Response,
    reason: Reason | None = None,
) -> ServedRun:
    """Ask for a run to be stopped; it is CANCELED when nothing of it can commit any more."""
    return _changed(front, caller, record, response, "cancel", reason)


@router.post("/{run}/pause")
def pause(
    record: Operated,
    front: AFront,
    caller: Caller,
    response: Response,
    reason: Reason | None = None,
) -> ServedRun:
    """Begin no more components; those in flight go on."""
    return _changed(front, caller, record, response, "pause", reason)


@router.post("/{run}/resume")
def resume(
    record: Operated,
    front: AFront,
    caller: Caller,
    response: Response,
    reason: Reason | None = None,
) -> ServedRun:
    """Go on after a pause."""
    return _changed(front, caller, record, response, "resume", reason)


@router.post("/{run}/set-parallelism")
def set_parallelism(
    record: Operated, front: AFront, caller: Caller, limit: Parallelism
) -> Steering:
    """Change how many components or pages may be in flight over the whole run."""
    runs = front.runs.signed_by(caller.name)
    return runs.set_parallelism(record.id, limit.parallelism, limit.why)


@router.post("/{run}/set-rate")
def set_rate(record: Operated, front: AFront, caller: Caller, limit: Rate) -> Steering:
    """Change how many components a second may be begun over the whole run."""
    runs = front.runs.signed_by(caller.name)
    ramp = (limit.ramp_from, limit.ramp_seconds)
    return runs.set_rate(record.id, limit.rate, *ramp, limit.why)


@router.post("/{run}/retry", status_code=202)
def retry(
    record: Operated,
    front: AFront,
    caller: Caller,
    response: Response,
    again: Again | None = None,
    idempotency_key: IdempotencyKey = None,
) -> RequestRecord:
    """Try again what failed, as a new attempt with today's code, in its turn of the queue."""
    asked = again or Again()
    given = asked.model_dump(exclude={"why"}, exclude_defaults=True)
    return ask_again(
        front, caller, record, response, Verb.RETRY, asked.why, idempotency_key, **given
    )


@router.post("/{run}/restart", status_code=202)
def restart(
    record: Operated,
    front: AFront,
    caller: Caller,
    response: Response,
    reason: Reason | None = None,
    idempotency_key: IdempotencyKey = None,
) -> RequestRecord:
    """Do whatever no attempt has committed; what failed stays as it is."""
    why = reason.why if reason is not None else ""
    return ask_again(front, caller, record, response, Verb.RESTART, why, idempotency_key)


@router.post("/{run}/resolve", status_code=202)
def resolve(
    record: Found,
    front: AFront,
    caller: Caller,
    response: Response,
    resolution: Resolution,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> RequestRecord:
    """Record how a call has ended whose outcome was unknown; the next `retry` uses it."""
    check_unchanged(front, record, etag_of(if_match))
    submission = Submission(
        kind=record.process,
        parameters=resolution.model_dump(mode="json", exclude={"why"}),
        why=resolution.why,
    )
    return accept(front, caller, submission, response, Verb.RESOLVE, record.id, idempotency_key)


@router.get("/{run}/components")
def components(
    record: Found,
    front: AFront,
    status: ComponentStatus | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ComponentList:
    """How each of a run's components has ended."""
    after = None if cursor is None else str(place_of(cursor, str)[0])
    found = front.runs.components(record.id, status, after)
    items = [outcome._asdict() for outcome in itertools.islice(found, limit + 1)]
    more = len(items) > limit
    last = items[limit - 1]["component"] if more else None
    return ComponentList(items=items[:limit], next=cursor_of(last) if last else None)


@router.get("/{run}/rejects")
def rejects(record: Found, front: AFront, limit: Limit = 50, cursor: Cursor = None) -> RejectList:
    """The rows that were rejected: those found so far if nothing is published."""
    begin = first = 0 if cursor is None else int(place_of(cursor, int)[0])
    items: list[dict[str, Any]] = []
    for table in front.runs.rejects(record.id):
        items += table.slice(first, limit + 1 - len(items)).to_pylist()
        first = max(0, first - table.num_rows)
        if len(items) > limit:
            return RejectList(items=items[:limit], next=cursor_of(begin + limit))
    return RejectList(items=items, next=None)


@router.get(
    "/{run}/results",
    response_class=JSONResponse,
    responses={200: {"model": Rows, "content": {_ARROW: {}}}},
)
def results(
    record: Found,
    front: AFront,
    table: Annotated[str | None, Query(description="an extra table in place of them")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """The first rows that a run has published, or all of them where Arrow's stream is accepted."""
    dataset = front.runs.results(record.id, table)
    if accept is not None and _ARROW in accept:
        return StreamingResponse(_arrow(dataset), media_type=_ARROW)
    rows = dataset.head(limit).to_pylist()
    columns = [{"name": field.name, "type": str(field.type)} for field in dataset.schema]
    text = json.dumps({"columns": columns, "rows": rows}, default=text_of)
    return Response(text, media_type="application/json")


@router.get("/{run}/reports")
def reports(record: Found) -> list[dict[str, Any]]:
    """The reports that a run has published."""
    from ledgerbeam.io.commit.published import published_reports

    return [
        {
            "name": name,
            "size": file.size,
            "sha256": file.sha256,
            "uri": uris.inside(record.uri, file.name),
            "href": f"/v1/runs/{record.id}/reports/{name}",
        }
        for name, file in published_reports(record.uri).items()
    ]


@router.get(
    "/{run}/reports/{name:path}", response_class=Response, responses={200: {"content": {"*/*": {}}}}
)
def report(record: Found, name: str) -> Response:
    """A report, after checking that it is what was published.

    What a workload has written may be anything: a browser shows it without scripts, and apart from
    the page.
    """
    import mimetypes

    from ledgerbeam.io.commit.published import published_reports, read_file

    known = published_reports(record.uri)
    if name not in known:
        told = ", ".join(known) or "no report"
        raise ParameterError(f"no report {name}: there is {told}", parameter="name", value=name)
    guessed = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(
        read_file(record.uri, known[name]),
        media_type=guessed,
        headers={
            "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'"
        },
    )


@router.get("/{run}/audit")
def audit(record: Found, front: AFront) -> list[RecordedEvent]:
    """The whole history of a run: who did what, when and why."""
    return list(front.runs.registry.events(record.id))


@router.get(
    "/{run}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def events(
    record: Found,
    request: Request,
    front: AFront,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """A run's events as they come, as server-sent events, until it has ended.

    Each has the number of its audit entry as `id`: a client that was cut off sends the last one it
    has as `Last-Event-ID`, and goes on behind it. In between, `progress` says how far the run is.
    """
    after = int(last_event_id) if last_event_id and is_number(last_event_id) else 0
    return StreamingResponse(
        front.streams.follow(record, after, request.is_disconnected), media_type="text/event-stream"
    )


def allowed(run: RunRecord) -> list[str]:
    """What can be done with a run now, by the moves that its status allows."""
    moves = MOVES[run.status]
    verbs = []
    if RunStatus.PAUSED in moves:
        verbs.append("pause")
    if run.status is RunStatus.PAUSED:
        verbs.append("resume")
    if moves & {RunStatus.CANCELING, RunStatus.CANCELED} and not run.status.is_final:
        verbs.append("cancel")
    if not run.status.is_final:
        verbs += ["set-parallelism", "set-rate"]
    if run.status.is_final and RunStatus.EXECUTING in moves and run.results_expired_at is None:
        verbs += ["retry", "restart", "resolve"]
    return verbs


def last_event(front: Front, run_id: str) -> int:
    """The number of a run's last event, which is the run's `ETag`."""
    return front.runs.registry.events(run_id)[-1].sequence


def check_unchanged(front: Front, record: RunRecord, etag: int | None) -> None:
    """Let a caller go on who has seen the run as it is.

    Raises:
        ChangedMeanwhileError: it isn't so any more.
    """
    if etag is not None and etag != (last := last_event(front, record.id)):
        raise ChangedMeanwhileError(
            f"run {record.name} was changed since you read it: read it again, and decide anew",
            etag=str(last),
        )


def act(front: Front, caller: Principal, record: RunRecord, verb: str, why: str) -> RunRecord:
    """Cancel, pause or resume a run."""
    changed: RunRecord = getattr(front.runs.signed_by(caller.name), verb)(record.id, why)
    front.bell.ring()
    return changed


def ask_again(
    front: Front,
    caller: Principal,
    record: RunRecord,
    response: Response,
    verb: Verb,
    why: str,
    key: str | None = None,
    **given: Any,
) -> RequestRecord:
    """Ask for another attempt of a run, which a node begins; `given` are fields of `Again`.

    Raises:
        IllegalMoveError: the run goes on, or has published.
    """
    submission = Submission(
        kind=record.process, parameters={"after": last_event(front, record.id), **given}, why=why
    )
    asked: dict[str, Any] = {"who": caller.name, "at": front.now(), "verb": verb}
    # Sent again, it is the attempt that goes on, and no other one.
    is_known = key is not None and front.intake.recall(
        submission, run_id=record.id, key=key, **asked
    )
    if not is_known and verb not in allowed(record):
        told = "it has published" if record.status is RunStatus.SUCCESS else "wait for its end"
        if record.results_expired_at is not None:
            told = "what it had committed has expired"
        raise IllegalMoveError(
            f"run {record.name} is {record.status}, and can't be attempted again: {told}",
            run=record.id,
            from_status=record.status,
            to_status=RunStatus.EXECUTING,
        )
    return accept(front, caller, submission, response, verb, record.id, key)


def answer(front: Front, record: RunRecord, response: Response) -> ServedRun:
    """A run as it stands, with its `ETag`."""
    response.headers["ETag"] = f'"{last_event(front, record.id)}"'
    view = front.runs.get(record.id)
    return ServedRun.model_validate({**fields_of(view), "allowed": allowed(view.run)})


def _changed(
    front: Front,
    caller: Principal,
    record: RunRecord,
    response: Response,
    verb: str,
    reason: Reason | None,
) -> ServedRun:
    why = reason.why if reason is not None else ""
    return answer(front, act(front, caller, record, verb, why), response)


def _arrow(dataset: Any) -> Any:
    import io

    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, dataset.schema) as writer:
        for batch in dataset.to_batches():
            writer.write_batch(batch)
            yield sink.getvalue()
            sink.seek(0)
            sink.truncate()
    yield sink.getvalue()
