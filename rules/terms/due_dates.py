"""Due dates: when a loan's instalments fall due, and the periods between them.

Due dates are counted in months, on the same day of the month (the last day of a month that is
shorter), twice a month, or in days. The first one may be a date of its own, which makes the first
period longer or shorter than the others; so may the last one, the maturity date. Interest periods
end on these dates. Where a due date is no business day, the day on which the instalment has to be
paid can be moved (`ledgerbeam.rules.calendar.business_days`); the periods stay as they are.
"""

import calendar
import datetime
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ledgerbeam.rules.arrays import Dates, Integers

ONE_DAY = datetime.timedelta(1)


class Frequency(NamedTuple):
    """The time between due dates: months, days, or half a month.

    Attributes:
        months: 0 where days are counted, or due dates come twice a month.
        days: 0 where months are counted, or due dates come twice a month.
        twice_a_month: semi-monthly.
    """

    months: int
    days: int
    twice_a_month: bool = False

    def __str__(self) -> str:
        if self.twice_a_month:
            return "P0.5M"
        return f"P{self.months}M" if self.months else f"P{self.days}D"


MONTHLY = Frequency(1, 0)
SEMI_MONTHLY = Frequency(0, 0, twice_a_month=True)

FREQUENCY_NAMES = {
    "weekly": "P1W",
    "biweekly": "P2W",
    "semimonthly": "P0.5M",
    "monthly": "P1M",
    "quarterly": "P3M",
    "semiannual": "P6M",
    "annual": "P1Y",
}
"""Names that may stand for a duration: MISMO's `PaymentFrequencyType`, in small letters."""


def parse_frequency(text: str) -> Frequency:
    """The period of an ISO 8601 duration of days, weeks, months or years, or of a name.

    `P0.5M` is twice a month.

    Raises:
        ValueError: for anything else, or a period of nothing.

    Example:
        >>> parse_frequency("quarterly") == parse_frequency("P3M")
        True
    """
    duration = FREQUENCY_NAMES.get(text, text)
    if duration == "P0.5M":
        return SEMI_MONTHLY
    found = re.fullmatch(r"P([1-9][0-9]{0,4})([DWMY])", duration)
    if found is None:
        raise ValueError(
            f"frequency {text!r} is not a duration such as P1M or P2W, P0.5M for twice a month, "
            f"or one of {', '.join(FREQUENCY_NAMES)}"
        )
    number, unit = int(found[1]), found[2]
    if unit in "MY":
        return Frequency(months=number * (12 if unit == "Y" else 1), days=0)
    return Frequency(months=0, days=number * (7 if unit == "W" else 1))


def month_later(day: datetime.date, due_day: int, months: int = 1) -> datetime.date:
    """The date on `due_day`, `months` after the month of `day`, or before it if negative.

    Example:
        >>> month_later(datetime.date(2026, 1, 15), due_day=31)
        datetime.date(2026, 2, 28)
    """
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    if due_day > 28:
        due_day = min(due_day, calendar.monthrange(year, month + 1)[1])
    return datetime.date(year, month + 1, due_day)


class DueDates(NamedTuple):
    """The due dates of a loan.

    Attributes:
        frequency: between them.
        due_day: day of the month on which they fall, 1 to 31; of no meaning where days are counted.
        second_due_day: the other one, of due dates twice a month; 0 for 15 days from `due_day`.
        first_due: the first one; needed for all frequencies but monthly. None where monthly due
            dates have no beginning.
        interest_from: the day from which on the first period bears interest; None where it is a
            whole one.
        maturity: the last one, whether or not it is on the due day; None for no end.
    """

    frequency: Frequency
    due_day: int
    second_due_day: int = 0
    first_due: datetime.date | None = None
    interest_from: datetime.date | None = None
    maturity: datetime.date | None = None

    def after(self, day: datetime.date) -> datetime.date:
        """The first due date after a day; after the maturity date they go on as before it."""
        if self.first_due is not None and day < self.first_due:
            return self.first_due
        due = self.regular_after(day)
        if self.maturity is not None and day < self.maturity < due:
            return self.maturity
        return due

    def before(self, day: datetime.date) -> datetime.date:
        """The last due date before a day; up to the first one, the day that interest begins."""
        if self.first_due is not None and day <= self.first_due and self.interest_from is not None:
            return self.interest_from
        due = self.regular_before(day)
        if self.maturity is not None and due < self.maturity < day:
            return self.maturity
        return due

    def is_due(self, day: datetime.date) -> bool:
        """Whether an instalment falls due on a day."""
        return self.after(day - ONE_DAY) == day

    def number(self, due: datetime.date) -> int:
        """Which instalment falls due on a due date, from 1.

        Raises:
            ValueError: there is no first due date to count from.
        """
        if self.first_due is None:
            raise ValueError("first_due is needed to count instalments")
        return 1 + sum(1 for _ in self.between(self.first_due, due))

    def between(self, after: datetime.date, through: datetime.date) -> Iterator[datetime.date]:
        """The due dates after one day and through another, oldest first."""
        due = self.after(after)
        while due <= through:
            yield due
            due = self.after(due)

    def regular_after(self, day: datetime.date) -> datetime.date:
        """The first date after a day that is due by frequency and due day alone."""
        months, days, _ = self.frequency
        if days:
            anchor = self._anchor()
            return anchor + datetime.timedelta(((day - anchor).days // days + 1) * days)
        if not months:
            return min(due for due in self._half_months(day) if due > day)
        due = month_later(day, self.due_day, self._months_to_regular(day))
        return due if due > day else month_later(due, self.due_day, months)

    def regular_before(self, day: datetime.date) -> datetime.date:
        """The last date before a day that is due by frequency and due day alone."""
        months, days, _ = self.frequency
        if days:
            anchor = self._anchor()
            return anchor + datetime.timedelta(((day - anchor).days - 1) // days * days)
        if not months:
            return max(due for due in self._half_months(day) if due < day)
        due = month_later(day, self.due_day, self._months_to_regular(day))
        return due if due < day else month_later(due, self.due_day, -months)

    def _anchor(self) -> datetime.date:
        if self.first_due is None:
            raise ValueError(f"first_due is needed with a frequency of {self.frequency}")
        return self.first_due

    def _months_to_regular(self, day: datetime.date) -> int:
        """Months from that of `day` back to the last one with a due date, 0 or negative."""
        if self.frequency.months == 1:
            return 0
        anchor = self._anchor()
        months = (day.year - anchor.year) * 12 + day.month - anchor.month
        return -(months % self.frequency.months)

    def _half_months(self, day: datetime.date) -> Iterator[datetime.date]:
        """The dates on both due days, of the month of a day and those around it."""
        one, other = half_month_days(self.due_day, self.second_due_day)
        for months in (-1, 0, 1):
            yield month_later(day, one, months)
            yield month_later(day, other, months)


def half_month_days(due_day: int, second_due_day: int = 0) -> tuple[int, int]:
    """The two days of the month on which due dates twice a month fall, the earlier one first.

    Args:
        due_day: one of them.
        second_due_day: the other one; 0 for 15 days later, or earlier after the 15th.
    """
    second = second_due_day or (due_day + 15 if due_day <= 15 else due_day - 15)
    return min(due_day, second), max(due_day, second)


def month_later_many(days: Dates, due_day: Integers, months: Integers | int = 1) -> Dates:
    """`month_later` of many days.

    Args:
        days: datetime64[D] `(loans,)`, as is the result.
        due_day: int64 `(loans,)`.
        months: int64 `(loans,)`, or one number for all.
    """
    first = days.astype("datetime64[M]") + np.asarray(months, "timedelta64[M]")
    start = first.astype("datetime64[D]")
    if np.max(due_day, initial=0) <= 28:
        return np.asarray(start + (due_day - 1))
    length = ((first + 1).astype("datetime64[D]") - start).astype(np.int64)
    return np.asarray(start + (np.minimum(due_day, length) - 1))
