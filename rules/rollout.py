"""Rollouts: which customers get a new rule while the others keep the present one.

Whom a stage includes follows from the definition, the stage and the customer alone. So it is the
same in every process and in every try, and can be computed again for any day of the past.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.rules.failure_limit import FailureLimit

NOBODY = "none"
"""The stage before the first one, at which everybody has the present rule."""
LISTED = "list"
"""The stage that adds the customers of the list."""
CHOSEN = "where"
"""The stage that adds those whom the predicate chooses."""
EVERYBODY = "100%"
"""The last stage."""

_POINTS = 2**64
_SHARE = re.compile(r"(\d{1,3}(?:\.\d+)?)%")

R = TypeVar("R")


class _Reach(NamedTuple):
    """Whom a stage includes, together with all stages before it."""

    listed: bool
    chosen: bool
    points: int


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The stages in which customers are brought from one rule to the next.

        Rollout(stages=("list", "1%", "5%", "25%", "100%"), customers=("P17", "P23"))

    A stage includes whom the stages before it include. `"list"` adds `customers`, `"where"` those
    whom `where` chooses, and a share adds customers by a hash, until it has that share of them. A
    customer who has the new rule keeps it when the share grows. When it shrinks, those go back who
    came last.

    Attributes:
        stages: in their order; the last one is `"100%"`. Before the first one, at the stage
            `"none"`, nobody has the new rule.
        customers: names of those whom `"list"` adds.
        where: whether `"where"` adds a customer, by a message or a component. It must say the same
            for all that is about one customer.
        salt: goes into the hash; by default the name of the definition and the number of the new
            rule, so that it isn't always the same customers who come first. Rollouts with the same
            salt choose the same customers.
        failures: how many of those by the new rule may have failed at a stage before the next one
            is refused: a count, or a share such as `"0.5%"`.
        approval: whether each promotion needs a second person.
    """

    stages: tuple[str, ...]
    customers: Collection[str] = ()
    where: Callable[[Any], bool] | None = None
    salt: str = ""
    failures: int | str = 0
    approval: bool = False

    def __post_init__(self) -> None:
        """Check that stages grow, and that there is what they name.

        Raises:
            DefinitionError: they don't, or it is missing.
        """
        if isinstance(self.customers, str):
            raise DefinitionError(
                f"Rollout: customers is {self.customers!r}: write ({self.customers!r},)"
            )
        try:
            FailureLimit(self.failures)
        except ValueError:
            raise DefinitionError(
                f"Rollout: failures must be a count or a share like '0.5%', not {self.failures!r}"
            ) from None
        given = {LISTED: bool(self.customers), CHOSEN: self.where is not None}
        for stage, name in ((LISTED, "customers"), (CHOSEN, "where")):
            if given[stage] != (stage in self.stages):
                raise DefinitionError(
                    f"Rollout: the stage {stage} and {name} belong together: give both, or none"
                )
        before = Fraction(0)
        for stage in self.stages:
            if stage in given:
                continue
            share = _share(stage)
            if not before < share <= 1:
                raise DefinitionError(
                    f"Rollout: the stage {stage} doesn't grow: give shares in their order, above "
                    "0% and up to 100%"
                )
            before = share
        if not self.stages or self.stages[-1] != EVERYBODY:
            raise DefinitionError(
                f"Rollout: its last stage must be {EVERYBODY}, and its stages are "
                f"{', '.join(self.stages) or 'none'}"
            )
        if len(set(self.stages)) < len(self.stages):
            raise DefinitionError(f"Rollout: a stage is there twice: {', '.join(self.stages)}")

    def includes(self, stage: str, customer: str, subject: Any = None) -> bool:
        """Whether a customer has the new rule at a stage.

        Args:
            stage: one of `stages`, or `"none"`.
            customer: the customer's name.
            subject: the message or the component, which `where` is asked about.
        """
        return self.includes_by_name(stage, customer) or (
            self.asks_where(stage) and self.where is not None and self.where(subject)
        )

    def includes_by_name(self, stage: str, customer: str) -> bool:
        """Whether a customer has the new rule at a stage by the list, or by a share."""
        reach = self._reaches[stage]
        return (reach.points > 0 and point_of(self.salt, customer) < reach.points) or (
            reach.listed and customer in self._listed
        )

    def asks_where(self, stage: str) -> bool:
        """Whether `where` can add a customer at a stage."""
        return self._reaches[stage].chosen

    @cached_property
    def _listed(self) -> frozenset[str]:
        return frozenset(self.customers)

    @cached_property
    def _reaches(self) -> dict[str, _Reach]:
        reach = _Reach(False, False, 0)
        reaches = {NOBODY: reach}
        for stage in self.stages:
            if stage == LISTED:
                reach = reach._replace(listed=True)
            elif stage == CHOSEN:
                reach = reach._replace(chosen=True)
            else:
                reach = reach._replace(points=int(_share(stage) * _POINTS))
            reaches[stage] = reach
        return reaches


def point_of(salt: str, customer: str) -> int:
    """Where a customer stands among all, from 0 up to 2**64; the same for ever.

    A share includes those who stand below that share of 2**64.
    """
    text = f"{salt}\0{customer}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def check_rules(where: str, rules: Mapping[int, R], rollout: Rollout | None) -> None:
    """Check the rules of a definition.

    Args:
        where: the definition's class, for messages.
        rules: one rule, or the present one and the next, by number.
        rollout: how customers come from one to the other.

    Raises:
        DefinitionError: there are too many, or there is no rollout for two, or one for less.
    """
    for number, rule in rules.items():
        if type(number) is not int or not 0 < number < 32_768 or not callable(rule):
            raise DefinitionError(
                f"{where}: rules has {number!r}: {rule!r}: give a number from 1 and a method"
            )
    if len(rules) > 2:
        raise DefinitionError(
            f"{where}: rules has {len(rules)}: keep the present one and the next, and leave out "
            "those that nobody has any more"
        )
    if len(rules) > 1 and rollout is None:
        raise DefinitionError(
            f"{where}: rollout is missing: it says how customers come from one rule to the next"
        )
    if len(rules) < 2 and rollout is not None:
        raise DefinitionError(
            f"{where}: rollout brings customers from one rule to the next, and rules has "
            f"{len(rules)}: give two, or leave rollout out"
        )


def _share(stage: str) -> Fraction:
    found = _SHARE.fullmatch(stage)
    if found is None:
        raise DefinitionError(
            f"Rollout: {stage!r} is no stage: give {LISTED}, {CHOSEN}, or a share such as 5% or "
            "0.5%"
        )
    return Fraction(found[1]) / 100
