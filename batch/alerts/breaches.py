"""Breaches of service levels: missed deadlines, and those that will be."""

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ledgerbeam.batch.model.sla import _LAST, MINUTE, Deadlines

WINDOW = 10 * MINUTE
"""The rate is that of at least the last ten minutes, …"""


MIN_DONE = 5
"""… and of at least five units: where a shard takes long, one more or less decides nothing."""


MIN_SAMPLES = 5
"""Samples that a rate is estimated from at the least."""


class Sample(NamedTuple):
    """How far an attempt was at some time.

    Attributes:
        at: time in UTC.
        done: units done, shards or components.
        total: units that there are.
    """

    at: datetime.datetime
    done: int
    total: int


def estimated_end(
    samples: Sequence[Sample],
    *,
    window: datetime.timedelta = WINDOW,
    min_done: int = MIN_DONE,
    min_samples: int = MIN_SAMPLES,
) -> datetime.datetime | None:
    """When an attempt will be done at its rate; to the microsecond where the rate is constant.

    The rate is that between the last sample and the latest one that lies `window` before it and
    has `min_done` fewer units done; where there is none, the sample in which work began. So it
    follows a run that slows down, a run of few long shards doesn't swing with each of them, and a
    run that stands still looks worse with time. What goes before the first unit that gets done,
    such as reading the input, doesn't count.

    Args:
        samples: of one attempt, in the order of time.
        window: the least time that the rate is taken over.
        min_done: the least number of units that it is taken over.
        min_samples: from fewer samples nothing is estimated.

    Returns:
        The time, at the latest that of `datetime.max`; that of the last sample where all is done.
        None where nothing can be said yet.
    """
    if not samples:
        return None
    last = samples[-1]
    remaining = last.total - last.done
    if remaining <= 0:
        return last.at
    began = max(i for i, sample in enumerate(samples) if sample.done <= samples[0].done)
    at_work = samples[began:]
    if len(at_work) < min_samples:
        return None
    first = next(
        (
            sample
            for sample in reversed(at_work)
            if last.at - sample.at >= window and last.done - sample.done >= min_done
        ),
        at_work[0],
    )
    gained = last.done - first.done
    if gained <= 0:
        return None
    microseconds = (last.at - first.at) // datetime.timedelta(microseconds=1)
    try:
        # Rounded up: an end is never foretold before it can be reached.
        return last.at + datetime.timedelta(microseconds=-(-microseconds * remaining // gained))
    except OverflowError:
        return _LAST


class BreachKind(StrEnum):
    """What of the agreement is broken, or going to be."""

    NOT_STARTED = "not_started"
    FORESEEN = "finish_foreseen_late"
    NOT_FINISHED = "not_finished"


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run.

    Attributes:
        deadlines: that it has.
        started_at: when its first attempt began to execute, if it has.
        finished_at: when it succeeded, if it has. A run that failed has not finished: what it was
            to give isn't there.
        samples: of the current attempt, in the order of time. After a pause, those since then: a
            rate over the pause would foretell what nobody expects to go on.
    """

    deadlines: Deadlines
    started_at: datetime.datetime | None = None
    finished_at: datetime.datetime | None = None
    samples: Sequence[Sample] = ()


@dataclass(frozen=True)
class Breach:
    """A deadline that was missed, or will be.

    Attributes:
        kind: which one, and whether it is foreseen.
        deadline: in UTC.
        expected: when the run is expected to end, where that makes the breach.
        why: for people.
    """

    kind: BreachKind
    deadline: datetime.datetime
    expected: datetime.datetime | None
    why: str


def breaches(
    now: datetime.datetime, facts: RunFacts, known: Collection[BreachKind] = ()
) -> list[Breach]:
    """The breaches of a run to notify of now; each kind once a run.

    Args:
        now: time in UTC.
        facts: of the run.
        known: kinds that were notified of for this run already.
    """
    found = [_start(now, facts), _finish(now, facts)]
    return [breach for breach in found if breach is not None and breach.kind not in known]


def _start(now: datetime.datetime, facts: RunFacts) -> Breach | None:
    deadline = facts.deadlines.start_by
    if deadline is None or (facts.started_at or now) <= deadline:
        return None
    state = "not started" if facts.started_at is None else f"started at {_text(facts.started_at)}"
    why = f"{state}, must start by {_text(deadline)}"
    return Breach(BreachKind.NOT_STARTED, deadline, None, why)


def _finish(now: datetime.datetime, facts: RunFacts) -> Breach | None:
    deadline = facts.deadlines.finish_by
    if deadline is None:
        return None
    must = f"must finish by {_text(deadline)}"
    if (facts.finished_at or now) > deadline:
        done = facts.finished_at
        state = "not finished" if done is None else f"finished at {_text(done)}"
        return Breach(BreachKind.NOT_FINISHED, deadline, None, f"{state}, {must}")
    expected = None if facts.finished_at else estimated_end(facts.samples)
    if expected is None or expected <= deadline:
        return None
    last = facts.samples[-1]
    why = f"{last.done:,} of {last.total:,} done, at this rate until {_text(expected)}, {must}"
    return Breach(BreachKind.FORESEEN, deadline, expected, why)


def _text(at: datetime.datetime) -> str:
    return f"{at.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
