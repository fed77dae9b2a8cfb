"""The verbs: what people and programs do with runs.

    runs = Runs(Settings.from_environment())
    run = runs.submit("delivery-marking", {"trades": "trades/*", "trade_date": "2026-11-20", …})
    runs.wait(run.id)
    runs.results(run.id).to_table()

Every verb leaves an event that says who did it, when and why. `retry` and `restart` begin another
attempt of the same run; what is published stays as it is for ever.
"""

import datetime
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from pydantic import ValidationError

from ledgerbeam import __version__
from ledgerbeam.batch.components import components_of
from ledgerbeam.batch.events import Event
from ledgerbeam.batch.expiry import expire_results
from ledgerbeam.batch.launcher import spawn
from ledgerbeam.batch.outcomes import Outcome
from ledgerbeam.batch.progress import Progress, ProgressReader
from ledgerbeam.batch.records import AttemptKind, RecordedEvent, RunDraft, RunRecord
from ledgerbeam.batch.registry import Registry
from ledgerbeam.batch.settings import Settings, whoami
from ledgerbeam.batch.status import ComponentStatus, RunStatus
from ledgerbeam.io import control, storage
from ledgerbeam.io.control import Ramp, Steering
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.published import copy_reports, published_reports, read_published

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_POLL_SECONDS = 0.3
_log = logging.getLogger(__name__)


class RunView(NamedTuple):
    """A run as `get` shows it.

    Attributes:
        run: what the registry says, its attempts included.
        progress: what object storage says.
    """

    run: RunRecord
    progress: Progress


class Tracker(Protocol):
    """Is told how a run goes, by `Runs.wait`."""

    def __call__(self, view: RunView) -> None:
        """Called at an interval, and once at the end."""


class Runs:
    """Runs of a registry, and all that can be done with them."""

    def __init__(
        self,
        settings: Settings,
        who: str | None = None,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        """Open the registry.

        Args:
            settings: where it is.
            who: signs events; by default `user@host`.
            now: the present time in UTC.

        Raises:
            UserError: it can't be opened.
        """
        self.registry = Registry.open(settings.registry_url)
        self._settings = settings
        self._who = who or whoami()
        self._now = now

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.registry.close()

    def submit(
        self, process: str, parameters: Mapping[str, Any], beam_flags: Sequence[str] = ()
    ) -> RunRecord:
        """Record a run and start its launcher; the same instance again gives the same run.

        Args:
            process: name of the workload.
            parameters: its parameters.
            beam_flags: flags for Beam, such as `--runner=FlinkRunner`.

        Raises:
            UserError: parameters don't fit, or the instance can't be run (again) now.
        """
        run, is_new = self.record(process, parameters, beam_flags)
        failpoint("submit: recorded")
        if is_new or run.status is RunStatus.INITIATED:
            # Whoever submitted it first may have died before this.
            spawn(self._settings, run.id)
        return run

    def record(
        self, process: str, parameters: Mapping[str, Any], beam_flags: Sequence[str] = ()
    ) -> tuple[RunRecord, bool]:
        """Record a run without starting it; the run, and whether it is new."""
        draft, schema = _draft(process, parameters, beam_flags, self._who, self._now())
        return self.registry.submit(draft, schema)

    def get(self, run: str) -> RunView:
        """How a run stands.

        Args:
            run: its id, six or more characters of it, or `process/instance[/run-number]`.

        Raises:
            UserError: there is no such run.
        """
        record = self.registry.find(run)
        return self._view(record, ProgressReader(record.uri))

    def wait(
        self,
        run: str,
        timeout: float | None = None,
        tracker: Tracker | None = None,
        interval: float = 1.0,
    ) -> RunView:
        """Wait until a run has ended.

        Args:
            run: which.
            timeout: seconds to wait at most.
            tracker: called at the interval, and once at the end.
            interval: seconds.

        Raises:
            TimeoutError: it hasn't ended within that time, and goes on.
        """
        record = self.registry.find(run)
        reader = ProgressReader(record.uri)
        started = time.monotonic()
        told_at = float("-inf")
        while True:
            record = self.registry.get(record.id)
            is_late = timeout is not None and time.monotonic() - started >= timeout
            if record.status.is_final or is_late or time.monotonic() - told_at >= interval:
                told_at = time.monotonic()
                view = self._view(record, reader)
                if tracker is not None:
                    tracker(view)
            if record.status.is_final:
                return view
            if is_late:
                raise TimeoutError(f"run {record.id} is {record.status} after {timeout:g} s")
            time.sleep(min(_POLL_SECONDS, interval))

    def list(
        self,
        process: str | None = None,
        status: RunStatus | None = None,
        limit: int | None = None,
        before: str | None = None,
    ) -> list[RunRecord]:
        """Runs, newest first; see `RegistryReader.runs`."""
        return self.registry.runs(process, status, limit, before)

    def components(
        self, run: str, status: ComponentStatus | None = None, after: str | None = None
    ) -> Iterator[Outcome]:
        """What became of a run's components, by shard and then by name.

        Args:
            run: which.
            status: only those that have it.
            after: only those behind the component of that name.
        """
        return components_of(self.registry.find(run).uri, status, after)

    def results(self, run: str, table: str | None = None) -> "ds.Dataset":
        """What a run has published.

        Args:
            run: which.
            table: name of a further table; by default the results.

        Raises:
            UserError: nothing is published, or no such table, or the results have expired.
        """
        return read_published(self.registry.find(run).uri, table)

    def reports(self, run: str) -> Sequence[str]:
        """The URIs of the reports that a run has published.

        Raises:
            UserError: nothing is published, or the results have expired.
        """
        uri = self.registry.find(run).uri
        return [storage.join(uri, file.name) for file in published_reports(uri).values()]

    def copy_reports(self, run: str, folder: Path) -> Sequence[Path]:
        """Copy the reports that a run has published; see `ledgerbeam.io.published.copy_reports`."""
        return copy_reports(self.registry.find(run).uri, folder)

    def cancel(self, run: str, why: str = "") -> RunRecord:
        """Ask for a run to be stopped; confirmed (`CANCELED`) when nothing of it can commit."""
        record = self.registry.find(run)
        if not self._move(record, RunStatus.CANCELED, why, RunStatus.INITIATED):
            if record.status is not RunStatus.CANCELING:
                self._move(record, RunStatus.CANCELING, why)
            failpoint("cancel: recorded")
            self._steer(record, why, state="cancel")
        return self.registry.get(record.id)

    def pause(self, run: str, why: str = "") -> RunRecord:
        """Begin no more components; those in flight go on."""
        record = self.registry.find(run)
        if record.status is not RunStatus.PAUSED:
            self._move(record, RunStatus.PAUSED, why)
        failpoint("pause: recorded")
        self._steer(record, why, state="pause")
        return self.registry.get(record.id)

    def resume(self, run: str, why: str = "") -> RunRecord:
        """Go on after a pause."""
        record = self.registry.find(run)
        if record.status is not RunStatus.PAUSED:
            raise UserError(f"run {record.name} is {record.status}, not PAUSED: nothing to resume")
        self._move(record, RunStatus.EXECUTING, why, RunStatus.PAUSED)
        failpoint("resume: recorded")
        self._steer(record, why, state="run")
        return self.registry.get(record.id)

    def set_parallelism(self, run: str, parallelism: int | None, why: str = "") -> Steering:
        """How many components or pages may be in flight over the whole run; None for the default.

        Raises:
            UserError: it is less than 1.
        """
        return self._tell(run, "parallelism", why, parallelism=parallelism)

    def set_rate(
        self,
        run: str,
        rate: float | None,
        ramp_from: float | None = None,
        ramp_seconds: float | None = None,
        why: str = "",
    ) -> Steering:
        """How many components a second may be begun over the whole run.

        Args:
            run: which.
            rate: components a second; None for no limit.
            ramp_from: where a ramp up (or down) to `rate` begins, now.
            ramp_seconds: how long it takes.
            why: for the record.

        Raises:
            UserError: a value is out of range.
        """
        if ramp_from is None and ramp_seconds is None:
            return self._tell(run, "rate", why, rate=rate, ramp=None)
        if rate is None or ramp_from is None or ramp_seconds is None:
            raise UserError("a ramp needs all three: where it begins, where it ends, how long")
        try:
            ramp = Ramp(
                from_rate=ramp_from, to_rate=rate, seconds=ramp_seconds, started_at=self._now()
            )
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(f"ramp: {problem['loc'][0]}: {problem['msg']}") from error
        return self._tell(run, "rate", why, ramp=ramp)

    def retry(self, run: str, why: str = "") -> RunRecord:
        """Try again what failed, as a new attempt with today's code; what is missing is done too.

        Raises:
            UserError: the run goes on, or has published.
        """
        record = self.reopen(run, AttemptKind.RETRY, why)
        spawn(self._settings, record.id)
        return record

    def restart(self, run: str, why: str = "") -> RunRecord:
        """Do what no attempt has committed; components that failed stay as they are.

        Raises:
            UserError: the run goes on, or has published.
        """
        record = self.reopen(run, AttemptKind.RESTART, why)
        spawn(self._settings, record.id)
        return record

    def settle(
        self,
        run: str,
        component: str,
        status: ComponentStatus,
        why: str,
        results: str | None = None,
    ) -> None:
        """Say how the call of a component that is `UNKNOWN` has ended; see `settle.settle`.

        Raises:
            UserError: the run goes on or has published, or the component isn't unknown.
        """
        # Imports Beam, which the other verbs do without.
        from ledgerbeam.batch.settle import settle
        from ledgerbeam.batch.workloads import load_workload

        record = self.registry.find(run)
        if record.status not in (RunStatus.FAILURE, RunStatus.CANCELED):
            raise UserError(
                f"run {record.name} is {record.status}: a component is settled when its run has "
                "ended without publishing"
            )
        kind = load_workload(record.process).PROCESS
        settle(record.uri, kind, component, status, results, self._who, why, self._now())
        failpoint("settle: decided")
        self._append(record, "settled", why, {"component": component, "status": status})

    def expire(self) -> Sequence[RunRecord]:
        """Delete the results that are due; manifests, markers and outcomes stay."""
        expired = []
        for record in self.registry.expiring(self._now()):
            try:
                expire_results(record.uri, self._now())
            except UserError as error:
                # The others are due all the same.
                _log.error("run %s: its results can't be deleted: %s", record.id, error)
                continue
            failpoint("expire: deleted")
            if self.registry.mark_expired(record.id, who=self._who, at=self._now()):
                expired.append(record)
        return expired

    def events(self, run: str) -> Sequence[RecordedEvent]:
        """The whole story of a run."""
        return self.registry.events(self.registry.find(run).id)

    def reopen(self, run: str, kind: AttemptKind, why: str) -> RunRecord:
        """Have a run that ended without success executed again, by a launcher yet to be started.

        Args:
            run: which.
            kind: `RETRY` or `RESTART`.
            why: for the record.

        Raises:
            UserError: the run goes on, or has published; its results have expired; or a later
                run of its instance was submitted.
        """
        record = self.registry.find(run)
        if record.status is RunStatus.SUCCESS:
            raise UserError(
                f"run {record.name} has published, which stays as it is: submit the instance "
                "again with the next run number and a reason"
            )
        if record.results_expired_at is not None:
            raise UserError(
                f"what run {record.name} had committed has expired and was deleted: submit the "
                "instance again with the next run number and a reason"
            )
        if record.status.is_final and self.registry.move(
            record.id,
            RunStatus.EXECUTING,
            who=self._who,
            at=self._now(),
            why=why,
            expected=record.status,
            detail={"kind": kind},
        ):
            failpoint("again: recorded")
            return self.registry.get(record.id)
        raise UserError(
            f"run {record.name} is {self.registry.get(record.id).status}: wait for its end, or "
            "cancel it first; if its launcher is dead, `ledgerbeam reconcile` sees to it"
        )

    def _view(self, record: RunRecord, reader: ProgressReader) -> RunView:
        ended = record.attempts[-1].ended_at if record.attempts else None
        return RunView(record, reader.read(ended or self._now(), is_live=ended is None))

    def _move(
        self, record: RunRecord, to: RunStatus, why: str, expected: RunStatus | None = None
    ) -> bool:
        return self.registry.move(
            record.id, to, who=self._who, at=self._now(), why=why, expected=expected
        )

    def _steer(self, record: RunRecord, why: str, **changes: Any) -> Steering:
        return control.steer(record.uri, self._now(), self._who, why, **changes)

    def _tell(self, run: str, what: str, why: str, **changes: Any) -> Steering:
        record = self.registry.find(run)
        if record.status.is_final:
            raise UserError(f"run {record.name} is {record.status}: there is nothing to steer")
        steering = self._steer(record, why, **changes)
        failpoint("limits: told")
        limits = steering.model_dump(mode="json", include={"parallelism", "rate", "ramp"})
        self._append(record, what, why, limits)
        return steering

    def _append(self, record: RunRecord, what: str, why: str, detail: dict[str, Any]) -> None:
        self.registry.append(
            Event(
                run=record.id,
                process=record.process,
                instance=record.instance,
                at=self._now(),
                who=self._who,
                type=what,
                why=why,
                detail=detail,
            )
        )


def _draft(
    process_name: str,
    parameters: Mapping[str, Any],
    beam_flags: Sequence[str],
    who: str,
    at: datetime.datetime,
) -> tuple[RunDraft, dict[str, Any]]:
    # Imports Beam, which the other verbs do without.
    from ledgerbeam.batch.arguments import problem_of
    from ledgerbeam.batch.launch import instance_uri
    from ledgerbeam.batch.process import BatchProcess, is_overridden
    from ledgerbeam.batch.runner_jobs import runner_of
    from ledgerbeam.batch.workloads import load_workload

    kind: type[BatchProcess[Any]] = load_workload(process_name).PROCESS
    try:
        model = kind.parameters_type.model_validate(dict(parameters))
    except ValidationError as error:
        raise UserError("; ".join(problem_of(entry) for entry in error.errors())) from error
    # A launcher runs in another folder.
    model = model.model_copy(update={"output": storage.absolute(model.output)})
    process = kind(model)
    deadlines = kind.sla.deadlines(process.business_date) if kind.sla is not None else None
    expire_after = kind.results_expire_after
    draft = RunDraft(
        id=str(uuid.uuid4()),
        process=kind.name,
        code_version=__version__,
        instance=process.instance_name,
        identity={name: str(getattr(model, name)) for name in kind.identity},
        business_date=process.business_date,
        run_number=model.run_number,
        # Another reason makes no other run.
        parameters=model.model_dump(mode="json", exclude={"run_number", "reason"}),
        output=model.output,
        uri=instance_uri(process),
        beam_flags=list(beam_flags),
        reason=model.reason,
        submitted_by=who,
        submitted_at=at,
        must_start_by=deadlines.start_by if deadlines else None,
        must_finish_by=deadlines.finish_by if deadlines else None,
        options={
            "runner": runner_of(beam_flags) or "local",
            "attempt_deadline_seconds": kind.attempt_deadline.total_seconds(),
            "lost_attempts": kind.lost_attempts,
            "failure_event": kind.failure_event,
            "has_cleanup": is_overridden(kind, BatchProcess, "cleanup"),
            "results_expire_after_seconds": (
                None if expire_after is None else expire_after.total_seconds()
            ),
            # What parameters name relative to it.
            "folder": os.getcwd(),
        },
    )
    return draft, kind.parameters_type.model_json_schema()
