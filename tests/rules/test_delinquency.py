"""Accrual and delinquency: examples by hand, and both forms held equal on anything."""

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.portfolios import mortgage

from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.closing.delinquency import (
    BUCKETS,
    days_past_due,
    delinquency_bucket,
    missed_payments,
    missed_payments_many,
)
from ledgerbeam.rules.closing.interest import (
    accrued,
    interest_due,
    interest_due_many,
    interest_many,
)
from ledgerbeam.rules.closing.late_fees import late_fees
from ledgerbeam.rules.loans.loan import DelinquencyMethod, EntryKind, Policy
from ledgerbeam.rules.terms.day_count import BY_TWO_DATES, DAY_COUNTS, DayCount
from ledgerbeam.rules.terms.due_dates import month_later, month_later_many

MBA, OTS = DelinquencyMethod
Date = datetime.date
APRIL = Date(2024, 4, 1)


@pytest.mark.parametrize(
    ("day", "mba", "ots"),
    [
        (Date(2024, 3, 1), 0, 0),
        (APRIL, 0, 0),
        (Date(2024, 4, 29), 0, 0),
        # At the close of the day before the next due date, and at the close of that.
        (Date(2024, 4, 30), 1, 0),
        (Date(2024, 5, 1), 1, 1),
        (Date(2024, 5, 31), 2, 1),
        (Date(2024, 6, 30), 3, 2),
        (Date(2024, 7, 31), 4, 3),
        (Date(2025, 4, 1), 12, 12),
    ],
)
def test_payments_missed_since_the_first_of_april(day: datetime.date, mba: int, ots: int) -> None:
    assert missed_payments(APRIL, 1, day, MBA) == mba
    assert missed_payments(APRIL, 1, day, OTS) == ots


def test_due_dates_at_the_end_of_the_month() -> None:
    # Due on 31 January; the next ones are 29 February and 31 March.
    january = Date(2024, 1, 31)
    assert month_later(january, 31) == Date(2024, 2, 29)
    assert missed_payments(january, 31, Date(2024, 2, 28), MBA) == 1
    assert missed_payments(january, 31, Date(2024, 2, 28), OTS) == 0
    assert missed_payments(january, 31, Date(2024, 3, 30), OTS) == 1
    assert missed_payments(january, 31, Date(2024, 3, 31), OTS) == 2


def test_buckets_and_days() -> None:
    assert [BUCKETS[delinquency_bucket(missed)] for missed in (0, 1, 2, 3, 4, 9)] == [
        "current", "30", "60", "90", "120+", "120+",
    ]  # fmt: skip
    assert days_past_due(APRIL, Date(2024, 3, 31)) == days_past_due(APRIL, APRIL) == 0
    assert days_past_due(APRIL, Date(2024, 4, 16)) == 15


@pytest.mark.parametrize(
    ("day_count", "expected"),
    [
        # From 1 January to 16 February on 186,500.00 at 3.5%: 45 days of 360; 46 of 360; 46 of
        # 365; 46 of 366.
        (DayCount.THIRTY_360, 815_94),
        (DayCount.ACT_360, 834_07),
        (DayCount.ACT_365F, 822_64),
        (DayCount.ACT_ACT, 820_40),
    ],
)
def test_interest_by_day_count(day_count: DayCount, expected: int) -> None:
    terms, state = mortgage(day_count=day_count)
    assert accrued(terms, state, Date(2024, 2, 16)) == expected


def test_days_add_up_to_the_period() -> None:
    terms, state = mortgage()
    closed, entries = close(terms, state, state, [], Date(2024, 2, 1), Policy())
    assert {entry.kind for entry in entries} == {EntryKind.ACCRUAL}
    # 543.958…: a day's 18.13 a day of 30 would make 543.90.
    assert sum(entry.amount for entry in entries) == closed.accrued == 543_96
    # 31 January is the 30th day of the month of 30 days, 1 February adds none.
    assert (entries[-1].posted_date, {entry.amount for entry in entries}) == (
        Date(2024, 1, 31), {18_13, 18_14},
    )  # fmt: skip


def test_a_late_fee_is_charged_once_for_each_instalment_after_the_days_of_grace() -> None:
    terms, state = mortgage()
    _, entries = close(terms, state, state, [], Date(2024, 4, 15), Policy())
    fees = [entry for entry in entries if entry.kind is EntryKind.LATE_FEE]
    # 5% of 841.96; fifteen days after 1 February and 1 March.
    assert [(fee.effective_date, fee.posted_date, fee.amount) for fee in fees] == [
        (Date(2024, 2, 1), Date(2024, 2, 16), 42_10),
        (Date(2024, 3, 1), Date(2024, 3, 16), 42_10),
    ]
    assert list(late_fees(terms, state, Date(2024, 2, 15), Policy())) == []


def test_balances_at_the_close() -> None:
    terms, state = mortgage()
    closed, _ = close(terms, state, state, [], Date(2024, 3, 31), Policy())
    assert (closed.days_past_due, closed.missed_payments) == (59, 2)
    by_ots = Policy(delinquency=OTS)
    closed, _ = close(terms, state, state, [], Date(2024, 3, 31), by_ots)
    assert closed.missed_payments == 1


dates = st.dates(Date(2000, 1, 1), Date(2060, 12, 31))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**11),
            st.integers(0, 25_000_000),
            st.sampled_from(sorted(BY_TWO_DATES)),
            st.integers(1, 31),
            dates,
            st.integers(-40, 4000),
        ),
        max_size=8,
    )
)
def test_interest_of_many_is_that_of_each(
    rows: list[tuple[int, int, DayCount, int, datetime.date, int]],
) -> None:
    expected = []
    for balance, rate, day_count, due_day, start, days in rows:
        terms, state = mortgage(
            balance=balance, rate=rate, day_count=day_count, due_day=due_day, accrued_from=start
        )
        expected.append(interest_due(terms, state, start + datetime.timedelta(days)))
    starts = np.array([row[4] for row in rows], "datetime64[D]")
    balances, rates = (np.array([row[at] for row in rows], np.int64) for at in (0, 1))
    rest = (
        np.array([DAY_COUNTS.index(row[2]) for row in rows], np.int64),
        np.array([row[3] for row in rows], np.int64),
        starts,
        starts + np.array([row[5] for row in rows], "timedelta64[D]"),
    )
    assert interest_many(balances, rates, *rest).tolist() == [due.interest for due in expected]
    interest, base = interest_due_many(balances, rates, *rest)
    assert [*zip(interest.tolist(), base.tolist(), strict=True)] == expected


@given(
    st.lists(st.tuples(dates, st.integers(1, 31)), max_size=8),
    dates,
    st.sampled_from(DelinquencyMethod),
    st.integers(-30, 30),
)
def test_missed_payments_of_many_are_those_of_each(
    rows: list[tuple[datetime.date, int]],
    day: datetime.date,
    method: DelinquencyMethod,
    months: int,
) -> None:
    due = [month_later(date, due_day, 0) for date, due_day in rows]
    due_days = np.array([row[1] for row in rows], np.int64)
    many = np.array(due, "datetime64[D]")
    missed = missed_payments_many(many, due_days, day, method)
    each = [missed_payments(at, row[1], day, method) for at, row in zip(due, rows, strict=True)]
    assert missed.tolist() == each
    later = [month_later(at, row[1], months) for at, row in zip(due, rows, strict=True)]
    assert month_later_many(many, due_days, months).tolist() == later
