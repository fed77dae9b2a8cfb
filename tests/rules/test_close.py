"""The close of a day: what holds for any loan, and both forms of it held equal on anything."""

import dataclasses
import datetime
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.portfolios import FIRST, LAST_DAY, Loan, columns, day, loans, mortgage, policies

from ledgerbeam.rules.closing.close import close, money_received
from ledgerbeam.rules.closing.close_many import close_many
from ledgerbeam.rules.closing.payments import rejection_reason
from ledgerbeam.rules.loans.book import States, Transactions
from ledgerbeam.rules.loans.entries import ENTRY_SCHEMA
from ledgerbeam.rules.loans.loan import (
    AMOUNTS,
    Entry,
    EntryKind,
    Policy,
    State,
    Step,
    Transaction,
    TransactionKind,
    is_charge,
)
from ledgerbeam.rules.loans.terms_columns import TermsColumns

DAYS = st.integers(0, LAST_DAY).map(day)


def closed(
    loan: Loan, state: State, date: datetime.date, policy: Policy
) -> tuple[State, list[Entry]]:
    result = close(loan.terms, loan.opening, state, loan.transactions, date, policy)
    return result.state, result.entries


def net(entries: list[Entry]) -> Counter[tuple[object, ...]]:
    """Amounts by what they are about, without what was taken back."""
    totals: Counter[tuple[object, ...]] = Counter()
    for entry in entries:
        kind = entry.reverses or entry.kind
        if kind is not EntryKind.ACCRUAL:
            for name in AMOUNTS:
                key = (entry.transaction_id, entry.effective_date, kind, name)
                totals[key] += getattr(entry, name)
    return Counter({key: total for key, total in totals.items() if total})


@given(loans(), policies, DAYS, DAYS)
@settings(max_examples=60, deadline=None)
def test_closing_day_by_day_over_two_runs_is_closing_at_once(
    loan: Loan, policy: Policy, one: datetime.date, other: datetime.date
) -> None:
    first, last = min(one, other), max(one, other)
    half_way, before = closed(loan, loan.opening, first, policy)
    state, after = closed(loan, half_way, last, policy)
    at_once, entries = closed(loan, loan.opening, last, policy)
    assert (state, before + after) == (at_once, entries)


@given(loans(), policies, DAYS)
@settings(max_examples=60, deadline=None)
def test_closing_a_date_twice_changes_nothing(
    loan: Loan, policy: Policy, date: datetime.date
) -> None:
    untouched = dataclasses.replace(loan.opening)
    state, _ = closed(loan, loan.opening, date, policy)
    assert closed(loan, state, date, policy) == (state, [])
    assert loan.opening == untouched


@given(loans(), policies, DAYS)
@settings(max_examples=60, deadline=None)
def test_money_received_is_applied_held_or_rejected(
    loan: Loan, policy: Policy, date: datetime.date
) -> None:
    state, entries = closed(loan, loan.opening, date, policy)
    for entry in entries:
        if not is_charge(entry):
            assert money_received([entry]).is_balanced, entry
    sums = money_received(entries)
    assert sums.is_balanced
    assert sums.suspense == state.suspense - loan.opening.suspense
    money = [entry for entry in entries if not is_charge(entry)]
    principal = sum(entry.principal + entry.curtailment for entry in money)
    assert state.balance == loan.opening.balance - principal >= 0
    assert state.escrow == loan.opening.escrow + sum(entry.escrow for entry in money)
    # Interest accrued less interest paid is what is accrued.
    accruals = sum(entry.amount for entry in entries if entry.kind is EntryKind.ACCRUAL)
    assert state.accrued == loan.opening.accrued + accruals - sum(entry.interest for entry in money)
    fees = sum(entry.amount for entry in entries if is_charge(entry)) - accruals
    assert state.fees == loan.opening.fees + fees - sum(entry.fees for entry in money)
    assert min(state.suspense, state.fees, state.escrow) >= 0


@given(loans(), policies)
@settings(max_examples=60, deadline=None)
def test_everything_received_is_what_was_sent_in(loan: Loan, policy: Policy) -> None:
    _, entries = closed(loan, loan.opening, day(LAST_DAY + 20), policy)
    undone: set[int] = set()
    for each in sorted(loan.transactions, key=lambda each: (each.posted_date, each.transaction_id)):
        rejected = [
            entry
            for entry in entries
            if entry.transaction_id == each.transaction_id and entry.kind is EntryKind.REJECTED
        ]
        if each.kind == TransactionKind.REVERSAL and not rejected:
            assert each.reverses is not None
            undone.add(each.reverses)
    sent = sum(each.amount for each in loan.transactions if each.transaction_id not in undone)
    assert money_received(entries).received == sent


@given(loans(), policies)
@settings(max_examples=60, deadline=None)
def test_a_ledger_with_hindsight_is_the_one_that_knew_all_along(loan: Loan, policy: Policy) -> None:
    """Back-dating and reversals leave what would be there had all been known on its day."""
    date = day(LAST_DAY + 20)
    state, entries = closed(loan, loan.opening, date, policy)
    refused = {
        each.transaction_id
        for each in loan.transactions
        if rejection_reason(loan.terms, FIRST, each) is not None
    }
    refused |= {
        entry.transaction_id
        for entry in entries
        if entry.transaction_id is not None
        and entry.kind is EntryKind.REJECTED
        and "can't be reversed" in (entry.reason or "")
    }
    reversals = [
        each
        for each in loan.transactions
        if each.kind == TransactionKind.REVERSAL and each.transaction_id not in refused
    ]
    gone = {each.reverses for each in reversals} | {each.transaction_id for each in reversals}
    # What a reversal could not know of when it was posted must not be there before it.
    named = {
        each.reverses
        for each in loan.transactions
        if each.kind == TransactionKind.REVERSAL and each.transaction_id in refused
    }
    known = [
        each
        if each.transaction_id in refused | named
        else each._replace(posted_date=min(each.posted_date, each.effective_date))
        for each in loan.transactions
        if each.transaction_id not in gone
    ]
    all_along, true = closed(loan._replace(transactions=known), loan.opening, date, policy)
    assert net(entries) == net(true)
    assert state == all_along


@given(st.lists(loans() | loans(unusual=False), max_size=5), policies, DAYS, DAYS)
@settings(max_examples=60, deadline=None)
def test_many_loans_are_closed_as_each_by_itself(
    portfolio: list[Loan], policy: Policy, one: datetime.date, other: datetime.date
) -> None:
    terms, opening, transactions = columns(portfolio)
    states = opening
    plain = [loan.opening for loan in portfolio]
    for date in (min(one, other), max(one, other)):
        result = close_many(terms, opening, states, transactions, date, policy)
        expected: list[tuple[int, Entry]] = []
        for number, loan in enumerate(portfolio):
            plain[number], entries = closed(loan, plain[number], date, policy)
            expected += [(number, entry) for entry in entries]
        assert [result.states.row(number) for number in range(len(portfolio))] == plain
        table = result.entries.table(terms.loan_id)
        assert table.schema == ENTRY_SCHEMA
        got = list(zip(result.entries.loan.tolist(), as_entries(table), strict=True))
        assert got == expected
        # What is written is read back.
        states = type(states).from_table(result.states.table())
        assert [states.row(number) for number in range(len(portfolio))] == plain


def as_entries(table: pa.Table) -> list[Entry]:
    rows = table.drop_columns("loan_id").to_pylist()
    return [
        Entry(
            **dict(
                row,
                kind=EntryKind(row["kind"]),
                reverses=row["reverses"] and EntryKind(row["reverses"]),
                **{
                    name: int(row[name].scaleb(6 if name == "interest_base" else 2))
                    for name in AMOUNTS
                },
            )
        )
        for row in rows
    ]


def test_ordinary_loans_need_no_plain_function() -> None:
    terms, state = mortgage()
    payments = [
        Transaction(number, "payment", day(31 * number), day(31 * number), 1_000_00)
        for number in (1, 2, 3)
    ]
    portfolio = [
        Loan(terms, state, payments),
        Loan(terms, state, payments[:2]),
        Loan(terms, state, []),
    ]
    result = close_many(*book(portfolio), day(120), Policy())
    assert result.by_plain_function == 0
    assert len(result.entries)
    portfolio[1].transactions.append(Transaction(9, "reversal", day(100), day(100), reverses=1))
    assert close_many(*book(portfolio), day(120), Policy()).by_plain_function == 1


def test_a_payment_posted_late_needs_the_plain_function_on_that_day_alone() -> None:
    terms, state = mortgage()
    late = Transaction(1, "payment", day(31), day(45), 1_000_00)
    result = close_many(*book([Loan(terms, state, [late])]), day(120), Policy())
    assert result.by_plain_function == 1


def test_what_is_held_pays_an_instalment_that_was_overdue_when_the_book_began() -> None:
    terms, state = mortgage()
    since = state.next_due + datetime.timedelta(9)
    held = dataclasses.replace(state, suspense=2 * state.payment, closed_through=since)
    loan, first_night = Loan(terms, held, []), since + datetime.timedelta(1)
    result = close_many(*book([loan]), first_night, Policy())
    assert result.by_plain_function == 0
    after, entries = closed(loan, held, first_night, Policy())
    assert EntryKind.SUSPENSE_RELEASE in [entry.kind for entry in entries]
    assert result.states.row(0) == after


def book(portfolio: list[Loan]) -> tuple[TermsColumns, States, States, Transactions]:
    terms, opening, transactions = columns(portfolio)
    return terms, opening, opening, transactions


@pytest.mark.parametrize("ids", [(1, 1), (5, 3, 5)])
def test_two_transactions_of_one_id_are_refused(ids: tuple[int, ...]) -> None:
    terms, state = mortgage()
    payments = [
        Transaction(number, "payment", day(3 + at), day(3 + at), 1_00)
        for at, number in enumerate(ids)
    ]
    loan = Loan(terms, state, payments)
    with pytest.raises(ValueError, match=f"transaction {ids[0]} is there twice"):
        closed(loan, state, day(40), Policy())
    with pytest.raises(ValueError, match=f"transaction {ids[0]} is there twice"):
        close_many(*book([loan]), day(40), Policy())


def test_loans_left_behind_catch_up_oldest_day_first() -> None:
    terms, state = mortgage()
    ahead = dataclasses.replace(state, closed_through=day(20))
    result = close_many(*book([Loan(terms, state, []), Loan(terms, ahead, [])]), day(22), Policy())
    days = [result.entries.posted_date[result.entries.loan == number].tolist() for number in (0, 1)]
    # 1 January is the first day of the period and accrues nothing at its close.
    assert days[0] == [day(number) for number in range(2, 23)]
    # Whoever boards with 19 days of interest unbooked has them accrued on the first day.
    assert days[1] == [day(21), day(22)]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy(steps=(Step.ACCRUE, Step.ACCRUE)), "steps accrue, accrue names something twice"),
        (Policy(waterfall=Policy().waterfall[1:]), "lacks interest"),
        (Policy(grace_days=-1), "grace_days -1"),
    ],
)
def test_policies_that_cannot_be_meant_are_refused(policy: Policy, message: str) -> None:
    terms, state = mortgage()
    with pytest.raises(ValueError, match=message):
        close(terms, state, state, [], day(1), policy)
    with pytest.raises(ValueError, match=message):
        close_many(*book([]), day(1), policy)


def test_no_loans_are_closed() -> None:
    result = close_many(*book([]), day(1), Policy())
    assert len(result.states) == len(result.entries) == 0
    assert result.entries.table(pa.array([], pa.string())).schema == ENTRY_SCHEMA
    assert np.array_equal(result.entries.loan, [])
