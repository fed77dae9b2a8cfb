"""Close of day for many loans by the plain function, one loan after the other."""

import datetime

import numpy as np

from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.closing.close_many import ClosedMany
from ledgerbeam.rules.loans.book import States, Transactions
from ledgerbeam.rules.loans.entries import Entries
from ledgerbeam.rules.loans.loan import Entry, Policy, State
from ledgerbeam.rules.loans.terms_columns import TermsColumns


def close_each(
    terms: TermsColumns,
    opening: States,
    states: States,
    transactions: Transactions,
    business_date: datetime.date,
    policy: Policy,
) -> ClosedMany:
    """The same as `close_many.close_many`, by calling `close.close` for each loan."""
    every = np.arange(len(states))
    after: list[State] = []
    numbers: list[int] = []
    made: list[Entry] = []
    days = 0
    rows = zip(
        every.tolist(),
        terms.rows(every),
        opening.rows(every),
        states.rows(every),
        transactions.rows_of(every),
        strict=True,
    )
    for number, terms_of_loan, opened, before, came_in in rows:
        state, entries = close(terms_of_loan, opened, before, came_in, business_date, policy)
        after.append(state)
        numbers += [number] * len(entries)
        made += entries
        days += (state.closed_through - before.closed_through).days
    result = states.copy()
    result.put(every, after)
    return ClosedMany(result, Entries.from_rows(numbers, made), days)
