"""What happened to a run, as it is recorded, and as listeners are notified of it."""

import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ledgerbeam.batch.model.status import RunStatus


class Event(BaseModel):
    """An entry of a run's history; never changed once it is recorded.

    Attributes:
        run: id of the run, which is also the correlation id of its log lines.
        process: name of the batch process.
        instance: name of the instance, unique within the process.
        attempt: its number from 1; None before the first one, and for events of the run itself.
        at: time in UTC.
        who: who or what made it happen: `user@host`, `launcher@host`, `reconcile@host`.
        type: what happened, in small letters: `submitted`, `status`, `attempt_started`,
            `parallelism`, `sla_breach`, ….
        from_status: of the run, where its status moved.
        to_status: of the run, where its status moved.
        why: a reason that people read.
        detail: more facts, as JSON can hold them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    process: str
    instance: str
    attempt: int | None = None
    at: datetime.datetime
    who: str
    type: str
    from_status: RunStatus | None = None
    to_status: RunStatus | None = None
    why: str = ""
    detail: dict[str, Any] = Field(default_factory=dict)
