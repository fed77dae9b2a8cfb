"""Interest of a loan on the book: what is due for a time, and what has accrued.

Interest accrues on the unpaid principal from the due date last paid, by the loan's day count, as
Fannie Mae's Servicing Guide has it (F-1-09: the interest of an instalment, and that of a payoff,
is computed on the balance as of the last paid instalment date). A payment that comes late
therefore costs a late fee and no interest: once it is applied, the days since its due date are
accrued on the balance that it leaves. One that comes early saves none either: what it repays bears
interest until it falls due. What is accrued at the close of a day is computed from the start of
the period and rounded once, and a day's entry is the difference to the day before: days never add
up to anything but the period, whatever was paid on them.
"""

import datetime
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ledgerbeam.rules.arrays import Dates, Integers
from ledgerbeam.rules.loans.loan import BASE_SCALE, RATE_UNITS, PayoffInterest, State, Terms
from ledgerbeam.rules.money import divide_rounded, multiply_divide_many
from ledgerbeam.rules.terms.accrual import WHOLE_MONTHS, loan_fraction, payoff_fraction
from ledgerbeam.rules.terms.day_count import DAY_COUNTS, YearFractions, year_fraction_many

_Fraction = Callable[[datetime.date, datetime.date], Fraction]


class InterestDue(NamedTuple):
    """Interest that is due for a time.

    Attributes:
        interest: in minor units.
        base: what it is the interest on; see `Entry.interest_base`.
    """

    interest: int
    base: int


def interest(terms: Terms, state: State, end: datetime.date) -> int:
    """Interest in minor units from `accrued_from` to `end`, exclusive; 0 if `end` is earlier.

    Rates are taken as they change, and principal that was repaid ahead counts until it fell due.
    Rounded to the minor unit, half to even: once, or once up to that day and once from then on.
    """
    return interest_due(terms, state, end).interest


def interest_due(terms: Terms, state: State, end: datetime.date) -> InterestDue:
    """`interest`, and what it is the interest on."""
    return _due(state, end, _fraction(terms))


def payoff_interest(
    terms: Terms, state: State, day: datetime.date, method: PayoffInterest
) -> InterestDue:
    """Interest in a payoff on `day`; negative where interest was paid beyond it.

    Args:
        terms: of the loan.
        state: as the loan stands on that day.
        day: of the payoff, the first one without interest.
        method: how a partial month counts.
    """
    fraction = _fraction(terms)
    if method is PayoffInterest.AGENCY and terms.day_count in WHOLE_MONTHS:
        due_dates = terms.due_dates

        def fraction(start: datetime.date, end: datetime.date) -> Fraction:
            return payoff_fraction(due_dates, terms.day_count, start, end)

    due = _due(state, day, fraction)
    return InterestDue(state.brought + due.interest, state.brought_base + due.base)


def accrued(terms: Terms, state: State, day: datetime.date) -> int:
    """Interest accrued and not paid at the close of `day`, minor units; negative if paid ahead."""
    return state.brought + interest(terms, state, day)


def period_interest(terms: Terms, balance: int, rate: int, due: datetime.date) -> int:
    """Interest of the regular period that ends on a due date.

    Args:
        terms: of the loan.
        balance: that bears the interest, in minor units, as is the result.
        rate: a year, in rate units.
        due: the due date.
    """
    start = terms.due_dates.regular_before(due)
    years = loan_fraction(
        terms.due_dates._replace(interest_from=None), terms.day_count, start, due, terms.calendar
    )
    return divide_rounded(balance * rate * years.numerator, years.denominator * RATE_UNITS)


def bring_forward(terms: Terms, state: State, day: datetime.date) -> None:
    """Add the interest up to a day to `brought`, so that from then on another balance counts."""
    if day <= state.accrued_from:
        return
    due = interest_due(terms, state, day)
    state.brought += due.interest
    state.brought_base += due.base
    state.accrued_from = day
    if state.ahead_until is not None and state.ahead_until <= day:
        state.ahead, state.ahead_until = 0, None


def _fraction(terms: Terms) -> _Fraction:
    due_dates, day_count, calendar = terms.due_dates, terms.day_count, terms.calendar
    return lambda start, end: loan_fraction(due_dates, day_count, start, end, calendar)


def _due(state: State, end: datetime.date, fraction: _Fraction) -> InterestDue:
    start = state.accrued_from
    total = InterestDue(0, 0)
    if state.ahead_until is not None and start < min(end, state.ahead_until):
        middle = min(end, state.ahead_until)
        total = _on(state.balance + state.ahead, state, start, middle, fraction)
        start = middle
    if start < end:
        rest = _on(state.balance, state, start, end, fraction)
        total = InterestDue(total.interest + rest.interest, total.base + rest.base)
    return total


def _on(
    principal: int, state: State, start: datetime.date, end: datetime.date, fraction: _Fraction
) -> InterestDue:
    rate, parts = state.rate, []
    for change in state.rate_changes:
        if change.effective_date >= end:
            break
        if change.effective_date > start:
            parts.append((rate, fraction(start, change.effective_date)))
            start = change.effective_date
        rate = change.rate
    parts.append((rate, fraction(start, end)))
    (rate, years), *others = parts
    above, below = rate * years.numerator, years.denominator
    if others:
        # Adding fractions takes longer than all the rest, and most periods have one rate.
        at_rates = sum((each * part for each, part in parts), Fraction(0))
        years = sum((part for _, part in parts), Fraction(0))
        above, below = at_rates.numerator, at_rates.denominator
    return InterestDue(
        divide_rounded(principal * above, below * RATE_UNITS),
        divide_rounded(principal * years.numerator * 10**BASE_SCALE, years.denominator),
    )


def interest_many(
    balance: Integers,
    rate: Integers,
    codes: Integers,
    due_day: Integers,
    starts: Dates,
    ends: Dates,
) -> Integers:
    """`interest` of many loans of whole months, without changes of the rate.

    Args:
        balance: int64 `(loans,)`, minor units, as is the result; what is paid ahead included.
        rate: int64 `(loans,)`, rate units.
        codes: of the day counts, in the order of `DAY_COUNTS`; all of `BY_TWO_DATES`.
        due_day: int64 `(loans,)`.
        starts: datetime64[D] `(loans,)`.
        ends: likewise; where it isn't after the start, there is no interest.
    """
    interest = np.zeros(len(balance), np.int64)
    for at, parts in _year_fractions(codes, due_day, starts, ends):
        interest[at] = _interest_on(balance[at], rate[at], parts)
    return interest


def interest_due_many(
    balance: Integers,
    rate: Integers,
    codes: Integers,
    due_day: Integers,
    starts: Dates,
    ends: Dates,
) -> tuple[Integers, Integers]:
    """`interest_due` of many loans: the interest, and what it is the interest on.

    Arguments are those of `interest_many`.
    """
    interest, base = np.zeros((2, len(balance)), np.int64)
    for at, parts in _year_fractions(codes, due_day, starts, ends):
        principal = balance[at]
        interest[at] = _interest_on(principal, rate[at], parts)
        units = parts.numerators * 10**BASE_SCALE
        base[at] = multiply_divide_many(principal, units, parts.denominator)
    return interest, base


def _interest_on(principal: Integers, rate: Integers, parts: YearFractions) -> Integers:
    return multiply_divide_many(principal, rate * parts.numerators, parts.denominator * RATE_UNITS)


def _year_fractions(
    codes: Integers, due_day: Integers, starts: Dates, ends: Dates
) -> Iterator[tuple[Integers, YearFractions]]:
    """Loans of one day count for which there is time between the days, and its part of a year."""
    is_time = ends > starts
    for code in np.flatnonzero(np.bincount(codes)).tolist():
        at = np.flatnonzero((codes == code) & is_time)
        if len(at):
            yield at, year_fraction_many(starts[at], ends[at], DAY_COUNTS[code], due_day[at])
