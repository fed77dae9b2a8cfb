"""Loans that contradict themselves are refused with their reason."""

import datetime
import re
from typing import Any

import pytest
from hypothesis import given, settings
from tests.support.portfolios import CALENDAR, Loan, columns, loans, mortgage

from ledgerbeam.rules.loans.contradictions import (
    check_closed_through,
    check_consistent,
    contradiction,
)
from ledgerbeam.rules.terms.day_count import DayCount
from ledgerbeam.rules.terms.due_dates import SEMI_MONTHLY, Frequency
from ledgerbeam.rules.terms.repayment import Method

Date = datetime.date
WEEKLY = {"frequency": Frequency(0, 7), "first_due": Date(2024, 2, 1)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"maturity_date": Date(2020, 1, 1)},
            "maturity_date 2020-01-01 is not after the loan's origination 2020-01-01",
        ),
        (
            {"frequency": Frequency(3, 0)},
            "first_due is empty: it is needed with a frequency of P3M",
        ),
        ({"method": Method(True, 12)}, "first_due is empty: it is needed to count instalments"),
        (
            {"first_due": Date(2051, 1, 1)},
            "maturity_date 2050-01-01 is before first_due 2051-01-01",
        ),
        (
            {"first_due": Date(2019, 1, 1)},
            "first_due 2019-01-01 is not after the loan's origination",
        ),
        ({"first_due": Date(2020, 3, 5)}, "first_due 2020-03-05 is not on day 1 of the month"),
        (
            {"frequency": SEMI_MONTHLY, "first_due": Date(2024, 2, 1), "second_due_day": 32},
            "second_due_day 32 is not a day of the month of instalments that",
        ),
        (
            {**WEEKLY, "day_count": DayCount.ACT_ACT_ICMA},
            "day_count ACT/ACT ICMA needs instalments by the month, not P7D",
        ),
        ({"day_count": DayCount.BUS_252}, "needs a calendar of business days: say --calendar"),
        ({"closed_through": Date(2019, 12, 31)}, "closed_through 2019-12-31 is before the loan's"),
        ({"balance": -5_00}, "balance -5.00 USD is negative"),
        ({"escrow_payment": -5_00}, "escrow_payment -5.00 USD is negative"),
        ({"rate": -1}, "rate -0.000001 is negative"),
        ({"suspense": -1}, "suspense -0.01 USD is negative"),
        (
            {"next_due": Date(2050, 2, 1)},
            "next_due 2050-02-01 is after the maturity_date 2050-01-01",
        ),
        (
            {"due_day": 15},
            "next_due 2024-02-01 is no due date of the loan: instalments fall due on day 15 of",
        ),
        (
            {**WEEKLY, "next_due": Date(2024, 2, 9)},
            "instalments fall due on 2024-02-01, and every 7 days from then on",
        ),
        ({"first_due": Date(2024, 3, 1)}, "next_due 2024-02-01 is before first_due 2024-03-01"),
        (
            {"accrued_from": Date(2024, 5, 1)},
            "accrued_from 2024-05-01 is after 2024-01-01: interest can't be paid up to then",
        ),
        (
            {"payment": 500_00},
            "payment 500.00 USD never repays the loan: a period's interest is 543.96 USD",
        ),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, Any], reason: str) -> None:
    terms, state = mortgage(**changes)
    found = contradiction(terms, state)
    assert found is not None
    assert reason in found
    good = mortgage()
    book = [Loan(*good, []), Loan(terms, state, []), Loan(*good, [])]
    with pytest.raises(ValueError, match=f"^{re.escape(found)}$"):
        check_consistent(*columns(book)[:2])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        # Interest alone until the last instalment takes all.
        {"payment": 543_96},
        # Paid off: where it stood no longer matters.
        {"balance": 0, "next_due": Date(2051, 7, 9)},
        # Paid ahead, by the rules of version 1.
        {"accrued_from": Date(2024, 2, 1), "next_due": Date(2024, 3, 1)},
        # The last due date is the maturity date, whatever the due day.
        {"maturity_date": Date(2024, 2, 20), "next_due": Date(2024, 2, 20)},
        {"maturity_date": Date(2024, 1, 20), "next_due": Date(2024, 2, 1)},
        {"day_count": DayCount.BUS_252, "calendar": CALENDAR},
        {"frequency": SEMI_MONTHLY, "second_due_day": 20, "first_due": Date(2024, 1, 20)},
        # Of no meaning where instalments are monthly.
        {"second_due_day": 15},
        {**WEEKLY, "first_due": Date(2023, 12, 28)},
    ],
)
def test_what_can_be_is_closed(changes: dict[str, Any]) -> None:
    terms, state = mortgage(**changes)
    assert contradiction(terms, state) is None
    check_consistent(*columns([Loan(terms, state, [])])[:2])


@given(loans())
@settings(max_examples=150)
def test_both_forms_find_the_same(loan: Loan) -> None:
    found = contradiction(loan.terms, loan.opening)
    if found is None:
        check_consistent(*columns([loan])[:2])
    else:
        with pytest.raises(ValueError, match=f"^{re.escape(found)}$"):
            check_consistent(*columns([loan])[:2])


def test_nothing_is_closed_beyond_its_business_date() -> None:
    _, opening, _ = columns([Loan(*mortgage(), [])])
    check_closed_through(opening, Date(2023, 12, 31))
    with pytest.raises(ValueError, match="closed_through 2023-12-31 is after the business date"):
        check_closed_through(opening, Date(2023, 12, 30))
