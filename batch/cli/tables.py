"""Tables of runs, for people at a terminal."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from ledgerbeam.batch.attempt.terminal import PlainConsole, styled
from ledgerbeam.batch.model.run import RecordedEvent, RunRecord
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
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
_MAX_STUCK = 5
_MAX_FAILURES = 10


def view_table(view: "RunView", now: datetime.datetime) -> RenderableType:
    """A run with its progress and its attempts."""
    run, progress = view.run, view.progress
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    grid.add_row("run", run.id)
    grid.add_row("name", run.name)
    grid.add_row("status", styled(run.status, COLORS.get(run.status, "cyan")))
    for name, value in _progress_rows(progress, run.status.is_final):
        grid.add_row(name, value)
    if view.rejected:
        grid.add_row("rejected", f"{view.rejected:,} {'row' if view.rejected == 1 else 'rows'}")
    for name, value in _failure_rows(view.failures):
        grid.add_row(name, value)
    for asked in view.approvals:
        done_with = ", ".join(f"{name} {value}" for name, value in asked.arguments.items() if value)
        text = f"{asked.number}: {asked.act}: {done_with}: asked by {asked.who}: {asked.why}"
        grid.add_row("to be approved", text)
    if run.must_finish_by is not None:
        grid.add_row("must finish by", _time(run.must_finish_by))
    if run.error:
        grid.add_row("error", styled(run.error, "red"))
    if run.status is RunStatus.SUCCESS:
        expired = f", results deleted {_time(run.results_expired_at)}"
        grid.add_row("published at", run.uri + (expired if run.results_expired_at else ""))
    parts: list[RenderableType] = [grid]
    if run.attempts:
        parts.append(_attempts(run, now))
    return Group(*parts)


def _progress_rows(progress: "Progress", is_final: bool) -> Iterable[tuple[str, RenderableType]]:
    total = progress.shards_total
    if total is not None:
        of_total = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(total, 1), completed=progress.shards_done, width=30)
        of_total.add_row(f"{progress.shards_done:,} of {total:,}", bar)
        yield "shards", of_total
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


def _failure_rows(groups: "Sequence[FailureGroup]") -> Iterable[tuple[str, RenderableType]]:
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


def _attempts(run: RunRecord, now: datetime.datetime) -> Table:
    table = Table("attempt", "kind", "runner", "started", "took", "outcome", "error", box=None)
    for attempt in run.attempts:
        took = (attempt.ended_at or now) - attempt.started_at
        table.add_row(
            str(attempt.number),
            attempt.kind,
            attempt.runner,
            _time(attempt.started_at),
            f"{took.total_seconds():,.1f} s",
            attempt.outcome or "",
            attempt.error or "",
        )
    return table


def runs_table(runs: Sequence[RunRecord]) -> Table:
    """A table of runs, one per line."""
    table = Table("run", "name", "status", "attempts", "submitted", "by", box=None)
    for run in runs:
        status = styled(run.status, COLORS.get(run.status, "cyan"))
        submitted = _time(run.submitted_at)
        attempts = str(len(run.attempts))
        table.add_row(run.id[:8], run.name, status, attempts, submitted, run.submitted_by)
    return table


def outcomes_table(outcomes: "Iterable[Outcome]") -> Table:
    """A table of components, one per line."""
    table = Table("component", "status", "tries", "error", box=None)
    for outcome in outcomes:
        table.add_row(outcome.component, outcome.status, str(outcome.tries), outcome.error)
    return table


def rejects_table(rows: "Iterable[Mapping[str, Any]]") -> Table:
    """A table of rejected rows, one per line."""
    table = Table("file", "row", "reason", "as in the source", box=None)
    for row in rows:
        table.add_row(row["file"], str(row["row"]), row["reason"], row["raw"])
    return table


def history(run: RunRecord, events: Sequence[RecordedEvent]) -> RenderableType:
    """The whole history of a run."""
    table = Table("time", "attempt", "who", "what", "why", box=None)
    for event in events:
        what = event.type
        if event.to_status is not None:
            what = f"{event.from_status or 'new'} → {event.to_status}"
        details = " ".join(_detail(k, v) for k, v in event.detail.items() if v is not None)
        why = " ".join(part for part in (event.why, details) if part)
        table.add_row(_time(event.at), str(event.attempt or ""), event.who, what, why)
    return Group(styled(f"{run.name}  {run.id}  {run.status}", "bold"), table)


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


def console() -> PlainConsole:
    """A console on standard output; very wide if that is no terminal, so that no line is cut."""
    output = PlainConsole()
    return output if output.is_terminal else PlainConsole(width=10_000)
