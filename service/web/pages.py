"""The page: what people watch and steer by. Rendered here, and readable without JavaScript."""

import datetime
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import jinja2
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.staticfiles import StaticFiles

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.runs.reading import RunView
from ledgerbeam.io.commit.amounts import label_of, shown
from ledgerbeam.io.errors import LedgerbeamError, ParameterError, UserError
from ledgerbeam.service.errors import (
    AccessDeniedError,
    BadRequestError,
    ChangedMeanwhileError,
)
from ledgerbeam.service.model import Principal, RequestState, Role, Submission, Verb
from ledgerbeam.service.web import approvals, requests, runs
from ledgerbeam.service.web.forms import fields_of, parameters_of
from ledgerbeam.service.web.front import (
    COOKIE,
    AFront,
    Caller,
    Front,
    demand,
    etag_of,
    front_of,
    visible_kinds,
)

_FOLDER = Path(__file__).parent
_LIVE_RUNS = 20
_COMPONENTS = 50
# Without keys there is no session that a token could belong to; then it is this process's.
_LOCAL = secrets.token_hex(16)

router = APIRouter(include_in_schema=False)


class Bar(NamedTuple):
    """A run against its deadline, in percent of the time from its start to the later of both.

    Attributes:
        now: where the present is.
        end: where it is expected to end; None where nobody can say.
        deadline: where it must have ended; None where it needn't.
    """

    now: float
    end: float | None
    deadline: float | None


def mount(app: FastAPI) -> None:
    """Add the pages and their static files to an application."""
    app.mount("/static", StaticFiles(directory=_FOLDER / "static"))
    app.include_router(router)


def is_page(request: Request) -> bool:
    """Whether a person is to read the answer."""
    paths = ("/v1/", "/healthz", "/readyz", "/metrics", "/static/")
    return not request.url.path.startswith(paths)


def error_page(request: Request, error: LedgerbeamError, status: int) -> Response:
    """An error for people."""
    return _page(request, None, "error.html", status=status, error=error)


async def _form(request: Request) -> dict[str, str]:
    """What a form has sent.

    Raises:
        AccessDeniedError: it isn't one of our own.
    """
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind != "application/x-www-form-urlencoded":
        raise BadRequestError("a form is sent as application/x-www-form-urlencoded")
    body = (await request.body()).decode("utf-8", "replace")
    sent = dict(parse_qsl(body, keep_blank_values=True))
    # Who signs in has no session yet, and gives a key that another site doesn't know.
    is_own = hmac.compare_digest(sent.pop("csrf", ""), _token(request))
    if not is_own and request.url.path != "/sign-in":
        raise AccessDeniedError("this form is out of date: load the page again, and repeat")
    return sent


Form = Annotated[dict[str, str], Depends(_form)]


@router.get("/")
def tonight(request: Request, front: AFront, caller: Caller) -> Response:
    """What is late or will be, what is stuck, what waits for a person, how queues stand."""
    name = "tonight-live.html" if "hx-request" in request.headers else "tonight.html"
    kinds = visible_kinds(caller, None)
    at_work = [r for r in front.runs.registry.open_runs() if caller.may(Role.VIEWER, r.process)]
    views = [front.runs.get(run.id) for run in at_work[:_LIVE_RUNS]]
    now = front.now()
    day = datetime.timedelta(days=1)
    failed = [
        run
        for run in front.runs.list(status=RunStatus.FAILURE, limit=_LIVE_RUNS)
        if caller.may(Role.VIEWER, run.process) and run.submitted_at > now - day
    ]
    requests_ = [
        found
        for state in (RequestState.DEAD, RequestState.FAILURE)
        for found in front.intake.search(state=state, kinds=kinds, limit=_LIVE_RUNS).items
        # What has failed with a run is shown as that.
        if state is RequestState.DEAD or (found.run_id is None and found.received_at > now - day)
    ]
    queues = [q for q in front.intake.queues() if caller.may(Role.VIEWER, q.kind)]
    rows = [(view, _bar(view, now), _is_late(view, now)) for view in views]
    return _page(
        request,
        caller,
        name,
        rows=sorted(rows, key=lambda row: not row[2]),
        more=len(at_work) - len(views),
        failed=failed,
        requests=requests_,
        queues=queues,
    )


@router.get("/runs")
def run_list(
    request: Request,
    front: AFront,
    caller: Caller,
    kind: str = "",
    status: str = "",
    cursor: str | None = None,
) -> Response:
    """Runs, newest first."""
    page = runs.find(
        front,
        caller,
        kind or None,
        RunStatus(status) if status in set(RunStatus) else None,
        limit=50,
        cursor=cursor,
    )
    chosen = {"kind": kind, "status": status}
    return _list(request, front, caller, "runs.html", page, chosen, statuses=list(RunStatus))


@router.get("/runs/{run}")
def run_page(
    request: Request, run: str, front: AFront, caller: Caller, component: str = ""
) -> Response:
    """A run."""
    record = front.runs.registry.find(run)
    demand(caller, Role.VIEWER, record.process)
    view = front.runs.get(record.id)
    bad = []
    for status in (ComponentStatus.UNKNOWN, ComponentStatus.FAILURE):
        for outcome in front.runs.components(record.id, status):
            if component in outcome.component or component in outcome.error:
                bad.append(outcome)
            if len(bad) >= _COMPONENTS:
                break
    events = front.runs.registry.events(record.id)
    decimals = view.progress.total_decimals
    totals = [
        (label_of(name), shown(name, value, decimals))
        for name, value in sorted(view.progress.totals.items())
    ]
    return _page(
        request,
        caller,
        "run-live.html" if "hx-request" in request.headers else "run.html",
        view=view,
        run=record,
        bar=_bar(view, front.now()),
        bad=bad,
        component=component,
        totals=totals,
        events=events,
        reports=runs.reports(record) if record.status is RunStatus.SUCCESS else [],
        allowed=runs.allowed(record) if caller.may(Role.OPERATOR, record.process) else [],
        may_resolve=caller.may(Role.APPROVER, record.process),
        request_of_run=front.intake.of_run(record.id),
    )


@router.post("/runs/{run}/{verb}")
def act_on_run(
    run: str, verb: str, form: Form, front: AFront, caller: Caller, response: Response
) -> Response:
    """Do what somebody has chosen on the page of a run."""
    record = front.runs.registry.find(run)
    # A person has seen a status; what else happens meanwhile, such as progress, changes nothing.
    if form.get("etag") != record.status:
        raise ChangedMeanwhileError(
            f"run {record.name} is {record.status} now: load its page again, and decide anew",
            etag=record.status,
        )
    why = form.get("why", "")
    if verb in ("approve", "refuse"):
        return _answered(front, caller, record, verb, response, form)
    demand(caller, Role.OPERATOR, record.process)
    if verb in ("cancel", "pause", "resume"):
        runs.act(front, caller, record, verb, why)
    elif verb in ("retry", "restart"):
        again = runs.ask_again(front, caller, record, response, Verb(verb), why)
        return RedirectResponse(f"/requests/{again.id}", 303)
    elif verb == "resolve":
        resolution = runs.Resolution(
            component=form.get("component", ""),
            status=ComponentStatus(form.get("status", "")),
            results=form.get("results") or None,
            why=why,
        )
        asked = runs.resolve(record, front, caller, response, resolution)
        return RedirectResponse(f"/requests/{asked.id}", 303)
    elif verb in ("set-parallelism", "set-rate"):
        _limit(front, caller, record, verb, form.get("value", ""), why)
    else:
        raise BadRequestError(f"a run has no verb {verb}")
    return RedirectResponse(f"/runs/{record.id}", 303)


def _answered(
    front: Front,
    caller: Principal,
    record: RunRecord,
    verb: str,
    response: Response,
    form: Mapping[str, str],
) -> Response:
    """Approve or refuse what another person has asked for."""
    demand(caller, Role.APPROVER, record.process)
    number = form.get("number", "")
    if not number.isdecimal():
        raise BadRequestError("the form lacks the number of what was asked for")
    given = approvals.Answer(approval=int(number), why=form.get("why", ""))
    if verb == "refuse":
        approvals.refuse(record, front, caller, response, given)
        return RedirectResponse(f"/runs/{record.id}", 303)
    asked = approvals.approve(record, front, caller, response, given)
    return RedirectResponse(f"/requests/{asked.id}", 303)


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
    return _list(request, front, caller, "requests.html", page, chosen, states=states)


@router.get("/requests/{request_id}")
def request_page(request: Request, request_id: str, front: AFront, caller: Caller) -> Response:
    """A request."""
    found = front.intake.get(request_id)
    demand(caller, Role.VIEWER, found.kind)
    verbs = [] if found.state.is_final else ["cancel"]
    if found.state in (RequestState.DEAD, RequestState.EXPIRED):
        verbs = ["redrive"]
    return _page(
        request,
        caller,
        "request-live.html" if "hx-request" in request.headers else "request.html",
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
    return _page(
        request,
        caller,
        "queues.html",
        queues=[(q, front.intake.waiting(q.kind, 5)) for q in queues],
        running=running,
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
        if limit and not limit.isdecimal():
            raise ParameterError(f"limit {limit}: give a whole number", parameter="limit")
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
    return _page(
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
    return _page(request, None, "sign-in.html", error=None)


@router.post("/sign-in")
async def sign_in(request: Request, form: Form, front: AFront) -> Response:
    """Exchange a key for a cookie, which scripts can't read and other sites can't use."""
    try:
        session = await run_in_threadpool(
            front.keys.sign_in, form.get("key", "").strip(), front.now()
        )
    except UserError as error:
        return _page(request, None, "sign-in.html", status=401, error=error)
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


def _limit(
    front: Front, caller: Principal, record: RunRecord, verb: str, value: str, why: str
) -> None:
    signed = front.runs.signed_by(caller.name)
    try:
        if verb == "set-rate":
            signed.set_rate(record.id, float(value) if value.strip() else None, why=why)
        else:
            signed.set_parallelism(record.id, int(value) if value.strip() else None, why)
    except ValueError as error:
        raise ParameterError(f"{value}: give a number, or nothing", parameter=verb) from error


def _bar(view: RunView, now: datetime.datetime) -> Bar | None:
    run, end = view.run, view.progress.estimated_end
    if not run.attempts:
        return None
    start = run.attempts[0].started_at
    times = [now, *filter(None, (end, run.must_finish_by))]
    whole = max((time - start).total_seconds() for time in times) or 1.0

    def share(time: datetime.datetime | None) -> float | None:
        if time is None:
            return None
        return max(0.0, 100 * (time - start).total_seconds() / whole)

    return Bar(share(now) or 0.0, share(end), share(run.must_finish_by))


def _is_late(view: RunView, now: datetime.datetime) -> bool:
    due = view.run.must_finish_by
    return due is not None and max(now, view.progress.estimated_end or now) > due


def _list(
    request: Request,
    front: Front,
    caller: Principal,
    name: str,
    page: Any,
    chosen: dict[str, str],
    **values: Any,
) -> Response:
    following = ""
    if page.next is not None:
        given = {key: value for key, value in chosen.items() if value}
        following = f"?{urlencode({**given, 'cursor': page.next})}"
    kinds = [k.name for k in front.intake.kinds() if caller.may(Role.VIEWER, k.name)]
    return _page(
        request,
        caller,
        name,
        items=page.items,
        following=following,
        kinds=kinds,
        chosen=chosen,
        **values,
    )


def _token(request: Request) -> str:
    session = request.cookies.get(COOKIE) if front_of(request).asks_for_key() else _LOCAL
    return hashlib.sha256(f"csrf:{session}".encode()).hexdigest()


def _page(
    request: Request, caller: Principal | None, name: str, *, status: int = 200, **values: Any
) -> Response:
    text = _templates.get_template(name).render(
        path=request.url.path,
        caller=caller,
        needs_key=front_of(request).asks_for_key(),
        csrf=_token(request),
        key=secrets.token_hex(16),
        **values,
    )
    return HTMLResponse(text, status)


def _time(value: datetime.datetime | None) -> str:
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}"


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_templates.filters["time"] = _time
