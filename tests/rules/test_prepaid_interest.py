"""Interest that is paid ahead is earned day by day: accruals, payoffs and curtailments after it."""

import datetime

import numpy_financial as npf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.portfolios import Loan, columns, mortgage

from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.closing.close_many import close_many
from ledgerbeam.rules.closing.payments import instalment, payoff_amount
from ledgerbeam.rules.loans.book import States, Transactions
from ledgerbeam.rules.loans.loan import (
    AfterCurtailment,
    Entry,
    EntryKind,
    PayoffInterest,
    Policy,
    State,
    Transaction,
)
from ledgerbeam.rules.loans.terms_columns import TermsColumns
from ledgerbeam.rules.terms.day_count import BY_TWO_DATES, DayCount

Date = datetime.date
NO_FEES = Policy(late_fee_rate=0)


def paid(number: int, day: datetime.date, amount: int, kind: str = "payment") -> Transaction:
    return Transaction(number, kind, day, day, amount)


def run(
    transactions: list[Transaction],
    through: datetime.date,
    policy: Policy = NO_FEES,
    **changes: object,
) -> tuple[State, list[Entry]]:
    terms, opening = mortgage(escrow_payment=0, **changes)
    state, entries = close(terms, opening, opening, transactions, through, policy)
    many = close_many(*_book(Loan(terms, opening, transactions)), through, policy)
    assert many.states.row(0) == state
    assert len(many.entries) == len(entries)
    return state, entries


def _book(loan: Loan) -> tuple[TermsColumns, States, States, Transactions]:
    terms, opening, transactions = columns([loan])
    return terms, opening, opening, transactions


def accruals(entries: list[Entry]) -> dict[datetime.date, int]:
    return {e.posted_date: e.amount for e in entries if e.kind is EntryKind.ACCRUAL}


def test_two_instalments_at_once_accrue_by_the_day() -> None:
    # January's interest is 543.96, February's 543.09; both are paid on 1 February.
    state, entries = run([paid(1, Date(2024, 2, 1), 2 * 841_96)], Date(2024, 3, 1))
    by_day = accruals(entries)
    february = {day: amount for day, amount in by_day.items() if day > Date(2024, 2, 1)}
    assert max(february.values()) < 40_00
    assert sum(amount for day, amount in by_day.items() if day <= Date(2024, 2, 1)) == 543_96
    assert sum(february.values()) == 543_09
    assert (state.accrued, state.brought, state.ahead) == (0, 0, 0)
    # Half-way, half of it is earned: 14 of 30 days.
    state, _ = run([paid(1, Date(2024, 2, 1), 2 * 841_96)], Date(2024, 2, 15))
    assert state.accrued == 253_44 - 543_09


def test_a_payoff_after_paying_ahead_charges_to_the_day() -> None:
    transactions = [
        paid(1, Date(2024, 2, 1), 2 * 841_96),
        paid(2, Date(2024, 2, 11), 186_000_00, "payoff"),
    ]
    state, entries = run(transactions, Date(2024, 2, 11))
    payoff = entries[-1] if entries[-1].kind is EntryKind.PAYOFF else entries[-2]
    # Ten days of 30 on the balance before the second instalment: 186,202 * 3.5% / 36 = 181.03.
    assert payoff.interest == 181_03 - 543_09
    assert payoff.principal == 186_500_00 - 298_00 - 298_87
    assert state.balance == state.accrued == 0
    assert state.suspense == 186_000_00 - payoff.principal - payoff.interest


def test_a_curtailment_after_paying_ahead_keeps_its_benefit() -> None:
    ahead = [paid(1, Date(2024, 2, 1), 2 * 841_96)]
    extra = [*ahead, paid(2, Date(2024, 2, 11), 50_000_00, "curtailment")]
    with_it, _ = run(extra, Date(2024, 3, 1))
    # 20 of 30 days on 50,000.00 at 3.5% are 97.22 less, and come off the next instalment.
    assert with_it.accrued == with_it.brought == -97_22
    terms, _ = mortgage(escrow_payment=0)
    april = instalment(terms, with_it)
    # 135,903.13 * 3.5% / 12 = 396.38, less what was paid for nothing.
    assert april.interest == 396_38 - 97_22


@pytest.mark.parametrize("day_count", sorted(BY_TWO_DATES))
@given(first=st.integers(1, 60), extra=st.sampled_from([0, 1_000_00, 90_000_00]))
@settings(max_examples=15)
def test_interest_paid_is_what_has_accrued_when_the_period_is_over(
    day_count: DayCount, first: int, extra: int
) -> None:
    transactions = [paid(1, Date(2024, 1, 1) + datetime.timedelta(first), 3 * 841_96)]
    if extra:
        transactions.append(paid(2, Date(2024, 3, 10), extra, "curtailment"))
    state, entries = run(transactions, Date(2024, 6, 30), day_count=day_count)
    accrued = sum(accruals(entries).values())
    collected = sum(entry.interest for entry in entries if entry.kind is not EntryKind.ACCRUAL)
    assert state.accrued == accrued - collected
    # The day of a late payment takes back interest on what it repays, and 29 February has none.
    is_free_day = day_count is DayCount.NL_365 and first == 59
    assert min(accruals(entries).values()) >= -1 or extra or is_free_day


@pytest.mark.parametrize(
    ("method", "interest"),
    [
        # Fifteen days of 30 of a month, and fifteen days of 365, on 186,202.00 at 3.5%.
        (PayoffInterest.DAY_COUNT, 271_54),
        (PayoffInterest.AGENCY, 267_82),
    ],
)
def test_a_partial_month_of_a_payoff_by_day_count_or_as_the_agencies_have_it(
    method: PayoffInterest, interest: int
) -> None:
    policy = NO_FEES._replace(payoff_interest=method)
    transactions = [
        paid(1, Date(2024, 2, 1), 841_96),
        paid(2, Date(2024, 2, 16), 186_202_00 + interest, "payoff"),
    ]
    state, entries = run(transactions, Date(2024, 2, 16), policy)
    (payoff,) = [entry for entry in entries if entry.kind is EntryKind.PAYOFF]
    assert (payoff.interest, payoff.suspense, state.balance) == (interest, 0, 0)
    # A cent less is too little.
    transactions[1] = transactions[1]._replace(amount=transactions[1].amount - 1)
    state, _ = run(transactions, Date(2024, 2, 16), policy)
    assert state.balance == 186_202_00


def test_by_the_agencies_rule_whole_months_count_as_months() -> None:
    policy = Policy(payoff_interest=PayoffInterest.AGENCY)
    terms, state = mortgage()
    # January unpaid; a month and ten days: 543.96 and 186,500 * 3.5% * 10 / 365 = 178.84.
    # 186,500 * 3.5% * (1 / 12 + 10 / 365) = 722.79, rounded once.
    amount = payoff_amount(terms, state, Date(2024, 2, 11), policy)
    assert amount == 186_500_00 + 722_79
    # For a day count of calendar days it is the same either way.
    terms, state = mortgage(day_count=DayCount.ACT_365F)
    assert payoff_amount(terms, state, Date(2024, 2, 11), policy) == payoff_amount(
        terms, state, Date(2024, 2, 11), Policy()
    )


def curtailed(after: AfterCurtailment, amount: int, **changes: object) -> State:
    transactions = [
        paid(1, Date(2024, 2, 1), 841_96),
        paid(2, Date(2024, 2, 1), amount, "curtailment"),
    ]
    state, _ = run(
        transactions, Date(2024, 2, 1), NO_FEES._replace(after_curtailment=after), **changes
    )
    return state


def test_a_curtailment_shortens_the_term_and_changes_nothing_else() -> None:
    state = curtailed(AfterCurtailment.SHORTER_TERM, 86_202_00)
    assert (state.balance, state.payment) == (100_000_00, 841_96)
    assert state.next_due == Date(2024, 3, 1)


def test_a_curtailment_gives_a_new_instalment() -> None:
    # 100,000.00 at 3.5% in the 311 months from March 2024 to January 2050.
    state = curtailed(AfterCurtailment.NEW_INSTALMENT, 86_202_00)
    monthly = 0.035 / 12
    assert state.payment == round(100 * npf.pmt(monthly, 311, -100_000)) == 489_57
    rounded = curtailed(AfterCurtailment.NEW_INSTALMENT, 86_202_00, round_payment_to=1_00)
    assert rounded.payment == 490_00


def test_a_curtailment_moves_the_next_due_date() -> None:
    # 2,000.00 cover two instalments of 841.96 and not three.
    state = curtailed(AfterCurtailment.NEXT_DUE, 2_000_00)
    assert (state.balance, state.next_due) == (184_202_00, Date(2024, 5, 1))
    terms, _ = mortgage(escrow_payment=0)
    # Three months of interest on what is left, more than a payment: what is over is carried.
    part = instalment(terms, state)
    assert (part.interest, part.principal) == (841_96, 0)
    assert part.carried == 1_611_77 - 841_96


def test_no_due_date_is_moved_beyond_maturity() -> None:
    state = curtailed(AfterCurtailment.NEXT_DUE, 100_000_00, maturity_date=Date(2024, 6, 1))
    assert state.next_due == Date(2024, 6, 1)
