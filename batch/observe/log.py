"""A run's log on this machine: of its launchers, and of the attempts and workers they started."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.io.errors import ComponentNotFoundError, StorageError

_MORE = re.compile(r"run=\S+ attempt=\S+( component=.*?)? \| ")
"""How a further line of a message begins."""


def log_lines(path: Path, run: RunRecord, component: str | None = None) -> Iterator[str]:
    """The lines of a run's log.

    Args:
        path: of the log.
        run: the run.
        component: only messages that name this component, in all their lines, and what has become
            of it.

    Raises:
        StorageError: there is no log on this machine, or it can't be read.
        ComponentNotFoundError: neither the log nor the outcomes know the component.
    """
    try:
        log = path.open(encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StorageError(f"{path}: {_why_not(run, error)}", uri=str(path)) from error
    with log:
        if component is None:
            yield from _plain(log)
            return
        found = False
        names = _names(component)
        for message in _messages(log):
            if any(names.search(line) for line in message):
                found = True
                yield from message
    outcome = list(_outcome(run.uri, component))
    yield from outcome
    if not (found or outcome):
        raise ComponentNotFoundError(
            f"run {run.name}: neither its log on this machine nor its outcomes name a component "
            f"{component}: `ledgerbeam components RUN` lists those that there are",
            component=component,
        )


def _why_not(run: RunRecord, error: OSError) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"cannot read the log of run {run.name}: {error.strerror}"
    # As `ProcessId` writes it; what somebody else has written is shown as it is.
    hosts = dict.fromkeys(attempt.launcher.rsplit(":", 2)[0] for attempt in run.attempts)
    if not hosts:
        return f"no launcher of run {run.name} has written a log on this machine"
    return (
        f"run {run.name} has no log on this machine: it was launched on {', '.join(hosts)}, "
        "or in the foreground of a terminal, which has its log"
    )


def where_workers_log(run: RunRecord) -> str:
    """What is to be known of logs that are elsewhere; empty where there are none."""
    jobs = [(attempt.job_id or "").partition(" ")[2] for attempt in run.attempts]
    named = [job for job in jobs if job]
    return (
        f"what its workers log is with the jobs of its engine: {', '.join(named)}" if named else ""
    )


def _plain(log: TextIO) -> Iterator[str]:
    for line in log:
        yield line.rstrip("\n")


def _messages(log: TextIO) -> Iterator[list[str]]:
    """Messages by their lines; what isn't logged but printed is a message a line."""
    message: list[str] = []
    for line in _plain(log):
        if message and not _MORE.match(line):
            yield message
            message = []
        message.append(line)
    if message:
        yield message


def _names(component: str) -> re.Pattern[str]:
    """Finds the component's name where it isn't a part of another one."""
    as_json = json.dumps(component, ensure_ascii=False)[1:-1]
    names = "|".join(re.escape(name) for name in dict.fromkeys((component, as_json)))
    return re.compile(rf"(?<![\w/%-])(?:{names})(?![\w/%-])")


def _outcome(uri: str, component: str) -> Iterator[str]:
    from ledgerbeam.batch.model.outcomes import FailureGroup
    from ledgerbeam.batch.observe.components import outcome_of

    outcome = outcome_of(uri, component)
    if outcome is not None:
        tries = "1 try" if outcome.tries == 1 else f"{outcome.tries:,} tries"
        for number, line in enumerate(FailureGroup(outcome.status, 1, outcome).text.splitlines()):
            yield line if number else f"{line} (after {tries})"
