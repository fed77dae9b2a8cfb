"""How requests for runs of a batch process wait for each other."""

from pydantic import BaseModel, ConfigDict, Field


class QueuePolicy(BaseModel):
    """How the queue of a kind is served.

    Attributes:
        limit: how many runs of the kind go on at once, over all nodes: 1 for one after the other
            in the order in which they were asked for, whatever their priority; None for no limit.
        lost_nodes: a request whose node was lost so many times is put aside for a person to look
            at (`DEAD`), since it may be what kills them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int | None = Field(default=None, ge=1)
    lost_nodes: int = Field(default=3, ge=1)
