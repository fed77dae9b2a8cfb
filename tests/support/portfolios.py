"""Loans and transactions for tests: by hand, and any that Hypothesis can think of."""

import datetime
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from ledgerbeam.rules.calendar.business_days import business_calendar
from ledgerbeam.rules.loans.book import STATE_SCHEMA, TRANSACTION_SCHEMA, States, Transactions
from ledgerbeam.rules.loans.loan import (
    Bucket,
    DelinquencyMethod,
    Partials,
    Policy,
    State,
    Step,
    Terms,
    Transaction,
    TransactionKind,
)
from ledgerbeam.rules.loans.terms_columns import TERMS_SCHEMA, TermsColumns
from ledgerbeam.rules.money import decimals
from ledgerbeam.rules.terms.day_count import DayCount
from ledgerbeam.rules.terms.due_dates import MONTHLY, SEMI_MONTHLY, DueDates, Frequency, month_later
from ledgerbeam.rules.terms.repayment import FirstPeriod, Method

FIRST = datetime.date(2023, 12, 31)
"""The day through which loans are closed when the book takes them over."""


class Loan(NamedTuple):
    terms: Terms
    opening: State
    transactions: list[Transaction]


def day(number: int) -> datetime.date:
    """The day so many days after `FIRST`: 1 is 1 January 2024."""
    return FIRST + datetime.timedelta(number)


def mortgage(**changes: Any) -> tuple[Terms, State]:
    """186,500.00 at 3.5%, 841.96 on the first of the month and 158.04 of escrow, in all 1,000.00.

    The instalment of 1 January is paid.
    """
    terms = Terms(
        "L1", "USD", DayCount.THIRTY_360, datetime.date(2020, 1, 1), datetime.date(2050, 1, 1),
        due_day=1, escrow_payment=158_04,
    )  # fmt: skip
    january = datetime.date(2024, 1, 1)
    state = State(
        closed_through=FIRST, balance=186_500_00, rate=3_500_000, payment=841_96,
        next_due=datetime.date(2024, 2, 1), accrued_from=january, late_fees_through=january,
    )  # fmt: skip
    for name, value in changes.items():
        if name in Terms._fields:
            terms = terms._replace(**{name: value})
        else:
            setattr(state, name, value)
    return terms, state


def columns(loans: Sequence[Loan]) -> tuple[TermsColumns, States, Transactions]:
    """Loans as the columns of vectorised rules, by way of Arrow tables."""
    terms = [terms_row(each.terms) for each in loans]
    calendar = loans[0].terms.calendar if loans else None
    states = [{name: getattr(each.opening, name) for name in STATE_SCHEMA.names} for each in loans]
    rows = [row._asdict() for each in loans for row in each.transactions]
    offsets = np.cumsum([0, *(len(each.transactions) for each in loans)])
    for state in states:
        assert not state["rate_changes"], "an opening has none"
    return (
        TermsColumns.from_table(table(terms, TERMS_SCHEMA), calendar),
        States.from_table(table(states, STATE_SCHEMA)),
        Transactions.from_table(table(rows, TRANSACTION_SCHEMA), offsets),
    )


def terms_row(terms: Terms) -> dict[str, Any]:
    """A row of `TERMS_SCHEMA`, amounts as whole numbers."""
    level, interest_only = terms.method
    method = f"interest_only:{interest_only}" if interest_only else "level"
    return dict(
        terms._asdict(),
        day_count=str(terms.day_count),
        frequency=str(terms.frequency),
        method=method if level else "equal_principal",
    )


def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows with integers for amounts and rates as a table of decimals."""
    arrays = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if pa.types.is_decimal(field.type):
            mask = pa.array([value is None for value in values], pa.bool_())
            whole = decimals(np.array([value or 0 for value in values], np.int64), field.type)
            arrays.append(pa.compute.if_else(mask, pa.scalar(None, field.type), whole))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=schema)


AMOUNTS = st.sampled_from([1, 50_00, 500_00, 999_99, 1_000_00, 1_200_00, 2_000_00, 3_333_33])
LAST_DAY = 130


@st.composite
def transactions(draw: st.DrawFn, unusual: bool = True) -> list[Transaction]:
    """At most ten, some of them back-dated, reversed or wrong, in the order of their ids."""
    made = []
    count = draw(st.integers(0, 10))
    kinds = list(TransactionKind) if unusual else [TransactionKind.PAYMENT]
    for number in range(1, count + 1):
        kind = draw(st.sampled_from([TransactionKind.PAYMENT, *kinds]))
        posted = draw(st.integers(1, LAST_DAY))
        lag = draw(st.sampled_from([0, 0, 0, 0, 1, 5, 40, -10])) if unusual else 0
        amount = draw(AMOUNTS)
        if unusual:
            amount = draw(st.sampled_from([amount, amount, amount, amount, 1_100_000_00, 0]))
        is_money = kind not in (TransactionKind.REVERSAL, TransactionKind.RATE_CHANGE)
        is_rate = kind is TransactionKind.RATE_CHANGE
        made.append(
            Transaction(
                number,
                kind,
                day(posted - lag),
                day(posted),
                amount if is_money else 0,
                draw(st.sampled_from(["USD"] * 9 + ["EUR"])) if unusual else "USD",
                draw(st.integers(1, count + 1)) if kind is TransactionKind.REVERSAL else None,
                draw(st.integers(0, 9_000_000)) if is_rate else None,
                draw(st.integers(1_00, 2_000_00)) if is_rate else None,
            )
        )
    return made


CALENDAR = business_calendar("US", 2019, 2045)
LEVEL = Method(level=True, interest_only=0)


@st.composite
def loans(draw: st.DrawFn, unusual: bool = True) -> Loan:
    """A loan with a payment near 1,000.00, a balance that may be nearly gone, any due day."""
    due_day = draw(st.sampled_from([1, 1, 15, 31]))
    changes = draw(st.just({}) | terms_of_any_kind(due_day) if unusual else st.just({}))
    before = datetime.date(2023, draw(st.integers(10, 12)), 28)
    dates = DueDates(changes.get("frequency", MONTHLY), due_day, first_due=changes.get("first_due"))
    paid = dates.after(before)
    next_due = dates.after(paid)
    if changes.get("first_due") == next_due:
        paid = changes["origination_date"]
    due = [next_due, *dates.between(next_due, datetime.date(2041, 1, 1))]
    day_counts = [
        each for each in DayCount if each is not DayCount.ACT_ACT_ICMA or not dates.frequency.days
    ]
    maturity = due[draw(st.sampled_from([1, 2, len(due) - 1]))]
    terms, state = mortgage(
        day_count=draw(st.sampled_from(day_counts)),
        due_day=due_day,
        balance=draw(st.sampled_from([186_500_00, 186_500_00, 2_500_00, 900_00])),
        rate=draw(st.sampled_from([0, 3_500_000, 6_123_456])),
        maturity_date=maturity - datetime.timedelta(draw(st.sampled_from([0, 0, 0, 5]))),
        next_due=next_due,
        accrued_from=paid,
        late_fees_through=paid,
        suspense=draw(st.sampled_from([0, 0, 300_00])),
        fees=draw(st.sampled_from([0, 0, 42_10])),
        calendar=CALENDAR,
        **changes,
    )
    return Loan(terms, state, draw(transactions(unusual)))


@st.composite
def terms_of_any_kind(draw: st.DrawFn, due_day: int) -> dict[str, Any]:
    """Terms of loans that aren't repaid in level monthly payments, long since."""
    frequency = draw(st.sampled_from([MONTHLY, Frequency(0, 14), Frequency(3, 0), SEMI_MONTHLY]))
    first_due = month_later(datetime.date(2023, draw(st.integers(6, 12)), 1), due_day)
    dates = DueDates(frequency, due_day, first_due=first_due)
    if draw(st.booleans()):
        # The first instalment is still to come.
        first_due = dates.after(datetime.date(2024, 1, draw(st.integers(1, 20))))
    return {
        "frequency": frequency,
        "first_due": first_due,
        "origination_date": dates.regular_before(first_due)
        + datetime.timedelta(draw(st.sampled_from([0, 0, -9, 6]))),
        "method": draw(st.sampled_from([LEVEL, Method(False, 0), Method(True, 2)])),
        "first_period": draw(st.sampled_from(FirstPeriod)),
        "round_payment_to": draw(st.sampled_from([0, 1_00])),
    }


policies = st.builds(
    Policy,
    waterfall=st.permutations(list(Bucket)).map(tuple)
    | st.permutations([each for each in Bucket if each is not Bucket.CURTAILMENT]).map(tuple)
    | st.just(tuple(Bucket)),
    partials=st.sampled_from(Partials),
    grace_days=st.integers(0, 20),
    late_fee_rate=st.sampled_from([0, 4_000_000, 5_000_000]),
    delinquency=st.sampled_from(DelinquencyMethod),
    steps=st.permutations(list(Step)).map(tuple) | st.just(tuple(Step)),
)
