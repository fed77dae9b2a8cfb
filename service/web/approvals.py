"""`/v1/runs/{run}/approve` and `/refuse`: what a second person says of what somebody asked for."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from ledgerbeam.batch.model.approval import Act
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.service.access.front import AFront, Caller, demand
from ledgerbeam.service.model import Positive, RequestRecord, Role, Submission, Verb
from ledgerbeam.service.web.requests import IdempotencyKey, Reason, accept
from ledgerbeam.service.web.runs import Found, ServedRun, answer, ask_again

router = APIRouter(prefix="/v1/runs", tags=["runs"])


class Answer(Reason):
    """What is answered, and why.

    Attributes:
        approval: number of what was asked for, as the run's `approvals` have it; None for the only
            thing that waits.
    """

    approval: Positive | None = None


def _approver(record: Found, caller: Caller) -> RunRecord:
    """The run that a path names, for a caller who may approve what is done with it."""
    demand(caller, Role.APPROVER, record.process)
    return record


Approved = Annotated[RunRecord, Depends(_approver)]


@router.post("/{run}/approve", status_code=202)
def approve(
    record: Approved,
    front: AFront,
    caller: Caller,
    response: Response,
    given: Answer | None = None,
    idempotency_key: IdempotencyKey = None,
) -> RequestRecord:
    """Have done what another person has asked for, where the definition wants it approved."""
    given = given or Answer()
    asked = front.runs.signed_by(caller.name).to_be_approved(record, given.approval)
    why = given.why or asked.why
    if asked.act is Act.CORRECT:
        number = asked.number
        return ask_again(
            front, caller, record, response, Verb.RETRY, why, idempotency_key, approval=number
        )
    verb = Verb.REPLACE if asked.act is Act.REPLACE else Verb.RESOLVE
    submission = Submission(kind=record.process, parameters={"approval": asked.number}, why=why)
    return accept(
        front,
        caller,
        submission,
        response,
        verb,
        record.id,
        idempotency_key,
        role=Role.APPROVER,
    )


@router.post("/{run}/refuse")
def refuse(
    record: Approved, front: AFront, caller: Caller, response: Response, given: Answer
) -> ServedRun:
    """Refuse what another person has asked for; it isn't done."""
    front.runs.signed_by(caller.name).refuse(record.id, given.why, given.approval)
    return answer(front, record, response)
