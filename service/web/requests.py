"""`/v1/requests`: what is asked for, before and while there is a run."""

import asyncio
import datetime
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ledgerbeam.batch import traces
from ledgerbeam.io.errors import LedgerbeamError
from ledgerbeam.service.access.front import (
    AFront,
    Caller,
    Front,
    caller_of,
    demand,
    etag_of,
    front_of,
    seconds_to_wait,
    visible_kinds,
)
from ledgerbeam.service.model import (
    Principal,
    RequestRecord,
    RequestState,
    Role,
    Submission,
    Verb,
)
from ledgerbeam.service.store.intake import Asked

router = APIRouter(prefix="/v1/requests", tags=["requests"])

IfMatch = Annotated[
    str | None,
    Header(
        description="the `ETag` that was seen; 412 if it changed",
        json_schema_extra={"pattern": r'^(W/)?"?[0-9]{1,18}"?$'},
    ),
]
_LONGEST_KEY = 200
Prefer = Annotated[str | None, Header(description="`wait=N`: for N seconds, or until the end")]
Limit = Annotated[int, Query(ge=1, le=200, description="how many at most")]
Cursor = Annotated[str | None, Query(description="`next` of the page before")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=_LONGEST_KEY,
        description="the same key and body again give the same request; another body is a 422",
    ),
]
_POLL_SECONDS = 0.3


class Reason(BaseModel):
    """Why something is done."""

    model_config = ConfigDict(extra="forbid")

    why: str = Field(default="", max_length=2000, description="the reason, for the record")


class RequestList(BaseModel):
    """A page of requests, newest first; `looked_back_to` is as in lists of runs."""

    items: list[RequestRecord]
    next: str | None
    looked_back_to: datetime.datetime | None = None


@router.post("", status_code=202, response_model=RequestRecord)
async def submit(
    submission: Submission, front: AFront, caller: Caller, idempotency_key: IdempotencyKey = None
) -> Response:
    """Ask for a run. It is checked by a router: `QUEUED` or `REJECTED` soon, if not at once."""
    verb = Verb.REPLACE if submission.replace else Verb.SUBMIT
    demand(caller, role_of(verb), submission.kind)
    with _span(submission, verb) as traceparent:
        asked = Asked(
            submission, caller.name, front.now(), verb, None, idempotency_key, traceparent or None
        )
        stored, _ = await front.accepted.ask(asked)
    front.bell.ring()
    # As it is: it is a valid record, and needn't be checked to be one.
    response = Response(stored.model_dump_json(), 202, media_type="application/json")
    _locate(stored, response)
    return response


class Submissions:
    """Calls `submit` for submissions that are right, past FastAPI, which takes as long as the rest.

    Whatever else is sent there goes on to FastAPI, whose route says what is wrong with it.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_error: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        """Stand in front of an application.

        Args:
            app: the application.
            on_error: gives what its handler of errors gives.
        """
        self._app = app
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call whose whole body is its first message, or pass it on."""
        is_submission = scope["type"] == "http" and scope["path"] == router.prefix
        if not is_submission or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        messages = [await receive()]
        submission = _read(request.headers, messages[0]["body"])
        if submission is None:

            async def replay() -> Message:
                return messages.pop() if messages else await receive()

            await self._app(scope, replay, send)
            return
        try:
            caller = await caller_of(request)
            key = request.headers.get("idempotency-key")
            answer = await submit(submission, front_of(request), caller, key)
        except LedgerbeamError as error:
            answer = await self._on_error(request, error)
        await answer(scope, receive, send)


def _read(headers: Headers, body: bytes) -> Submission | None:
    """The submission of a call; None where the call isn't right in every respect."""
    keys = headers.getlist("idempotency-key")
    is_key = not keys or (len(keys) == 1 and 1 <= len(keys[0]) <= _LONGEST_KEY)
    if headers.getlist("content-type") != ["application/json"] or not is_key:
        return None
    try:
        return Submission.model_validate(json.loads(body))
    except (ValueError, RecursionError):
        return None


@router.get("")
def find(
    front: AFront,
    caller: Caller,
    kind: str | None = None,
    state: RequestState | None = None,
    requester: str | None = None,
    error: Annotated[str | None, Query(description="text in the error")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> RequestList:
    """Requests, newest first."""
    kinds = visible_kinds(caller, kind)
    page = front.intake.search(
        state=state, requester=requester, error=error, kinds=kinds, limit=limit, cursor=cursor
    )
    return RequestList(items=list(page.items), next=page.next, looked_back_to=page.looked_back_to)


@router.get("/{request_id}")
async def get(
    request_id: str, front: AFront, caller: Caller, response: Response, prefer: Prefer = None
) -> RequestRecord:
    """How a request stands; with `Prefer: wait=N`, how it stands at its end or after N seconds."""
    deadline = time.monotonic() + seconds_to_wait(prefer)
    while True:
        found = await run_in_threadpool(_visible, front, caller, request_id)
        if found.state.is_final or time.monotonic() >= deadline:
            break
        await asyncio.sleep(_POLL_SECONDS)
    return _answer(found, response)


@router.post("/{request_id}/cancel")
def cancel(
    request_id: str,
    front: AFront,
    caller: Caller,
    response: Response,
    reason: Reason | None = None,
    if_match: IfMatch = None,
) -> RequestRecord:
    """Withdraw a request; where it runs, its run is canceled."""
    return _answer(
        cancel_request(front, caller, request_id, _why(reason), etag_of(if_match)), response
    )


@router.post("/{request_id}/redrive")
def redrive(
    request_id: str,
    front: AFront,
    caller: Caller,
    response: Response,
    reason: Reason | None = None,
    if_match: IfMatch = None,
) -> RequestRecord:
    """Queue a request again that is `DEAD` or `EXPIRED`."""
    return _answer(
        redrive_request(front, caller, request_id, _why(reason), etag_of(if_match)), response
    )


def accept(
    front: Front,
    caller: Principal,
    submission: Submission,
    response: Response,
    verb: Verb,
    run_id: str | None,
    key: str | None,
    role: Role | None = None,
) -> RequestRecord:
    """Store a request, and say where it is; it takes the verb's role, or another that is given."""
    demand(caller, role or role_of(verb), submission.kind)
    with _span(submission, verb) as traceparent:
        stored, _ = front.intake.accept(
            submission,
            who=caller.name,
            at=front.now(),
            verb=verb,
            run_id=run_id,
            key=key,
            traceparent=traceparent or None,
        )
    front.bell.ring()
    return _locate(stored, response)


def _span(submission: Submission, verb: Verb) -> AbstractContextManager[str]:
    return traces.span("accept", kind="SERVER", verb=verb, workload=submission.kind)


def _locate(stored: RequestRecord, response: Response) -> RequestRecord:
    response.headers["Location"] = f"/v1/requests/{stored.id}"
    return _answer(stored, response)


def role_of(verb: Verb) -> Role:
    """The role that it takes to ask for something."""
    return {
        Verb.SUBMIT: Role.SUBMITTER,
        Verb.REPLACE: Role.OPERATOR,
        Verb.RETRY: Role.OPERATOR,
        Verb.RESTART: Role.OPERATOR,
        Verb.RESOLVE: Role.APPROVER,
    }[verb]


def cancel_request(
    front: Front, caller: Principal, request_id: str, why: str, etag: int | None = None
) -> RequestRecord:
    """Cancel a request, and its run if there is one already."""
    found = front.intake.get(request_id)
    if found.requester != caller.name:
        demand(caller, Role.OPERATOR, found.kind)
    canceled = front.intake.cancel(request_id, who=caller.name, at=front.now(), why=why, etag=etag)
    if not canceled.state.is_final and canceled.run_id is not None:
        run = front.runs.registry.get(canceled.run_id)
        if not run.status.is_final:
            front.runs.signed_by(caller.name).cancel(run.id, why)
    front.bell.ring()
    return canceled


def redrive_request(
    front: Front, caller: Principal, request_id: str, why: str, etag: int | None = None
) -> RequestRecord:
    """Queue a request again."""
    found = front.intake.get(request_id)
    demand(caller, Role.OPERATOR, found.kind)
    events = front.runs.registry.events(found.run_id) if found.run_id is not None else []
    after = events[-1].sequence if events else None
    driven = front.intake.redrive(
        request_id, who=caller.name, at=front.now(), why=why, etag=etag, after=after
    )
    front.bell.ring()
    return driven


def _visible(front: Front, caller: Principal, request_id: str) -> RequestRecord:
    found = front.intake.get(request_id)
    demand(caller, Role.VIEWER, found.kind)
    return found


def _answer(found: RequestRecord, response: Response) -> RequestRecord:
    response.headers["ETag"] = f'"{found.version}"'
    return found


def _why(reason: Any) -> str:
    return reason.why if reason is not None else ""
