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

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.launch.spawn import Spawn, spawn, start_launcher
from ledgerbeam.batch.model.approval import REFUSED, Act, Approval
from ledgerbeam.batch.model.run import (
    AttemptKind,
    RunAttempt,
    RunDraft,
    RunRecord,
)
from ledgerbeam.batch.model.status import ComponentStatus, RunStatus
from ledgerbeam.batch.runs.approvals import ApprovedRuns, approved, waiting_approval
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io.errors import (
    AlreadyPublishedError,
    IllegalMoveError,
    OnRecordError,
    ParameterError,
    ResultsExpiredError,
    RunNotFoundError,
    UserError,
)
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.machine import ProcessId
from ledgerbeam.io.storage import uris

if TYPE_CHECKING:
    pass

_log = logging.getLogger(__name__)


class Runs(ApprovedRuns):
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
        spawn_it: Spawn = spawn,
    ) -> None:
        """Open the registry.

        Args:
            settings: where it is.
            who: signs events; by default `user@host`.
            now: the present time in UTC.
            spawn_it: starts launchers.

        Raises:
            UserError: it can't be opened.
        """
        super().__init__(settings, who, now)
        self._spawn = spawn_it

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
        self,
        process: str,
        parameters: Mapping[str, Any],
        beam_flags: Sequence[str] = (),
        *,
        replace: bool = False,
        why: str = "",
    ) -> tuple[RunRecord, bool]:
        """Record a run without starting it; arguments and errors are those of `submit`.

        Returns:
            The run, and whether it is new.
        """
        from ledgerbeam.batch.runs.draft import draft_run

        drafted = draft_run(process, parameters, beam_flags, self._who, self._now())
        self._refuse_other_registry(drafted.run)
        if replace:
            run, is_new = self._replace(self._recorded(drafted.run), drafted, why), True
        else:
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
            ApprovalNeededError: the definition wants another person to approve the parameters.
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
            ApprovalNeededError: the definition wants another person to approve it.
            UserError: the run goes on or has published, or the component isn't unknown.
        """
        record = self.registry.find(run)
        self._resolve(record, why, component, status, results)

    def _resolve(
        self,
        record: RunRecord,
        why: str,
        component: str,
        status: ComponentStatus,
        results: str | None,
        approval: Approval | None = None,
    ) -> None:
        # Imports Beam, which the other verbs do without.
        from ledgerbeam.batch.define.workloads import load_workload
        from ledgerbeam.batch.runs.resolve import checked_decision, decide

        if record.status not in (RunStatus.FAILURE, RunStatus.CANCELED):
            raise IllegalMoveError(
                f"run {record.name} is {record.status}: a component is resolved when its run has "
                "ended without publishing",
                run=record.id,
                from_status=record.status,
            )
        kind = load_workload(record.process)
        call, decision = checked_decision(
            record.uri, kind, component, status, results, self._who, why, self._now()
        )
        if approval is None:
            place = None if results is None else uris.absolute(results)
            arguments = {"component": component, "status": status, "results": place}
            self._ask_approval(record, Act.RESOLVE, arguments, why)
        decide(call, decision)
        failpoint("resolve: decided")
        detail = {"component": component, "status": status, **approved(approval)}
        self._append(record, "resolved", why, detail)

    def approve(self, run: str, number: int | None = None, why: str = "") -> RunRecord:
        """Do what another person has asked for, where the definition wants it approved.

        Args:
            run: which.
            number: of what was asked for, as `RunView.approvals` has it; None for the only one.
            why: for the record; by default the reason of who has asked.

        Returns:
            The run, or the one that has taken its place.

        Raises:
            IllegalMoveError: nothing of that number waits, or several do and none is named.
            SamePersonError: who approves has asked for it.
            UserError: it can't be done any more.
        """
        record = self.registry.find(run)
        asked = self.to_be_approved(record, number)
        why = why or asked.why
        if asked.act is Act.RESOLVE:
            given = asked.arguments | {"status": ComponentStatus(asked.arguments["status"])}
            self._resolve(record, why, **given, approval=asked)
            return record
        if asked.act is Act.CORRECT:
            record = self.reopen(record.id, AttemptKind.RETRY, why, approval=asked.number)
        else:
            record = self.replace_approved(record, asked, why)
        self._launch(record)
        return record

    def refuse(self, run: str, why: str, number: int | None = None) -> RunRecord:
        """Refuse what was asked for, which isn't done then; who has asked may take it back so.

        Args:
            run: which.
            why: for the record.
            number: of what was asked for, as `RunView.approvals` has it; None for the only one.

        Raises:
            IllegalMoveError: nothing of that number waits, or several do and none is named.
        """
        record = self.registry.find(run)
        asked = waiting_approval(self.registry, record, number)
        self._append(record, REFUSED, why, {"approval": asked.number})
        return record

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

    def reopen(
        self,
        run: str,
        kind: AttemptKind,
        why: str,
        components: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        approval: int | None = None,
    ) -> RunRecord:
        """Have a run that ended without success executed again, by a launcher yet to be started.

        Args:
            run: which.
            kind: `RETRY` or `RESTART`.
            why: for the record.
            components: for `RETRY`, which of the failed ones; none for all.
            parameters: new values of parameters that were wrong, by name.
            approval: number of what another person has asked for, which says both.

        Raises:
            ParameterError: a parameter doesn't fit, or can't be changed.
            ComponentNotFoundError: one of these components hasn't failed.
            ApprovalNeededError: the definition wants another person to approve the parameters.
            SamePersonError: who approves has asked for it.
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
        if approval is None:
            asked = None
            changed = self._corrected(record, why, components, parameters)
        else:
            asked = self.to_be_approved(record, approval)
            components, parameters = asked.arguments["components"], asked.arguments["parameters"]
            changed = self._fitting(record, why, components, parameters)
        detail = {"components": [*components]} if components else {}
        if record.status.is_final and self.registry.move(
            record.id,
            RunStatus.EXECUTING,
            who=self._who,
            at=self._now(),
            why=why,
            expected=record.status,
            next_kind=kind,
            detail=detail | approved(asked),
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

    def check_retry(
        self,
        record: RunRecord,
        why: str,
        components: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        approval: int | None = None,
    ) -> None:
        """Check what `reopen` is to be given for a retry of a run that has ended.

        Raises:
            ParameterError: a parameter doesn't fit, or can't be changed.
            ComponentNotFoundError: one of these components hasn't failed.
            ApprovalNeededError: the definition wants another person to approve the parameters.
            SamePersonError: who approves has asked for it.
        """
        if approval is None:
            self._corrected(record, why, components, parameters)
        else:
            self.to_be_approved(record, approval)

    def _corrected(
        self,
        record: RunRecord,
        why: str,
        components: Sequence[str],
        parameters: Mapping[str, Any] | None,
    ) -> dict[str, Any] | None:
        """The parameters that change, if nobody has to approve them; None where none do."""
        changed = self._fitting(record, why, components, parameters)
        if changed:
            arguments = {"components": [*components], "parameters": dict(parameters or {})}
            self._ask_approval(record, Act.CORRECT, arguments, why)
        return changed

    def _fitting(
        self,
        record: RunRecord,
        why: str,
        components: Sequence[str],
        parameters: Mapping[str, Any] | None,
    ) -> dict[str, Any] | None:
        """The parameters that change, as they are recorded; None where none do."""
        if not record.status.is_final:
            return None
        if components:
            from ledgerbeam.batch.observe.components import check_retried

            check_retried(record.uri, components)
        if not parameters:
            return None
        if not why.strip():
            raise ParameterError(
                f"run {record.name}: say why its parameters are changed (--why)",
                parameter="--why",
            )
        from ledgerbeam.batch.runs.correct import corrected

        return corrected(record, parameters, self._who, self._now())

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
        start_launcher(self.registry, self._settings, record, self._now(), self._spawn)
