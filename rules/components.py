"""Whole components: many in one table for vectorised rules, or one by one for plain ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple, Self, overload

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.arrays import Flags, Integers, array_of

_NONE: Mapping[str, Any] = {}


class Components(NamedTuple):
    """Rows of many components, every component whole and its rows together.

    Attributes:
        table: the rows, sorted by key and then by the order the workload asks for. Every column
            is one contiguous chunk.
        starts: int64 `(components,)`, the first row of each component, ascending; a component
            ends where the next one starts. Empty for an empty table.
        related: rows of other inputs by the input's name, with a start for each of the same
            components; a component without such rows starts where the next one does.
    """

    table: pa.Table
    starts: Integers
    related: "Mapping[str, Components]" = _NONE

    def column(self, name: str) -> pa.Array:
        """The column as one array."""
        if name not in self.table.column_names:
            raise NoColumnError(_no_column("the components' rows", name, self.table.column_names))
        return array_of(self.table.column(name))

    def values(self, name: str) -> list[Any]:
        """The column as Python values, for rules written in plain Python.

        Integers and dictionaries take a tenth of the time of `to_pylist`.
        """
        column = self.column(name)
        if isinstance(column, pa.DictionaryArray) and not column.null_count:
            values = np.array([*column.dictionary.to_pylist(), None], object)
            return values[column.indices.to_numpy()].tolist()
        if pa.types.is_integer(column.type) and not column.null_count:
            return column.to_numpy().tolist()
        return column.to_pylist()

    def ends(self) -> Integers:
        """int64 `(components,)`, the row after the last of each component."""
        return np.append(self.starts, self.table.num_rows)[1:].astype(np.int64)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """First row and row after the last of each component, as Python integers."""
        return zip(self.starts.tolist(), self.ends().tolist(), strict=True)

    def slice(self, first: int, last: int) -> "Components":
        """The components from `first` up to, and without, `last`; no rows are copied."""
        start, end = np.append(self.starts, self.table.num_rows)[[first, last]].tolist()
        related = {name: rows.slice(first, last) for name, rows in self.related.items()}
        table = self.table.slice(start, end - start)
        return Components(table, self.starts[first:last] - start, related)

    def select(self, chosen: Flags) -> "Components":
        """The components of a bool `(components,)` mask, in their order."""
        if chosen.all():
            return self
        sizes = self.ends() - self.starts
        rows = np.repeat(chosen, sizes)
        starts = np.append(0, np.cumsum(sizes[chosen]))[:-1].astype(np.int64)
        related = {name: others.select(chosen) for name, others in self.related.items()}
        return Components(self.table.filter(pa.array(rows)).combine_chunks(), starts, related)

    def each(self, key: Sequence[str]) -> "Units":
        """One by one, for rules written per component.

        Args:
            key: the columns that identify a component.
        """
        return Units(self, key)


class Units(Sequence["Component"]):
    """Components one by one; each is made when it is asked for."""

    def __init__(self, components: Components, key: Sequence[str]) -> None:
        firsts = pa.array(components.starts)
        of_key = Components(components.table.select(list(key)).take(firsts), components.starts[:0])
        self._keys = [of_key.values(name) for name in key]
        self._columns = _Columns(components, key)
        self._starts = components.starts.tolist()
        self._ends = components.ends().tolist()
        self._related = {
            name: (_Columns(rows, key, name), rows.starts.tolist(), rows.ends().tolist())
            for name, rows in components.related.items()
        }

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator["Component"]:
        # This makes up to millions of objects, so it has no step in Python of its own.
        keys = zip(*self._keys, strict=True)
        own = (keys, repeat(self._columns), self._starts, self._ends)
        if not self._related:
            return map(Component, *own)
        return map(
            Component, *own, map(self._related_to, range(len(self)), zip(*self._keys, strict=True))
        )

    @overload
    def __getitem__(self, number: int) -> "Component": ...

    @overload
    def __getitem__(self, number: slice) -> "list[Component]": ...

    def __getitem__(self, number: int | slice) -> "Component | list[Component]":
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        key = tuple(values[number] for values in self._keys)
        start, end = self._starts[number], self._ends[number]
        return Component(key, self._columns, start, end, self._related_to(number, key))

    def _related_to(self, number: int, key: tuple[Any, ...]) -> "Mapping[str, Component]":
        return {
            name: Component(key, columns, starts[number], ends[number])
            for name, (columns, starts, ends) in self._related.items()
        }


class Component:
    """One unit of work: all rows of one key, in the order that the workload asks for.

    Attributes:
        key: the values of the key's columns.
    """

    __slots__ = ("_columns", "_end", "_related", "_start", "key")

    def __init__(
        self,
        key: tuple[Any, ...],
        columns: "_Columns",
        start: int,
        end: int,
        related: "Mapping[str, Component]" = _NONE,
    ) -> None:
        self.key = key
        self._columns = columns
        self._start = start
        self._end = end
        self._related = related

    @classmethod
    def of(
        cls, key: tuple[Any, ...], rows: pa.Table, related: Mapping[str, pa.Table] = _NONE
    ) -> Self:
        """A component of these rows and of those of other inputs, for tests and single calls."""
        no_starts = np.zeros(0, np.int64)

        def columns(table: pa.Table, label: str) -> "_Columns":
            return _Columns(Components(table.combine_chunks(), no_starts), (), label)

        others = {
            name: Component(key, columns(table, name), 0, table.num_rows)
            for name, table in related.items()
        }
        return cls(key, columns(rows, _ROWS), 0, rows.num_rows, others)

    def __len__(self) -> int:
        return self._end - self._start

    def __repr__(self) -> str:
        return f"Component({', '.join(map(str, self.key))}: {len(self)} rows)"

    def values(self, name: str) -> list[Any]:
        """A column, a Python value for each row."""
        return self._columns[name][self._start : self._end]

    def first(self, name: str) -> Any:
        """A column's value in the first row; what is the same in all rows is read like this.

        Raises:
            NoRowsError: there are no rows.
        """
        values = self._columns[name]
        if self._start == self._end:
            raise NoRowsError(self._no_rows())
        return values[self._start]

    def records(self) -> list[dict[str, Any]]:
        """The rows as dictionaries: all columns, so `values` is faster for a few of many."""
        names = self._columns.names
        columns = [self.values(name) for name in names]
        return [Row(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def related(self, name: str) -> "Component":
        """The rows of another input that have this key; maybe none."""
        try:
            return self._related[name]
        except KeyError:
            raise NoColumnError(
                f"there is no other input {name}: there is {', '.join(self._related) or 'none'}"
            ) from None

    def is_own(self, value: object) -> bool:
        """Whether a value is a row as `records` gives it, of this component or related to it."""
        parts = (self, *self._related.values())
        return isinstance(value, Row) and any(list(value) == part._columns.names for part in parts)

    @property
    def missing(self) -> list[str]:
        """For each input without a row of this key, a line that says so."""
        parts = [self, *self._related.values()]
        return [part._no_rows() for part in parts if not len(part)]

    def _no_rows(self) -> str:
        names = self._columns.key or [""] * len(self.key)
        of_key = (f"{name} {value}".strip() for name, value in zip(names, self.key, strict=True))
        return f"there are no {self._columns.label} for {', '.join(of_key)}"


class NoRowsError(IndexError):
    """A value was asked for of an input that has no row of the component's key."""


class NoColumnError(KeyError):
    """A column or an input was asked for that isn't there."""

    def __str__(self) -> str:
        return str(self.args[0])


class Row(dict[str, Any]):
    """A row by column; one that it doesn't have is named by an error with those that it has."""

    def __missing__(self, name: object) -> Any:
        raise NoColumnError(_no_column("the row", name, self))


def _no_column(where: str, name: object, names: Iterable[str]) -> str:
    shown = ", ".join(name for name in names if not name.startswith("__"))
    return f"there is no column {name} in {where}: there is {shown or 'none'}"


_ROWS = "rows"


class _Columns(dict[str, list[Any]]):
    """Columns as Python values, each converted once for all components that ask for it."""

    def __init__(self, components: Components, key: Sequence[str] = (), label: str = _ROWS) -> None:
        self._convert: Callable[[str], list[Any]] = components.values
        self.names = components.table.column_names
        self.key = key
        self.label = label

    def __missing__(self, name: str) -> list[Any]:
        if name not in self.names:
            where = "the component's rows" if self.label == _ROWS else self.label
            raise NoColumnError(_no_column(where, name, self.names))
        values = self[name] = self._convert(name)
        return values
