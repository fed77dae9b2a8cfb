"""What executing components gives: a table of results, and further tables beside it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.batch.outcomes import component_name
from ledgerbeam.io.arrow_stream import join
from ledgerbeam.io.errors import UserError
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.components import align, component_starts, sort_components

_NONE: Mapping[str, pa.Table] = {}


class Results(NamedTuple):
    """Results of many components.

    Attributes:
        table: with the columns of the key, rows of a component together and components in their
            order.
        tables: further tables by name, of the same form; a component may have no row there.
    """

    table: pa.Table
    tables: Mapping[str, pa.Table] = _NONE

    def each(self, change: Callable[[pa.Table], pa.Table]) -> "Results":
        """The same with every table changed."""
        tables = {name: change(table) for name, table in self.tables.items()}
        return Results(change(self.table), tables)

    def components(
        self, key: Sequence[str], starts: npt.NDArray[np.int64] | None = None
    ) -> Components:
        """The results by component, rows of the further tables beside them.

        Args:
            key: the columns that identify a component.
            starts: of the components in the first table, where they are known.

        Raises:
            UserError: a further table has rows of a component that the first one doesn't have.
        """
        starts = component_starts(self.table, key) if starts is None else starts
        first = Components(self.table, starts)
        related = {}
        for name, table in self.tables.items():
            rows = Components(table, component_starts(table, key))
            related[name], orphans = align(first, rows, key)
            if orphans.num_rows:
                shown = ", ".join(str(orphans.column(column)[0]) for column in key)
                raise UserError(
                    f"{name} has rows of {shown}, for which there are no results: give at least "
                    "one row of results for each component"
                )
        return first._replace(related=related)


def joined(pieces: Sequence[Results]) -> Results:
    """Results of all pieces, in their order; columns are those of the first piece."""
    names = pieces[0].tables
    return Results(
        join([piece.table for piece in pieces]),
        {name: join([piece.tables[name] for piece in pieces]) for name in names},
    )


def replaced(
    before: Results, names: Collection[str], now: Sequence[Results], key: Sequence[str]
) -> Results:
    """Results with those of some components taken out, and others put in, by key.

    Args:
        before: what there was.
        names: of the components whose rows are taken out.
        now: what is put in; at least one, and the columns are those of the first.
        key: the columns that identify a component.
    """

    def kept(table: pa.Table) -> pa.Table:
        rows = Components(table, component_starts(table, key))
        keep = np.array([name not in names for name in ComponentNames(rows, key).all()], bool)
        return rows.select(keep).table if len(keep) else table

    pieces = [before.each(kept), *now]
    # In the types of the results: what is read from files has lost its dictionaries.
    types = now[0]
    fitted = [
        Results(
            piece.table.cast(types.table.schema),
            {name: piece.tables[name].cast(types.tables[name].schema) for name in types.tables},
        )
        for piece in pieces
    ]
    return joined(fitted).each(lambda table: sort_components(table, key, None).components.table)


class ComponentNames:
    """The components' names, made when they are asked for: most runs never do."""

    def __init__(self, components: Components, key: Sequence[str]) -> None:
        """Hold the keys of components."""
        self._keys = components.table.select(list(key))
        self._starts = components.starts
        self._all: list[str] | None = None

    def all(self) -> list[str]:
        """One for each component, in their order."""
        if self._all is None:
            keys = self._keys.take(pa.array(self._starts))
            columns = [column.to_pylist() for column in keys.columns]
            self._all = [component_name(key) for key in zip(*columns, strict=True)]
        return self._all

    def __getitem__(self, number: int) -> str:
        return self.all()[number]
