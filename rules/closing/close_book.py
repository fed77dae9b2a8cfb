"""Close of business of a book in tables: loans and transactions in, loans and entries out."""

import datetime
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa

from ledgerbeam.rules.arrays import Integers
from ledgerbeam.rules.closing.close_many import ClosedMany, close_many
from ledgerbeam.rules.closing.receipts import entry_currencies, receipts, rejected_transactions
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.loans.columns import coded
from ledgerbeam.rules.loans.contradictions import check_closed_through
from ledgerbeam.rules.loans.loan import Policy
from ledgerbeam.rules.loans.read_book import Book
from ledgerbeam.rules.loans.tables import write_states


class ClosedBook(NamedTuple):
    """A book of loans as it is closed.

    Attributes:
        loans: the loans in their new states, not locked; a row each, in the same order.
        entries: of `ENTRY_SCHEMA` with `currency`, loan by loan in the order of booking.
        receipts: of `RECEIPT_SCHEMA`: where the money of all transactions is.
        rejected: int64, the row of the transaction that each entry rejects; null for others.
        closed: the same in minor units.
    """

    loans: pa.Table
    entries: pa.Table
    receipts: pa.Table
    rejected: pa.Array
    closed: ClosedMany


def close_book(
    loans: pa.Table,
    book: Book,
    business_date: datetime.date,
    policy: Policy,
    rule: Callable[..., ClosedMany] = close_many,
) -> ClosedBook:
    """Close every loan's days up to the business date.

    Args:
        loans: with all the columns of a state, as `read_book` gives them; amounts in all tables
            have the decimals of their `balance`.
        book: of the same loans.
        business_date: the day to close through.
        policy: how the book is run.
        rule: `close_many`, or `close_each` for plain Python, loan by loan.

    Raises:
        ValueError: a loan is closed through a later day, or two of its transactions have one id.
        BookMismatchError: the transactions don't lead to a loan's state.
    """
    terms, opening, transactions, before = book
    assert before is not None
    check_closed_through(before, business_date)
    closed = rule(terms, opening, before, transactions, business_date, policy)
    codes = entry_currencies(terms, transactions, closed.entries)
    scale = loans.field("balance").type.scale
    entries = closed.entries.table(terms.loan_id, _places(codes), scale)
    found = receipts(
        terms, opening, before, closed.states, transactions, closed.entries, policy, scale
    )
    return ClosedBook(
        write_states(loans, closed.states, terms.places),
        entries.append_column("currency", codes.dictionary_decode()),
        found,
        rejected_transactions(transactions, closed.entries),
        closed,
    )


def _places(codes: pa.DictionaryArray) -> Integers:
    """Decimals of currencies."""
    places, _ = coded(pa.table({"currency": codes}), "currency", minor_units)
    return places
