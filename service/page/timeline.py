"""Times as bars: a run against its deadline, and the attempts of a run."""

import datetime
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ledgerbeam.batch.model.run import RecordedEvent, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.runs.reading import RunView

_TICKS = 4
_MINUTE = datetime.timedelta(minutes=1)
_DAY = datetime.timedelta(days=1)
_NARROWEST = 0.5


class Span(NamedTuple):
    """A bar, in percent of its axis.

    Attributes:
        start: where it begins.
        width: how long it is; enough to be seen.
        style: what it stands for: `waiting`, `done`, `ahead`, `paused`, or the outcome of an
            attempt.
        title: the same in words.
    """

    start: float
    width: float
    style: str
    title: str


class Axis(NamedTuple):
    """A part of time that bars are drawn over.

    Attributes:
        start: its beginning, in UTC.
        end: its end, in UTC.
    """

    start: datetime.datetime
    end: datetime.datetime

    @classmethod
    def over(cls, times: Iterable[datetime.datetime | None]) -> "Axis | None":
        """The shortest one that has all these times in it; None where there are none."""
        given = [time for time in times if time is not None]
        if not given:
            return None
        return cls(min(given), max(max(given), min(given) + _MINUTE / 60))

    def place(self, at: datetime.datetime) -> float:
        """Where a time is, in percent; what lies outside is at the axis's nearer end."""
        share = (at - self.start) / (self.end - self.start)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    def span(
        self, start: datetime.datetime, end: datetime.datetime, style: str, title: str
    ) -> Span:
        """The bar of what went on from `start` to `end`."""
        first, last = self.place(start), self.place(end)
        width = max(last - first, _NARROWEST)
        return Span(min(first, 100 - width), round(width, 2), style, title)

    @property
    def ticks(self) -> list[str]:
        """What is written along it, at even distances from its beginning to its end."""
        step = (self.end - self.start) / _TICKS
        times = [self.start + step * number for number in range(_TICKS + 1)]
        is_short = self.end - self.start < 5 * _MINUTE
        form = "%H:%M:%S" if is_short else "%H:%M"
        if self.end - self.start > _DAY:
            form = "%m-%d %H:%M"
        return [f"{time:{form}}" for time in times]


class AttemptBar(NamedTuple):
    """An attempt over the time of its run.

    Attributes:
        number: of the attempt.
        spans: the attempt, and on it the pauses in it.
    """

    number: int
    spans: Sequence[Span]


class Gantt(NamedTuple):
    """The attempts of a run over its time.

    Attributes:
        axis: from the run's submission to its end, to the present or to its deadline.
        attempts: by number.
        deadline: where the run must have ended, in percent; None where it needn't.
    """

    axis: Axis
    attempts: Sequence[AttemptBar]
    deadline: float | None


def gantt(run: RunRecord, events: Sequence[RecordedEvent], now: datetime.datetime) -> Gantt | None:
    """The attempts of a run over its time; None where none has begun.

    Args:
        run: the run.
        events: all of its events, in their order.
        now: the present time in UTC.
    """
    if not run.attempts:
        return None
    last = run.attempts[-1].ended_at or now
    due = run.must_finish_by
    # One that is far away would leave nothing to be seen of the attempts.
    is_near = due is not None and due - run.submitted_at < 3 * (last - run.submitted_at)
    axis = Axis.over([run.submitted_at, last, due if is_near else None])
    assert axis is not None
    pauses = list(_pauses(events, last))
    bars = []
    for attempt in run.attempts:
        end = attempt.ended_at or now
        style = attempt.outcome or "done"
        long = duration(end - attempt.started_at)
        told = f"{clock(attempt.started_at)} to {clock(end)}, {long}"
        spans = [axis.span(attempt.started_at, end, style, told)]
        for begin, until in pauses:
            begin, until = max(begin, attempt.started_at), min(until, end)
            if begin < until:
                told = f"paused from {clock(begin)} to {clock(until)}"
                spans.append(axis.span(begin, until, "paused", told))
        bars.append(AttemptBar(attempt.number, spans))
    return Gantt(axis, bars, axis.place(due) if due is not None and is_near else None)


class Forecast(NamedTuple):
    """A run from its start to its forecast end, against its deadline.

    Attributes:
        spans: what is done and what is ahead.
        deadline: where it must have ended, in percent; None where it needn't.
        is_late: whether it has missed its deadline, or will.
        text: the same in words.
    """

    spans: Sequence[Span]
    deadline: float | None
    is_late: bool
    text: str


def forecast(view: RunView, axis: Axis, now: datetime.datetime) -> Forecast:
    """How a run stands against its deadline.

    Args:
        view: the run.
        axis: over which it is drawn.
        now: the present time in UTC.
    """
    run, due = view.run, view.run.must_finish_by
    start, end = begun_at(run), end_of(view, now)
    spans = []
    if run.status.is_final:
        spans.append(axis.span(start, end, str(run.status), f"{clock(start)} to {clock(end)}"))
    else:
        spans.append(axis.span(start, now, "done", f"since {clock(start)}"))
        if end > now:
            spans.append(axis.span(now, end, "ahead", f"expected until {clock(end)}"))
    is_published = run.status is RunStatus.SUCCESS
    is_late = due is not None and (end if is_published else max(now, end)) > due
    words = f"ended {clock(end)}" if run.status.is_final else f"expected end {clock(end)}"
    if not run.status.is_final and view.progress.estimated_end is None:
        words = "no end can be foretold yet"
    if due is not None:
        words += f", deadline {clock(due)}"
        beyond = abs((end if is_published else max(now, end)) - due)
        words += f": {duration(beyond)} {'late' if is_late else 'to spare'}"
    return Forecast(spans, None if due is None else axis.place(due), is_late, words)


def begun_at(run: RunRecord) -> datetime.datetime:
    """When a run's first attempt began, or when it was submitted, in UTC."""
    return run.attempts[0].started_at if run.attempts else run.submitted_at


def end_of(view: RunView, now: datetime.datetime) -> datetime.datetime:
    """When a run has ended or is expected to; the present where nobody can say."""
    if view.run.status.is_final:
        ended = view.run.attempts[-1].ended_at if view.run.attempts else None
        return ended or view.run.submitted_at
    return max(view.progress.estimated_end or now, now)


def duration(span: datetime.timedelta) -> str:
    """A span of time as people say it: `45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    seconds = round(span.total_seconds())
    if seconds < 100:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def _pauses(
    events: Sequence[RecordedEvent], end: datetime.datetime
) -> Iterable[tuple[datetime.datetime, datetime.datetime]]:
    begun: datetime.datetime | None = None
    for event in events:
        if event.to_status is RunStatus.PAUSED:
            begun = event.at
        elif event.to_status is not None and begun is not None:
            yield begun, event.at
            begun = None
    if begun is not None:
        yield begun, end


def clock(at: datetime.datetime) -> str:
    """A time as it is written in a line: `11-21 03:00:00 UTC`."""
    return f"{at.astimezone(datetime.UTC):%m-%d %H:%M:%S} UTC"
