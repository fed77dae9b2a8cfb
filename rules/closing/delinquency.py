"""Delinquency: payments that are missed, and the days that a loan is past due.

A payment is missed

- by the method of the Mortgage Bankers Association, the default here and in prime markets, if it
  isn't there at the close of the day before the next due date;
- by that of the Office of Thrift Supervision, if it isn't there at the close of the next due date
  itself.

An instalment due on 1 April is missed from the close of 30 April by the first, from that of 1 May
by the second. The number of payments missed gives the bucket, months standing for 30 days. Where
instalments aren't monthly, the months since the oldest unpaid one fell due are counted likewise.

An instalment that falls due on a day that is no business day may be paid on another, if the policy
says so: until then it is not past due.
"""

import datetime

import numpy as np

from ledgerbeam.rules.arrays import Dates, Integers
from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.loans.loan import DelinquencyMethod, Policy, Terms
from ledgerbeam.rules.terms.due_dates import month_later, month_later_many

BUCKETS = ("current", "30", "60", "90", "120+")
"""Names of the delinquency buckets: days past due, for 0, 1, 2, 3, and 4 or more missed payments.

The number of a bucket is its position here.
"""


def missed_payments(
    next_due: datetime.date, due_day: int, day: datetime.date, method: DelinquencyMethod
) -> int:
    """Payments missed at the close of `day`, for an oldest unpaid instalment at `next_due`.

    Args:
        next_due: its due date.
        due_day: of instalments that fall due in each month; else the day of `next_due`.
        day: that is closed.
        method: that decides.
    """
    at = day + datetime.timedelta(1) if method is DelinquencyMethod.MBA else day
    months = (at.year - next_due.year) * 12 + at.month - next_due.month
    return max(0, months if at >= month_later(next_due, due_day, months) else months - 1)


def delinquency_bucket(missed: int) -> int:
    """The number of the bucket of so many missed payments."""
    return min(missed, len(BUCKETS) - 1)


def delinquency_bucket_many(missed: Integers) -> Integers:
    """`delinquency_bucket` of many loans, int64 `(loans,)`."""
    return np.minimum(missed, len(BUCKETS) - 1)


def payable_on(terms: Terms, due: datetime.date, policy: Policy) -> datetime.date:
    """The day until which an instalment is on time: its due date, moved to a business day."""
    return _moved(terms, due, policy.due_dates)


def late_on(terms: Terms, due: datetime.date, policy: Policy) -> datetime.date:
    """The day at whose close a late fee is charged for an instalment that isn't paid."""
    end = payable_on(terms, due, policy) + datetime.timedelta(policy.grace_days)
    return _moved(terms, end, policy.grace_end)


def payable_on_many(calendar: BusinessCalendar | None, due: Dates, policy: Policy) -> Dates:
    """`payable_on` of many due dates, datetime64[D] of their shape.

    Raises:
        ValueError: the policy moves due dates and there is no calendar, or it doesn't know them.
    """
    return _moved_many(calendar, due, policy.due_dates)


def late_on_many(calendar: BusinessCalendar | None, due: Dates, policy: Policy) -> Dates:
    """`late_on` of many due dates, datetime64[D] of their shape.

    Raises:
        ValueError: the policy moves dates and there is no calendar, or it doesn't know them.
    """
    end = payable_on_many(calendar, due, policy) + policy.grace_days
    return _moved_many(calendar, end, policy.grace_end)


def days_past_due(payable: datetime.date, day: datetime.date) -> int:
    """Days since the oldest unpaid instalment was to be paid."""
    return max(0, (day - payable).days)


def _moved(terms: Terms, day: datetime.date, convention: BusinessDayConvention) -> datetime.date:
    if convention is BusinessDayConvention.NONE:
        return day
    moved: datetime.date = _moved_many(
        terms.calendar, np.array([day], "datetime64[D]"), convention
    )[0].item()
    return moved


def _moved_many(
    calendar: BusinessCalendar | None, days: Dates, convention: BusinessDayConvention
) -> Dates:
    if convention is BusinessDayConvention.NONE:
        return days
    if calendar is None:
        raise ValueError(f"{convention} needs a calendar of business days")
    return calendar.adjust(days, convention)


def missed_payments_many(
    next_due: Dates, due_day: Integers, day: datetime.date, method: DelinquencyMethod
) -> Integers:
    """`missed_payments` of many loans at the close of one day; int64 `(loans,)`.

    Args:
        next_due: datetime64[D] `(loans,)`.
        due_day: int64 `(loans,)`.
        day: that is closed.
        method: that decides.
    """
    at = np.datetime64(day) + (1 if method is DelinquencyMethod.MBA else 0)
    months = (at.astype("datetime64[M]") - next_due.astype("datetime64[M]")).astype(np.int64)
    months -= at < month_later_many(next_due, due_day, months)
    return np.maximum(months, 0)
