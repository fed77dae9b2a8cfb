"""The kinds of numpy arrays that vectorised rules take and return."""

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
"""Amounts in minor units, rates in rate units, counts, and codes that stand for texts."""

Dates = npt.NDArray[np.datetime64]
"""Dates, datetime64[D]."""

Flags = npt.NDArray[np.bool_]
"""Masks, and answers to yes-or-no questions."""

Objects = npt.NDArray[np.object_]
"""Python values: texts, decimals, tuples."""
