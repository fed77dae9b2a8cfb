"""What `--json` prints, a record a line: the models that its published schemas are made of.

A command that stands in another room has its records in a module `lines` beside it.
"""

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel, ConfigDict

from ledgerbeam.batch.attempt.plan import RunPlan
from ledgerbeam.batch.json_schemas import Line, TotalsJson, line_of
from ledgerbeam.batch.model.outcomes import Outcome
from ledgerbeam.batch.model.run import RecordedEvent
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.registry.audit_chain import AuditChain
from ledgerbeam.batch.registry.audit_export import ChainedEntry
from ledgerbeam.batch.runs.body import ListedRun, RunBody
from ledgerbeam.io.commit.control_log import Steering


class Published(Line):
    """What a run has published, and where."""

    published: str
    attempt: int
    counts: dict[str, int]
    totals: TotalsJson
    seconds: float


class Workload(Line):
    """A workload that is installed."""

    name: str
    description: str


class Verified(Line):
    """A published instance whose files and totals are as its manifest says."""

    uri: str
    parts: int
    controls: TotalsJson


class Generated(Line):
    """Input that was made."""

    output: str
    rows: dict[str, int]
    files: int


class ResultFile(Line):
    """A file that results were copied to."""

    rows: int
    output: str


class InputFile(Line):
    """A file that would be read, as it is now."""

    uri: str
    size: int
    version: str


class Result(BaseModel):
    """A row of results, with the columns of its process."""

    model_config = ConfigDict(extra="allow")


class Report(Line):
    """Where a report is."""

    report: str


class Resolution(Line):
    """What a person has found out about a component."""

    component: str
    status: ComponentStatus


class Action(Line):
    """What `reconcile` has done."""

    run: str
    name: str
    action: str


class Difference(Line):
    """Where storage isn't what the registry says."""

    run: str
    name: str
    difference: str


class Expired(Line):
    """A run whose results were deleted."""

    run: str
    name: str
    uri: str


class LogLine(Line):
    """A line of a run's log."""

    line: str


class RejectedRow(Line):
    """A row that was rejected: where it stands, why, and what it holds there."""

    file: str
    row: int | None
    reason: str
    raw: str | None


class Day(Line):
    """A business day, and the calendar that was asked."""

    date: str
    calendar: str


class Project(Line):
    """A project that was made."""

    folder: str
    files: list[str]


class ErrorOfCommand(BaseModel):
    """Why a command has ended, with the attributes of the error."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str


class Error(Line):
    """The last line of standard error."""

    error: ErrorOfCommand


_FAILURES: Any = line_of(Outcome, count=int)
"""Components that failed in the same way, told by one of them."""

LINES: Mapping[str, type[BaseModel]] = {
    "action": Action,
    "audit-chain": line_of(AuditChain),
    "audit-entry": line_of(ChainedEntry),
    "component": line_of(Outcome),
    "day": Day,
    "difference": Difference,
    "error": Error,
    "event": line_of(RecordedEvent),
    "expired": Expired,
    "generated": Generated,
    "limits": line_of(Steering),
    "listed-run": ListedRun,
    "log-line": LogLine,
    "plan": line_of(RunPlan, inputs=list[InputFile]),
    "project": Project,
    "published": Published,
    "rejected-row": RejectedRow,
    "report": Report,
    "resolution": Resolution,
    "result": Result,
    "result-file": ResultFile,
    "run": RunBody,
    "verified": Verified,
    "workload": Workload,
}


def all_lines(*commands: str) -> dict[str, type[BaseModel]]:
    """The models of all lines, those of other rooms' commands included, by kind.

    Args:
        commands: groups of the entry points of these commands.
    """
    found = dict(LINES)
    for module in {entry.module for group in commands for entry in entry_points(group=group)}:
        name = f"{module.rpartition('.')[0]}.lines"
        try:
            found |= importlib.import_module(name).LINES
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    return found
