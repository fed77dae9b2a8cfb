"""Tables of runs, for people."""

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from ledgerbeam.batch.attempt.terminal import (
    Cell,
    PlainConsole,
    grid_of,
    print_pairs,
    print_table,
    styled,
    table_of,
)
from ledgerbeam.batch.model.run import RecordedEvent, RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.io.commit.amounts import label_of, shown

if TYPE_CHECKING:
    from ledgerbeam.batch.model.outcomes import FailureGroup, Outcome
    from ledgerbeam.batch.observe.progress import Progress
    from ledgerbeam.batch.runs.reading import RunView
    from ledgerbeam.io.commit.control_log import Steering

COLORS = {
    RunStatus.SUCCESS: "green",
    RunStatus.FAILURE: "red",
    RunStatus.CANCELED: "magenta",
    RunStatus.CANCELING: "magenta",
    RunStatus.PAUSED: "yellow",
}
_ATTEMPT = ("attempt", "kind", "runner", "started", "took", "outcome", "error")
_MAX_STUCK = 5
_MAX_FAILURES = 10


def print_view(view: "RunView", now: datetime.datetime) -> None:
    """Print a run with its progress and its attempts."""
    output = PlainConsole()
    if output.is_terminal:
        output.print(view_table(view, now))
        return
    print_pairs(_view_rows(view))
    if view.run.attempts:
        print_line("")
        print_table(_ATTEMPT, _attempt_rows(view.run, now))


def view_table(view: "RunView", now: datetime.datetime) -> RenderableType:
    """A run with its progress and its attempts, for a terminal."""
    done, total = view.progress.shards_done, view.progress.shards_total
    rows: list[Sequence[RenderableType]] = []
    for name, value in _view_rows(view):
        if name == "shards" and total is not None:
            bar = ProgressBar(total=max(total, 1), completed=done, width=30)
            with_bar = Table.grid(padding=(0, 1))
            with_bar.add_row(value, bar)
            rows.append((name, with_bar))
        else:
            rows.append((name, value))
    parts: list[RenderableType] = [grid_of(rows)]
    if view.run.attempts:
        parts.append(table_of(_ATTEMPT, _attempt_rows(view.run, now)))
    return Group(*parts)


def _view_rows(view: "RunView") -> Iterator[tuple[str, Cell]]:
    run = view.run
    yield "run", run.id
    yield "name", run.name
    yield "status", styled(run.status, COLORS.get(run.status, "cyan"))
    yield from _progress_rows(view.progress, run.status.is_final)
    if view.rejected:
        rows = f"{view.rejected:,} {'row' if view.rejected == 1 else 'rows'}"
        yield "rejected", f"{rows}: see ledgerbeam rejects {run.id[:8]}"
    yield from _failure_rows(view.failures)
    for asked in view.approvals:
        done_with = ", ".join(f"{name} {value}" for name, value in asked.arguments.items() if value)
        text = f"{asked.number}: {asked.act}: {done_with}: asked by {asked.who}: {asked.why}"
        yield "to be approved", text
    if run.must_finish_by is not None:
        yield "must finish by", _time(run.must_finish_by)
    if run.error:
        yield "error", styled(run.error, "red")
    if run.status is RunStatus.SUCCESS:
        expired = f", results deleted {_time(run.results_expired_at)}"
        yield "published at", run.uri + (expired if run.results_expired_at else "")


def _progress_rows(progress: "Progress", is_final: bool) -> Iterator[tuple[str, str]]:
    total = progress.shards_total
    if total is not None:
        yield "shards", f"{progress.shards_done:,} of {total:,}"
    elif progress.shards_done:
        yield "shards", f"{progress.shards_done:,}"
    if progress.components:
        counts = [f"{count:,} {status}" for status, count in progress.components.items()]
        yield "components", ", ".join(counts)
    done = sum(n for s, n in progress.components.items() if s is not ComponentStatus.EXECUTING)
    if progress.tries > done:
        yield "tries", f"{progress.tries:,}"
    for name, value in progress.totals.items():
        yield label_of(name), shown(name, value, progress.total_decimals)
    if progress.rate is not None:
        yield "rate", f"{progress.rate:,.0f} components a second"
    if is_final:
        return
    if progress.estimated_end is not None:
        yield "estimated end", _time(progress.estimated_end)
    if progress.workers:
        yield "workers", str(progress.workers)
    limits = limits_text(progress.steering)
    if limits:
        yield "limits", limits
    for stuck in progress.stuck[:_MAX_STUCK]:
        yield "stuck", f"{stuck.component}: {stuck.tries} tries: {stuck.error}"


def _failure_rows(groups: "Sequence[FailureGroup]") -> Iterator[tuple[str, str]]:
    """A row for each kind of error, with the first one of its kind."""
    for group in groups[:_MAX_FAILURES]:
        first = group.first
        name = "unknown" if group.status is ComponentStatus.UNKNOWN else "failed"
        others = f" and {group.size - 1:,} more" if group.size > 1 else ""
        yield name, f"{first.component}{others}: {first.error}"
    if len(groups) > _MAX_FAILURES:
        left = sum(group.size for group in groups[_MAX_FAILURES:])
        yield "", f"{left:,} components by {len(groups) - _MAX_FAILURES:,} other kinds of error"


def limits_text(steering: "Steering") -> str:
    """The limits of a run in words; empty if there are none."""
    limits = []
    if steering.parallelism is not None:
        limits.append(f"{steering.parallelism:,} in flight")
    if steering.rate is not None:
        limits.append(f"{steering.rate:g} a second")
    if steering.ramp is not None:
        ramp = steering.ramp
        limits.append(
            f"from {ramp.from_rate:g} to {ramp.to_rate:g} a second over {ramp.seconds:g} s"
        )
    return ", ".join(limits)


def _attempt_rows(run: RunRecord, now: datetime.datetime) -> Iterator[Sequence[str]]:
    for attempt in run.attempts:
        took = (attempt.ended_at or now) - attempt.started_at
        yield (
            str(attempt.number),
            attempt.kind,
            attempt.runner,
            _time(attempt.started_at),
            f"{took.total_seconds():,.1f} s",
            attempt.outcome or "",
            attempt.error or "",
        )


def print_runs(runs: Iterable[RunRecord]) -> None:
    """Print runs, one a line."""
    rows = (
        (
            run.id[:8],
            run.name,
            styled(run.status, COLORS.get(run.status, "cyan")),
            str(len(run.attempts)),
            _time(run.submitted_at),
            run.submitted_by,
        )
        for run in runs
    )
    print_table(("run", "name", "status", "attempts", "submitted", "by"), rows)


def print_outcomes(outcomes: "Iterable[Outcome]") -> None:
    """Print components, one a line."""
    rows = ((each.component, each.status, str(each.tries), each.error) for each in outcomes)
    print_table(("component", "status", "tries", "error"), rows)


def print_rejects(rows: "Iterable[Mapping[str, Any]]") -> None:
    """Print rejected rows, one a line."""
    cells = ((row["file"], str(row["row"]), row["reason"], row["raw"]) for row in rows)
    print_table(("file", "row", "reason", "as in the source"), cells)


def print_history(run: RunRecord, events: Iterable[RecordedEvent]) -> None:
    """Print the whole history of a run, below its name if that is to a terminal."""
    output = PlainConsole()
    if output.is_terminal:
        output.print(styled(f"{run.name}  {run.id}  {run.status}", "bold"))
    print_table(("time", "attempt", "who", "what", "why"), map(_event_row, events))


def _event_row(event: RecordedEvent) -> Sequence[str]:
    what = event.type
    if event.to_status is not None:
        what = f"{event.from_status or 'new'} → {event.to_status}"
    details = " ".join(_detail(k, v) for k, v in event.detail.items() if v is not None)
    why = " ".join(part for part in (event.why, details) if part)
    return _time(event.at), str(event.attempt or ""), event.who, what, why


def _detail(name: str, value: Any) -> str:
    """What is on record with an event; of parameters that were corrected, before and now."""
    if name == "parameters" and isinstance(value, dict):
        pairs = [
            f"{each}: {v['before']} → {v['now']}"
            for each, v in value.items()
            if isinstance(v, dict) and v.keys() >= {"before", "now"}
        ]
        return ", ".join(pairs)
    return f"{name}={value}"


def _time(at: datetime.datetime | None) -> str:
    return "" if at is None else f"{at.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
