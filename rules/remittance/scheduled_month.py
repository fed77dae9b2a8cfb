"""A month of a loan by its own schedule: what would be due if every instalment were paid on time.

The instalments are those of the book (`payments.instalment`), on the balance that an investor with
a scheduled balance has been paid down to. So they have the loan's day count, its first due date,
its last instalment and a balloon, whatever the borrower does.
"""

import datetime
from collections.abc import Sequence
from typing import NamedTuple

from ledgerbeam.rules.closing.interest import InterestDue, interest_due
from ledgerbeam.rules.closing.payments import instalment
from ledgerbeam.rules.loans.loan import RateChange, State, Terms
from ledgerbeam.rules.terms.due_dates import ONE_DAY, month_later
from ledgerbeam.rules.terms.repayment import FirstPeriod


class Rates(NamedTuple):
    """What interest is computed at over a month.

    Attributes:
        rate: in force when it begins.
        payment: likewise.
        changes: that come into force later.
    """

    rate: int
    payment: int
    changes: tuple[RateChange, ...] = ()


class ScheduledMonth(NamedTuple):
    """A month by schedule, in minor units.

    Attributes:
        principal: of the instalments that fall due in the month; negative where interest is added.
        due: interest of the month on the balance at its beginning.
    """

    principal: int
    due: InterestDue


def scheduled_month(
    terms: Terms, first_due: datetime.date, rates: Rates, balance: int, month: datetime.date
) -> ScheduledMonth:
    """What falls due in a month, on a balance at the end of the month before.

    Args:
        terms: of the loan.
        first_due: due date of its first instalment.
        rates: of the month.
        balance: that the investor has been paid down to.
        month: any day of it.
    """
    begin = month.replace(day=1)
    end = month_later(begin, 1) - ONE_DAY
    owed, total = balance, InterestDue(0, 0)
    for due in terms.due_dates.between(begin - ONE_DAY, end):
        period = interest_due(terms, _state(terms, rates, owed, due), due)
        total = InterestDue(total.interest + period.interest, total.base + period.base)
        if first_due <= due <= terms.maturity_date:
            owed -= instalment(terms, _state(terms, rates, owed, due)).principal
    if terms.frequency.months:
        total = _whole_month(terms, rates, balance, month)
    return ScheduledMonth(balance - owed, total)


def first_due_of(terms: Terms, opening: State) -> datetime.date:
    """Due date of a loan's first instalment.

    Where the terms don't name it, it is the first one that comes a whole period after the loan's
    origination, or the one that is unpaid when the loan is boarded if that is earlier.
    """
    if terms.first_due is not None:
        return terms.first_due
    dates = terms.due_dates
    due = dates.regular_after(terms.origination_date - ONE_DAY)
    while dates.regular_before(due) < terms.origination_date:
        due = dates.regular_after(due)
    return min(due, opening.next_due)


def rates_of(before: State, changes: Sequence[RateChange], closed_through: datetime.date) -> Rates:
    """The rates of a month: those in force when it begins, and the changes that come into force.

    Args:
        before: the state at the end of the month before.
        changes: that came into force since.
        closed_through: the end of the month before.
    """
    rate, payment = before.rate, before.payment
    later = []
    for change in (*before.rate_changes, *changes):
        if change.effective_date <= closed_through:
            rate, payment = change.rate, change.payment
        else:
            later.append(change)
    return Rates(rate, payment, tuple(later))


def _state(terms: Terms, rates: Rates, balance: int, due: datetime.date) -> State:
    begin = terms.due_dates.before(due)
    return State(
        closed_through=begin, balance=balance, rate=rates.rate, payment=rates.payment,
        next_due=due, accrued_from=begin, late_fees_through=begin, rate_changes=rates.changes,
    )  # fmt: skip


def _whole_month(terms: Terms, rates: Rates, balance: int, month: datetime.date) -> InterestDue:
    """Interest up to the due day of a month, from that of the month before."""
    # A first period of another length is remitted month by month, too.
    terms = terms._replace(first_period=FirstPeriod.UPFRONT)
    due = month_later(month, terms.due_day, 0)
    state = _state(terms, rates, balance, due)
    state.accrued_from = month_later(due, terms.due_day, -1)
    return interest_due(terms, state, due)
