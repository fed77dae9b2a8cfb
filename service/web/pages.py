"""The page: what people watch and steer by. Rendered here, and readable without JavaScript.

The page of a run is in `run_page`.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from ledgerbeam.batch.define.dates import read_date
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.observe.progress import Progress
from ledgerbeam.batch.runs.reading import RunView
from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.service.access.front import (
    COOKIE,
    AFront,
    Caller,
    Front,
    demand,
    etag_of,
    is_number,
    visible_kinds,
)
from ledgerbeam.service.errors import BadRequestError
from ledgerbeam.service.model import (
    Principal,
    RequestRecord,
    RequestState,
    Role,
    Submission,
    Verb,
)
from ledgerbeam.service.page.forms import fields_of, parameters_of
from ledgerbeam.service.page.night import RECENT, Seen, is_over, night
from ledgerbeam.service.web import bulk_pages, requests, run_page, runs
from ledgerbeam.service.web.render import STATIC, Form, is_refresh, page_of

_FEW = 20

router = APIRouter(include_in_schema=False)
PARTS = (run_page.router, bulk_pages.router, router)
"""All pages."""


def mount(app: FastAPI) -> None:
    """Add the pages and their static files to an application."""
    app.mount("/static", StaticFiles(directory=STATIC))
    for part in PARTS:
        app.include_router(part)


@router.get("/")
def tonight(request: Request, front: AFront, caller: Caller) -> Response:
    """What is late or will be, what is stuck, what waits for a person, how queues stand."""
    now = front.now()
    queues = [q for q in front.intake.queues() if caller.may(Role.VIEWER, q.kind)]
    at_work = [r for r in front.runs.registry.open_runs() if caller.may(Role.VIEWER, r.process)]
    last = front.runs.registry.last_runs([queue.kind for queue in queues])
    failed = [
        run
        for run in front.runs.list(status=RunStatus.FAILURE, limit=_FEW)
        if caller.may(Role.VIEWER, run.process) and not is_over(run, now)
    ]
    ran = {run.process for run in last}
    unrun = [
        kind
        for kind in front.intake.kinds()
        if kind.name not in ran
        and caller.may(Role.VIEWER, kind.name)
        # Routers publish theirs every few minutes: what none has for a day is gone.
        and now - kind.seen_at < datetime.timedelta(days=1)
    ]
    runs = {run.id: run for run in (*at_work[:_FEW], *last, *failed)}
    return page_of(
        request,
        caller,
        "tonight-live.html" if is_refresh(request) else "tonight.html",
        night=night(
            [_seen(front, run, now) for run in runs.values()],
            _left(front, caller, now),
            unrun,
            now,
        ),
        more=max(0, len(at_work) - _FEW),
        queues=queues,
        now=now,
    )


@router.get("/runs")
def run_list(
    request: Request,
    front: AFront,
    caller: Caller,
    kind: str = "",
    status: str = "",
    since: str = "",
    where: Annotated[list[str] | None, Query()] = None,
    requester: str = "",
    error: str = "",
    cursor: str | None = None,
) -> Response:
    """Runs, newest first."""
    pairs = [pair for pair in where or () if pair]
    page = runs.find(
        front,
        caller,
        kind or None,
        RunStatus(status) if status in set(RunStatus) else None,
        since=_beginning(since) if since else None,
        where=pairs,
        requester=requester or None,
        error=error or None,
        limit=50,
        cursor=cursor,
    )
    chosen = {
        "kind": kind,
        "status": status,
        "since": since,
        "where": pairs,
        "requester": requester,
        "error": error,
    }
    return _list(
        request,
        front,
        caller,
        "runs.html",
        page,
        chosen,
        statuses=list(RunStatus),
        looked_back_to=page.looked_back_to,
    )


@router.get("/requests")
def request_list(
    request: Request,
    front: AFront,
    caller: Caller,
    kind: str = "",
    state: str = "",
    requester: str = "",
    error: str = "",
    cursor: str | None = None,
) -> Response:
    """Requests, newest first."""
    page = front.intake.search(
        state=RequestState(state) if state in set(RequestState) else None,
        requester=requester or None,
        error=error or None,
        kinds=visible_kinds(caller, kind or None),
        cursor=cursor,
    )
    chosen = {"kind": kind, "state": state, "requester": requester, "error": error}
    states = list(RequestState)
    back = page.looked_back_to
    return _list(
        request, front, caller, "requests.html", page, chosen, states=states, looked_back_to=back
    )


@router.get("/requests/{request_id}")
def request_page(request: Request, request_id: str, front: AFront, caller: Caller) -> Response:
    """A request."""
    found = front.intake.get(request_id)
    demand(caller, Role.VIEWER, found.kind)
    verbs = [] if found.state.is_final else ["cancel"]
    if found.state in (RequestState.DEAD, RequestState.EXPIRED):
        verbs = ["redrive"]
    return page_of(
        request,
        caller,
        "request-live.html" if is_refresh(request) else "request.html",
        found=found,
        verbs=verbs,
        entries=front.intake.audit(subject=found.id).items,
    )


@router.post("/requests/{request_id}/{verb}")
def act_on_request(
    request_id: str, verb: str, form: Form, front: AFront, caller: Caller
) -> Response:
    """Cancel a request, or queue it again."""
    act = {"cancel": requests.cancel_request, "redrive": requests.redrive_request}.get(verb)
    if act is None:
        raise BadRequestError(f"a request has no verb {verb}")
    act(front, caller, request_id, form.get("why", ""), etag_of(form.get("etag")))
    return RedirectResponse(f"/requests/{request_id}", 303)


@router.get("/queues")
def queue_list(request: Request, front: AFront, caller: Caller) -> Response:
    """Queues, who is served next, and who has what."""
    kinds = visible_kinds(caller, None)
    queues = [q for q in front.intake.queues() if caller.may(Role.VIEWER, q.kind)]
    running = front.intake.search(state=RequestState.RUNNING, kinds=kinds, limit=100).items
    return page_of(
        request,
        caller,
        "queues.html",
        queues=[(q, front.intake.waiting(q.kind, 5) if q.queued else []) for q in queues],
        running=running,
        operates=any(caller.may(Role.OPERATOR, q.kind) for q in queues),
        now=front.now(),
    )


@router.post("/queues/{kind}")
def change_queue(kind: str, form: Form, front: AFront, caller: Caller) -> Response:
    """Hold or release a queue, or change its limit."""
    demand(caller, Role.OPERATOR, kind)
    changes: dict[str, Any] = {}
    if "held" in form:
        changes["held"] = form["held"] == "yes"
    if "limit" in form:
        limit = form["limit"].strip()
        if limit and not is_number(limit):
            raise ParameterError(f"limit {limit[:40]}: give a whole number", parameter="limit")
        changes["limit"] = int(limit) if limit else None
    front.intake.change_queue(
        kind,
        changes,
        who=caller.name,
        at=front.now(),
        why=form.get("why", ""),
        etag=etag_of(form.get("etag")),
    )
    front.bell.ring()
    return RedirectResponse("/queues", 303)


@router.get("/kinds/{kind}/new")
def submission_form(
    request: Request, kind: str, front: AFront, caller: Caller, like: str = ""
) -> Response:
    """The form of a kind, filled in like an earlier request where that is named."""
    demand(caller, Role.SUBMITTER, kind)
    found = front.intake.kind(kind)
    earlier = front.intake.get(like) if like else None
    values = earlier.parameters if earlier is not None and earlier.kind == kind else {}
    return page_of(
        request,
        caller,
        "form.html",
        kind=found,
        fields=fields_of(found.parameters_schema, values),
        problems={p.parameter: p.message for p in (earlier.problems if earlier else ())},
    )


@router.post("/kinds/{kind}/new")
def submit_form(
    kind: str, form: Form, front: AFront, caller: Caller, response: Response
) -> Response:
    """Submit a run by its form."""
    found = front.intake.kind(kind)
    try:
        submission = Submission(
            kind=kind,
            parameters=parameters_of(found.parameters_schema, form),
            priority=int(form.get("_priority") or 0),
            why=form.get("_why", ""),
        )
    except (ValidationError, ValueError) as error:
        raise BadRequestError("priority: give a whole number from -100 to 100") from error
    key = form.get("_key") or None
    stored = requests.accept(front, caller, submission, response, Verb.SUBMIT, None, key)
    return RedirectResponse(f"/requests/{stored.id}", 303)


@router.get("/audit")
def audit(
    request: Request, front: AFront, caller: Caller, subject: str = "", cursor: str | None = None
) -> Response:
    """Who did what, over everything."""
    page = front.intake.audit(
        subject=subject or None, kinds=visible_kinds(caller, None), cursor=cursor
    )
    return _list(request, front, caller, "audit.html", page, {"subject": subject})


@router.get("/sign-in")
def sign_in_form(request: Request) -> Response:
    """Where a key is given."""
    return page_of(request, None, "sign-in.html", error=None)


@router.post("/sign-in")
async def sign_in(request: Request, form: Form, front: AFront) -> Response:
    """Exchange a key for a cookie, which scripts can't read and other sites can't use."""
    try:
        session = await run_in_threadpool(
            front.keys.sign_in, form.get("key", "").strip(), front.now()
        )
    except UserError as error:
        return page_of(request, None, "sign-in.html", status=401, error=error)
    response = RedirectResponse("/", 303)
    is_secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, session, httponly=True, samesite="strict", secure=is_secure)
    return response


@router.post("/sign-out")
def sign_out(form: Form, front: AFront, caller: Caller) -> Response:
    """Forget the cookie, and make it invalid."""
    if caller.key_id is not None:
        front.keys.revoke(caller.key_id, who=caller.name, at=front.now(), why="signed out")
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(COOKIE)
    return response


def _beginning(day: str) -> datetime.datetime:
    """The beginning of a day in UTC.

    Raises:
        ParameterError: it is none.
    """
    try:
        return datetime.datetime.combine(read_date(day), datetime.time(), datetime.UTC)
    except ValueError as error:
        raise ParameterError(f"since={day}: {error}", parameter="since", value=day) from error


def _seen(front: Front, run: RunRecord, now: datetime.datetime) -> Seen:
    """A run with its progress, where that matters tonight and storage can be read."""
    if is_over(run, now):
        return Seen(RunView(run, Progress(at=now)))
    try:
        return Seen(front.runs.get(run.id))
    except UserError as error:
        return Seen(RunView(run, Progress(at=front.now())), str(error))


def _left(front: Front, caller: Principal, now: datetime.datetime) -> list[RequestRecord]:
    """Requests that have ended without a run, and that somebody should look at."""
    kinds = visible_kinds(caller, None)
    found = []
    for state in (RequestState.DEAD, RequestState.FAILURE):
        for each in front.intake.search(state=state, kinds=kinds, limit=_FEW).items:
            # What has failed with a run is shown as that.
            is_new = each.run_id is None and each.received_at > now - RECENT
            if state is RequestState.DEAD or is_new:
                found.append(each)
    return found


def _list(
    request: Request,
    front: Front,
    caller: Principal,
    name: str,
    page: Any,
    chosen: Mapping[str, str | Sequence[str]],
    **values: Any,
) -> Response:
    following = ""
    if page.next is not None:
        given = {key: value for key, value in chosen.items() if value}
        following = f"?{urlencode({**given, 'cursor': page.next}, doseq=True)}"
    kinds = [k.name for k in front.intake.kinds() if caller.may(Role.VIEWER, k.name)]
    return page_of(
        request,
        caller,
        name,
        items=page.items,
        following=following,
        kinds=kinds,
        operates=any(caller.may(Role.OPERATOR, kind) for kind in kinds),
        chosen=chosen,
        **values,
    )
