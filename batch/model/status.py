"""Statuses of runs and components, and the moves between those of runs."""

from collections.abc import Mapping
from enum import StrEnum


class RunStatus(StrEnum):
    """Where a run stands.

    `PAUSED` and `CANCELING` have been asked for: work in flight may still go on. `CANCELED` is
    confirmed: the runner has stopped, and nothing of the run can be committed any more.
    """

    INITIATED = "INITIATED"
    EXECUTING = "EXECUTING"
    PAUSED = "PAUSED"
    CANCELING = "CANCELING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELED = "CANCELED"

    @property
    def is_final(self) -> bool:
        """Whether nothing moves the run on but a person (`retry`, `restart`)."""
        return self in (RunStatus.SUCCESS, RunStatus.FAILURE, RunStatus.CANCELED)


MOVES: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.INITIATED: frozenset(
        # A run that waits for its launcher can be paused, canceled, or given up.
        {RunStatus.EXECUTING, RunStatus.PAUSED, RunStatus.CANCELED, RunStatus.FAILURE}
    ),
    RunStatus.EXECUTING: frozenset(
        {RunStatus.PAUSED, RunStatus.CANCELING, RunStatus.SUCCESS, RunStatus.FAILURE}
    ),
    # What was in flight when a run was paused may have been the last of it.
    RunStatus.PAUSED: frozenset(
        {RunStatus.EXECUTING, RunStatus.CANCELING, RunStatus.SUCCESS, RunStatus.FAILURE}
    ),
    # A run may end by itself before the request to cancel reaches it.
    RunStatus.CANCELING: frozenset({RunStatus.CANCELED, RunStatus.SUCCESS, RunStatus.FAILURE}),
    # `retry` and `restart` begin another attempt.
    RunStatus.FAILURE: frozenset({RunStatus.EXECUTING}),
    RunStatus.CANCELED: frozenset({RunStatus.EXECUTING}),
    # What failed within the failure limit can still be retried, in a run of its own.
    RunStatus.SUCCESS: frozenset(),
}
"""The legal moves. Nothing else is ever recorded."""


class ComponentStatus(StrEnum):
    """Where a component stands.

    `UNKNOWN` is that of a component that may be tried once only, and of which nobody can say
    whether it was executed: a person has to check.
    """

    PENDING = "PENDING"
    EXECUTING = "EXECUTING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELED = "CANCELED"
    UNKNOWN = "UNKNOWN"
