"""`/v1/kinds`, `/v1/queues`, `/v1/audit` and `/v1/problems`: what there is, and who did what."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, StrictBool
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException

from ledgerbeam.batch.registry.audit_export import ChainedEntry
from ledgerbeam.service.access.front import AFront, Caller, demand, etag_of, visible_kinds
from ledgerbeam.service.errors import BadRequestError
from ledgerbeam.service.model import (
    AuditEntry,
    KindRecord,
    Moment,
    Positive,
    QueueRecord,
    RequestRecord,
    Role,
)
from ledgerbeam.service.problems import classes, status_of, title_of, type_of
from ledgerbeam.service.web.requests import Cursor, IfMatch, Limit, Reason

router = APIRouter(prefix="/v1", tags=["kinds and queues"])

_LINES = "application/x-ndjson"
_CSV = "text/csv"
_TEXT = {"schema": {"type": "string"}}


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


@router.get(
    "/audit",
    responses={200: {"content": dict.fromkeys((_LINES, _CSV), _TEXT)}},
    response_model=AuditPage,
)
def audit(
    front: AFront,
    caller: Caller,
    subject: Annotated[str | None, Query(description="id or name")] = None,
    kind: Annotated[str | None, Query(description="of an export: only this workload's")] = None,
    since: Annotated[
        Moment | None, Query(description="of an export: only of that time or later")
    ] = None,
    after: Annotated[
        int, Query(ge=0, le=2**62, description="of an export: `number` of the last entry you have")
    ] = 0,
    limit: Limit = 50,
    cursor: Cursor = None,
    accept: Annotated[str | None, Header()] = None,
) -> AuditPage | Response:
    """Who did what with requests, queues and keys, newest first; or all there is, as an export.

    Where JSON lines (`application/x-ndjson`) or `text/csv` are accepted, it is an export of the
    whole audit, of runs too: oldest first, without an end but the last entry, each with the hash
    that seals it. `after` goes on behind the one before.
    """
    for media, write in ((_LINES, _lines), (_CSV, _csv)):
        if accept is not None and media in accept:
            kinds = visible_kinds(caller, kind)
            found = front.runs.audit_of(kinds, after, since)
            return StreamingResponse(write(found), media_type=media)
    page = front.intake.audit(
        subject=subject, kinds=visible_kinds(caller, None), limit=limit, cursor=cursor
    )
    return AuditPage(items=list(page.items), next=page.next)


def _lines(found: Iterator[ChainedEntry]) -> Iterator[str]:
    for entry in found:
        yield entry.model_dump_json() + "\n"


def _csv(found: Iterator[ChainedEntry]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.DictWriter(line, ChainedEntry.model_fields, lineterminator="\r\n")
    writer.writeheader()
    for entry in found:
        facts = entry.model_dump(mode="json")
        writer.writerow(facts | {"detail": json.dumps(facts["detail"])})
        yield line.getvalue()
        line.seek(0)
        line.truncate()
    yield line.getvalue()  # the header, where there is nothing else


class Chain(BaseModel):
    """What of the audit is sealed by hashes.

    Attributes:
        entries: how many entries are sealed.
        unsealed: how many came later, and are sealed by the next `reconcile`.
        head: hash of the last one, which covers all of them: keep it elsewhere.
    """

    entries: int
    unsealed: int
    head: str


@router.get("/audit/chain")
def chain(
    front: AFront,
    caller: Caller,
    head: Annotated[str, Query(description="a hash that was the last one, to be found")] = "",
) -> Chain:
    """Compute the hashes of all entries again: that none was changed or removed."""
    demand(caller, Role.VIEWER)
    return Chain.model_validate(front.runs.verify_audit(head)._asdict())


@router.get("/problems/{code}")
def problem(code: str) -> dict[str, Any]:
    """What an error is, by its code; the address is the `type` of its problem details."""
    if code not in classes():
        raise HTTPException(404, f"no error has the code {code}")
    return {"type": type_of(code), "title": title_of(code), "status": status_of(code)}
