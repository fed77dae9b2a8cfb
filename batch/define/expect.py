"""How many rows a day has, and how old they are, so that what is missing is noticed in time."""

import datetime
import re
from dataclasses import dataclass
from fractions import Fraction

SHARE = r"\d+(?:\.\d+)?\s*%"
"""A share as it is written, such as `50%`."""


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What a run has to find in its input, or nothing is published.

        expect = Expect(min_rows=1_000, change="50%", max_age=datetime.timedelta(days=40))

    Rows are those of the run's date that fit the contract: of the first input of a keyed process
    (of all inputs if it `is_outer`), or those that a page process reads.

    Attributes:
        min_rows: the fewest rows; 0 where a day without any is nothing unusual.
        change: how far, as a share such as `"50%"`, their number may be from that of the last
            instance before it; None for as far as it likes. That instance has the same name apart
            from the date, is published in the same output folder, and is at most 100 days older. If
            there is none, or it has no rows, nothing is compared.
        max_age: how long before the business date the newest row may be, in whole days; None for
            as long as it likes. Counted are the dates in the columns that inputs of a keyed process
            are `dated_by`; where all of these inputs are empty, nothing is compared.

    Raises:
        ValueError: one of them isn't what it must be.
    """

    min_rows: int = 1
    change: str | None = None
    max_age: datetime.timedelta | None = None

    def __post_init__(self) -> None:
        if self.min_rows < 0:
            raise ValueError(f"min_rows={self.min_rows}: give 0 or more")
        if self.change is not None and not re.fullmatch(SHARE, self.change):
            raise ValueError(f"change={self.change!r}: give a share such as '50%'")
        if self.max_age is not None and self.max_age < datetime.timedelta(days=1):
            raise ValueError(f"max_age={self.max_age}: give a day or more")

    def allows_change(self, rows: int, before: int) -> bool:
        """Whether there may be so many rows where there were `before` the last time."""
        if self.change is None or not before:
            return True
        return abs(rows - before) <= before * Fraction(self.change.rstrip("% ")) / 100
