"""The kinds of numpy arrays that vectorised rules take and return, and columns in one piece."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Integers = npt.NDArray[np.int64]
"""Amounts in minor units, rates in rate units, counts, and codes that stand for texts."""

Dates = npt.NDArray[np.datetime64]
"""Dates, datetime64[D]."""

Flags = npt.NDArray[np.bool_]
"""Masks, and answers to yes-or-no questions."""

Objects = npt.NDArray[np.object_]
"""Python values: texts, decimals, tuples."""


def array_of(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
