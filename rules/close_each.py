"""Close of day for many loans by the plain function, one loan after the other."""

import datetime

from ledgerbeam.rules.book import States, TermsColumns, Transactions
from ledgerbeam.rules.close_many import ClosedMany
from ledgerbeam.rules.close_of_day import close
from ledgerbeam.rules.entries import Entries
from ledgerbeam.rules.loan import Entry, Policy


def close_each(
    terms: TermsColumns,
    opening: States,
    states: States,
    transactions: Transactions,
    business_date: datetime.date,
    policy: Policy,
) -> ClosedMany:
    """The same as `close_many.close_many`, by calling `close_of_day.close` for each loan."""
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
