"""Which rules an instance is executed by: read once, by the process that begins its first attempt.

Workers know it from the attempt's record, and open neither this log nor a database.
"""

from collections.abc import Sequence
from typing import Any

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.model.rollout import RolloutEntry, declaration
from ledgerbeam.batch.model.rules import PlannedRules
from ledgerbeam.batch.settings import whoami
from ledgerbeam.io.commit.records import AttemptRecord
from ledgerbeam.io.commit.rollout_log import RolloutLog, RolloutRecord
from ledgerbeam.rules.rollout import NOBODY


def log_of(process: BatchProcess[Any]) -> RolloutLog:
    """The log of a process's rollouts."""
    return RolloutLog(process.parameters.output, process.name)


def planned_rules(
    process: BatchProcess[Any], earlier: Sequence[AttemptRecord]
) -> PlannedRules | None:
    """The rules of an instance: those of its first attempt, or as the rollout stands now.

    Args:
        process: the definition with its parameters.
        earlier: attempts of the instance so far.

    Returns:
        None for a process without rules.

    Raises:
        DefinitionError: the definition doesn't go on with the rollout that is on record.
    """
    if not isinstance(process, KeyedProcess) or not process.rules:
        return None
    if process.shadow is not None:
        return process.shadow.rules
    for record in earlier:
        planned = PlannedRules.of(record)
        if planned is not None:
            return planned
    new, old = max(process.rules), min(process.rules)
    last = next(reversed(log_of(process).entries()), None)
    values = declaration_after(process, last)
    if process.rollout is None:
        return PlannedRules.everybody(new)
    plan = values["plan"] if values is not None else (last.plan if last is not None else {})
    return PlannedRules(
        new,
        old,
        values["stage"] if values is not None else (last.stage if last is not None else NOBODY),
        last.number if last is not None else 0,
        plan["salt"],
        tuple(plan["stages"]),
        tuple(plan["customers"]),
    )


def declare_rollout(process: BatchProcess[Any]) -> None:
    """Put what a definition says of its rollout on record, if it isn't yet.

    Raises:
        DefinitionError: it doesn't go on with the rollout that is on record.
    """
    if not isinstance(process, KeyedProcess) or process.rollout is None or process.shadow:
        return
    log = log_of(process)
    while True:
        last = next(reversed(log.entries()), None)
        values = declaration_after(process, last)
        if values is None or log.append(entry_after(last, values | {"who": whoami()})):
            return


def note_rollout(process: BatchProcess[Any], attempt: AttemptRecord) -> None:
    """Note beside the rollout that an instance is begun under it, for those who look how it goes.

    Args:
        process: the definition.
        attempt: one of the instance's, which may be recorded or not.
    """
    planned = PlannedRules.of(attempt)
    if planned is not None and planned.entry and "shadow" not in attempt.plan:
        log_of(process).note_run(planned.entry, attempt.instance)


def declaration_after(
    process: KeyedProcess[Any], last: RolloutRecord | None
) -> dict[str, Any] | None:
    """What an entry behind the last one would say of the definition; None if nothing is new."""
    return declaration(
        type(process).__name__,
        process.rules,
        process.rollout,
        None if last is None else entry_of(last),
        None if last is None else last.plan,
    )


def entry_of(record: RolloutRecord) -> RolloutEntry:
    """The entry that a record holds."""
    return RolloutEntry(**{name: getattr(record, name) for name in RolloutEntry._fields})


def entry_after(last: RolloutRecord | None, values: dict[str, Any]) -> RolloutRecord:
    """The next entry; what isn't given is as it was, or empty."""
    kept = ("rule", "old_rule", "stage", "plan")
    before = {} if last is None else {name: getattr(last, name) for name in kept}
    number = 1 if last is None else last.number + 1
    return RolloutRecord(**{"number": number, "at": utc_now(), **before, **values})
