"""Close of day for many loans by the plain function, one loan after the other."""

import datetime

from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.closing.close_many import ClosedMany
from ledgerbeam.rules.loans.book import States, Transactions
from ledgerbeam.rules.loans.entries import Entries
from ledgerbeam.rules.loans.loan import Entry, Policy
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
    after = states.copy()
    numbers: list[int] = []
    made: list[Entry] = []
    days = 0
    for number in range(len(states)):
        before = states.row(number)
        state, entries = close(
            terms.row(number),
            opening.row(number),
            before,
            transactions.rows(number),
            business_date,
            policy,
        )
        after.put(number, state)
        numbers += [number] * len(entries)
        made += entries
        days += (state.closed_through - before.closed_through).days
    return ClosedMany(after, Entries.from_rows(numbers, made), days)
