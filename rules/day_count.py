"""Day counts: what part of a year the days from one date to another are, as exact fractions.

The names and definitions are those of the 2006 ISDA Definitions, section 4.16. The first day of
a period counts, the last doesn't.

`30/360` is ISDA's 30/360, 360/360 or Bond Basis (4.16(f)), what US loans and bonds call the US
rule: a first day of 31 becomes 30, and then a last day of 31 becomes 30 if the first day is 30.
The last days of February are taken as they are: ISDA's definition doesn't know the rule for
them that SIFMA's Standard Securities Calculation Methods adds for securities that pay at the end
of every month (28 February becomes 30), because it needs to know whether a security is one of
them, which dates alone don't tell. So 31 January to 28 February is 28 days, and 28 February to
31 March 33. Nor is it the European 30E/360 (4.16(g)), where a last day of 31 is always 30.

Every definition stands here twice: `year_fraction` for one period, and `year_fractions` for
arrays of periods.
"""

import datetime
from collections.abc import Callable
from enum import StrEnum
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ledgerbeam.rules.money import Integers

Dates = npt.NDArray[np.datetime64]


class DayCount(StrEnum):
    """The day counts by their names, with their paragraphs of ISDA 2006, section 4.16."""

    THIRTY_360 = "30/360"
    """(f): every month has 30 days, every year 360."""
    ACT_360 = "ACT/360"
    """(e): the days of the calendar, years of 360."""
    ACT_365F = "ACT/365F"
    """(d), Actual/365 (Fixed): the days of the calendar, years of 365."""
    ACT_ACT = "ACT/ACT"
    """(b), Actual/Actual (ISDA): days in leap years by 366, the others by 365."""


DENOMINATORS = {
    DayCount.THIRTY_360: 360,
    DayCount.ACT_360: 360,
    DayCount.ACT_365F: 365,
    DayCount.ACT_ACT: 365 * 366,
}
"""The denominator of every year fraction of a day count."""


class YearFractions(NamedTuple):
    """Exact fractions of a year, not reduced.

    Attributes:
        numerators: int64, one a period.
        denominator: that of the day count.
    """

    numerators: Integers
    denominator: int


def day_count_days(start: datetime.date, end: datetime.date, day_count: DayCount) -> int:
    """Days from `start` to `end` as the day count counts them.

    Raises:
        ValueError: if `end` is before `start`.
    """
    if end < start:
        raise ValueError(f"a period ends on {end}, before it starts on {start}")
    if day_count is not DayCount.THIRTY_360:
        return (end - start).days
    first = min(start.day, 30)
    last = 30 if end.day == 31 and first == 30 else end.day
    return 360 * (end.year - start.year) + 30 * (end.month - start.month) + last - first


def year_fraction(start: datetime.date, end: datetime.date, day_count: DayCount) -> Fraction:
    """Part of a year from `start` to `end`, exactly.

    Raises:
        ValueError: if `end` is before `start`.
    """
    if day_count is DayCount.ACT_ACT:
        days = day_count_days(start, end, day_count)
        in_leap_years = sum(
            (min(end, _new_year(year + 1)) - max(start, _new_year(year))).days
            for year in range(start.year, end.year + 1)
            if _is_leap(year)
        )
        return Fraction(in_leap_years, 366) + Fraction(days - in_leap_years, 365)
    return Fraction(day_count_days(start, end, day_count), DENOMINATORS[day_count])


def year_fractions(starts: Dates, ends: Dates, day_count: DayCount) -> YearFractions:
    """`year_fraction` of many periods.

    Args:
        starts: datetime64[D], of any shape.
        ends: datetime64[D] of the same shape, none before its start.
        day_count: of all of them.

    Raises:
        ValueError: if a period ends before it starts.
    """
    if not np.all(starts <= ends):
        at = np.argmax(starts.ravel() > ends.ravel())
        start, end = starts.ravel()[at], ends.ravel()[at]
        raise ValueError(f"a period ends on {end}, before it starts on {start}")
    if day_count is DayCount.THIRTY_360:
        numerators = _days_of_360(starts, ends)
    elif day_count is DayCount.ACT_ACT:
        numerators = _by_day(_act_act_until, ends) - _by_day(_act_act_until, starts)
    else:
        numerators = (ends - starts).astype(np.int64)
    return YearFractions(numerators, DENOMINATORS[day_count])


def mixed_year_fractions(
    starts: Dates, ends: Dates, day_counts: npt.NDArray[np.integer]
) -> tuple[Integers, Integers]:
    """`year_fraction` of many periods that count their days differently.

    Args:
        starts: datetime64[D] `(…, loans)`.
        ends: datetime64[D] `(…, loans)`, none before its start.
        day_counts: integers `(loans,)`, positions in `tuple(DayCount)`.

    Returns:
        Numerators int64 `(…, loans)` and denominators int64 `(loans,)`.

    Raises:
        ValueError: if a period ends before it starts.
    """
    numerators = np.empty(starts.shape, np.int64)
    for position, day_count in enumerate(DayCount):
        loans = np.flatnonzero(day_counts == position)
        if len(loans) == len(day_counts):
            numerators = year_fractions(starts, ends, day_count).numerators
        elif len(loans):
            some = year_fractions(starts[..., loans], ends[..., loans], day_count)
            numerators[..., loans] = some.numerators
    return numerators, np.array([DENOMINATORS[day_count] for day_count in DayCount])[day_counts]


def _days_of_360(starts: Dates, ends: Dates) -> Integers:
    (first_month, first), (last_month, last) = (
        divmod(_by_day(_month_and_day, dates), 32) for dates in (starts, ends)
    )
    first = np.minimum(first, 30)
    last = last - ((last == 31) & (first == 30))
    return 30 * (last_month - first_month) + last - first


def _month_and_day(dates: Dates) -> Integers:
    months = dates.astype("datetime64[M]")
    days = (dates - months.astype("datetime64[D]")).astype(np.int64) + 1
    return months.astype(np.int64) * 32 + days


def _act_act_until(dates: Dates) -> Integers:
    """Days before each date from 1970 on in 365ths of 366ths of a year; differences count."""
    years = dates.astype("datetime64[Y]")
    year = years.astype(np.int64) + 1970
    day_of_year = (dates - years.astype("datetime64[D]")).astype(np.int64)
    # A whole year is 365 * 366 of them, leap or not.
    return year * (365 * 366) + day_of_year * np.where(_is_leap(year), 365, 366)


def _by_day(function: Callable[[Dates], Integers], dates: Dates) -> Integers:
    """`function(dates)`, computed once a day of their range where that is less work.

    Taking a date apart costs twenty times as much as looking it up.
    """
    if not dates.size:
        return function(dates)
    first, last = dates.min(), dates.max()
    if (last - first).astype(np.int64) >= dates.size:
        return function(dates)
    every_day = function(np.arange(first, last + 1))
    return every_day[(dates - first).astype(np.int64)]


def _is_leap(year: Any) -> Any:
    return (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))


def _new_year(year: int) -> datetime.date:
    return datetime.date(year, 1, 1)
