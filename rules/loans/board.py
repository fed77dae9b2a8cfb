"""Boarding: a loan as it was lent becomes a loan on the book.

Both have the same due dates, the same periods and the same payment, so that a borrower who pays
what the schedule asks for, when it asks for it, is current all along and has paid off the loan on
the last date.
"""

from typing import NamedTuple

from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.loans.loan import RATE_SCALE, State, Terms, in_minor_units
from ledgerbeam.rules.money import Rounding
from ledgerbeam.rules.schedules.schedule import (
    Loan,
    check_loan,
    due_dates,
    parse_day_count,
    payment_of,
)
from ledgerbeam.rules.terms.repayment import parse_first_period, parse_method


class Boarded(NamedTuple):
    """A loan on the book, as it stands on the day that it is disbursed."""

    terms: Terms
    opening: State


def board(
    loan: Loan,
    rounding: Rounding = Rounding.HALF_EVEN,
    calendar: BusinessCalendar | None = None,
) -> Boarded:
    """Put a loan on the book, without escrow.

    Interest that is settled upfront isn't on the book: it is paid when the loan is disbursed.

    Args:
        loan: as lent.
        rounding: of the payment, as in its schedule.
        calendar: of business days, for `BUS/252`.

    Raises:
        ValueError: the loan can't be scheduled; see `schedule.check_loan`.
    """
    check_loan(loan, calendar)
    places = minor_units(loan.currency)
    dates, dues = due_dates(loan)
    terms = Terms(
        loan.loan_id, loan.currency, parse_day_count(loan.day_count), loan.disbursed_on,
        maturity_date=dues[-1], due_day=dates.due_day, escrow_payment=0,
        frequency=dates.frequency, second_due_day=dates.second_due_day, first_due=dues[0],
        method=parse_method(loan.method), first_period=parse_first_period(loan.first_period),
        round_payment_to=in_minor_units(loan.round_payment_to or 0 * loan.principal, places),
        calendar=calendar,
    )  # fmt: skip
    opening = State(
        closed_through=loan.disbursed_on,
        balance=in_minor_units(loan.principal, places),
        rate=in_minor_units(loan.annual_rate_percent, RATE_SCALE),
        payment=in_minor_units(payment_of(loan, rounding, calendar), places),
        next_due=dues[0],
        accrued_from=terms.due_dates.before(dues[0]),
        late_fees_through=loan.disbursed_on,
    )
    return Boarded(terms, opening)
