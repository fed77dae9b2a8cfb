"""Asking for the approval of a second person, and finding what waits for it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ledgerbeam.batch.model.approval import ASKED, Act, Approval, open_approvals
from ledgerbeam.batch.model.run import RunDraft, RunRecord, run_name
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.runs.steering import SteeredRuns
from ledgerbeam.io.errors import (
    AlreadyPublishedError,
    ApprovalNeededError,
    IllegalMoveError,
    ParameterError,
    RunNotFoundError,
    SamePersonError,
)
from ledgerbeam.io.failpoints import failpoint

if TYPE_CHECKING:
    from ledgerbeam.batch.runs.draft import Drafted

_CANCEL_SECONDS = 120.0
"""How long a run that is replaced is given to end."""

Append = Callable[[RunRecord, str, str, dict[str, Any]], None]
"""Records an event of a run: its type, the reason, more facts."""


def ask_approval(
    registry: Registry,
    append: Append,
    record: RunRecord,
    act: Act,
    arguments: Mapping[str, Any],
    who: str,
    why: str,
) -> None:
    """Put on record what is asked for, if the run's definition wants it approved.

    Args:
        registry: of the run.
        append: records an event there.
        record: the run.
        act: what is asked for.
        arguments: to be done with, by name.
        who: asks.
        why: the reason.

    Raises:
        ApprovalNeededError: the definition wants it approved.
    """
    # Imports Beam, which the other verbs do without.
    from ledgerbeam.batch.define.workloads import load_workload

    if act not in load_workload(record.process).approvals:
        return

    def asked_before() -> list[int]:
        waiting = open_approvals(registry.events(record.id))
        mine = (who, act, dict(arguments))
        return [each.number for each in waiting if (each.who, each.act, each.arguments) == mine]

    if not asked_before():
        append(record, ASKED, why, {"act": act, "arguments": dict(arguments)})
    number = asked_before()[-1]
    raise ApprovalNeededError(
        f"run {record.name}: this is on record, and is done when another person approves it: "
        f"ledgerbeam approve {record.id} {number}",
        run=record.id,
        approval=number,
    )


def waiting_approval(registry: Registry, record: RunRecord, number: int | None) -> Approval:
    """What was asked for by that number, or the only thing that waits.

    Raises:
        IllegalMoveError: nothing of that number waits, or several do and none is named.
    """
    waiting = open_approvals(registry.events(record.id))
    chosen = [asked for asked in waiting if number in (None, asked.number)]
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(str(asked.number) for asked in waiting)
    if chosen:
        problem = f"{known} wait for approval: name one"
    elif number is None:
        problem = "nothing waits for approval"
    else:
        problem = f"{number} doesn't wait for approval: {known or 'nothing'} does"
    raise IllegalMoveError(
        f"run {record.name}: {problem}", run=record.id, from_status=record.status
    )


def check_other_person(record: RunRecord, asked: Approval, who: str) -> None:
    """Check that somebody approves what another person has asked for.

    Raises:
        SamePersonError: it is the same person.
    """
    if asked.who == who:
        raise SamePersonError(
            f"run {record.name}: {who} has asked for {asked.number}: another person approves it",
            run=record.id,
            approval=asked.number,
        )


def approved(approval: Approval | None) -> dict[str, Any]:
    """What stands on record of an approval, in the event of what was done by it."""
    return {} if approval is None else {"approval": approval.number, "asked_by": approval.who}


class ApprovedRuns(SteeredRuns):
    """Runs, and what a second person may have to approve. `Runs` has these methods too."""

    def to_be_approved(self, record: RunRecord, number: int | None) -> Approval:
        """What was asked for, once it is sure that it waits, and that another person approves it.

        Raises:
            IllegalMoveError: nothing of that number waits, or several do and none is named.
            SamePersonError: who approves has asked for it.
        """
        asked = waiting_approval(self.registry, record, number)
        check_other_person(record, asked, self._who)
        return asked

    def _ask_approval(
        self, record: RunRecord, act: Act, arguments: Mapping[str, Any], why: str
    ) -> None:
        ask_approval(self.registry, self._append, record, act, arguments, self._who, why)

    def _recorded(self, draft: RunDraft) -> RunRecord | None:
        """The run of the draft's instance and number, if there is one."""
        try:
            return self.registry.find(f"{draft.process}/{draft.instance}/{draft.run_number}")
        except RunNotFoundError:
            return None

    def begin_replacing(
        self, process: str, parameters: Mapping[str, Any], why: str
    ) -> tuple[RunRecord, bool]:
        """Cancel the run that is to be replaced, once it is sure that this may be done.

        Returns:
            The run as it stands, and whether it has these parameters, for that reason, already.
        """
        from ledgerbeam.batch.runs.draft import draft_run

        drafted = draft_run(process, parameters, (), self._who, self._now())
        before = self._recorded(drafted.run)
        if before is not None:
            first = self.registry.events(before.id)[0]
            same = (before.parameters, first.who) == (drafted.run.parameters, self._who)
            if same and first.why == why and "replaces" in first.detail:
                return before, True
        return self._clear(before, drafted, why), False

    def _replace(
        self,
        before: RunRecord | None,
        drafted: "Drafted",
        why: str,
        approval: Approval | None = None,
    ) -> RunRecord:
        """Record a run in the place of another one, which is canceled if it goes on."""
        draft = drafted.run
        before = self.wait(self._clear(before, drafted, why, approval).id, _CANCEL_SECONDS).run
        if before.status is RunStatus.SUCCESS:
            raise AlreadyPublishedError(
                f"run {before.name} ({before.id}) has published, which stays as it is: submit the "
                "instance with the next run number and a reason",
                uri=before.uri,
            )
        failpoint("replace: canceled")
        return self.registry.replace(before.id, draft, drafted.schema, why)

    def _clear(
        self,
        before: RunRecord | None,
        drafted: "Drafted",
        why: str,
        approval: Approval | None = None,
    ) -> RunRecord:
        """Have a run stopped that is to be replaced, if that needs no approval, or has it."""
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
        if approval is None:
            given = draft.parameters | {"run_number": draft.run_number, "reason": draft.reason}
            arguments = {"parameters": given, "beam_flags": draft.beam_flags}
            self._ask_approval(before, Act.REPLACE, arguments, why)
        if not before.status.is_final and before.status is not RunStatus.CANCELING:
            return self.cancel(before.id, f"to be replaced: {why}")
        return before

    def replace_approved(self, record: RunRecord, asked: Approval, why: str) -> RunRecord:
        """Record the run that somebody has asked for in the place of another, as is approved."""
        from ledgerbeam.batch.runs.draft import draft_run

        drafted = draft_run(record.process, **asked.arguments, who=self._who, at=self._now())
        return self._replace(record, drafted, why, asked)
