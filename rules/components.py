"""Whole components in one table: the form in which vectorised rules get their work."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Components(NamedTuple):
    """Rows of many components, every component whole and its rows together.

    Attributes:
        table: the rows, sorted by key and then by the order the workload asks for. Every column
            is one contiguous chunk.
        starts: int64 `(components,)`, the first row of each component, ascending; a component
            ends where the next one starts. Empty for an empty table.
    """

    table: pa.Table
    starts: npt.NDArray[np.int64]

    def column(self, name: str) -> pa.Array:
        """The column as one array."""
        column = self.table.column(name)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

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

    def ends(self) -> npt.NDArray[np.int64]:
        """int64 `(components,)`, the row after the last of each component."""
        return np.append(self.starts, self.table.num_rows)[1:].astype(np.int64)

    def bounds(self) -> Iterator[tuple[int, int]]:
        """First row and row after the last of each component, as Python integers."""
        return zip(self.starts.tolist(), self.ends().tolist(), strict=True)
