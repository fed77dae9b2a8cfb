"""Payoffs on random days against QuantLib's parts of a year."""

import datetime

import numpy as np
import pytest
import QuantLib as ql
from tests.differential.test_schedules import FLOATS, QUANTLIB

from ledgerbeam.rules.closing.payments import payoff_amount
from ledgerbeam.rules.loans.loan import PayoffInterest, Policy, State, Terms
from ledgerbeam.rules.terms.day_count import DayCount

pytestmark = pytest.mark.slow

PAYOFFS = 10_000


def random_payoffs(day_count: DayCount, seed: int) -> list[tuple[Terms, State, datetime.date]]:
    """Loans paid up to a due date that every month has, and paid off in the period after it."""
    draw = np.random.default_rng(seed)
    months = draw.integers(0, 12 * 60, PAYOFFS).astype("datetime64[M]")
    days = draw.integers(1, 29, PAYOFFS)
    paid_to = (months.astype("datetime64[D]") + (days - 1)).tolist()
    next_due = ((months + 1).astype("datetime64[D]") + (days - 1)).tolist()
    part = draw.random(PAYOFFS)
    payoffs = []
    for at, (begin, end) in enumerate(zip(paid_to, next_due, strict=True)):
        terms = Terms(
            "L", "USD", day_count, begin, end + datetime.timedelta(3650), begin.day,
            escrow_payment=0,
        )  # fmt: skip
        state = State(
            closed_through=begin,
            balance=int(draw.integers(1_00, 1_000_000_00)),
            rate=int(draw.integers(0, 30_000_000)),
            payment=1,
            next_due=end,
            accrued_from=begin,
            late_fees_through=begin,
        )
        payoffs.append((terms, state, begin + datetime.timedelta(int(part[at] * 32))))
    return payoffs


def days_of(terms: Terms, state: State, day: datetime.date) -> tuple[ql.Date, ql.Date]:
    return ql.Date.from_date(state.accrued_from), ql.Date.from_date(day)


@pytest.mark.parametrize(
    "day_count", [DayCount.THIRTY_360, *(each for each in QUANTLIB if each != DayCount.BUS_252)]
)
def test_by_the_loans_day_count(day_count: DayCount) -> None:
    theirs = QUANTLIB[DayCount.THIRTY_360_ISDA if day_count == DayCount.THIRTY_360 else day_count]
    for terms, state, day in random_payoffs(day_count, seed=11):
        years = theirs.yearFraction(*days_of(terms, state, day))
        exact = state.balance * (1 + state.rate / 1e8 * years)
        assert abs(payoff_amount(terms, state, day) - exact) <= 0.5 + FLOATS


def test_by_the_agencies_rule() -> None:
    """A whole month is a twelfth, and the days after it, or of a part of one, are over 365."""
    policy = Policy(payoff_interest=PayoffInterest.AGENCY)
    for terms, state, day in random_payoffs(DayCount.THIRTY_360, seed=12):
        begin, end = days_of(terms, state, day)
        month_later = begin + ql.Period(1, ql.Months)
        is_whole = end >= month_later
        years = (end - (month_later if is_whole else begin)) / 365 + is_whole / 12
        exact = state.balance * (1 + state.rate / 1e8 * years)
        assert abs(payoff_amount(terms, state, day, policy) - exact) <= 0.5 + FLOATS
