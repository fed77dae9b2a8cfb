"""Choosing the rule of each component, on workers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.model.rules import PlannedRules
from ledgerbeam.io.commit.records import AttemptRecord
from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.rules.arrays import Flags
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.rollout import NOBODY
from ledgerbeam.transforms.columnar.components import component_name

UNDECIDED = 0
"""In place of a rule's number where the definition's `where` has raised an error."""


@dataclass(frozen=True)
class Chosen:
    """The rules of a shard's components.

    Attributes:
        numbers: int16 `(components,)`, the number of each one's rule, or `UNDECIDED`.
        errors: what `where` has raised, by component's name.
    """

    numbers: npt.NDArray[np.int16]
    errors: Mapping[str, Exception]

    def select(self, flags: Flags) -> "Chosen":
        """Those of some components."""
        return Chosen(self.numbers[flags], self.errors)

    @cached_property
    def found(self) -> list[int]:
        """The numbers that occur, ascending."""
        return [int(number) for number in np.unique(self.numbers)]


def choose_rules(
    process: KeyedProcess[Any], attempt: AttemptRecord, components: Components
) -> Chosen:
    """The rule of each component of a process with rules.

    Raises:
        DefinitionError: the attempt was begun with rules that this definition doesn't have.
    """
    planned = PlannedRules.of(attempt) or PlannedRules(
        max(process.rules), min(process.rules), NOBODY
    )
    count = len(components.starts)
    everyones = planned.everyones
    needed = {planned.rule, planned.old_rule} if everyones is None else {everyones}
    rollout = process.rollout
    if not needed <= process.rules.keys() or (everyones is None and rollout is None):
        raise DefinitionError(
            f"{type(process).__name__}: its instance was begun with rule {planned.rule} at the "
            f"stage {planned.stage} in place of {planned.old_rule}, which this definition doesn't "
            "have: go on with the one that has both, or run the instance again under a new run "
            "number"
        )
    if everyones is not None:
        return Chosen(np.full(count, everyones, np.int16), {})
    assert rollout is not None
    # As it was planned: the definition may have other stages and customers by now.
    rollout = replace(
        rollout,
        salt=planned.salt,
        stages=planned.stages,
        customers=planned.customers,
        where=rollout.where if "where" in planned.stages else None,
    )
    customers = _customers(process, components)
    by_customer = {name: rollout.includes_by_name(planned.stage, name) for name in set(customers)}
    included = np.array([by_customer[name] for name in customers], bool)
    undecided = np.zeros(count, bool)
    errors: dict[str, Exception] = {}
    if rollout.asks_where(planned.stage):
        for number, component in enumerate(components.each(process.key)):
            if not included[number]:
                try:
                    included[number] = rollout.includes(planned.stage, customers[number], component)
                except Exception as error:
                    undecided[number] = True
                    errors[component_name(component.key)] = error
    numbers = np.where(included, planned.rule, planned.old_rule).astype(np.int16)
    numbers[undecided] = UNDECIDED
    return Chosen(numbers, errors)


def _customers(process: KeyedProcess[Any], components: Components) -> list[str]:
    """The name of each component's customer."""
    column = components.table.column(process.customer).take(pa.array(components.starts))
    return [str(value) for value in column.to_pylist()]
