"""Accrual and delinquency: what a day adds to a loan that nobody pays.

Interest accrues on the unpaid principal from the due date last paid, by the loan's day count, as
Fannie Mae's Servicing Guide has it (F-1-09: the interest of an instalment, and that of a payoff,
is computed on the balance as of the last paid instalment date). A payment that comes late
therefore costs a late fee and no interest: once it is applied, the days since its due date are
accrued on the balance that it leaves. What is accrued at the close of a day is computed from the
start of the period and rounded once, and a day's entry is the difference to the day before: days
never add up to anything but the period.

A payment is missed

- by the method of the Mortgage Bankers Association, the default here and in prime markets, if it
  isn't there at the close of the day before the next due date;
- by that of the Office of Thrift Supervision, if it isn't there at the close of the next due date
  itself.

An instalment due on 1 April is missed from the close of 30 April by the first, from that of 1 May
by the second. The number of payments missed gives the bucket, months standing for 30 days.
"""

import datetime
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ledgerbeam.rules.day_count import DayCount, year_fraction, year_fractions
from ledgerbeam.rules.loan import (
    RATE_UNITS,
    DelinquencyMethod,
    Policy,
    State,
    Terms,
    month_later,
)
from ledgerbeam.rules.money import div_exactly, mul_div

Integers = npt.NDArray[np.int64]
Dates = npt.NDArray[np.datetime64]
Flags = npt.NDArray[np.bool_]

BUCKETS = ("current", "30", "60", "90", "120+")
"""By the number of payments missed, from 0 to 4 and more."""

DAY_COUNTS = tuple(DayCount)
"""Day counts by the codes that stand for them in columns."""


def interest(state: State, day_count: DayCount, end: datetime.date) -> int:
    """Interest from `accrued_from` to `end`, exclusive; rates are taken as they change.

    0 if `end` is earlier. Rounded to the minor unit once, half to even.
    """
    if end <= state.accrued_from:
        return 0
    start, rate, years = state.accrued_from, state.rate, Fraction(0)
    for change in state.rate_changes:
        if change.effective_date < end:
            years += rate * year_fraction(start, change.effective_date, day_count)
            start, rate = change.effective_date, change.rate
    years += rate * year_fraction(start, end, day_count)
    return div_exactly(state.balance * years.numerator, years.denominator * RATE_UNITS)


def accrued(terms: Terms, state: State, day: datetime.date) -> int:
    """Interest accrued and not paid at the close of `day`: what a payoff on that day costs."""
    return state.brought + interest(state, terms.day_count, day)


def missed_payments(
    next_due: datetime.date, due_day: int, day: datetime.date, method: DelinquencyMethod
) -> int:
    """Payments missed at the close of `day`, for an oldest unpaid instalment at `next_due`."""
    at = day + datetime.timedelta(1) if method is DelinquencyMethod.MBA else day
    months = (at.year - next_due.year) * 12 + at.month - next_due.month
    return max(0, months if at >= month_later(next_due, due_day, months) else months - 1)


def delinquency_bucket(missed: int) -> str:
    """The bucket of so many missed payments."""
    return BUCKETS[min(missed, len(BUCKETS) - 1)]


def days_past_due(next_due: datetime.date, day: datetime.date) -> int:
    """Days since the oldest unpaid instalment fell due."""
    return max(0, (day - next_due).days)


def late_fees(
    terms: Terms, state: State, day: datetime.date, policy: Policy
) -> Iterator[tuple[datetime.date, int]]:
    """Due date and amount of the late fees to be charged at the close of `day`.

    One for each instalment that is unpaid so many days after its due date and has had none. Fees
    are no part of an instalment, so that an unpaid one makes no later payment late (12 CFR
    1026.36(c)(2) forbids that).
    """
    if not (state.balance and policy.late_fee_rate):
        return
    last = day - datetime.timedelta(policy.grace_days)
    due = max(state.next_due, month_later(state.late_fees_through, terms.due_day))
    while due <= min(last, terms.maturity_date):
        yield due, div_exactly(state.payment * policy.late_fee_rate, RATE_UNITS)
        due = month_later(due, terms.due_day)


def interest_many(
    balance: Integers, rate: Integers, codes: Integers, starts: Dates, ends: Dates
) -> Integers:
    """`interest` of many loans without changes of the rate.

    Args:
        balance: int64 `(loans,)`, minor units, as is the result.
        rate: int64 `(loans,)`, rate units.
        codes: of the day counts, in the order of `DAY_COUNTS`.
        starts: datetime64[D] `(loans,)`.
        ends: likewise; where it isn't after the start, there is no interest.
    """
    result = np.zeros(len(balance), np.int64)
    for code in range(len(DAY_COUNTS)):
        at = np.flatnonzero((codes == code) & (ends > starts))
        if not len(at):
            continue
        numerators, denominator = year_fractions(starts[at], ends[at], DAY_COUNTS[code])
        result[at] = mul_div(balance[at], rate[at] * numerators, denominator * RATE_UNITS)
    return result


def months_later(days: Dates, due_day: Integers, months: Integers | int = 1) -> Dates:
    """`month_later` of many days; datetime64[D] `(loans,)`."""
    first = days.astype("datetime64[M]") + np.asarray(months, "timedelta64[M]")
    start = first.astype("datetime64[D]")
    length = ((first + 1).astype("datetime64[D]") - start).astype(np.int64)
    return np.asarray(start + (np.minimum(due_day, length) - 1))


def missed_many(
    next_due: Dates, due_day: Integers, day: datetime.date, method: DelinquencyMethod
) -> Integers:
    """`missed_payments` of many loans at the close of one day; int64 `(loans,)`."""
    at = np.datetime64(day) + (1 if method is DelinquencyMethod.MBA else 0)
    months = (at.astype("datetime64[M]") - next_due.astype("datetime64[M]")).astype(np.int64)
    months -= at < months_later(next_due, due_day, months)
    return np.maximum(months, 0)
