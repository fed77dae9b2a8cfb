"""`/v1/kinds/{name}/inline` and `/v1/runs/{run}/logs`: what a node answers while the caller waits.

A front end knows no workloads, and other machines have the logs. It stores an errand, wakes nodes,
and waits for the answer of the one that has taken it.
"""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ledgerbeam.batch.observe.log import where_workers_log
from ledgerbeam.io.errors import IllegalMoveError, StorageError
from ledgerbeam.io.machine import ProcessId
from ledgerbeam.service.access.front import AFront, Caller, Front, demand
from ledgerbeam.service.errors import AnswerTimeoutError, ServiceUnavailableError
from ledgerbeam.service.model import Errand, ErrandKind, InlineAnswer, InlineAsk, Role
from ledgerbeam.service.problems import error_of
from ledgerbeam.service.store.errands import Errands
from ledgerbeam.service.store.reading import cursor_of, place_of
from ledgerbeam.service.web.requests import Cursor, IdempotencyKey, Reason
from ledgerbeam.service.web.runs import Found, Operated, ServedRun
from ledgerbeam.service.web.runs import answer as answer_run

router = APIRouter(prefix="/v1", tags=["at once"])

_POLL_SECONDS = 0.05
_LOG_SECONDS = 15.0
_PATIENCE_SECONDS = 2.0
"""After the deadline, so that a node's word of it arrives."""


class LogPage(BaseModel):
    """A page of a log, oldest first.

    Attributes:
        items: its lines.
        next: cursor of the page behind it; None at the end.
        elsewhere: where workers have logged, if not here; None where they haven't.
    """

    items: list[str]
    next: str | None
    elsewhere: str | None


@router.post(
    "/kinds/{name}/inline",
    responses={202: {"model": InlineAnswer, "description": "its run goes on: see the request"}},
)
async def inline(
    name: str,
    given: InlineAsk,
    front: AFront,
    caller: Caller,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> InlineAnswer:
    """Execute one component now, by the code of the batch, and give its rows.

    Nothing is recorded but who has asked, unless it is to be published: then it is a run of an
    instance of its own, which waits in no queue. A component that fails is answered too, by `200`
    with its `failures`.
    """
    demand(caller, Role.SUBMITTER, name)

    def store() -> Errand:
        front.intake.kind(name)
        return Errands(front.runs.registry.database).ask(
            ErrandKind.INLINE,
            name,
            given.model_dump(include={"key", "parameters", "publish"}),
            who=caller.name,
            at=front.now(),
            seconds=given.seconds,
            why=given.why,
            key=idempotency_key,
        )

    found = await _answered(front, await run_in_threadpool(store))
    answer = InlineAnswer.model_validate({"kind": name, "key": given.key, **found})
    if answer.state == "RUNNING":
        response.status_code = 202
    if answer.request_id is not None:
        response.headers["Location"] = f"/v1/requests/{answer.request_id}"
    return answer


@router.get("/runs/{run}/logs")
async def logs(
    record: Found,
    front: AFront,
    caller: Caller,
    component: Annotated[str | None, Query(description="only lines that name it")] = None,
    limit: Annotated[int, Query(ge=1, le=5000, description="how many lines at most")] = 1000,
    cursor: Cursor = None,
) -> LogPage:
    """A run's log: of launchers, attempts and their workers, on the machine of the last launcher.

    That machine has to have a node that serves the workload.
    """
    demand(caller, Role.OPERATOR, record.process)
    first = 0 if cursor is None else int(place_of(cursor, int)[0])
    if not record.attempts:
        raise StorageError(f"run {record.name}: no launcher has begun yet, and there is no log")
    host = ProcessId.parse(record.attempts[-1].launcher).host
    asked = {"run": record.id, "component": component, "first": first, "limit": limit + 1}

    def store() -> Errand:
        return Errands(front.runs.registry.database).ask(
            ErrandKind.LOGS,
            record.process,
            asked,
            who=caller.name,
            at=front.now(),
            seconds=_LOG_SECONDS,
            host=host,
        )

    lines = (await _answered(front, await run_in_threadpool(store)))["lines"]
    following = cursor_of(first + limit) if len(lines) > limit else None
    return LogPage(items=lines[:limit], next=following, elsewhere=where_workers_log(record) or None)


@router.post("/runs/{run}/force-restart", tags=["runs"])
async def force_restart(
    record: Operated, front: AFront, caller: Caller, response: Response, reason: Reason
) -> ServedRun:
    """Give up an attempt whose machine is gone, and begin another; needs a reason.

    A node does it at once, past the queue, in which the run that is stuck has its place.
    """
    if record.live_attempt is None:
        raise IllegalMoveError(
            f"run {record.name} has no attempt that could be given up: restart it",
            run=record.id,
            from_status=record.status,
        )

    def store() -> Errand:
        return Errands(front.runs.registry.database).ask(
            ErrandKind.RESTART,
            record.process,
            {"run": record.id},
            who=caller.name,
            at=front.now(),
            seconds=_LOG_SECONDS,
            why=reason.why,
        )

    await _answered(front, await run_in_threadpool(store))
    found = await run_in_threadpool(front.runs.registry.get, record.id)
    return await run_in_threadpool(answer_run, front, found, response)


async def _answered(front: Front, asked: Errand) -> Mapping[str, Any]:
    """The answer to an errand.

    Raises:
        ServiceUnavailableError: no node has taken it in time.
        AnswerTimeoutError: a node has taken it, and hasn't answered.
        UserError: any that the node has answered by.
    """
    front.bell.ring()
    errands = Errands(front.runs.registry.database)
    while asked.answered_at is None:
        if (front.now() - asked.deadline).total_seconds() > _PATIENCE_SECONDS:
            where = "" if asked.host is None else f" on {asked.host}"
            if asked.node is None:
                raise ServiceUnavailableError(
                    f"no node{where} that serves {asked.kind} was free in time: start one, or try "
                    "again"
                )
            raise AnswerTimeoutError(
                f"node {asked.node} has taken it, and hasn't answered in time: it may be lost"
            )
        await asyncio.sleep(_POLL_SECONDS)
        asked = await run_in_threadpool(errands.get, asked.id)
    if asked.answer is None:
        raise error_of({"code": asked.code, "detail": asked.error})
    return asked.answer
