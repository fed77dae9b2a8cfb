"""Day counts: what part of a year the days from one date to another are, as exact fractions.

The names and definitions are those of the 2006 ISDA Definitions, section 4.16, and of what the
members of `DayCount` cite. The first day of a period counts, the last doesn't.

`30/360` is what loans mean by it. Between two dates it is ISDA's 30/360, 360/360 or Bond Basis
(4.16(f)), what US loans and bonds call the US rule: a first day of 31 becomes 30, and then a last
day of 31 becomes 30 if the first day is 30. In a loan, whole months have 30 days each: 31 January
to 28 February, and 28 February to 31 March, where instalments fall due on the 31st. A date is
taken apart into months and a day for that: the last day of a month that is shorter than the due
day stands for the due day, and the 31st counts as 30 where instalments fall due on the 30th or
31st. Within a period the days from its beginning are ISDA's; from one day of it to another they
are the difference of those, so that parts always add up to the whole: 1 to 31 January has 30
days, and 31 January to 1 February none, where instalments fall due on the 1st.

`30/360 ISDA` is ISDA's formula throughout, for those who have agreed on it to the letter: 31
January to 28 February is 28 days, 28 February to 31 March 33.

`accrual` has the day counts that need to know the period of a loan beside two dates
(`ACT/ACT ICMA`, `ACT/365L`, `30E/360 ISDA`) or its calendar (`BUS/252`). All others are here:
`year_fraction` for one period, and `year_fraction_many` for arrays of periods.
"""

import datetime
from collections.abc import Callable
from enum import StrEnum
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ledgerbeam.rules.arrays import Dates, Integers


class DayCount(StrEnum):
    """The day counts by their names, with their paragraphs of ISDA 2006, section 4.16."""

    THIRTY_360 = "30/360"
    """(f), and 30 days for each whole month of a loan: every year has 360."""
    ACT_360 = "ACT/360"
    """(e): the days of the calendar, years of 360."""
    ACT_365F = "ACT/365F"
    """(d), Actual/365 (Fixed): the days of the calendar, years of 365."""
    ACT_ACT = "ACT/ACT"
    """(b), Actual/Actual (ISDA): days in leap years by 366, the others by 365."""
    THIRTY_360_ISDA = "30/360 ISDA"
    """(f), to the letter."""
    THIRTY_E_360 = "30E/360"
    """(g), Eurobond Basis: a 31st is a 30th, wherever it stands."""
    THIRTY_E_360_ISDA = "30E/360 ISDA"
    """(h): a 31st and the last day of February are a 30th, but for February's as maturity date."""
    ACT_364 = "ACT/364"
    """The days of the calendar, years of 52 weeks."""
    ACT_365L = "ACT/365L"
    """(i), ICMA rule 251.1(i): the days of the calendar; years of 366 if the period ends in a leap
    year, or holds 29 February where periods are of a year; else of 365."""
    NL_365 = "NL/365"
    """The days of the calendar without 29 February, years of 365."""
    ACT_ACT_ICMA = "ACT/ACT ICMA"
    """(c), ICMA rule 251.1(iii): the days of the calendar by those of the period, which is the same
    part of a year whatever its days."""
    BUS_252 = "BUS/252"
    """Business days by 252, as in Brazil: those of the calendar that the run names."""


DAY_COUNTS = tuple(DayCount)
"""Day counts by the codes that stand for them in columns."""

DENOMINATORS = {
    DayCount.THIRTY_360: 360,
    DayCount.THIRTY_360_ISDA: 360,
    DayCount.THIRTY_E_360: 360,
    DayCount.THIRTY_E_360_ISDA: 360,
    DayCount.ACT_360: 360,
    DayCount.ACT_364: 364,
    DayCount.ACT_365F: 365,
    DayCount.NL_365: 365,
    DayCount.ACT_ACT: 365 * 366,
    DayCount.ACT_365L: 365 * 366,
    DayCount.BUS_252: 252,
}
"""The denominator of every year fraction of a day count; `ACT/ACT ICMA` has none."""

BY_TWO_DATES = frozenset(DENOMINATORS) - {
    DayCount.THIRTY_E_360_ISDA,
    DayCount.ACT_365L,
    DayCount.BUS_252,
}
"""The day counts for which two dates are all that has to be known."""


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
        ValueError: if `end` is before `start`, or two dates aren't enough for the day count.
    """
    _check_order(start, end)
    match day_count:
        case DayCount.THIRTY_360 | DayCount.THIRTY_360_ISDA:
            first = min(start.day, 30)
            last = 30 if end.day == 31 and first == 30 else end.day
            return _months(start, end) * 30 + last - first
        case DayCount.THIRTY_E_360:
            return _months(start, end) * 30 + min(end.day, 30) - min(start.day, 30)
        case DayCount.NL_365:
            return _days_without_leap(end) - _days_without_leap(start)
    if day_count not in BY_TWO_DATES:
        raise ValueError(f"{day_count} needs the period of a loan, or its calendar, to count days")
    return (end - start).days


def year_fraction(start: datetime.date, end: datetime.date, day_count: DayCount) -> Fraction:
    """Part of a year from `start` to `end`, exactly.

    Args:
        start: the first day that counts.
        end: the first day that doesn't.
        day_count: one of `BY_TWO_DATES`.

    Raises:
        ValueError: if `end` is before `start`, or two dates aren't enough for the day count.

    Example:
        >>> year_fraction(datetime.date(2026, 1, 1), datetime.date(2026, 4, 1), DayCount.ACT_360)
        Fraction(1, 4)
    """
    days = day_count_days(start, end, day_count)
    if day_count is DayCount.ACT_ACT:
        in_leap_years = sum(
            (min(end, _new_year(year + 1)) - max(start, _new_year(year))).days
            for year in range(start.year, end.year + 1)
            if is_leap(year)
        )
        return Fraction(in_leap_years, 366) + Fraction(days - in_leap_years, 365)
    return Fraction(days, DENOMINATORS[day_count])


def year_fraction_many(
    starts: Dates, ends: Dates, day_count: DayCount, due_day: Integers | None = None
) -> YearFractions:
    """`year_fraction` of many periods.

    Args:
        starts: datetime64[D], of any shape.
        ends: datetime64[D] of the same shape, none before its start.
        day_count: of all of them; one of `BY_TWO_DATES`.
        due_day: for `30/360` in loans: the day of the month on which each one's instalments fall
            due, int64, of a shape that broadcasts; see `day_number_30_360_many`.

    Raises:
        ValueError: if a period ends before it starts.
    """
    if not np.all(starts <= ends):
        at = np.argmax(starts.ravel() > ends.ravel())
        start, end = starts.ravel()[at], ends.ravel()[at]
        raise ValueError(f"a period ends on {end}, before it starts on {start}")
    if day_count is DayCount.THIRTY_360 and due_day is not None:
        numerators = day_number_30_360_many(ends, due_day) - day_number_30_360_many(starts, due_day)
    elif day_count in (DayCount.THIRTY_360, DayCount.THIRTY_360_ISDA):
        numerators = _days_of_360(starts, ends)
    elif day_count is DayCount.THIRTY_E_360:
        numerators = _by_day(_european_days, ends) - _by_day(_european_days, starts)
    elif day_count is DayCount.NL_365:
        numerators = _by_day(_no_leap_days, ends) - _by_day(_no_leap_days, starts)
    elif day_count is DayCount.ACT_ACT:
        numerators = _by_day(_act_act_until, ends) - _by_day(_act_act_until, starts)
    elif day_count in BY_TWO_DATES:
        numerators = (ends - starts).astype(np.int64)
    else:
        raise ValueError(f"{day_count} needs the period of a loan, or its calendar, to count days")
    return YearFractions(numerators, DENOMINATORS[day_count])


def day_number_30_360(day: datetime.date, due_day: int) -> int:
    """A date as a number of days, of which the `30/360` of a loan counts differences.

    Months have 30 days. The last day of a month that is shorter than the due day is the due day,
    and the 31st is the 30th where instalments fall due on the 30th or 31st.

    Example:
        >>> january, march = datetime.date(2026, 1, 31), datetime.date(2026, 3, 31)
        >>> day_number_30_360(march, 31) - day_number_30_360(january, 31)
        60
    """
    number = day.day
    if number < due_day and (day + datetime.timedelta(1)).day == 1:
        number = min(due_day, 30)
    elif number == 31 and due_day >= 30:
        number = 30
    return (day.year * 12 + day.month) * 30 + number


def day_number_30_360_many(dates: Dates, due_day: Integers) -> Integers:
    """`day_number_30_360` of many dates, int64; the origin is another."""
    months, day = divmod(_by_day(_month_and_day, dates), 32)
    if np.max(due_day, initial=0) > 28:
        is_last = _by_day(_is_last_of_month, dates)
        day = np.where(
            (is_last == 1) & (day < due_day),
            np.minimum(due_day, 30),
            day - ((day == 31) & (due_day >= 30)),
        )
    return 30 * months + day


def day_number_30e_360_isda_many(dates: Dates) -> Integers:
    """Dates as numbers of days, of which `30E/360 ISDA` counts differences, int64.

    Months have 30 days; the 31st and the last day of February are the 30th. February's last day as
    a maturity date, which isn't, is for the caller.
    """
    return _by_day(_german_days, dates)


def _check_order(start: datetime.date, end: datetime.date) -> None:
    if end < start:
        raise ValueError(f"a period ends on {end}, before it starts on {start}")


def _months(start: datetime.date, end: datetime.date) -> int:
    return 12 * (end.year - start.year) + end.month - start.month


def _days_without_leap(day: datetime.date) -> int:
    """Days of years of 365; 29 February is the same as the 28th."""
    in_year = (day - _new_year(day.year)).days
    return day.year * 365 + in_year - (is_leap(day.year) and in_year >= 59)


def _days_of_360(starts: Dates, ends: Dates) -> Integers:
    (first_month, first), (last_month, last) = (
        divmod(_by_day(_month_and_day, dates), 32) for dates in (starts, ends)
    )
    first = np.minimum(first, 30)
    last = last - ((last == 31) & (first == 30))
    return 30 * (last_month - first_month) + last - first


def _european_days(dates: Dates) -> Integers:
    months, day = divmod(_month_and_day(dates), 32)
    return 30 * months + np.minimum(day, 30)


def _german_days(dates: Dates) -> Integers:
    months, day = divmod(_month_and_day(dates), 32)
    is_february = months % 12 == 1
    return 30 * months + np.where(
        is_february & (_is_last_of_month(dates) == 1), 30, day.clip(max=30)
    )


def _month_and_day(dates: Dates) -> Integers:
    months = dates.astype("datetime64[M]")
    days = (dates - months.astype("datetime64[D]")).astype(np.int64) + 1
    return months.astype(np.int64) * 32 + days


def _is_last_of_month(dates: Dates) -> Integers:
    return (dates.astype("datetime64[M]") != (dates + 1).astype("datetime64[M]")).astype(np.int64)


def _no_leap_days(dates: Dates) -> Integers:
    year, day_of_year = _year_and_day(dates)
    return year * 365 + day_of_year - (is_leap(year) & (day_of_year >= 59))


def _act_act_until(dates: Dates) -> Integers:
    """Days before each date from 1970 on in 365ths of 366ths of a year; differences count."""
    year, day_of_year = _year_and_day(dates)
    # A whole year is 365 * 366 of them, leap or not.
    return year * (365 * 366) + day_of_year * np.where(is_leap(year), 365, 366)


def _year_and_day(dates: Dates) -> tuple[Integers, Integers]:
    """The year, and the days since it began."""
    years = dates.astype("datetime64[Y]")
    return years.astype(np.int64) + 1970, (dates - years.astype("datetime64[D]")).astype(np.int64)


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


def is_leap(year: Any) -> Any:
    """Whether a year has 366 days; of one, or of an array of them."""
    return (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))


def _new_year(year: int) -> datetime.date:
    return datetime.date(year, 1, 1)
