"""A loan that is paid by its schedule is booked, and remitted, as the schedule says.

The schedule, the book and the investor report are three ways to the same amounts, for every day
count, frequency, method and first period.
"""

import calendar
import datetime
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

import pytest

from ledgerbeam.rules.calendar.business_days import ANBIMA, business_calendar
from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.loans.loan import EntryKind, Policy, State, Terms, Transaction, in_minor_units
from ledgerbeam.rules.remittance.remit import Investor, RemittanceType
from ledgerbeam.rules.remittance.report_line import Holding, report_line
from ledgerbeam.rules.schedules.schedule import Loan, ScheduledInstalment, due_dates, schedule
from ledgerbeam.rules.terms.day_count import DayCount
from ledgerbeam.rules.terms.repayment import FirstPeriod, parse_first_period, parse_method

pytestmark = pytest.mark.slow

LOANS = 200
BRAZIL = business_calendar(ANBIMA, 2000, 2078)
INVESTOR = Investor("I", RemittanceType.SCHEDULED_SCHEDULED, 0, 0)
POLICY = Policy(late_fee_rate=0)


class Booked(NamedTuple):
    """A loan on the day it is lent, and payments by its schedule."""

    terms: Terms
    opening: State
    instalments: list[ScheduledInstalment]
    payments: list[Transaction]

    def units(self, amount: Decimal) -> int:
        return in_minor_units(amount, minor_units(self.terms.currency))


def random_loans(seed: int) -> Iterator[Booked]:
    draw = random.Random(seed)
    made = 0
    while made < LOANS:
        disbursed_on = datetime.date(2001, 1, 1) + datetime.timedelta(draw.randrange(3000))
        first_due = disbursed_on + datetime.timedelta(draw.randrange(1, 70))
        loan = Loan(
            loan_id="L",
            currency=draw.choice(["USD", "JPY", "KWD"]),
            principal=Decimal(draw.randrange(1000, 200_000)),
            annual_rate_percent=Decimal(draw.randrange(1500)).scaleb(-2),
            day_count=draw.choice(list(DayCount)),
            disbursed_on=disbursed_on,
            frequency=draw.choice(["P1W", "P2W", "P0.5M", "P1M", "P1M", "P3M", "P6M", "P1Y"]),
            term=draw.randrange(4, 13),
            method=draw.choice(["level", "equal_principal", "interest_only:1"]),
            first_due=draw.choice([None, first_due]),
            first_period=draw.choice(list(FirstPeriod)),
            round_payment_to=draw.choice([None, Decimal(10)]),
        )
        # ICMA's periods are months.
        if loan.day_count == DayCount.ACT_ACT_ICMA and loan.frequency in ("P1W", "P2W"):
            continue
        yield booked(loan)
        made += 1


def booked(loan: Loan) -> Booked:
    instalments = [each for each in schedule(loan, calendar=BRAZIL) if each.number]
    days, dues = due_dates(loan)
    method = parse_method(loan.method)
    scale = minor_units(loan.currency)
    terms = Terms(
        "L", loan.currency, DayCount(loan.day_count), loan.disbursed_on, dues[-1],
        days.due_day, escrow_payment=0, frequency=days.frequency, first_due=dues[0],
        method=method, first_period=parse_first_period(loan.first_period), calendar=BRAZIL,
    )  # fmt: skip
    third = instalments[2]
    opening = State(
        closed_through=loan.disbursed_on,
        balance=in_minor_units(loan.principal, scale),
        rate=in_minor_units(loan.annual_rate_percent, 6),
        payment=in_minor_units(third.payment if method.level else third.principal, scale),
        next_due=dues[0],
        accrued_from=terms.due_dates.before(dues[0]),
        late_fees_through=loan.disbursed_on,
    )
    payments = [
        Transaction(
            each.number, "payment", each.due_date, each.due_date,
            in_minor_units(each.payment, scale), loan.currency,
        )
        for each in instalments
        if each.payment
    ]  # fmt: skip
    return Booked(terms, opening, instalments, payments)


def test_the_book_has_the_interest_and_principal_of_the_schedule() -> None:
    for loan in random_loans(seed=13):
        terms, opening, instalments, payments = loan
        closed = close(terms, opening, opening, payments, terms.maturity_date, POLICY)
        assert [
            (entry.effective_date, entry.interest, entry.principal)
            for entry in closed.entries
            if entry.kind is EntryKind.PAYMENT
        ] == [
            (each.due_date, loan.units(each.interest), loan.units(each.principal))
            for each in instalments
            if each.payment
        ], terms
        assert closed.state.balance == closed.state.suspense == closed.state.accrued == 0


def test_an_investor_is_remitted_the_principal_of_the_schedule_paid_or_not() -> None:
    for loan in random_loans(seed=14):
        terms, opening, instalments, payments = loan
        holding = Holding("I", "P", 100 * 10**6, opening.balance)
        received = payments if opening.balance % 2 else []
        for due in (instalments[2].due_date, terms.maturity_date):
            end = due.replace(day=calendar.monthrange(due.year, due.month)[1])
            line = report_line(terms, holding, INVESTOR, opening, received, end, POLICY).remittance
            of_month = [
                loan.units(each.principal)
                for each in instalments
                if (each.due_date.year, each.due_date.month) == (due.year, due.month)
            ]
            left = [loan.units(each.principal) for each in instalments if each.due_date > end]
            assert (line.principal, line.ending_balance) == (sum(of_month), sum(left)), terms
