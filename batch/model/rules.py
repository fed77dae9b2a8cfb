"""What a run records of the rules by which components were executed."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from ledgerbeam.io.commit.records import AttemptRecord, ShardCommit
from ledgerbeam.rules.rollout import EVERYBODY, NOBODY

RULE = "rule"
"""The column of results that says by which rule each row was made."""

COMPONENTS, FAILED = "components", "failed"
"""Totals of each rule: how many components had it, and how many of them failed."""


def of_rule(number: int, total: str) -> str:
    """The name of a total of the components that had a rule."""
    return f"rule_{number}_{total}"


def has_rules(commit: ShardCommit) -> bool:
    """Whether a shard was executed by numbered rules, so that its results have the column."""
    return any(name.startswith("rule_") and name.endswith("_components") for name in commit.totals)


class PlannedRules(NamedTuple):
    """Which rule a component has, as the first attempt of an instance has put it on record.

    All later attempts of the instance keep to it, wherever the rollout has come meanwhile.

    Attributes:
        rule: number of the new rule.
        old_rule: number of the other rule; the same where there is only one.
        stage: of the rollout.
        entry: number of the rollout's entry that was the last one; 0 if there was none.
        salt: of the rollout.
        stages: of the rollout.
        customers: those of the stage `list`.
    """

    rule: int
    old_rule: int
    stage: str = EVERYBODY
    entry: int = 0
    salt: str = ""
    stages: tuple[str, ...] = ()
    customers: tuple[str, ...] = ()

    @classmethod
    def everybody(cls, rule: int) -> Self:
        """A plan by which all have one rule."""
        return cls(rule, rule)

    @classmethod
    def of(cls, attempt: AttemptRecord) -> Self | None:
        """What an attempt has on record; None for a process without rules."""
        found: Mapping[str, Any] | None = attempt.plan.get("rules")
        if found is None:
            return None
        lists = {name: tuple(found[name]) for name in ("stages", "customers")}
        return cls(**{**found, **lists})

    @property
    def everyones(self) -> int | None:
        """The number of the rule that everybody has; None while some have one, and some another."""
        return {EVERYBODY: self.rule, NOBODY: self.old_rule}.get(self.stage)
