"""A book of loans from tables: loans with all that came in for them."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.loans.book import States, Transactions
from ledgerbeam.rules.loans.tables import (
    read_states,
    read_terms,
    with_transaction_columns,
)
from ledgerbeam.rules.loans.terms_columns import TermsColumns


class Book(NamedTuple):
    """What is known of loans.

    Attributes:
        terms: of the loans.
        opening: their states when this book took them over.
        transactions: all that came in since.
        on_book: their states as they were last closed; None where that is the opening.
    """

    terms: TermsColumns
    opening: States
    transactions: Transactions
    on_book: States | None = None


def read_book(
    loans: pa.Table, transactions: Components, calendar: BusinessCalendar | None = None
) -> Book:
    """The book that loans and all that came in for them are.

    Args:
        loans: a row a loan, with all the columns of a state; see `with_state_columns`.
        transactions: since the loans were boarded, with a start for each loan.
        calendar: of business days, where terms need one.

    Raises:
        ValueError: terms or a state can't be, or contradict each other.
    """
    offsets = np.append(transactions.starts, transactions.table.num_rows)
    rows = Transactions.from_table(with_transaction_columns(transactions.table), offsets)
    terms = read_terms(loans, calendar)
    opening, on_book = read_states(loans, terms)
    return Book(terms, opening, rows, on_book)
