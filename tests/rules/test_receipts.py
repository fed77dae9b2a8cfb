"""Where the money of transactions is: the vectorised rules, and what plain ones say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.portfolios import FIRST, LAST_DAY, Loan, columns, day, loans, mortgage, policies

from ledgerbeam.rules.closing.close_many import close_many
from ledgerbeam.rules.closing.payments import rejection_reason
from ledgerbeam.rules.closing.receipts import (
    entry_currencies,
    receipts,
    rejected_many,
    rejected_transactions,
)
from ledgerbeam.rules.loans.loan import EntryKind, Policy, Transaction, TransactionKind

LAST = day(LAST_DAY + 20)


@given(st.lists(loans(), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_transactions_are_rejected_as_each_by_itself(portfolio: list[Loan]) -> None:
    terms, opening, transactions = columns(portfolio)
    of_rows = transactions.loans()
    every = np.arange(len(of_rows))
    found = rejected_many(terms, opening, transactions, of_rows, every).tolist()
    assert found == [
        rejection_reason(loan.terms, FIRST, each) is not None
        for loan in portfolio
        for each in loan.transactions
    ]


@pytest.mark.parametrize(
    ("change", "is_rejected"),
    [
        ({}, False),
        ({"kind": "gift"}, True),
        ({"amount": 0}, True),
        ({"currency": "CAD"}, True),
        ({"effective_date": FIRST}, True),
        ({"kind": TransactionKind.REVERSAL, "amount": 0, "reverses": 1}, False),
        ({"kind": TransactionKind.REVERSAL, "amount": 0}, True),
        ({"kind": TransactionKind.REVERSAL, "amount": 1, "reverses": 1}, True),
        ({"kind": TransactionKind.RATE_CHANGE, "amount": 0, "rate": 0, "payment": 1}, False),
        ({"kind": TransactionKind.RATE_CHANGE, "amount": 0, "rate": 0}, True),
        ({"kind": TransactionKind.RATE_CHANGE, "amount": 0, "payment": 1}, True),
    ],
)
def test_what_makes_a_transaction_one_that_is_rejected(
    change: dict[str, Any], is_rejected: bool
) -> None:
    terms, opening = mortgage()
    row = Transaction(7, TransactionKind.PAYMENT, day(3), day(3), 100)._replace(**change)
    assert (rejection_reason(terms, FIRST, row) is not None) is is_rejected
    many = columns([Loan(terms, opening, [row])])
    assert rejected_many(*many, np.array([0]), np.array([0])).tolist() == [is_rejected]


@given(st.lists(loans(), min_size=1, max_size=4), policies)
@settings(max_examples=60, deadline=None)
def test_receipts_add_up_to_what_was_sent_in_and_to_what_was_booked(
    portfolio: list[Loan], policy: Policy
) -> None:
    terms, opening, transactions = columns(portfolio)
    closed = close_many(terms, opening, opening, transactions, LAST, policy)
    found = receipts(
        terms, opening, opening, closed.states, transactions, closed.entries, policy
    ).to_pylist()
    sent: dict[tuple[str, str], int] = {}
    for loan in portfolio:
        for each in loan.transactions:
            key = (loan.terms.loan_id, each.currency)
            sent[key] = sent.get(key, 0) + each.amount
    shown: dict[tuple[str, str], int] = {}
    for row in found:
        key = (row["loan_id"], row["currency"])
        shown[key] = shown.get(key, 0) + int(row["transactions"].scaleb(2))
    assert {key: amount for key, amount in shown.items() if amount or key in sent} == sent
    for row in found:
        parts = ("earlier", "applied", "suspense", "rejected", "open")
        if policy.steps and "apply_payments" in [str(step) for step in policy.steps]:
            assert row["transactions"] == sum(row[name] for name in parts)


@given(st.lists(loans(), min_size=1, max_size=4), policies)
@settings(max_examples=60, deadline=None)
def test_entries_lead_to_the_transactions_that_they_reject(
    portfolio: list[Loan], policy: Policy
) -> None:
    terms, opening, transactions = columns(portfolio)
    entries = close_many(terms, opening, opening, transactions, LAST, policy).entries
    rows = rejected_transactions(transactions, entries).to_pylist()
    currencies = entry_currencies(terms, transactions, entries).to_pylist()
    table = entries.table(terms.loan_id).to_pylist()
    every = [each for loan in portfolio for each in loan.transactions]
    for number, (row, code, entry) in enumerate(zip(rows, currencies, table, strict=True)):
        of_loan = portfolio[int(entries.loan[number])].terms.currency
        if entry["kind"] == EntryKind.REJECTED:
            assert every[row].transaction_id == entry["transaction_id"]
            assert code == every[row].currency
        else:
            assert row is None
            if entry["reverses"] != EntryKind.REJECTED:
                assert code == of_loan
