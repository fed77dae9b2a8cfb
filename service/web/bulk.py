"""`/v1/bulk`: what is done with many runs, requests or queues at once.

What the filter finds when an action is asked for are its targets. A router reaches one after the
other, and leaves alone what has changed since in such a way that it isn't what was meant any more.
"""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ledgerbeam.batch.model.approval import BULK
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.search import RunFilter
from ledgerbeam.service.access.front import (
    AFront,
    Caller,
    Front,
    demand,
    etag_of,
    seconds_to_wait,
    visible_kinds,
)
from ledgerbeam.service.bulk import (
    MAX_TARGETS,
    BulkAsk,
    BulkOf,
    BulkPreview,
    BulkRecord,
    BulkState,
    BulkTarget,
    BulkVerb,
    TargetState,
)
from ledgerbeam.service.errors import BadRequestError, ChangedMeanwhileError
from ledgerbeam.service.model import Principal, RequestState, Role
from ledgerbeam.service.store.bulk import Bulks, Chosen
from ledgerbeam.service.web.requests import (
    Cursor,
    IdempotencyKey,
    IfMatch,
    Limit,
    Prefer,
    Reason,
)
from ledgerbeam.service.web.runs import allowed, pair_of

router = APIRouter(prefix="/v1/bulk", tags=["actions on many"])

_POLL_SECONDS = 0.3
STATES = {
    BulkVerb.CANCEL: [state for state in RequestState if not state.is_final],
    BulkVerb.REDRIVE: [RequestState.DEAD, RequestState.EXPIRED],
}


class BulkList(BaseModel):
    """A page of actions, newest first."""

    items: list[BulkRecord]
    next: str | None


class TargetList(BaseModel):
    """A page of an action's targets, in the order in which they are reached."""

    items: list[BulkTarget]
    next: str | None


@router.post("/dry-run")
def dry_run(
    given: BulkAsk,
    front: AFront,
    caller: Caller,
    response: Response,
    limit: Annotated[int, Query(ge=1, le=1000, description="how many are listed at most")] = 200,
) -> BulkPreview:
    """How many an action would touch now, and which; nothing is done.

    Sent with the action as `If-Match`, the `ETag` makes sure that these are the ones.
    """
    chosen = _chosen(front, caller, given)
    response.headers["ETag"] = f'"{_tag(chosen)}"'
    counts = Counter(one.target.kind for one in chosen)
    return BulkPreview(
        count=len(chosen),
        kinds=dict(sorted(counts.items())),
        targets=tuple(one.target for one in chosen[:limit]),
        approval=_waits(front, [*counts]),
    )


@router.post("", status_code=202)
def ask(
    given: BulkAsk,
    front: AFront,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> BulkRecord:
    """Do something with all that the filter finds now; a router carries it out.

    Where the definition of one of the kinds has `bulk` among its `approvals`, it waits for a second
    person.
    """
    seen, bulks = etag_of(if_match), Bulks(front.runs.registry.database)
    if idempotency_key is not None:
        # Sent again, it may find others, as these have been reached by now.
        known = bulks.known(given, who=caller.name, at=front.now(), key=idempotency_key)
        if known is not None:
            response.headers["Location"] = f"/v1/bulk/{known.id}"
            return _answer(known, response)
    chosen = _chosen(front, caller, given)
    if seen is not None and seen != (tag := _tag(chosen)):
        raise ChangedMeanwhileError(
            f"it would touch others than the dry run has shown, {len(chosen)} by now: make that "
            "again, and decide anew",
            etag=str(tag),
        )
    waits = _waits(front, {one.target.kind for one in chosen})
    stored = bulks.ask(
        given, chosen, who=caller.name, at=front.now(), waits=waits, key=idempotency_key
    )
    front.bell.ring()
    response.headers["Location"] = f"/v1/bulk/{stored.id}"
    return _answer(stored, response)


@router.get("")
def find(front: AFront, caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> BulkList:
    """Actions on many, newest first; those on kinds that the caller may see."""
    page = Bulks(front.runs.registry.database).search(limit=limit, cursor=cursor)
    seen = [item for item in page.items if may(caller, Role.VIEWER, item)]
    return BulkList(items=seen, next=page.next)


@router.get("/{bulk_id}")
async def get(
    bulk_id: str, front: AFront, caller: Caller, response: Response, prefer: Prefer = None
) -> BulkRecord:
    """How an action stands; with `Prefer: wait=N`, at its end or after N seconds."""
    deadline = time.monotonic() + seconds_to_wait(prefer)
    while True:
        found = await run_in_threadpool(visible, front, caller, bulk_id)
        if found.ended_at is not None or time.monotonic() >= deadline:
            return _answer(found, response)
        await asyncio.sleep(_POLL_SECONDS)


@router.get("/{bulk_id}/targets")
def targets(
    bulk_id: str,
    front: AFront,
    caller: Caller,
    state: TargetState | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> TargetList:
    """What became of each target."""
    visible(front, caller, bulk_id)
    bulks = Bulks(front.runs.registry.database)
    page = bulks.targets(bulk_id, state=state, limit=limit, cursor=cursor)
    return TargetList(items=list(page.items), next=page.next)


@router.post("/{bulk_id}/approve")
def approve(
    bulk_id: str,
    front: AFront,
    caller: Caller,
    response: Response,
    reason: Reason | None = None,
    if_match: IfMatch = None,
) -> BulkRecord:
    """Have an action carried out that another person has asked for, and that waits for that."""
    found = visible(front, caller, bulk_id)
    _demand_all(caller, Role.APPROVER, found)
    return _decide(front, caller, response, found, BulkState.RUNNING, reason, if_match)


@router.post("/{bulk_id}/refuse")
def refuse(
    bulk_id: str,
    front: AFront,
    caller: Caller,
    response: Response,
    reason: Reason,
    if_match: IfMatch = None,
) -> BulkRecord:
    """Refuse an action that waits for a second person; nothing is done."""
    found = visible(front, caller, bulk_id)
    _demand_all(caller, Role.APPROVER, found)
    return _decide(front, caller, response, found, BulkState.REFUSED, reason, if_match)


@router.post("/{bulk_id}/cancel")
def cancel(
    bulk_id: str,
    front: AFront,
    caller: Caller,
    response: Response,
    reason: Reason | None = None,
    if_match: IfMatch = None,
) -> BulkRecord:
    """End an action where it has got to; what it has done stays done."""
    found = visible(front, caller, bulk_id)
    if found.requester != caller.name:
        _demand_all(caller, Role.OPERATOR, found)
    return _decide(front, caller, response, found, BulkState.CANCELED, reason, if_match)


def _chosen(front: Front, caller: Principal, given: BulkAsk) -> list[Chosen]:
    """The targets of an action, once it is sure that the caller may do that with each.

    Raises:
        AccessDeniedError: they may not.
        BadRequestError: they are too many.
    """
    kinds = visible_kinds(caller, given.filter.kind)
    find = {BulkOf.RUNS: _runs, BulkOf.REQUESTS: _requests, BulkOf.QUEUES: _queues}[given.of]
    chosen = list(islice(find(front, kinds, given), MAX_TARGETS + 1))
    if len(chosen) > MAX_TARGETS:
        raise BadRequestError(
            f"the filter finds more than {MAX_TARGETS:,}: give one that finds fewer"
        )
    # As one by one: who has sent a request may withdraw it.
    withdraws = (given.of, given.verb) == (BulkOf.REQUESTS, BulkVerb.CANCEL)
    others = {c.target.kind for c in chosen if not (withdraws and c.requester == caller.name)}
    for kind in sorted(others):
        demand(caller, Role.OPERATOR, kind)
    if given.of is not BulkOf.RUNS:
        return chosen
    last = front.runs.registry.last_events([one.target.id for one in chosen])
    return [one._replace(seen=last[one.target.id]) for one in chosen]


def _runs(front: Front, kinds: Sequence[str] | None, given: BulkAsk) -> Iterator[Chosen]:
    wanted = given.filter
    # Of those that the verb is for, so that a million that have ended needn't be looked at.
    fits = [status for status in RunStatus if status.is_final == (given.verb is BulkVerb.RETRY)]
    pairs = dict(map(pair_of, wanted.where))
    for status in fits if wanted.status is None else [wanted.status]:
        for kind in [None] if kinds is None else kinds:
            which = RunFilter(kind, status, wanted.requester, wanted.since, pairs, wanted.error)
            for run in front.runs.registry.runs(which, MAX_TARGETS + 1):
                if given.verb in allowed(run) and run.status is not RunStatus.CANCELING:
                    yield Chosen(BulkTarget(id=run.id, kind=run.process, name=run.name))


def _requests(front: Front, kinds: Sequence[str] | None, given: BulkAsk) -> Iterator[Chosen]:
    wanted, fits = given.filter, STATES[given.verb]
    for state in fits if wanted.state is None else {wanted.state}.intersection(fits):
        cursor, is_end = None, False
        while not is_end:
            page = front.intake.search(
                state=state,
                requester=wanted.requester,
                error=wanted.error,
                kinds=kinds,
                limit=MAX_TARGETS + 1,
                cursor=cursor,
            )
            for found in page.items:
                name = f"{found.verb} by {found.requester}"
                target = BulkTarget(id=found.id, kind=found.kind, name=name)
                yield Chosen(target, requester=found.requester)
            cursor = page.next
            is_end = cursor is None


def _queues(front: Front, kinds: Sequence[str] | None, given: BulkAsk) -> Iterator[Chosen]:
    for found in front.intake.queues():
        if found.held_why is not None and (kinds is None or found.kind in kinds):
            yield Chosen(BulkTarget(id=found.kind, kind=found.kind, name=found.kind))


def _waits(front: Front, kinds: Collection[str]) -> bool:
    """Whether a second person has to approve an action on these kinds."""
    return any(k.name in kinds and BULK in k.approvals for k in front.intake.kinds())


def _tag(chosen: Sequence[Chosen]) -> int:
    """What tells whether two sets of targets are the same."""
    ids = "\n".join(sorted(one.target.id for one in chosen))
    return int.from_bytes(hashlib.sha256(ids.encode()).digest()[:7])


def may(caller: Principal, role: Role, found: BulkRecord) -> bool:
    """Whether a caller has a role with all kinds of an action's targets."""
    return all(caller.may(role, kind) for kind in found.kinds or ["*"])


def _demand_all(caller: Principal, role: Role, found: BulkRecord) -> None:
    for kind in found.kinds or ["*"]:
        demand(caller, role, kind)


def visible(front: Front, caller: Principal, bulk_id: str) -> BulkRecord:
    """An action that a caller may see.

    Raises:
        AccessDeniedError: they may not.
        BulkNotFoundError: there is none of that id.
    """
    found = Bulks(front.runs.registry.database).get(bulk_id)
    if found.requester != caller.name:
        _demand_all(caller, Role.VIEWER, found)
    return found


def _decide(
    front: Front,
    caller: Principal,
    response: Response,
    found: BulkRecord,
    to: BulkState,
    reason: Reason | None,
    if_match: str | None,
) -> BulkRecord:
    decided = Bulks(front.runs.registry.database).decide(
        found.id,
        to,
        who=caller.name,
        at=front.now(),
        why="" if reason is None else reason.why,
        etag=etag_of(if_match),
    )
    front.bell.ring()
    return _answer(decided, response)


def _answer(found: BulkRecord, response: Response) -> BulkRecord:
    response.headers["ETag"] = f'"{found.version}"'
    return found
