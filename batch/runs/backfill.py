"""Runs of one workload over many days: at most so many at once, from where it stopped before."""

import datetime
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.runs.client import Runs

WHY = "the days were filled in again"
_POLL_SECONDS = 0.5

Submission = tuple[Mapping[str, Any], list[str]]
"""Parameters, and flags for Beam."""


def backfill(
    runs: Runs,
    process: str,
    days: Iterable[datetime.date],
    submission_of: Callable[[datetime.date], Submission],
    in_flight: int,
    see_to: Callable[[RunRecord], object] = lambda run: None,
) -> Iterator[RunRecord]:
    """Submit a run for each day, in their order, and wait for its end.

    A day that has succeeded is left as it is, one that has failed or was canceled is tried again,
    and one that is under way is waited for. After a failure no further day begins.

    Args:
        runs: where they are recorded: of a registry, or of a service.
        process: name of the workload.
        days: the business dates.
        submission_of: what is submitted for a day.
        in_flight: how many runs at once.
        see_to: called with each run that goes on, now and then; a service does that by itself.

    Yields:
        Each run at its end, in the order in which they end.

    Raises:
        UserError: a run can't be submitted.
    """
    waiting = deque(days)
    begun: list[str] = []
    has_failed = False
    while begun or (waiting and not has_failed):
        while waiting and not has_failed and len(begun) < in_flight:
            record = runs.submit(process, *submission_of(waiting.popleft()))
            if record.status in (RunStatus.FAILURE, RunStatus.CANCELED):
                record = runs.retry(record.id, WHY)
            begun.append(record.id)
        for run in begun[:]:
            record = runs.find(run)
            if record.status.is_final:
                begun.remove(run)
                has_failed |= record.status is not RunStatus.SUCCESS
                yield record
            else:
                see_to(record)
        if begun:
            time.sleep(_POLL_SECONDS)
