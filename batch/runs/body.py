"""Runs as programs read them: what the command line prints as JSON, and the service answers."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field

from ledgerbeam.batch.model.approval import Approval
from ledgerbeam.batch.model.run import RunRecord, run_name
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.observe.progress import Progress
from ledgerbeam.batch.runs.reading import RunView


class ListedRun(RunRecord):
    """A run in a list; its progress isn't looked up."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def name(self) -> str:
        """`process/instance`, and the run number where it isn't the first."""
        return run_name(self.process, self.instance, self.run_number)


class Failure(BaseModel):
    """Components that failed by the same kind of error at the same place, and one of them.

    Attributes:
        count: how many there are.
        component: the key of the one whose error, traceback and record follow.
        status: FAILURE or UNKNOWN.
        tries: how often it was called, over all attempts.
        error: the last error in one line.
        code: the error's code, if it is one of ledgerbeam's; else empty.
        traceback: of the error, in the workload's own code.
        record: the record at hand when the call failed; None where that isn't known.
        rule: number of the rule by which it was executed; None where there are no rules.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    component: str
    status: ComponentStatus
    tries: int
    error: str
    code: str
    traceback: str
    record: dict[str, str | None] | None
    rule: int | None = None


class RunBody(ListedRun):
    """A run, as it is recorded and as object storage says.

    Attributes:
        code: code of the error by which it has failed; None if it hasn't.
        progress: how far it is.
        failures: components that failed or are unknown, by kind of error, most frequent first.
        rejected: rows that were rejected, as far as is known.
        approvals: what waits for a second person.
    """

    code: str | None
    progress: Progress
    failures: tuple[Failure, ...]
    rejected: int
    approvals: tuple[Approval, ...]


def listed(run: RunRecord) -> ListedRun:
    """A run as it stands in a list."""
    return ListedRun.model_validate(run.model_dump())


def fields_of(view: RunView) -> dict[str, Any]:
    """The fields of a run's body."""
    failures = [
        Failure(count=group.size, **{**group.first._asdict(), "status": group.status})
        for group in view.failures
    ]
    return {
        **view.run.model_dump(),
        "code": view.code,
        "progress": view.progress,
        "failures": failures,
        "rejected": view.rejected,
        "approvals": view.approvals,
    }


def view_of(body: Mapping[str, Any]) -> RunView:
    """A run, read from what a service has answered; fields that aren't known here are left out."""
    from ledgerbeam.batch.model.outcomes import FailureGroup, Outcome

    read = RunBody.model_validate({n: v for n, v in body.items() if n in RunBody.model_fields})
    groups = [
        FailureGroup(
            failure.status, failure.count, Outcome(**failure.model_dump(exclude={"count"}))
        )
        for failure in read.failures
    ]
    return RunView(record_of(body), read.progress, read.code, groups, read.rejected, read.approvals)


def record_of(body: Mapping[str, Any]) -> RunRecord:
    """A run of a list, read from what a service has answered."""
    return RunRecord.model_validate({n: v for n, v in body.items() if n in RunRecord.model_fields})
