"""What a second person has to approve before it is done, as a run's history tells it."""

import datetime
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from ledgerbeam.batch.model.run import RecordedEvent

ASKED = "approval_asked"
REFUSED = "approval_refused"
"""Types of events."""


class Act(StrEnum):
    """What a definition may want approved.

    `CORRECT`: a retry with other parameters. `REPLACE`: a submission in the place of a run.
    `RESOLVE`: recording how a call has ended whose outcome was unknown.
    """

    CORRECT = "correct"
    REPLACE = "replace"
    RESOLVE = "resolve"


BULK = "bulk"
"""Of an action of a service on many runs or requests, which stands in no run's history."""

APPROVED = (*Act, BULK)
"""All that a definition may want approved."""


class Approval(BaseModel):
    """Something that somebody has asked for, and that waits for another person.

    Attributes:
        number: of the event by which it was asked for.
        act: what is to be done.
        arguments: to be done with, by name.
        who: asks.
        why: the reason.
        at: time in UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    act: Act
    arguments: dict[str, Any]
    who: str
    why: str
    at: datetime.datetime


def open_approvals(events: Sequence[RecordedEvent]) -> list[Approval]:
    """What waits for a second person, oldest first.

    What was asked for before the run moved on doesn't wait any more: it was about another state.

    Args:
        events: all of a run, in their order.
    """
    waiting: dict[int, Approval] = {}
    for event in events:
        if event.to_status is not None:
            waiting.clear()
        elif event.type == ASKED:
            waiting[event.sequence] = Approval(
                number=event.sequence, who=event.who, why=event.why, at=event.at, **event.detail
            )
        else:
            waiting.pop(event.detail.get("approval", 0), None)
    return list(waiting.values())
