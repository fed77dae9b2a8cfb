"""Asking for the approval of a second person, and finding what waits for it."""

from collections.abc import Callable, Mapping
from typing import Any

from ledgerbeam.batch.model.approval import ASKED, Act, Approval, open_approvals
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.io.errors import ApprovalNeededError, IllegalMoveError, SamePersonError

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
