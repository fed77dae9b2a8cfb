"""The output of executed components: a table of results, and extra tables."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.io.arrow.stream import join
from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.components import (
    ComponentNames,
    align,
    component_starts,
    sort_components,
)

_NONE: Mapping[str, pa.Table] = {}


class Results(NamedTuple):
    """Results of many components.

    Attributes:
        table: the results, with the columns of the key; the rows of a component stand together,
            and components stand in their order.
        tables: extra tables of the same form, by name; a component may have no row there.
    """

    table: pa.Table
    tables: Mapping[str, pa.Table] = _NONE

    def each(self, change: Callable[[pa.Table], pa.Table]) -> "Results":
        """These results with `change` applied to every table."""
        tables = {name: change(table) for name, table in self.tables.items()}
        return Results(change(self.table), tables)

    def components(
        self, key: Sequence[str], starts: npt.NDArray[np.int64] | None = None
    ) -> Components:
        """The results by component, with rows of the extra tables in `related`.

        Args:
            key: the columns that identify a component.
            starts: int64, the first row of each component in `table`; None to find them.

        Raises:
            DefinitionError: an extra table has rows of a component that `table` doesn't have.
        """
        starts = component_starts(self.table, key) if starts is None else starts
        first = Components(self.table, starts)
        related = {}
        for name, table in self.tables.items():
            rows = Components(table, component_starts(table, key))
            related[name], orphans = align(first, rows, key)
            if orphans.num_rows:
                shown = ", ".join(str(orphans.column(column)[0]) for column in key)
                raise DefinitionError(
                    f"{name} has rows of {shown}, for which there are no results: give at least "
                    "one row of results for each component"
                )
        return first._replace(related=related)


def joined(batches: Sequence[Results]) -> Results:
    """The results of all batches, in their order, with the columns of the first one."""
    names = batches[0].tables
    return Results(
        join([batch.table for batch in batches]),
        {name: join([batch.tables[name] for batch in batches]) for name in names},
    )


def replaced(
    before: Results, names: Collection[str], now: Sequence[Results], key: Sequence[str]
) -> Results:
    """Results after removing the rows of some components and inserting others, sorted by key.

    Args:
        before: the results so far.
        names: names of the components whose rows are removed.
        now: the results to insert, at least one; the columns are those of the first.
        key: the columns that identify a component.
    """

    def kept(table: pa.Table) -> pa.Table:
        rows = Components(table, component_starts(table, key))
        keep = np.array([name not in names for name in ComponentNames(rows, key).all()], bool)
        return rows.select(keep).table if len(keep) else table

    batches = [before.each(kept), *now]
    # Results that were read from files have lost their dictionaries, so all get the new types.
    types = now[0]
    fitted = [
        Results(
            batch.table.cast(types.table.schema),
            {name: batch.tables[name].cast(types.tables[name].schema) for name in types.tables},
        )
        for batch in batches
    ]
    return joined(fitted).each(lambda table: sort_components(table, key, None).components.table)
