"""Differences that are expected: who answers for them, why, and until when."""

import datetime
from typing import NamedTuple

EVERYTHING = "*"
"""In place of a column: a row that one side lacks. In place of a customer: all of them."""


class KnownDifference(NamedTuple):
    """A difference that is listed as known.

    Attributes:
        column: in which column; `*` for rows that one side lacks.
        customer: of which customer; `*` for all of them.
        owner: who answers for it.
        reason: why it is expected.
        expires: the last day on which it counts as known.
        is_in_force: whether the comparison isn't of a later day.
    """

    column: str
    customer: str
    owner: str
    reason: str
    expires: datetime.date
    is_in_force: bool
