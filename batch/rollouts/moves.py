"""What people do to a process's rollout: look at it, promote it, approve that, roll it back."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ledgerbeam.batch.model.rollout import (
    Counts,
    RolloutEntry,
    RolloutHistory,
    RolloutStanding,
    Values,
    approval,
    promotion,
    step_back,
)
from ledgerbeam.batch.model.rules import COMPONENTS, FAILED, PlannedRules, of_rule
from ledgerbeam.batch.observe.components import commits_of
from ledgerbeam.batch.rollouts.planning import entry_after, entry_of
from ledgerbeam.io.commit.attempts import attempts
from ledgerbeam.io.commit.records import Totals
from ledgerbeam.io.commit.rollout_log import RolloutLog, RolloutRecord
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.storage import uris
from ledgerbeam.rules.rollout import NOBODY

_THREADS = 8


def rollout_of(log: RolloutLog) -> tuple[RolloutStanding, list[RolloutEntry]]:
    """How the rollout of a process stands, and what was done to its rollouts so far.

    Raises:
        ParameterError: it has none.
    """
    history = _history(log, log.entries())
    return history.standing(_counts(log, history)), [*history.entries]


def promote(log: RolloutLog, stage: str, *, who: str, why: str, force: bool = False) -> str:
    """Bring a rollout to its next stage; or ask for that, if the definition wants approval.

    Arguments and errors are those of `ledgerbeam.batch.model.rollout.promotion`.

    Returns:
        What was done: `promoted` or `asked`.
    """

    def move(history: RolloutHistory, counts: Counts) -> Values:
        return promotion(history, stage, counts, who=who, why=why, force=force)

    return str(_moved(log, move)["what"])


def approve(log: RolloutLog, stage: str, *, who: str, why: str, comparison: str = "") -> None:
    """Bring a rollout to the stage that another person has asked for.

    Arguments and errors are those of `ledgerbeam.batch.model.rollout.approval`.
    """

    def move(history: RolloutHistory, counts: Counts) -> Values:
        return approval(history, stage, counts, who=who, why=why, comparison=comparison)

    _moved(log, move)


def roll_back(log: RolloutLog, stage: str = NOBODY, *, who: str, why: str) -> None:
    """Bring a rollout back to an earlier stage; that needs nobody's approval.

    Arguments and errors are those of `ledgerbeam.batch.model.rollout.step_back`.
    """

    def move(history: RolloutHistory, counts: Counts) -> Values:
        return step_back(history, stage, counts, who=who, why=why)

    _moved(log, move)


def _moved(log: RolloutLog, move: Callable[[RolloutHistory, Counts], Values]) -> Values:
    """Write the entry of a move; if somebody else was faster, it is judged again behind theirs."""
    while True:
        records = log.entries()
        history = _history(log, records)
        values = move(history, _counts(log, history))
        failpoint("rollout.before-entry")
        if log.append(entry_after(records[-1], values)):
            failpoint("rollout.committed")
            return values


def _history(log: RolloutLog, records: Sequence[RolloutRecord]) -> RolloutHistory:
    if not records:
        raise ParameterError(
            f"process {log.process} has no rollout on record at {log.output}: give its definition "
            "two rules and a rollout, and run it",
            parameter="process",
            value=log.process,
        )
    return RolloutHistory(
        log.process,
        "process",
        "components",
        "components RUN --status=FAILURE",
        [entry_of(record) for record in records],
        records[-1].plan,
    )


def _counts(log: RolloutLog, history: RolloutHistory) -> Counts:
    """Components that the new rule has executed at the present stage, and those that failed.

    Of runs that haven't published, those of committed shards count.
    """
    since, until = history.begun.number, history.last.number
    folder = uris.join(uris.absolute(log.output), log.process)
    instances = [name for number in range(since, until + 1) for name in log.runs(number)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [*pool.map(lambda name: _totals(uris.join(folder, name), since), instances)]
    rule = history.last.rule
    executed, failed = (
        sum(totals.get(of_rule(rule, name), 0) for totals in found) for name in (COMPONENTS, FAILED)
    )
    return Counts(executed - failed, failed)


def _totals(uri: str, since: int) -> Totals:
    """Sums of an instance that was begun at an entry from `since` on; none of others."""
    planned = next(iter(map(PlannedRules.of, attempts(uri))), None)
    if planned is None or planned.entry < since:
        return {}
    found: Totals = {}
    for commit in commits_of(uri):
        for name, value in commit.totals.items():
            found[name] = found.get(name, 0) + value
    return found
