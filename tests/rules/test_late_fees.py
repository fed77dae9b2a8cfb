"""Late fees: on what the instalment was, once for each that is missed, and never for a fee."""

import datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.portfolios import CALENDAR, Loan, columns, mortgage

from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.closing.close_many import close_many
from ledgerbeam.rules.loans.board import board
from ledgerbeam.rules.loans.loan import Bucket, EntryKind, Partials, Policy, RateChange, Transaction
from ledgerbeam.rules.schedules.schedule import Loan as Lent

Date = datetime.date
FIRST = Date(2024, 1, 1)


def fees(loan: Loan, through: datetime.date, policy: Policy) -> list[tuple[datetime.date, int]]:
    """Due date and amount of all late fees, by both forms of the rule."""
    _, entries = close(loan.terms, loan.opening, loan.opening, loan.transactions, through, policy)
    terms, opening, transactions = columns([loan])
    many = close_many(terms, opening, opening, transactions, through, policy).entries
    assert [row["amount"] for row in many.table(terms.loan_id).to_pylist()] == [
        Decimal(entry.amount).scaleb(-2) for entry in entries
    ]
    return [
        (entry.effective_date, entry.amount)
        for entry in entries
        if entry.kind is EntryKind.LATE_FEE
    ]


def test_the_last_instalment_is_smaller_and_so_is_its_fee() -> None:
    terms, state = mortgage(maturity_date=Date(2024, 2, 1), balance=10_00, escrow_payment=0)
    # 10.00 and 0.03 of interest; 5% of 10.03 is 0.50.
    assert fees(Loan(terms, state, []), Date(2024, 3, 31), Policy()) == [(Date(2024, 2, 1), 50)]


def test_the_last_but_one_may_be_all_that_is_owed() -> None:
    terms, state = mortgage(balance=900_00, escrow_payment=0)
    # February: 841.96, of which 2.62 or 2.63 are interest; then 60.67 and 0.18 are left.
    assert fees(Loan(terms, state, []), Date(2024, 5, 31), Policy()) == [
        (Date(2024, 2, 1), 42_10),
        (Date(2024, 3, 1), 3_04),
    ]


def test_one_close_may_charge_several_of_which_one_is_the_last() -> None:
    terms, state = mortgage(
        maturity_date=Date(2024, 3, 1),
        balance=2_000_00,
        escrow_payment=0,
        closed_through=Date(2024, 3, 31),
    )
    # 841.96, of which 5.83 are interest; then 1,163.87 and 3.39 are left. A day closes both.
    assert fees(Loan(terms, state, []), Date(2024, 4, 1), Policy()) == [
        (Date(2024, 2, 1), 42_10),
        (Date(2024, 3, 1), 58_36),
    ]


def test_after_a_change_of_the_rate_it_is_on_the_new_payment() -> None:
    change = RateChange(Date(2024, 2, 1), 4_000_000, 900_00)
    terms, state = mortgage(rate_changes=(change,))
    loan = Loan(terms, state, [])
    _, entries = close(terms, state, state, [], Date(2024, 3, 31), Policy())
    assert [(e.effective_date, e.amount) for e in entries if e.kind is EntryKind.LATE_FEE] == [
        (Date(2024, 2, 1), 42_10),
        (Date(2024, 3, 1), 45_00),
    ]
    assert loan.opening.rate_changes == (change,)


ORDERS = st.permutations(list(Bucket)).map(tuple)


@given(
    waterfall=ORDERS,
    partials=st.sampled_from(Partials),
    late=st.integers(16, 25),
    split=st.sampled_from([1, 2, 3]),
)
@settings(max_examples=60)
def test_a_fee_makes_no_later_payment_late(
    waterfall: tuple[Bucket, ...], partials: Partials, late: int, split: int
) -> None:
    """One instalment comes after the days of grace; all others are full and on time."""
    terms, state = mortgage()
    whole = 1_000_00
    payments: list[Transaction] = []
    for month in range(2, 8):
        on = Date(2024, month, 1 + (late if month == 2 else 0))
        for part in range(split):
            amount = whole // split if part else whole - whole // split * (split - 1)
            day = on + datetime.timedelta(part)
            payments.append(Transaction(len(payments) + 1, "payment", day, day, amount))
    policy = Policy(waterfall=waterfall, partials=partials)
    assert fees(Loan(terms, state, payments), Date(2024, 8, 10), policy) == [
        (Date(2024, 2, 1), 42_10)
    ]


def test_what_covers_an_instalment_is_credited_although_fees_come_first() -> None:
    terms, state = mortgage(fees=42_10)
    order = (Bucket.FEES, *(bucket for bucket in Bucket if bucket is not Bucket.FEES))
    payment = Transaction(1, "payment", Date(2024, 2, 1), Date(2024, 2, 1), 1_000_00)
    closed, _ = close(terms, state, state, [payment], Date(2024, 2, 1), Policy(waterfall=order))
    assert (closed.next_due, closed.fees, closed.suspense) == (Date(2024, 3, 1), 42_10, 0)


@pytest.mark.parametrize(
    ("policy", "charged_on"),
    [
        (Policy(), Date(2024, 6, 16)),
        # 16 June 2024 is a Sunday.
        (Policy(grace_end=BusinessDayConvention.FOLLOWING), Date(2024, 6, 17)),
        (Policy(grace_end=BusinessDayConvention.PRECEDING), Date(2024, 6, 14)),
        # 1 June is a Saturday: due on Monday the 3rd, fifteen days later is the 18th.
        (Policy(due_dates=BusinessDayConvention.FOLLOWING), Date(2024, 6, 18)),
    ],
)
def test_due_dates_and_the_end_of_grace_are_moved_to_business_days(
    policy: Policy, charged_on: datetime.date
) -> None:
    june = Date(2024, 6, 1)
    terms, state = mortgage(
        closed_through=Date(2024, 5, 31), next_due=june, accrued_from=Date(2024, 5, 1),
        late_fees_through=Date(2024, 5, 1), calendar=CALENDAR,
    )  # fmt: skip
    _, entries = close(terms, state, state, [], Date(2024, 6, 30), policy)
    assert [e.posted_date for e in entries if e.kind is EntryKind.LATE_FEE] == [charged_on]


def test_a_due_date_that_was_moved_is_not_past_due_before() -> None:
    june = Date(2024, 6, 1)
    terms, state = mortgage(
        closed_through=Date(2024, 5, 31), next_due=june, accrued_from=Date(2024, 5, 1),
        late_fees_through=Date(2024, 5, 1), calendar=CALENDAR,
    )  # fmt: skip
    moved = Policy(due_dates=BusinessDayConvention.FOLLOWING)
    for day, past_due in ((2, 0), (3, 0), (4, 1)):
        closed, _ = close(terms, state, state, [], Date(2024, 6, day), moved)
        assert closed.days_past_due == past_due


def test_the_past_can_be_changed_where_an_instalment_was_without_a_fee() -> None:
    """After a credit of interest one asks for nothing, and is passed over; the next one is late."""
    loan = Lent(
        "L1", "JPY", Decimal(228), Decimal(1), "30E/360", Date(2027, 5, 9), "P2M", 6,
        "equal_principal", first_due=Date(2028, 7, 29), payment=Decimal(1),
    )  # fmt: skip
    terms, opening = board(loan)
    events = [
        Transaction(1, "payment", Date(2027, 12, 24), Date(2027, 12, 24), 11, "JPY"),
        Transaction(2, "reversal", Date(2029, 1, 22), Date(2029, 1, 22), 0, "JPY", reverses=1),
    ]
    state, _ = close(terms, opening, opening, events, Date(2029, 1, 22), Policy())
    never_paid, _ = close(terms, opening, opening, [], Date(2029, 1, 22), Policy())
    assert (state.balance, state.next_due) == (never_paid.balance, never_paid.next_due)
    assert state.late_fees_through == never_paid.late_fees_through
