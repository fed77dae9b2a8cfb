"""Loans and transactions for tests: by hand, and any that Hypothesis can think of."""

import datetime
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from ledgerbeam.rules.book import (
    STATE_SCHEMA,
    TERMS_SCHEMA,
    TRANSACTION_SCHEMA,
    States,
    TermsColumns,
    Transactions,
)
from ledgerbeam.rules.day_count import DayCount
from ledgerbeam.rules.loan import (
    Bucket,
    DelinquencyMethod,
    Partials,
    Policy,
    State,
    Step,
    Terms,
    Transaction,
    TransactionKind,
    month_later,
)
from ledgerbeam.rules.money import decimals

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
    terms = [dict(each.terms._asdict(), day_count=str(each.terms.day_count)) for each in loans]
    states = [{name: getattr(each.opening, name) for name in STATE_SCHEMA.names} for each in loans]
    rows = [row._asdict() for each in loans for row in each.transactions]
    offsets = np.cumsum([0, *(len(each.transactions) for each in loans)])
    for state in states:
        assert not state["rate_changes"], "an opening has none"
    return (
        TermsColumns.from_table(table(terms, TERMS_SCHEMA)),
        States.from_table(table(states, STATE_SCHEMA)),
        Transactions.from_table(table(rows, TRANSACTION_SCHEMA), offsets),
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


@st.composite
def loans(draw: st.DrawFn, unusual: bool = True) -> Loan:
    """A loan with a payment near 1,000.00, a balance that may be nearly gone, any due day."""
    due_day = draw(st.sampled_from([1, 1, 15, 31]))
    paid = month_later(datetime.date(2023, draw(st.integers(10, 12)), 1), due_day)
    terms, state = mortgage(
        day_count=draw(st.sampled_from(list(DayCount))),
        due_day=due_day,
        balance=draw(st.sampled_from([186_500_00, 186_500_00, 2_500_00, 900_00])),
        rate=draw(st.sampled_from([0, 3_500_000, 6_123_456])),
        maturity_date=month_later(paid, due_day, draw(st.sampled_from([2, 200]))),
        next_due=month_later(paid, due_day),
        accrued_from=paid,
        late_fees_through=paid,
        suspense=draw(st.sampled_from([0, 0, 300_00])),
        fees=draw(st.sampled_from([0, 0, 42_10])),
    )
    return Loan(terms, state, draw(transactions(unusual)))


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
