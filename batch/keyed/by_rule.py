"""A shard whose components are executed by rules of different numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.results import Results, replaced
from ledgerbeam.batch.keyed.plan import row_totals
from ledgerbeam.batch.model.outcomes import Outcome
from ledgerbeam.batch.model.rules import COMPONENTS, FAILED, RULE, of_rule
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.rollouts.choice import UNDECIDED, Chosen
from ledgerbeam.io.commit.records import Totals
from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.rules.components import Component, Components
from ledgerbeam.transforms.columnar.components import (
    ComponentNames,
    align,
    component_name,
    component_starts,
)

Execute = Callable[
    [Callable[[Any], Any], Components, ComponentNames], tuple[Results, list[Outcome]]
]
"""Executes components by a function of the definition's."""


def execute_by_rules(
    process: KeyedProcess[Any],
    execute: Execute,
    components: Components,
    names: ComponentNames,
    chosen: Chosen,
) -> tuple[Results, list[Outcome]]:
    """Results and outcomes of components, each executed by its rule.

    Raises:
        DefinitionError: the rules give different columns.
    """

    def call_of(rule: int) -> Callable[[Any], Any]:
        if rule == UNDECIDED:
            return _Undecided(chosen.errors, process.key)
        return process.execution(rule)

    if len(chosen.found) < 2:
        (rule,) = chosen.found or [min(process.rules)]
        return execute(call_of(rule), components, names)
    parts, outcomes = [], []
    for rule in chosen.found:
        some = components.select(chosen.numbers == rule)
        results, of_some = execute(call_of(rule), some, ComponentNames(some, process.key))
        parts.append(results)
        outcomes += of_some
    columns = [part.table.column_names for part in parts]
    for other in columns[1:]:
        if other != columns[0]:
            raise DefinitionError(
                f"{type(process).__name__}: its rules give different columns: "
                f"{', '.join(columns[0])}; and {', '.join(other)}: give the same ones in one order"
            )
    return replaced(parts[0], (), parts[1:], process.key), outcomes


@dataclass(frozen=True)
class _Undecided:
    """In place of a rule: raises again what the definition's `where` has raised."""

    errors: Mapping[str, Exception]
    key: tuple[str, ...]

    def __call__(self, given: Component | Components) -> NoReturn:
        if isinstance(given, Components):
            raise self.errors[ComponentNames(given, self.key)[0]]
        raise self.errors[component_name(given.key)]


@dataclass(frozen=True)
class RuledShard:
    """What is recorded of the rules of a shard that was executed.

    Attributes:
        process: the definition.
        components: all components of the shard.
        names: their names.
        chosen: their rules.
    """

    process: KeyedProcess[Any]
    components: Components
    names: ComponentNames
    chosen: Chosen

    def with_rules(self, results: Results) -> Results:
        """Results with the column that says by which rule each row was made."""
        return results._replace(
            table=results.table.append_column(
                pa.field(RULE, pa.int16()), pa.array(self._of_rows(results.table), pa.int16())
            )
        )

    def outcomes(self, known: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """Outcomes, by component's name, with the component's rule."""
        if not known:
            return {}
        return {
            name: outcome._replace(rule=self._by_name[name] or None)
            for name, outcome in known.items()
        }

    def totals(self, results: Results, known: Mapping[str, Outcome]) -> Totals:
        """For each rule that is used: components, those that failed, and sums of the others.

        Sums are those of the first input's amounts, and the definition's own of its results.
        """
        lost = {name for name, of in known.items() if of.status is not ComponentStatus.SUCCESS}
        is_lost = np.zeros(len(self.components.starts), bool)
        if lost:
            is_lost[:] = [name in lost for name in self.names.all()]
        of_rows = self._of_rows(results.table)
        found: Totals = {}
        for rule in self.chosen.found:
            has_rule = self.chosen.numbers == rule
            if rule == UNDECIDED:
                continue
            rows = self.components.select(has_rule & ~is_lost).table
            of_results = results.each(self._chooses(of_rows == rule, results.table))
            counted = {
                COMPONENTS: int(has_rule.sum()),
                FAILED: int((has_rule & is_lost).sum()),
                **({} if self.process.is_outer else self._sums(rows)),
                **self.process.result_totals(of_results.components(self.process.key)),
            }
            found |= {of_rule(rule, name): value for name, value in counted.items()}
        return found

    def _sums(self, rows: pa.Table) -> Totals:
        return dict(row_totals(self.process.inputs[0], self.process.key, rows).amounts)

    def _chooses(self, chosen: npt.NDArray[np.bool_], of: pa.Table) -> Callable[..., pa.Table]:
        """Gives of the results the chosen rows, and of extra tables the rows of their keys."""
        keys = of.filter(pa.array(chosen))

        def choose(table: pa.Table) -> pa.Table:
            if table is of:
                return keys
            starts = component_starts(keys, self.process.key)
            rows = Components(table, component_starts(table, self.process.key))
            return align(Components(keys, starts), rows, self.process.key)[0].table

        return choose

    def _of_rows(self, table: pa.Table) -> npt.NDArray[np.int16]:
        """int16 `(rows,)`: the rule of each row of results."""
        if len(self.chosen.found) == 1:
            return np.full(table.num_rows, self.chosen.found[0], np.int16)
        starts = component_starts(table, self.process.key)
        rows = align(self.components, Components(table, starts), self.process.key)[0]
        sizes = np.diff(rows.starts, append=table.num_rows)
        return np.repeat(self.chosen.numbers, sizes)

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return dict(zip(self.names.all(), self.chosen.numbers.tolist(), strict=True))
