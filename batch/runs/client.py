"""The verbs: what people and programs do with runs.

    runs = Runs(Settings.from_environment())
    run = runs.submit("delivery-marking", {"trades": "trades/*", "trade_date": "2026-11-20", …})
    runs.wait(run.id)
    runs.results(run.id).to_table()

Every verb leaves an event that says who did it, when and why. `retry` and `restart` begin another
attempt of the same run; what is published stays as it is for ever.

Each verb imports what it needs when it is called: most of them are asked for by short programs,
which would else import Arrow for nothing.
"""

import copy
import datetime
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from pydantic import ValidationError

from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.launch.spawn import start_launcher
from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.run import (
    AttemptKind,
    RecordedEvent,
    RunAttempt,
    RunDraft,
    RunRecord,
    run_name,
)
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.settings import Settings, whoami
from ledgerbeam.io.errors import (
    AlreadyPublishedError,
    IllegalMoveError,
    OnRecordError,
    ParameterError,
    ResultsExpiredError,
    RunNotFoundError,
    UserError,
    WaitTimeoutError,
)
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.machine import ProcessId
from ledgerbeam.io.storage import uris

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

    from ledgerbeam.batch.model.outcomes import FailureGroup, Outcome
    from ledgerbeam.batch.observe.progress import Progress, ProgressReader
    from ledgerbeam.batch.runs.draft import Drafted
    from ledgerbeam.io.commit.control_log import Steering

_POLL_SECONDS = 0.3
_CANCEL_SECONDS = 120.0
"""How long a run that is replaced is given to end."""

_PAGE = 200
_log = logging.getLogger(__name__)


class RunView(NamedTuple):
    """A run as `get` shows it.

    Attributes:
        run: what the registry says, its attempts included.
        progress: what object storage says.
        code: code of the error by which the run has failed; None if it hasn't, or if that isn't
            known.
        failures: the components that failed or are unknown, by kind of error, most frequent first.
            Views that a tracker is called with have them only when the run has ended.
        rejected: rows that were rejected, as far as is known; as the failures, not in all views.
    """

    run: RunRecord
    progress: "Progress"
    code: str | None = None
    failures: "Sequence[FailureGroup]" = ()
    rejected: int = 0


class Tracker(Protocol):
    """Is called by `Runs.wait` with how a run goes."""

    def __call__(self, view: RunView) -> None:
        """Called at an interval, and once at the end."""


class Runs:
    """Runs of a registry, and all that can be done with them.

        with Runs(Settings.from_environment()) as runs:
            run = runs.submit(
                "delivery-marking",
                {"trades": "trades/*", "trade_date": "2026-11-20", "output": "results"},
            )
            if runs.wait(run.id).run.status is RunStatus.SUCCESS:
                trades = runs.results(run.id).to_table()

    A run is named by its id, by six or more characters of it, or by
    `process/instance[/run-number]`; without a number that is the instance's last run. Every method
    that takes one raises `RunNotFoundError` if there is no such run, `AmbiguousRunError` if several
    ids begin so, and `RegistryUnavailableError` if the registry can't be reached.
    """

    def __init__(
        self,
        settings: Settings,
        who: str | None = None,
        now: Clock = utc_now,
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

    def signed_by(self, who: str) -> Self:
        """The same runs, for another person: `who` signs what is done with them."""
        other = copy.copy(self)
        other._who = who
        return other

    def submit(
        self,
        process: str,
        parameters: Mapping[str, Any],
        beam_flags: Sequence[str] = (),
        *,
        replace: bool = False,
        why: str = "",
    ) -> RunRecord:
        """Record a run and start its launcher; the same instance again gives the same run.

        Before a run is recorded, its input is inspected: that it is there, can be read, and has its
        columns.

        Args:
            process: name of the workload.
            parameters: its parameters.
            beam_flags: flags for Beam, such as `--runner=FlinkRunner`.
            replace: whether it takes the place of a run of the same instance and number that hasn't
                published, because its parameters were wrong. A run that goes on is canceled first.
            why: the reason for that, for the record.

        Raises:
            UserError: parameters don't fit, the input can't be read, or the instance can't be run
                (again) now.
        """
        from ledgerbeam.batch.runs.draft import draft_run

        drafted = draft_run(process, parameters, beam_flags, self._who, self._now())
        self._refuse_other_registry(drafted.run)
        before = self._recorded(drafted.run)
        if before is None or replace:
            from ledgerbeam.batch.attempt.plan import check_input

            check_input(drafted.process)
        if replace:
            run, is_new = self._replace(before, drafted, why), True
        else:
            run, is_new = self.registry.submit(drafted.run, drafted.schema)
        failpoint("submit: recorded")
        if is_new or run.status is RunStatus.INITIATED:
            # Whoever submitted it first may have died before this.
            self._put_on_record(run)
            self._launch(run)
        return run

    def record(
        self, process: str, parameters: Mapping[str, Any], beam_flags: Sequence[str] = ()
    ) -> tuple[RunRecord, bool]:
        """Record a run without starting it; arguments and errors are those of `submit`.

        Returns:
            The run, and whether it is new.
        """
        from ledgerbeam.batch.runs.draft import draft_run

        drafted = draft_run(process, parameters, beam_flags, self._who, self._now())
        self._refuse_other_registry(drafted.run)
        run, is_new = self.registry.submit(drafted.run, drafted.schema)
        if is_new or run.status is RunStatus.INITIATED:
            self._put_on_record(run)
        return run, is_new

    def _refuse_other_registry(self, draft: RunDraft) -> None:
        """Let an instance be on record in one registry only, which knows all of it."""
        from ledgerbeam.io.commit.on_record import MARK, find_mark

        mark = find_mark(draft.uri)
        if mark is None:
            return
        try:
            self.registry.get(mark.run)
        except RunNotFoundError:
            raise OnRecordError(
                f"{draft.uri}: on record in another registry, as run {mark.run} that {mark.who} "
                f"submitted: use that one; if it is lost for good, delete {MARK} there and submit "
                "again",
                uri=draft.uri,
                run=mark.run,
            ) from None

    def _put_on_record(self, run: RunRecord) -> None:
        # Imports Arrow, which most verbs do without.
        from ledgerbeam.io.commit.on_record import put_on_record

        put_on_record(run.uri, run.id, run.name, run.submitted_by, self._now())

    def _recorded(self, draft: RunDraft) -> RunRecord | None:
        """The run of the draft's instance and number, if there is one."""
        try:
            return self.registry.find(f"{draft.process}/{draft.instance}/{draft.run_number}")
        except RunNotFoundError:
            return None

    def _replace(self, before: RunRecord | None, drafted: "Drafted", why: str) -> RunRecord:
        """Record a run in the place of another one, which is canceled if it goes on."""
        draft = drafted.run
        name = run_name(draft.process, draft.instance, draft.run_number)
        if before is None:
            raise ParameterError(
                f"there is no run {name} to be replaced: submit it without --replace",
                parameter="--replace",
            )
        if not why.strip():
            raise ParameterError(
                f"run {name} ({before.id}) is to be replaced: say why (--why)", parameter="--why"
            )
        if not before.status.is_final:
            if before.status is not RunStatus.CANCELING:
                self.cancel(before.id, f"to be replaced: {why}")
            before = self.wait(before.id, _CANCEL_SECONDS).run
        if before.status is RunStatus.SUCCESS:
            raise AlreadyPublishedError(
                f"run {name} ({before.id}) has published, which stays as it is: submit the "
                "instance with the next run number and a reason",
                uri=before.uri,
            )
        failpoint("replace: canceled")
        return self.registry.replace(before.id, draft, drafted.schema, why)

    def get(self, run: str) -> RunView:
        """How a run stands.

        Args:
            run: its id, six or more characters of it, or `process/instance[/run-number]`.

        Raises:
            RunNotFoundError: there is no such run.
        """
        from ledgerbeam.batch.observe.progress import ProgressReader

        record = self.registry.find(run)
        return self._whole(self._view(record, ProgressReader(record.uri)))

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
            timeout: seconds to wait at most; None to wait without a limit.
            tracker: called at the interval, and once at the end.
            interval: seconds between two calls of the tracker.

        Returns:
            How the run stands at its end, whether or not that is a success.

        Raises:
            WaitTimeoutError: it hasn't ended within that time, and goes on.
        """
        from ledgerbeam.batch.observe.progress import ProgressReader

        record = self.registry.find(run)
        reader = ProgressReader(record.uri)
        started = time.monotonic()
        tracked_at = float("-inf")
        while True:
            record = self.registry.get(record.id)
            is_late = timeout is not None and time.monotonic() - started >= timeout
            if record.status.is_final or is_late or time.monotonic() - tracked_at >= interval:
                tracked_at = time.monotonic()
                view = self._view(record, reader)
                if record.status.is_final:
                    view = self._whole(view)
                if tracker is not None:
                    tracker(view)
            if record.status.is_final:
                return view
            if is_late:
                raise WaitTimeoutError(
                    f"run {record.id} is {record.status} after {timeout:g} s: it goes on",
                    run=record.id,
                    status=record.status,
                )
            time.sleep(min(_POLL_SECONDS, interval))

    def list(
        self,
        process: str | None = None,
        status: RunStatus | None = None,
        limit: int | None = None,
        before: str | None = None,
        since: datetime.datetime | None = None,
        where: Mapping[str, str] = MappingProxyType({}),
    ) -> list[RunRecord]:
        """Runs, newest first.

        Args:
            process: only runs of that process.
            status: only runs that have it.
            limit: how many at most.
            before: id of a run; only runs that were submitted before it, which is the next page.
            since: only runs that were submitted at that time in UTC or later.
            where: only runs that have these parameters, each as a text.

        Raises:
            ParameterError: none of the other runs has a parameter of that name.
        """
        if not where:
            return self.registry.runs(process, status, limit, before, since)
        found: list[RunRecord] = []
        unknown = set(where)
        # What JSON holds is compared differently by each database.
        while page := self.registry.runs(process, status, _PAGE, before, since):
            before = page[-1].id
            unknown -= {name for run in page for name in run.all_parameters}
            found += [run for run in page if _has(run, where)]
            if limit is not None and len(found) >= limit:
                return found[:limit]
        if unknown and before is not None:
            name = min(unknown)
            raise ParameterError(f"no run has a parameter {name}", parameter=name)
        return found

    def components(
        self, run: str, status: ComponentStatus | None = None, after: str | None = None
    ) -> "Iterator[Outcome]":
        """How each of a run's components has ended, ordered by shard and then by name.

        Args:
            run: which.
            status: only components that have it.
            after: name of a component; only those that come after it.
        """
        from ledgerbeam.batch.observe.components import components_of

        return components_of(self._uri(run), status, after)

    def rejects(self, run: str) -> "Iterator[pa.Table]":
        """The rows that were rejected, file by file: those found so far if nothing is published.

        Each table has the columns `file`, `row` (line of text, or row, from 1), `raw` (the row as
        it is in the source) and `reason`.

        Raises:
            DamagedFileError: a file of them isn't what was written.
        """
        from ledgerbeam.batch.observe.rejections import rejected_tables

        return rejected_tables(self._uri(run))

    def logs(self, run: str, component: str | None = None) -> Iterator[str]:
        """The lines of a run's log on this machine: of launchers, attempts and their workers.

        Workers of an engine, such as Dataflow's, log there.

        Args:
            run: which.
            component: only messages that name this component, by its key as `components` gives it,
                and then what has become of it, with its traceback.

        Raises:
            StorageError: the run has no log on this machine, or it can't be read.
            ComponentNotFoundError: neither the log nor the outcomes know the component.
        """
        from ledgerbeam.batch.runs.log import log_lines

        record = self.registry.find(run)
        return log_lines(self._settings.log_of(record.id), record, component)

    def results(self, run: str, table: str | None = None) -> "ds.Dataset":
        """What a run has published.

        Args:
            run: which.
            table: name of an extra table; by default the results.

        Raises:
            UserError: nothing is published, or no such table, or the results have expired.
        """
        from ledgerbeam.io.commit.published import read_published

        return read_published(self._uri(run), table)

    def reports(self, run: str) -> Sequence[str]:
        """The URIs of the reports that a run has published.

        Raises:
            UserError: nothing is published, or the results have expired.
        """
        from ledgerbeam.io.commit.published import published_reports

        uri = self._uri(run)
        return [uris.inside(uri, file.name) for file in published_reports(uri).values()]

    def copy_reports(self, run: str, folder: Path) -> Sequence[Path]:
        """Copy the reports that a run has published, after checking their hashes.

        Args:
            run: which.
            folder: to copy to; it is made if it isn't there.

        Returns:
            The paths of the copies.

        Raises:
            UserError: nothing is published, or a report differs from its record.
        """
        from ledgerbeam.io.commit.published import copy_reports

        return copy_reports(self._uri(run), folder)

    def cancel(self, run: str, why: str = "") -> RunRecord:
        """Ask for a run to be stopped.

        Its status is `CANCELING` until nothing of it can be committed any more, then `CANCELED`.

        Raises:
            IllegalMoveError: the run has ended.
        """
        record = self.registry.find(run)
        if not self._move(record, RunStatus.CANCELED, why, RunStatus.INITIATED):
            if record.status is not RunStatus.CANCELING:
                self._move(record, RunStatus.CANCELING, why)
            failpoint("cancel: recorded")
            self._steer(record, why, state="cancel")
        return self.registry.get(record.id)

    def pause(self, run: str, why: str = "") -> RunRecord:
        """Begin no more components; those in flight go on.

        Raises:
            IllegalMoveError: the run has ended, or is being canceled.
        """
        record = self.registry.find(run)
        if record.status is not RunStatus.PAUSED:
            self._move(record, RunStatus.PAUSED, why)
        failpoint("pause: recorded")
        self._steer(record, why, state="pause")
        return self.registry.get(record.id)

    def resume(self, run: str, why: str = "") -> RunRecord:
        """Go on after a pause.

        Raises:
            IllegalMoveError: the run isn't paused.
        """
        record = self.registry.find(run)
        if record.status is not RunStatus.PAUSED:
            raise IllegalMoveError(
                f"run {record.name} is {record.status}, not PAUSED: nothing to resume",
                run=record.id,
                from_status=record.status,
                to_status=RunStatus.EXECUTING,
            )
        self._move(record, RunStatus.EXECUTING, why, RunStatus.PAUSED)
        failpoint("resume: recorded")
        self._steer(record, why, state="run")
        return self.registry.get(record.id)

    def set_parallelism(self, run: str, parallelism: int | None, why: str = "") -> "Steering":
        """How many components or pages may be in flight over the whole run; None for the default.

        Raises:
            ParameterError: it is less than 1.
        """
        return self._tell(run, "parallelism", why, parallelism=parallelism)

    def set_rate(
        self,
        run: str,
        rate: float | None,
        ramp_from: float | None = None,
        ramp_seconds: float | None = None,
        why: str = "",
    ) -> "Steering":
        """How many components a second may be begun over the whole run.

        Args:
            run: which.
            rate: components a second; None for no limit.
            ramp_from: where a ramp up (or down) to `rate` begins, now.
            ramp_seconds: how long it takes.
            why: for the record.

        Raises:
            ParameterError: a value is out of range.
        """
        if ramp_from is None and ramp_seconds is None:
            return self._tell(run, "rate", why, rate=rate, ramp=None)
        if rate is None or ramp_from is None or ramp_seconds is None:
            raise ParameterError(
                "a ramp needs all three: where it begins, where it ends, how long", parameter="ramp"
            )
        from ledgerbeam.io.commit.control_log import Ramp

        try:
            ramp = Ramp(
                from_rate=ramp_from, to_rate=rate, seconds=ramp_seconds, started_at=self._now()
            )
        except ValidationError as error:
            problem = error.errors()[0]
            raise ParameterError(
                f"ramp: {problem['loc'][0]}: {problem['msg']}",
                parameter=str(problem["loc"][0]),
                value=problem["input"],
            ) from error
        return self._tell(run, "rate", why, ramp=ramp)

    def retry(
        self,
        run: str,
        why: str = "",
        components: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """Begin another attempt, with today's code, that executes failed and missing components.

        Args:
            run: which.
            why: for the record.
            components: which of the failed ones are executed, by their keys as the method
                `components` gives them; none for all. The others stay as they are.
            parameters: new values of parameters that were wrong, by name; they need a reason. Those
                that say which instance it is can't be changed.

        Raises:
            ComponentNotFoundError: a component that was named hasn't failed.
            ParameterError: a parameter doesn't fit, or can't be changed.
            UserError: the run goes on, or has published.
        """
        record = self.reopen(run, AttemptKind.RETRY, why, components, parameters)
        self._launch(record)
        return record

    def restart(self, run: str, why: str = "", *, force: bool = False) -> RunRecord:
        """Begin another attempt that executes missing components; failed ones stay as they are.

        Args:
            run: which.
            why: for the record.
            force: whether a live attempt is given up for lost, without waiting for its launcher's
                silence, because its machine is gone. Nothing that it may still do counts.

        Raises:
            UserError: the run goes on, or has published; or it is forced without a reason, or
                though its job goes on.
        """
        if force:
            record = self.registry.find(run)
            if record.live_attempt is not None:
                self._give_up(record, record.live_attempt, why)
                return self.registry.get(record.id)
        record = self.reopen(run, AttemptKind.RESTART, why)
        self._launch(record)
        return record

    def resolve(
        self,
        run: str,
        component: str,
        status: ComponentStatus,
        why: str,
        results: str | None = None,
    ) -> None:
        """Record how the call of a component that is `UNKNOWN` has ended.

        It takes effect with the next attempt that retries.

        Args:
            run: which.
            component: the component's name, as `components` gives it.
            status: `SUCCESS` if the call took effect; `FAILURE` if it had none, so that the
                component may be called again.
            why: for the record.
            results: URI of a file with the rows that the call would have given, for `SUCCESS`.

        Raises:
            UserError: the run goes on or has published, or the component isn't unknown.
        """
        # Imports Beam, which the other verbs do without.
        from ledgerbeam.batch.define.workloads import load_workload
        from ledgerbeam.batch.runs.resolve import resolve

        record = self.registry.find(run)
        if record.status not in (RunStatus.FAILURE, RunStatus.CANCELED):
            raise IllegalMoveError(
                f"run {record.name} is {record.status}: a component is resolved when its run has "
                "ended without publishing",
                run=record.id,
                from_status=record.status,
            )
        kind = load_workload(record.process)
        resolve(record.uri, kind, component, status, results, self._who, why, self._now())
        failpoint("resolve: decided")
        self._append(record, "resolved", why, {"component": component, "status": status})

    def expire(self) -> Sequence[RunRecord]:
        """Delete results whose time is over; manifests, markers and outcomes stay.

        Returns:
            The runs whose results were deleted.
        """
        from ledgerbeam.batch.runs.expire import expire_results

        expired = []
        for record in self.registry.expiring(self._now()):
            try:
                expire_results(record.uri, self._now())
            except UserError as error:
                # The others are due all the same.
                _log.error("run %s: its results can't be deleted: %s", record.id, error)
                continue
            except Exception:
                _log.exception("run %s: its results can't be deleted", record.id)
                continue
            failpoint("expire: deleted")
            if self.registry.mark_expired(record.id, who=self._who, at=self._now()):
                expired.append(record)
        return expired

    def events(self, run: str) -> Sequence[RecordedEvent]:
        """All events of a run, in their order."""
        return self.registry.events(self.registry.find(run).id)

    def reopen(
        self,
        run: str,
        kind: AttemptKind,
        why: str,
        components: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> RunRecord:
        """Have a run that ended without success executed again, by a launcher yet to be started.

        Args:
            run: which.
            kind: `RETRY` or `RESTART`.
            why: for the record.
            components: for `RETRY`, which of the failed ones; none for all.
            parameters: new values of parameters that were wrong, by name.

        Raises:
            ParameterError: a parameter doesn't fit, or can't be changed.
            ComponentNotFoundError: one of these components hasn't failed.
            UserError: the run goes on, or has published; its results have expired; or a later
                run of its instance was submitted.
        """
        record = self.registry.find(run)
        if record.status is RunStatus.SUCCESS:
            raise AlreadyPublishedError(
                f"run {record.name} has published, which stays as it is: submit the instance "
                "again with the next run number and a reason",
                uri=record.uri,
            )
        if record.results_expired_at is not None:
            raise ResultsExpiredError(
                f"what run {record.name} had committed has expired and was deleted: submit the "
                "instance again with the next run number and a reason",
                uri=record.uri,
            )
        if record.status.is_final and components:
            from ledgerbeam.batch.observe.components import check_retried

            check_retried(record.uri, components)
        changed: dict[str, Any] | None = None
        if record.status.is_final and parameters:
            if not why.strip():
                raise ParameterError(
                    f"run {record.name}: say why its parameters are changed (--why)",
                    parameter="--why",
                )
            from ledgerbeam.batch.runs.correct import corrected

            changed = corrected(record, parameters, self._who, self._now())
        if record.status.is_final and self.registry.move(
            record.id,
            RunStatus.EXECUTING,
            who=self._who,
            at=self._now(),
            why=why,
            expected=record.status,
            next_kind=kind,
            detail={"components": [*components]} if components else None,
            parameters=changed,
        ):
            failpoint("again: recorded")
            return self.registry.get(record.id)
        raise IllegalMoveError(
            f"run {record.name} is {self.registry.get(record.id).status}: wait for its end, or "
            "cancel it first; if its launcher is dead, `ledgerbeam reconcile` sees to it, at once "
            "with `restart --force` where its machine is gone",
            run=record.id,
            from_status=record.status,
            to_status=RunStatus.EXECUTING,
        )

    def _give_up(self, record: RunRecord, attempt: RunAttempt, why: str) -> None:
        """Have a live attempt fenced off and followed by another one."""
        from ledgerbeam.batch.launch.job import JobId

        if not why:
            raise ParameterError(
                f"run {record.name} isn't at rest: say why it is forced (--why)", parameter="why"
            )
        owner = ProcessId.parse(attempt.launcher)
        job = JobId.parse(attempt.job_id) if attempt.job_id else None
        if (owner.is_here and owner.is_alive()) or (job is not None and job.can_be_seen):
            raise IllegalMoveError(
                f"run {record.name}: attempt {attempt.number} isn't out of sight: cancel it, or if "
                "its launcher is dead, `ledgerbeam reconcile` sees to it",
                run=record.id,
                from_status=record.status,
                to_status=RunStatus.EXECUTING,
            )
        now = self._now()
        self.registry.take_over(
            record.id,
            attempt.number,
            old_launcher=attempt.launcher,
            new_launcher=str(ProcessId.of(os.getpid())),
            # At once over: whoever is launched now goes on from here.
            lease_until=now,
            who=self._who,
            at=now,
            why=why,
            force=True,
        )
        self._launch(self.registry.get(record.id))

    def _launch(self, record: RunRecord) -> None:
        start_launcher(self.registry, self._settings, record, self._now())

    def _view(self, record: RunRecord, reader: "ProgressReader") -> RunView:
        if self._successor(record) is not None:
            from ledgerbeam.batch.observe.progress import Progress

            # What is in its folder is the other one's.
            code = self._failure_code(record) if record.status is RunStatus.FAILURE else None
            return RunView(record, Progress(at=self._now()), code)
        ended = record.attempts[-1].ended_at if record.attempts else None
        progress = reader.read(ended or self._now(), is_live=ended is None)
        code = self._failure_code(record) if record.status is RunStatus.FAILURE else None
        return RunView(record, progress, code)

    def _successor(self, record: RunRecord) -> str | None:
        """Id of the run that was submitted in the place of this one; None if none was."""
        if record.status not in (RunStatus.FAILURE, RunStatus.CANCELED):
            return None
        return self.registry.successor(record.id)

    def _uri(self, run: str) -> str:
        """The folder of a run, whose content is its own."""
        record = self.registry.find(run)
        by = self._successor(record)
        if by is not None:
            raise IllegalMoveError(
                f"run {record.name} was replaced by run {by}: what is stored is that one's",
                run=record.id,
                from_status=record.status,
            )
        return record.uri

    def _whole(self, view: RunView) -> RunView:
        """The view, with what isn't read each time that somebody looks."""
        if self._successor(view.run) is not None:
            return view
        from ledgerbeam.batch.observe.rejections import rejected_rows

        view = view._replace(rejected=rejected_rows(view.run.uri))
        counts = view.progress.components
        if not any(counts.get(each) for each in (ComponentStatus.FAILURE, ComponentStatus.UNKNOWN)):
            return view
        from ledgerbeam.batch.observe.components import failures_of

        return view._replace(failures=failures_of(view.run.uri))

    def _failure_code(self, record: RunRecord) -> str | None:
        """The code of the error by which a run has failed, where it is on record."""
        ends = [event for event in self.registry.events(record.id) if event.to_status is not None]
        return ends[-1].detail.get("code")

    def _move(
        self, record: RunRecord, to: RunStatus, why: str, expected: RunStatus | None = None
    ) -> bool:
        return self.registry.move(
            record.id, to, who=self._who, at=self._now(), why=why, expected=expected
        )

    def _steer(self, record: RunRecord, why: str, **changes: Any) -> "Steering":
        from ledgerbeam.io.commit import control_log

        return control_log.steer(record.uri, self._now(), self._who, why, **changes)

    def _tell(self, run: str, what: str, why: str, **changes: Any) -> "Steering":
        record = self.registry.find(run)
        if record.status.is_final:
            raise IllegalMoveError(
                f"run {record.name} is {record.status}: there is nothing to steer",
                run=record.id,
                from_status=record.status,
            )
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


def _has(run: RunRecord, where: Mapping[str, str]) -> bool:
    given = run.all_parameters
    return all(name in given and _text(given[name]) == text for name, text in where.items())


def _text(value: object) -> str:
    """A parameter as people write it: what is empty as nothing, truth as in JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
