"""Moves of a rollout: what people may do to it, and how it stands then.

Rollouts of consumers are on record in their database, and those of batch processes beside their
results. Both follow these rules: each entry says what was done, and how the rollout stands from
then on; a move is the values of the entry that follows.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from ledgerbeam.io.errors import DefinitionError, IllegalMoveError, ParameterError
from ledgerbeam.rules.failure_limit import FailureLimit
from ledgerbeam.rules.rollout import EVERYBODY, NOBODY, Rollout

DECLARED, ASKED, PROMOTED, ROLLED_BACK = "declared", "asked", "promoted", "rolled back"

Values = dict[str, Any]
"""Values of an entry by name; what isn't given is as in the entry before, or empty."""


class RolloutEntry(NamedTuple):
    """Something that was done to a rollout.

    Attributes:
        number: counts the entries of the consumer or the process.
        at: when it was done.
        what: `declared` by the definition, `asked`, `promoted` or `rolled back`.
        rule: the number of the new rule.
        old_rule: the number of the other rule.
        stage: the stage from then on.
        asked: the stage for which a second person's approval was asked; None if none was.
        who: user and machine.
        why: the reason.
        handled: messages or components that the new rule had handled at the stage of before; None
            if that wasn't asked.
        failed: those that had failed by it.
        forced: whether it was to be done in spite of failures.
    """

    number: int
    at: datetime.datetime
    what: str
    rule: int
    old_rule: int
    stage: str
    asked: str | None
    who: str
    why: str
    handled: int | None
    failed: int | None
    forced: bool


class RolloutStanding(NamedTuple):
    """How a rollout stands.

    Attributes:
        name: of the consumer or the process.
        rule: the number of the new rule.
        old_rule: the number of the other rule.
        stage: the present stage.
        since: when it began.
        handled: messages or components that the new rule has handled since then.
        failed: those that have failed by it since then: dead letters, and messages that will be
            tried again; or components that failed in runs that were published.
        next: the stage that follows; None at the last one.
        asked: the stage that waits for a second person's approval; None if none does.
        asked_by: who has asked for it.
    """

    name: str
    rule: int
    old_rule: int
    stage: str
    since: datetime.datetime
    handled: int
    failed: int
    next: str | None
    asked: str | None
    asked_by: str | None


class Counts(NamedTuple):
    """What the new rule has done at the present stage.

    Attributes:
        handled: messages or components that it has handled.
        failed: those that have failed by it.
    """

    handled: int
    failed: int


@dataclass(frozen=True)
class RolloutHistory:
    """A rollout that is on record.

    Attributes:
        name: of the consumer or the process.
        kind: `consumer` or `process`.
        units: what a rule handles, in plural.
        advice: where failures are seen.
        entries: all entries of the consumer or the process, in their order; not empty.
        plan: what the last one says of the definition; see `plan_of`.
    """

    name: str
    kind: str
    units: str
    advice: str
    entries: Sequence[RolloutEntry]
    plan: Mapping[str, Any]

    @property
    def last(self) -> RolloutEntry:
        """The last entry."""
        return self.entries[-1]

    @property
    def begun(self) -> RolloutEntry:
        """The entry with which the present stage has begun."""
        begun = self.last
        for entry in reversed(self.entries):
            if (entry.rule, entry.stage) != (begun.rule, begun.stage):
                break
            begun = entry
        return begun

    @property
    def stages(self) -> list[str]:
        """All stages, `none` included."""
        return [NOBODY, *self.plan["stages"]]

    @property
    def next(self) -> str | None:
        """The stage that follows; None at the last one."""
        later = self.stages[self.stages.index(self.last.stage) + 1 :]
        return later[0] if later else None

    def standing(self, counts: Counts) -> RolloutStanding:
        """How it stands, for people."""
        last = self.last
        return RolloutStanding(
            self.name,
            last.rule,
            last.old_rule,
            last.stage,
            self.begun.at,
            counts.handled,
            counts.failed,
            self.next,
            last.asked,
            last.who if last.asked else None,
        )


def plan_of(rollout: Rollout) -> dict[str, Any]:
    """What is put on record of a definition: whom a stage includes, and what a move needs."""
    return {
        "salt": rollout.salt,
        "stages": list(rollout.stages),
        "customers": sorted(rollout.customers),
        "failures": rollout.failures,
        "approval": rollout.approval,
    }


def declaration(
    where: str,
    rules: Mapping[int, Any],
    rollout: Rollout | None,
    last: RolloutEntry | None,
    known: Mapping[str, Any] | None,
) -> Values | None:
    """What an entry is to say of a definition; None if nothing has changed.

    Args:
        where: the definition's class, for messages.
        rules: its rules by number, at least one.
        rollout: how customers come from one to the other.
        last: the last entry; None if there is none.
        known: what that says of the definition; see `plan_of`.

    Raises:
        DefinitionError: the rollout on record isn't finished, and the definition doesn't go on
            with it.
    """
    new, old = max(rules), min(rules)
    if last is not None and (last.rule != new or rollout is None):
        everyones = everyones_rule(last.stage, last.rule, last.old_rule)
        if everyones != old:
            numbers = " and ".join(map(str, sorted(rules)))
            advice = f"begin with {everyones}, which everybody has"
            if everyones is None:
                advice = f"keep both, and bring it to {EVERYBODY} or back to {NOBODY} first"
            raise DefinitionError(
                f"{where}: rules has {numbers}, and rule {last.rule} is at "
                f"the stage {last.stage} in place of {last.old_rule}: {advice}"
            )
    if rollout is None:
        return None
    plan, stage = plan_of(rollout), NOBODY
    if last is not None and known is not None and last.rule == new:
        if known == plan:
            return None
        if known["salt"] != plan["salt"] or last.old_rule != old:
            raise DefinitionError(
                f"{where}: its rollout of rule {new} is on record with the salt "
                f"{known['salt']!r} and in place of rule {last.old_rule}, which may not change"
            )
        stage = last.stage
        if stage not in (NOBODY, *plan["stages"]):
            raise DefinitionError(
                f"{where}: its rollout is at the stage {stage}, which its stages "
                f"({', '.join(plan['stages'])}) don't have: leave the stage in"
            )
    return {"what": DECLARED, "rule": new, "old_rule": old, "stage": stage, "plan": plan}


def everyones_rule(stage: str, rule: int, old_rule: int) -> int | None:
    """The number of the rule that everybody has; None while customers have one or the other."""
    return {EVERYBODY: rule, NOBODY: old_rule}.get(stage)


def promotion(
    history: RolloutHistory, stage: str, counts: Counts, *, who: str, why: str, force: bool
) -> Values:
    """Bring a rollout to its next stage; or ask for that, if the definition wants approval.

    Args:
        history: of the rollout.
        stage: the next one. It is named so that of two people who promote at once only one does.
        counts: what the new rule has done at the present stage.
        who: user and machine.
        why: the reason.
        force: in spite of failures, or though nothing was handled by the new rule.

    Raises:
        IllegalMoveError: it isn't the next stage, or too many have failed.
        ParameterError: there is no reason.
    """
    _check_reason(why)
    _check_promotion(history, stage, counts, force)
    values = {"who": who, "why": why, "forced": force, **counts._asdict()}
    if history.plan["approval"]:
        return values | {"what": ASKED, "asked": stage}
    return values | {"what": PROMOTED, "stage": stage}


def approval(
    history: RolloutHistory, stage: str, counts: Counts, *, who: str, why: str, comparison: str = ""
) -> Values:
    """Bring a rollout to the stage that another person has asked for.

    Args:
        history: of the rollout.
        stage: the one that was asked for.
        counts: what the new rule has done at the present stage.
        who: user and machine; the user isn't the one who has asked.
        why: the reason.
        comparison: the hash of the comparison that was looked at; empty if none was.

    Raises:
        IllegalMoveError: nobody has asked for it, or the same user has, or on another comparison;
            or too many have failed, and it wasn't asked for in spite of that.
        ParameterError: there is no reason.
    """
    _check_reason(why)
    last = history.last
    if last.asked != stage:
        waits = f"{last.asked} waits for approval" if last.asked else "nothing waits"
        _refuse(history, stage, f"nobody has asked for {stage}, {waits}: ask by promote")
    if _user(who) == _user(last.who):
        _refuse(history, stage, f"{last.who} has asked for it: another user must approve it")
    if COMPARED in last.why and (not comparison or comparison not in last.why):
        on = last.why.rpartition(COMPARED)[2]
        _refuse(history, stage, f"it was asked for on the comparison {on}: look at that one")
    _check_promotion(history, stage, counts, last.forced)
    done = {"what": PROMOTED, "stage": stage, "forced": last.forced}
    return {**done, "who": who, "why": why, **counts._asdict()}


def step_back(history: RolloutHistory, stage: str, counts: Counts, *, who: str, why: str) -> Values:
    """Bring a rollout back to an earlier stage; that needs nobody's approval.

    Args:
        history: of the rollout.
        stage: an earlier one, or `"none"`.
        counts: what the new rule has done at the present stage.
        who: user and machine.
        why: the reason.

    Raises:
        IllegalMoveError: it isn't an earlier stage.
        ParameterError: there is no reason.
    """
    _check_reason(why)
    last = history.last
    earlier = history.stages[: history.stages.index(last.stage)]
    if stage not in earlier:
        _refuse(
            history,
            stage,
            f"rule {last.rule} is at the stage {last.stage} and can't be rolled "
            f"back to {stage}: earlier stages are {', '.join(earlier) or 'none at all'}",
        )
    return {"what": ROLLED_BACK, "stage": stage, "who": who, "why": why, **counts._asdict()}


COMPARED = " (comparison sha256 "
"""In a reason, in front of the hash and the URI of the comparison that it refers to."""


def reason_with(why: str, comparison: str, uri: str) -> str:
    """A reason that refers to a comparison by its hash."""
    return f"{why}{COMPARED}{comparison} {uri})" if why.strip() else ""


def _check_reason(why: str) -> None:
    if not why.strip():
        raise ParameterError(
            "--why is empty: say why, for the record", parameter="--why", value=why
        )


def _check_promotion(history: RolloutHistory, stage: str, counts: Counts, force: bool) -> None:
    """Check that what the new rule has done at the present stage allows the next one."""
    last = history.last
    if stage != history.next:
        after = f"the next stage is {history.next}" if history.next else "it is the last stage"
        _refuse(
            history, stage, f"rule {last.rule} is at the stage {last.stage}, not {stage}: {after}"
        )
    if last.stage == NOBODY or force:
        return
    handled, failed = counts
    limit = FailureLimit(history.plan["failures"])
    advice = "--force promotes it all the same"
    if not limit.allows(failed, handled + failed):
        _refuse(
            history,
            stage,
            f"at the stage {last.stage} rule {last.rule} has handled {handled:,} {history.units}, "
            f"and {failed:,} have failed: {limit.text} may: see {history.advice}; {advice}",
        )
    if not handled:
        _refuse(
            history,
            stage,
            f"at the stage {last.stage} rule {last.rule} hasn't handled a "
            f"{history.units.removesuffix('s')} yet: wait; {advice}",
        )


def _refuse(history: RolloutHistory, stage: str, why: str) -> NoReturn:
    raise IllegalMoveError(
        f"{history.kind} {history.name}: {why}",
        from_status=history.last.stage,
        to_status=stage,
    )


def _user(who: str) -> str:
    return who.rpartition("@")[0]
