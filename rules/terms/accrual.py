"""What part of a year interest is due for, within a loan: day counts that know its periods.

Parts of a period add up to it, whatever the day count but `30/360 ISDA`: the part from one day to
another is the difference of the parts from the period's beginning to each.

`loan_fraction` is for any two days of one loan, `loan_fraction_many` for the whole periods of many.
"""

import datetime
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ledgerbeam.rules.arrays import Dates, Integers
from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.terms.day_count import (
    DENOMINATORS,
    DayCount,
    day_count_days,
    day_number_30_360,
    day_number_30e_360_isda_many,
    is_leap,
    year_fraction,
    year_fraction_many,
)
from ledgerbeam.rules.terms.due_dates import DueDates, half_month_days

WHOLE_MONTHS = (
    DayCount.THIRTY_360,
    DayCount.THIRTY_360_ISDA,
    DayCount.THIRTY_E_360,
    DayCount.THIRTY_E_360_ISDA,
)
"""The day counts by which all months are of one length."""


def loan_fraction(
    due_dates: DueDates,
    day_count: DayCount,
    start: datetime.date,
    end: datetime.date,
    calendar: BusinessCalendar | None = None,
) -> Fraction:
    """Part of a year from one day of a loan to another, exactly.

    Args:
        due_dates: of the loan.
        day_count: of the loan.
        start: the first day that counts.
        end: the first day that doesn't.
        calendar: for `BUS/252`.

    Raises:
        ValueError: `end` is before `start`, or there is no calendar where one is needed.

    Example:
        >>> from ledgerbeam.rules.terms.due_dates import MONTHLY
        >>> dates = datetime.date(2026, 1, 31), datetime.date(2026, 2, 28)
        >>> loan_fraction(DueDates(MONTHLY, due_day=31), DayCount.THIRTY_360, *dates)
        Fraction(1, 12)
    """
    if end < start:
        raise ValueError(f"a period ends on {end}, before it starts on {start}")
    match day_count:
        case DayCount.THIRTY_360:
            return Fraction(_days_of_loan(due_dates, start, end), 360)
        case DayCount.THIRTY_E_360_ISDA:
            return Fraction(_days_to_maturity(due_dates, start, end), 360)
        case DayCount.ACT_365L:
            return _in_years_of_periods(due_dates, start, end)
        case DayCount.ACT_ACT_ICMA:
            return _in_parts_of_periods(due_dates, start, end)
        case DayCount.BUS_252:
            if calendar is None:
                raise ValueError(f"{day_count} needs a calendar of business days")
            return Fraction(calendar.business_days_between(start, end), 252)
    return year_fraction(start, end, day_count)


def payoff_fraction(
    due_dates: DueDates, day_count: DayCount, start: datetime.date, end: datetime.date
) -> Fraction:
    """Part of a year for a payoff by the rule of the US agencies.

    Whole months since the last paid instalment by the day count, and the days of a partial month
    over 365 (Fannie Mae Servicing Guide F-1-09).

    Args:
        due_dates: of the loan.
        day_count: of the loan.
        start: from which on interest isn't paid.
        end: the day of the payoff.

    Raises:
        ValueError: months are of different lengths by the day count, which knows the days of a
            partial one itself.
    """
    if day_count not in WHOLE_MONTHS:
        raise ValueError(f"{day_count} counts a partial month to the day")
    begin = max(start, due_dates.before(end + datetime.timedelta(1)))
    whole = loan_fraction(due_dates, day_count, start, begin)
    return whole + Fraction((end - begin).days, 365)


def _days_of_loan(due_dates: DueDates, start: datetime.date, end: datetime.date) -> int:
    """Days by `30/360`."""
    first_due, interest_from = due_dates.first_due, due_dates.interest_from
    if first_due is not None and interest_from is not None and start < first_due:
        regular = due_dates.regular_before(first_due)
        if interest_from != regular:
            # In a period that isn't of whole months ISDA's days from its beginning count.
            middle = min(end, first_due)
            days = day_count_days(interest_from, middle, DayCount.THIRTY_360)
            if start > interest_from:
                days -= day_count_days(interest_from, start, DayCount.THIRTY_360)
            return days + (_days_of_loan(due_dates, first_due, end) if end > first_due else 0)
    due_day = due_dates.due_day
    if due_dates.frequency.days:
        # Where due dates are counted in days, no day of a month stands for another.
        begin = due_dates.before(start + datetime.timedelta(1))
        until_end, until_start = (
            day_count_days(begin, day, DayCount.THIRTY_360) for day in (end, start)
        )
        return until_end - until_start
    if due_dates.frequency.twice_a_month:
        return _days_of_half_months(due_dates, start, end)
    return day_number_30_360(end, due_day) - day_number_30_360(start, due_day)


def _days_of_half_months(due_dates: DueDates, start: datetime.date, end: datetime.date) -> int:
    """Days by `30/360` where due dates come twice a month: the later due day stands for the end."""
    _, later = half_month_days(due_dates.due_day, due_dates.second_due_day)
    return day_number_30_360(end, later) - day_number_30_360(start, later)


def _days_to_maturity(due_dates: DueDates, start: datetime.date, end: datetime.date) -> int:
    """Days by `30E/360 ISDA`."""

    def day_of(day: datetime.date) -> int:
        is_last = (day + datetime.timedelta(1)).day == 1
        is_end = day.day == 31 or (day.month == 2 and is_last and day != due_dates.maturity)
        return (day.year * 12 + day.month) * 30 + (30 if is_end else day.day)

    return day_of(end) - day_of(start)


def _in_years_of_periods(due_dates: DueDates, start: datetime.date, end: datetime.date) -> Fraction:
    """`ACT/365L`: each period in years of its own length."""
    total = Fraction(0)
    while start < end:
        due = due_dates.after(start)
        if due_dates.frequency.months == 12:
            begin = due_dates.before(due)
            has_leap_day = any(
                is_leap(year) and begin < datetime.date(year, 2, 29) <= due
                for year in range(begin.year, due.year + 1)
            )
        else:
            has_leap_day = is_leap(due.year)
        upto = min(due, end)
        total += Fraction((upto - start).days, 366 if has_leap_day else 365)
        start = upto
    return total


def _in_parts_of_periods(due_dates: DueDates, start: datetime.date, end: datetime.date) -> Fraction:
    """`ACT/ACT ICMA`: days by those of the regular period that they are in.

    Raises:
        ValueError: periods are counted in days, which are no part of a year.
    """
    months, days, _ = due_dates.frequency
    if days:
        raise ValueError("ACT/ACT ICMA needs due dates that are counted in months")
    period = Fraction(months, 12) if months else Fraction(1, 24)
    total = Fraction(0)
    while start < end:
        due = due_dates.regular_after(start)
        upto = min(due, end)
        length = (due - due_dates.regular_before(due)).days
        total += period * Fraction((upto - start).days, length)
        start = upto
    return total


class Frequencies(NamedTuple):
    """The frequencies of many loans, int64 `(loans,)` each; half a month where both are 0.

    Attributes:
        months: between due dates, or 0.
        days: between due dates, or 0.
        due_day: the day of the month on which instalments fall due, the later one of two.
    """

    months: Integers
    days: Integers
    due_day: Integers


def loan_fraction_many(
    due_dates: Dates,
    frequencies: Frequencies,
    day_counts: Integers,
    calendar: BusinessCalendar | None = None,
) -> tuple[Integers, Integers]:
    """`loan_fraction` of all periods of many loans, all of them whole ones.

    Args:
        due_dates: datetime64[D] `(periods + 1, loans)`, first the day on which interest begins. A
            loan of fewer periods repeats its maturity date, and the rest of its column of
            numerators means nothing.
        frequencies: of the loans.
        day_counts: positions in `tuple(DayCount)`, integers `(loans,)`.
        calendar: for `BUS/252`.

    Returns:
        Numerators int64 `(periods, loans)` and denominators int64 `(loans,)`.

    Raises:
        ValueError: if there is no calendar where one is needed, or it doesn't know the dates.
    """
    numerators = np.empty((len(due_dates) - 1, len(day_counts)), np.int64)
    denominators = np.ones(len(day_counts), np.int64)
    for position, day_count in enumerate(DayCount):
        loans = np.flatnonzero(day_counts == position)
        if len(loans) == 0:
            continue
        denominators[loans] = DENOMINATORS.get(day_count, _DENOMINATOR_OF_ICMA)
        if len(loans) == len(day_counts):
            return _numerators(due_dates, frequencies, day_count, calendar), denominators
        some = Frequencies(*(numbers[loans] for numbers in frequencies))
        numerators[:, loans] = _numerators(due_dates[:, loans], some, day_count, calendar)
    return numerators, denominators


# Whole periods are whole months or half a month: 24ths of a year.
_DENOMINATOR_OF_ICMA = 24


def _numerators(
    due_dates: Dates,
    frequencies: Frequencies,
    day_count: DayCount,
    calendar: BusinessCalendar | None,
) -> Integers:
    """`loan_fraction_many` by one day count; read-only, or of its own."""
    starts, ends = due_dates[:-1], due_dates[1:]
    months, days, due_day = frequencies
    match day_count:
        case DayCount.THIRTY_360:
            if months.all():
                return np.broadcast_to(30 * months, starts.shape)
            by_two_dates, halves = (
                year_fraction_many(starts, ends, day_count, day).numerators
                for day in (None, due_day)
            )
            return np.where(months > 0, 30 * months, np.where(days > 0, by_two_dates, halves))
        case DayCount.THIRTY_E_360_ISDA:
            number, maturity = day_number_30e_360_isda_many(due_dates), due_dates[-1]
            month = maturity.astype("datetime64[M]")
            day = (maturity - month.astype("datetime64[D]")).astype(np.int64) + 1
            # A maturity date on the last day of February is that day, not the 30th.
            extra = (number[-1] - 30 * month.astype(np.int64) - day).clip(min=0)
            return np.diff(number - np.where(due_dates == maturity, extra, 0), axis=0)
        case DayCount.ACT_365L:
            is_long = is_leap(ends.astype("datetime64[Y]").astype(np.int64) + 1970)
            length = (ends - starts).astype(np.int64)
            if (months == 12).any():
                without = year_fraction_many(starts, ends, DayCount.NL_365).numerators
                is_long = np.where(months == 12, length > without, is_long)
            return length * np.where(is_long, 365, 366)
        case DayCount.ACT_ACT_ICMA:
            part = np.where(months > 0, months * (_DENOMINATOR_OF_ICMA // 12), 1)
            return np.broadcast_to(part, starts.shape)
        case DayCount.BUS_252:
            if calendar is None:
                raise ValueError(f"{day_count} needs a calendar of business days")
            return calendar.business_days_between(starts, ends)
    return year_fraction_many(starts, ends, day_count).numerators
