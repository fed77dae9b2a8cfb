"""The pages of actions on many: a filter, a dry run, a reason, and how far it has got."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.io.errors import UserError
from ledgerbeam.service.access.front import AFront, Caller
from ledgerbeam.service.bulk import (
    BULKS,
    FILTERS,
    BulkAsk,
    BulkFilter,
    BulkOf,
    BulkRecord,
    BulkState,
    BulkVerb,
    TargetState,
)
from ledgerbeam.service.errors import BadRequestError
from ledgerbeam.service.model import Principal, RequestState, Role
from ledgerbeam.service.web import bulk
from ledgerbeam.service.web.render import Form, is_refresh, page_of
from ledgerbeam.service.web.requests import Reason

_TARGETS = 50
_LISTED = 200
_DRY = "a dry run"
_EFFECTS = {
    (BulkOf.RUNS, BulkVerb.CANCEL): "Each run is stopped, and what it has committed stays.",
    (BulkOf.RUNS, BulkVerb.RETRY): "Of each run, what failed or wasn't reached is tried again.",
    (BulkOf.REQUESTS, BulkVerb.CANCEL): "Each request is withdrawn; its run is stopped.",
    (BulkOf.REQUESTS, BulkVerb.REDRIVE): "Each request waits in its queue again.",
    (BulkOf.QUEUES, BulkVerb.RELEASE): "Nodes take requests from each queue again.",
}

router = APIRouter(prefix="/bulk", include_in_schema=False)


class Act(NamedTuple):
    """Something that can be done with many.

    Attributes:
        of: what it is about.
        verb: what is done with each.
        effect: the same in a sentence.
    """

    of: BulkOf
    verb: BulkVerb
    effect: str

    @property
    def label(self) -> str:
        """What it is called."""
        return f"{self.verb.capitalize()} {self.of}"


ACTS = [Act(of, verb, _EFFECTS[of, verb]) for of, verb in sorted(BULKS)]


@router.get("")
def action_list(
    request: Request, front: AFront, caller: Caller, cursor: str | None = None
) -> Response:
    """Actions on many, newest first."""
    page = bulk.find(front, caller, _TARGETS, cursor)
    following = "" if page.next is None else f"?{urlencode({'cursor': page.next})}"
    return page_of(
        request, caller, "bulk/list.html", items=page.items, following=following, acts=ACTS
    )


@router.get("/new")
def preview(
    request: Request,
    front: AFront,
    caller: Caller,
    of: str = "runs",
    verb: str = "",
    kind: str = "",
    status: str = "",
    since: str = "",
    where: Annotated[list[str] | None, Query()] = None,
    state: str = "",
    requester: str = "",
    error: str = "",
) -> Response:
    """The filter of an action, and what it would touch now; nothing is done."""
    act = _act(of, verb)
    given = {
        "kind": kind,
        "status": status,
        "since": since,
        "where": [pair for pair in where or () if pair],
        "state": state,
        "requester": requester,
        "error": error,
    }
    chosen = {name: value for name, value in given.items() if name in FILTERS[act.of]}
    found, tag, problem = None, "", ""
    if any(chosen.values()) or act.of is BulkOf.QUEUES:
        answer = Response()
        try:
            found = bulk.dry_run(_ask(act, chosen, _DRY), front, caller, answer, _LISTED)
            tag = answer.headers["ETag"]
        except UserError as bad:
            problem = str(bad)
    return page_of(
        request,
        caller,
        "bulk/new.html",
        status=400 if problem else 200,
        act=act,
        acts=ACTS,
        chosen=chosen,
        kinds=[k.name for k in front.intake.kinds() if caller.may(Role.OPERATOR, k.name)],
        statuses=[s for s in RunStatus if s.is_final == (act.verb is BulkVerb.RETRY)],
        states=bulk.STATES.get(act.verb, list(RequestState)),
        found=found,
        tag=tag.strip('"'),
        problem=problem,
        command=_command(act, chosen),
    )


@router.post("/new")
def ask(form: Form, front: AFront, caller: Caller, response: Response) -> Response:
    """Have it done with what the dry run has shown."""
    act = _act(form.get("of", ""), form.get("verb", ""))
    chosen: dict[str, Any] = {n: form[n] for n in FILTERS[act.of] - {"where"} if form.get(n)}
    if form.get("where"):
        chosen["where"] = form["where"].splitlines()
    why = form.get("why", "").strip()
    if not why:
        raise BadRequestError("why: a reason is missing, for the record of each")
    stored = bulk.ask(
        _ask(act, chosen, why), front, caller, response, form.get("etag"), form.get("key") or None
    )
    return RedirectResponse(f"/bulk/{stored.id}", 303)


@router.get("/{bulk_id}")
def action(
    request: Request,
    bulk_id: str,
    front: AFront,
    caller: Caller,
    state: str = "",
    cursor: str | None = None,
) -> Response:
    """How an action stands, and what became of each target."""
    found = bulk.visible(front, caller, bulk_id)
    chosen = TargetState(state) if state in set(TargetState) else None
    targets = bulk.targets(bulk_id, front, caller, chosen, _TARGETS, cursor)
    following = ""
    if targets.next is not None:
        shown = {"state": chosen} if chosen else {}
        following = f"?{urlencode({**shown, 'cursor': targets.next})}"
    return page_of(
        request,
        caller,
        "bulk/live.html" if is_refresh(request) else "bulk/action.html",
        found=found,
        act=_act(found.of, found.verb),
        is_open=found.ended_at is None,
        total=sum(found.targets.values()),
        done=sum(found.targets.values()) - found.targets.get(TargetState.PENDING, 0),
        states=list(TargetState),
        chosen=chosen,
        targets=targets.items,
        following=following,
        verbs=_verbs(found, caller),
    )


@router.post("/{bulk_id}/{verb}")
def decide(
    bulk_id: str, verb: str, form: Form, front: AFront, caller: Caller, response: Response
) -> Response:
    """Approve an action, refuse it, or end it where it has got to."""
    act = {"approve": bulk.approve, "refuse": bulk.refuse, "cancel": bulk.cancel}.get(verb)
    if act is None:
        raise BadRequestError(f"an action on many has no verb {verb}")
    reason = Reason(why=form.get("why", "")[:2000])
    act(bulk_id, front, caller, response, reason, form.get("etag"))
    return RedirectResponse(f"/bulk/{bulk_id}", 303)


def _act(of: str, verb: str) -> Act:
    """What is to be done, by its words; without a verb the first that there is.

    Raises:
        BadRequestError: there is no such thing.
    """
    for act in ACTS:
        if act.of == of and verb in ("", act.verb):
            return act
    fits = ", ".join(f"{act.verb} {act.of}" for act in ACTS)
    raise BadRequestError(f"there is no {verb[:40]} of {of[:40]}: there is {fits}")


def _ask(act: Act, chosen: Mapping[str, Any], why: str) -> BulkAsk:
    try:
        wanted = BulkFilter.model_validate({n: v for n, v in chosen.items() if v})
        return BulkAsk(of=act.of, verb=act.verb, filter=wanted, why=why)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"{first['loc'][0]}: " if first["loc"] else ""
        raise BadRequestError(f"{name}{first['msg'].removeprefix('Value error, ')}") from error


def _verbs(found: BulkRecord, caller: Principal) -> Sequence[tuple[str, str]]:
    """What a caller can do with an action now, and what comes of it."""
    verbs = []
    if found.state is BulkState.WAITING and bulk.may(caller, Role.APPROVER, found):
        verbs = [
            ("approve", "It is carried out; whoever has asked for it can't approve it."),
            ("refuse", "Nothing is done."),
        ]
    may_end = found.requester == caller.name or bulk.may(caller, Role.OPERATOR, found)
    if found.ended_at is None and may_end:
        verbs.append(("cancel", "It ends where it has got to; what it has done stays done."))
    return verbs


def _command(act: Act, chosen: Mapping[str, Any]) -> str:
    """The same on the command line, to be copied; its reason is left to be written."""
    words = ["ledgerbeam", "bulk", str(act.verb)]
    if act == Act(BulkOf.REQUESTS, BulkVerb.CANCEL, act.effect):
        words.append("--of=requests")
    for name, value in chosen.items():
        words += [
            f"--{name}={each}" for each in ([value] if isinstance(value, str) else value) if each
        ]
    return f"{shlex.join(words)} --why=… --dry-run"
