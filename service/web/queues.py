"""`/v1/kinds`, `/v1/queues`, `/v1/audit` and `/v1/problems`: what there is, and who did what."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, StrictBool
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from ledgerbeam.service.errors import BadRequestError
from ledgerbeam.service.model import (
    AuditEntry,
    KindRecord,
    Positive,
    QueueRecord,
    RequestRecord,
    Role,
)
from ledgerbeam.service.problems import classes, status_of, title_of, type_of
from ledgerbeam.service.web.front import AFront, Caller, demand, etag_of, visible_kinds
from ledgerbeam.service.web.requests import Cursor, IfMatch, Limit, Reason

router = APIRouter(prefix="/v1", tags=["kinds and queues"])


def _tell_no_default(schema: JsonDict) -> None:
    # What isn't given isn't changed.
    del schema["default"]


_UNCHANGED: Any = Field(default=None, json_schema_extra=_tell_no_default)


class QueueChange(Reason):
    """What is to change of a queue; what isn't given stays as it is.

    Attributes:
        held: whether nothing more is taken from it.
        limit: how many runs go on at once; 1 for one after the other, None for no limit.
        lost_nodes: after so many lost nodes a request is put aside.
    """

    held: StrictBool | SkipJsonSchema[None] = _UNCHANGED
    limit: Positive | None = _UNCHANGED
    lost_nodes: Positive | SkipJsonSchema[None] = _UNCHANGED


class AuditPage(BaseModel):
    """A page of the audit, newest first."""

    items: list[AuditEntry]
    next: str | None


@router.get("/kinds")
def kinds(front: AFront, caller: Caller) -> list[KindRecord]:
    """Workloads that a router has published, with the JSON Schema of their parameters."""
    return [kind for kind in front.intake.kinds() if caller.may(Role.VIEWER, kind.name)]


@router.get("/kinds/{name}")
def kind(name: str, front: AFront, caller: Caller) -> KindRecord:
    """A workload."""
    demand(caller, Role.VIEWER, name)
    return front.intake.kind(name)


@router.get("/queues")
def queues(front: AFront, caller: Caller) -> list[QueueRecord]:
    """How the queue of each kind stands."""
    return [queue for queue in front.intake.queues() if caller.may(Role.VIEWER, queue.kind)]


@router.get("/queues/{name}")
def queue(name: str, front: AFront, caller: Caller, response: Response) -> QueueRecord:
    """How a queue stands."""
    demand(caller, Role.VIEWER, name)
    found = front.intake.queue(name)
    response.headers["ETag"] = f'"{found.version}"'
    return found


@router.get("/queues/{name}/waiting")
def waiting(
    name: str,
    front: AFront,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> list[RequestRecord]:
    """Requests that wait in a queue, in the order in which they are taken."""
    demand(caller, Role.VIEWER, name)
    return front.intake.waiting(name, limit)


@router.patch("/queues/{name}")
def change(
    name: str,
    given: QueueChange,
    front: AFront,
    caller: Caller,
    response: Response,
    if_match: IfMatch = None,
) -> QueueRecord:
    """Hold or release a queue, or change how it is served."""
    demand(caller, Role.OPERATOR, name)
    changes: dict[str, Any] = given.model_dump(exclude={"why"}, exclude_unset=True)
    for required in ("held", "lost_nodes"):
        if required in changes and changes[required] is None:
            raise BadRequestError(f"{required}: null isn't a value of it: leave it out")
    found = front.intake.change_queue(
        name,
        changes,
        who=caller.name,
        at=front.now(),
        why=given.why,
        etag=etag_of(if_match),
    )
    front.bell.ring()
    response.headers["ETag"] = f'"{found.version}"'
    return found


@router.get("/audit")
def audit(
    front: AFront,
    caller: Caller,
    subject: Annotated[str | None, Query(description="id or name")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> AuditPage:
    """Who did what with requests, queues and keys, newest first."""
    page = front.intake.audit(
        subject=subject, kinds=visible_kinds(caller, None), limit=limit, cursor=cursor
    )
    return AuditPage(items=list(page.items), next=page.next)


@router.get("/problems/{code}")
def problem(code: str) -> dict[str, Any]:
    """What an error is, by its code; the address is the `type` of its problem details."""
    if code not in classes():
        raise BadRequestError(f"no error has the code {code}")
    return {"type": type_of(code), "title": title_of(code), "status": status_of(code)}
