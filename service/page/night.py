"""Tonight: how each run stands against its deadline, and what waits for a person."""

import datetime
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.sla import Sla
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.runs.reading import RunView
from ledgerbeam.service.model import KindRecord, RequestRecord
from ledgerbeam.service.page.timeline import (
    Axis,
    Forecast,
    begun_at,
    clock,
    duration,
    end_of,
    forecast,
)

_DAY = datetime.timedelta(days=1)
RECENT = _DAY
"""What ended longer ago is no matter of this night."""


class Seen(NamedTuple):
    """A run, as far as it could be looked at.

    Attributes:
        view: the run.
        problem: why nothing is known of its progress; empty where it is.
    """

    view: RunView
    problem: str = ""

    @property
    def run(self) -> RunRecord:
        """What is on record of it."""
        return self.view.run


class Row(NamedTuple):
    """A run on the axis of the night.

    Attributes:
        seen: the run.
        forecast: how it stands against its deadline; None for one that lies before the axis.
    """

    seen: Seen
    forecast: Forecast | None


class Due(NamedTuple):
    """A kind that has a deadline, and never ran.

    Attributes:
        kind: its name.
        place: where the deadline is on the axis of the night, in percent.
        is_late: whether it is over.
        text: the same in words.
    """

    kind: str
    place: float
    is_late: bool
    text: str


class Matter(NamedTuple):
    """What waits for a person.

    Attributes:
        href: where it is seen to.
        name: of the run or request.
        what: in a word or two.
        style: how urgent that is: `bad` or `warn`.
        why: one line.
    """

    href: str
    name: str
    what: str
    style: str
    why: str


class Night(NamedTuple):
    """The night at a glance.

    Attributes:
        axis: over which runs and deadlines are drawn; None where there are none.
        rows: one for each run at work, and for the last run of each kind.
        due: kinds that never ran, the deadline that is over first.
        matters: what waits for a person, the most urgent first.
        late: how many runs have missed their deadline, or will, and kinds that never ran.
        stuck: how many components were called more than once, and haven't ended.
    """

    axis: Axis | None
    rows: Sequence[Row]
    due: Sequence[Due]
    matters: Sequence[Matter]
    late: int
    stuck: int


def night(
    seen: Iterable[Seen],
    requests: Iterable[RequestRecord],
    unrun: Iterable[KindRecord],
    now: datetime.datetime,
) -> Night:
    """Runs and requests as what a person on call has to know.

    Args:
        seen: runs at work, the last one of each kind, and those of the last day that failed.
        requests: that have ended without a run, and that somebody should look at.
        unrun: kinds that never ran.
        now: the present time in UTC.
    """
    runs = list(seen)
    recent = [each for each in runs if not is_over(each.run, now)]
    deadlines = {kind.name: _deadline(kind.sla, now) for kind in unrun if kind.sla is not None}
    axis = _axis([each.view for each in recent], [by for _, by in deadlines.values()], now)
    rows = [
        Row(each, forecast(each.view, axis, now) if axis and each in recent else None)
        for each in runs
    ]
    rows.sort(key=_urgency)
    due = [
        _due(kind, verb, by, axis, now)
        for kind, (verb, by) in sorted(deadlines.items(), key=lambda each: each[1][1])
        if axis is not None
    ]
    matters = [matter for row in rows for matter in _matters(row, now)]
    matters += [
        Matter(f"/requests?kind={quote(each.kind)}", each.kind, "late", "bad", each.text)
        for each in due
        if each.is_late
    ]
    matters += [_of_request(request) for request in requests]
    late = [row for row in rows if row.forecast is not None and row.forecast.is_late]
    never = [each for each in due if each.is_late]
    stuck = sum(len(row.seen.view.progress.stuck) for row in rows)
    matters.sort(key=lambda matter: matter.style != "bad")
    return Night(axis, rows, due, matters, len(late) + len(never), stuck)


def is_over(run: RunRecord, now: datetime.datetime) -> bool:
    """Whether a run ended so long ago that it is no matter of this night."""
    if not run.status.is_final:
        return False
    ended = run.attempts[-1].ended_at if run.attempts else None
    return (ended or run.submitted_at) < now - RECENT


def _deadline(sla: Sla, now: datetime.datetime) -> tuple[str, datetime.datetime]:
    """By when a kind that never ran must have started, or else ended: the deadline nearest to now.

    Every day may be a business date; only a definition's runs say which ones are.
    """
    today = now.astimezone(ZoneInfo(sla.zone)).date()

    def of(date: datetime.date) -> tuple[str, datetime.datetime]:
        start_by, finish_by = sla.deadlines(date)
        if start_by is not None:
            return "have started", start_by
        assert finish_by is not None
        return "have ended", finish_by

    return of(today - datetime.timedelta(days=round((of(today)[1] - now) / _DAY)))


def _due(kind: str, verb: str, by: datetime.datetime, axis: Axis, now: datetime.datetime) -> Due:
    is_late = now > by
    beyond = f"{duration(abs(now - by))} {'late' if is_late else 'to spare'}"
    text = f"never ran, must {verb} by {clock(by)}: {beyond}"
    return Due(kind, axis.place(by), is_late, text)


def _axis(
    views: Sequence[RunView], deadlines: Sequence[datetime.datetime], now: datetime.datetime
) -> Axis | None:
    earliest, latest = now - RECENT, now + RECENT
    times = [now, *deadlines]
    for view in views:
        times += [begun_at(view.run), end_of(view, now)]
        times += [view.run.must_finish_by] if view.run.must_finish_by is not None else []
    # One run that hangs since days, or is due in days, would leave nothing to be seen of the night.
    within = [min(max(time, earliest), latest) for time in times]
    return Axis.over(within) if views or deadlines else None


def _urgency(row: Row) -> tuple[bool, bool, bool, str]:
    run = row.seen.run
    is_late = row.forecast is not None and row.forecast.is_late
    return not is_late, run.status.is_final, row.forecast is None, run.name


def _matters(row: Row, now: datetime.datetime) -> Iterable[Matter]:
    seen, run, progress = row.seen, row.seen.run, row.seen.view.progress
    href = f"/runs/{run.id}"
    if seen.problem:
        yield Matter(href, run.name, "out of sight", "bad", seen.problem)
    if row.forecast is None:
        return
    if row.forecast.is_late and not run.status.is_final:
        has_missed = run.must_finish_by is not None and now > run.must_finish_by
        what = "late" if has_missed else "will be late"
        yield Matter(href, run.name, what, "bad", row.forecast.text)
    if run.status is RunStatus.FAILURE:
        yield Matter(href, run.name, "failed", "bad", run.error or "")
    unknown = progress.components.get(ComponentStatus.UNKNOWN, 0)
    if unknown:
        why = f"{_count(unknown, 'component')} UNKNOWN: say how each call has ended"
        yield Matter(f"{href}/components?status=UNKNOWN", run.name, "to be resolved", "bad", why)
    for stuck in progress.stuck[:1]:
        why = f"{stuck.component}, in try {stuck.tries}: {stuck.error or 'it was called again'}"
        what = f"{len(progress.stuck)} stuck"
        yield Matter(href, run.name, what, "warn", why)
    for asked in row.seen.view.approvals:
        why = f"{asked.act} by {asked.who}: {asked.why}"
        yield Matter(href, run.name, "to be approved", "warn", why)
    failed = progress.components.get(ComponentStatus.FAILURE, 0)
    if failed and run.status is not RunStatus.FAILURE:
        what = run.options.failure_event.replace("_", " ")
        where = f"{href}/components?status=FAILURE"
        yield Matter(where, run.name, what, "warn", f"{_count(failed, 'component')} failed")
    if run.status is RunStatus.PAUSED:
        by = f"by {progress.steering.who}: {progress.steering.why}" if progress.steering.who else ""
        since = progress.steering.at
        long = f" since {duration(now - since)}" if since is not None else ""
        yield Matter(href, run.name, "paused", "warn", f"paused{long} {by}".rstrip())


def _of_request(request: RequestRecord) -> Matter:
    name = f"{request.kind}, asked for by {request.requester}"
    why = request.error or ""
    return Matter(f"/requests/{request.id}", name, request.state.lower(), "bad", why)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
