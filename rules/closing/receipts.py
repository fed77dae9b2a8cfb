"""Where the money of all transactions is: a reconciliation that is independent of the ledger.

Which transactions have had their effect by a day follows from the transactions alone: posted and
effective by then, and not reversed. What a night's entries applied, put in suspense and rejected
must be what had its effect since the loan was last closed.
"""

import bisect
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.arrays import Dates, Flags, Integers
from ledgerbeam.rules.closing.payments import rejection_reason
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.loans.book import States, Transactions
from ledgerbeam.rules.loans.columns import AMOUNT, as_decimals, with_places
from ledgerbeam.rules.loans.entries import KINDS, Entries
from ledgerbeam.rules.loans.loan import EntryKind, Policy, Step, TransactionKind
from ledgerbeam.rules.loans.terms_columns import TermsColumns

RECEIPTS = (
    "transactions", "earlier", "applied", "suspense", "rejected", "open",
)  # fmt: skip
RECEIPT_SCHEMA = pa.schema(
    [("loan_id", pa.string()), ("currency", pa.string()), *((name, AMOUNT) for name in RECEIPTS)]
)
"""Money by loan and currency of the transactions.

`transactions` is all that was sent in; `earlier` had its effect before, of which a reversal takes
something back; `applied`, `suspense` and `rejected` are this night's entries; `open` is still to
come into effect, or was reversed.
"""

_NEVER = np.datetime64("9999-12-31")
_APPLIED = ("interest", "principal", "escrow", "fees", "curtailment")
_REJECTED = KINDS.index(EntryKind.REJECTED)


class _Effects(NamedTuple):
    """When each transaction has its effect, datetime64[D] `(transactions,)`.

    Attributes:
        since: the day at whose close it is in the ledger.
        until: the day on which it was reversed; 9999-12-31 where it wasn't.
    """

    since: Dates
    until: Dates

    def at(self, closed_through: Dates) -> Flags:
        """Which are in force at the close of a day, one for each transaction."""
        return (self.since <= closed_through) & (closed_through < self.until)


def _effects(terms: TermsColumns, opening: States, transactions: Transactions) -> _Effects:
    """When the loans' transactions have their effect.

    Args:
        terms: of the loans.
        opening: their states when this book took them over.
        transactions: of the same loans.
    """
    loans = transactions.loans()
    boarded = opening.closed_through
    posted, effective = transactions.posted_date, transactions.effective_date
    first = np.maximum(posted, boarded[loans] + 1)
    since = np.maximum(first, effective)
    # A transaction that is rejected has its effect on the day it is posted, whatever day it names.
    for row in np.flatnonzero((effective > first) & (transactions.amount != 0)).tolist():
        if _rejection_reason(terms, opening, transactions, int(loans[row]), row):
            since[row] = first[row]
    kinds = [code for code, k in enumerate(transactions.kinds) if k == TransactionKind.REVERSAL]
    is_reversal = np.isin(transactions.kind, kinds)
    since[is_reversal] = first[is_reversal]
    until = np.full(len(posted), _NEVER)
    at = np.flatnonzero(is_reversal)
    for row in at[np.lexsort((transactions.transaction_id[at], posted[at], loans[at]))].tolist():
        undone = _undone_by(transactions, int(loans[row]), row)
        if undone is None or is_reversal[undone] or until[undone] != _NEVER:
            continue
        if posted[undone] > posted[row]:
            continue
        if not _rejection_reason(terms, opening, transactions, int(loans[row]), row):
            until[undone] = first[row]
    return _Effects(since, until)


def _rejection_reason(
    terms: TermsColumns, opening: States, transactions: Transactions, loan: int, row: int
) -> str | None:
    boarded = opening.closed_through[loan].item()
    return rejection_reason(terms.row(loan), boarded, transactions.between(row, row + 1)[0])


def _undone_by(transactions: Transactions, loan: int, row: int) -> int | None:
    return _find_transaction(transactions, loan, int(transactions.reverses[row]))


def _find_transaction(transactions: Transactions, loan: int, number: int) -> int | None:
    """The row of a loan's transaction, which are sorted by their ids; None if it isn't there."""
    first, end = transactions.offsets[loan : loan + 2].tolist()
    row = bisect.bisect_left(transactions.transaction_id, number, first, end)
    is_there = row < end and transactions.transaction_id[row] == number
    return row if is_there else None


def rejected_transactions(transactions: Transactions, entries: Entries) -> pa.Array:
    """The row of the transaction that each entry rejects; null for other entries."""
    rows: list[int | None] = [None] * len(entries)
    for at in np.flatnonzero(entries.kind == _REJECTED).tolist():
        number = int(entries.transaction_id[at])
        rows[at] = _find_transaction(transactions, int(entries.loan[at]), number)
    return pa.array(rows, pa.int64())


def entry_currencies(terms: TermsColumns, transactions: Transactions, entries: Entries) -> pa.Array:
    """The currency of each entry: the loan's; of money rejected, the transaction's."""
    codes = np.array(terms.currency[entries.loan], object)
    is_rejected = entries.original_kind() == _REJECTED
    for at in np.flatnonzero(is_rejected).tolist():
        number = int(entries.transaction_id[at])
        row = _find_transaction(transactions, int(entries.loan[at]), number)
        assert row is not None
        codes[at] = transactions.currencies[transactions.currency[row]]
    return pa.array(codes, pa.string())


def receipts(
    terms: TermsColumns,
    opening: States,
    before: States,
    after: States,
    transactions: Transactions,
    entries: Entries,
    policy: Policy,
    scale: int = AMOUNT.scale,
) -> pa.Table:
    """A row of `RECEIPT_SCHEMA` for each loan and currency that there are transactions of.

    Args:
        terms: of the loans.
        opening: their states when this book took them over.
        before: their states as they were last closed.
        after: their states as they are closed now.
        transactions: of the same loans, by id within each loan.
        entries: made in between.
        policy: by which.
        scale: decimals of the table's amounts.
    """
    loans = transactions.loans()
    effect = _effects(terms, opening, transactions)
    takes = Step.APPLY_PAYMENTS in policy.steps
    earlier = effect.at(before.closed_through[loans]) & takes
    now = effect.at(after.closed_through[loans]) & takes
    amount = transactions.amount
    codes = list(transactions.currencies)
    money = entries.take(~entries.is_charge())
    of_entries = entry_currencies(terms, transactions, money).to_pylist()
    known = {code: number for number, code in enumerate(codes)}
    # Suspense released in a currency without transactions is a row of its own.
    for code in sorted(set(of_entries) - set(known)):
        known[code] = len(codes)
        codes.append(code)
    width = max(len(codes), 1)
    of_transactions = loans * width + transactions.currency
    entry_keys = money.loan * width + np.array([known[code] for code in of_entries], np.int64)
    keys, places = np.unique(np.concatenate([of_transactions, entry_keys]), return_inverse=True)
    of_transaction, of_entry = places[: len(loans)], places[len(loans) :]

    def added(at: Integers, values: Integers) -> Integers:
        total = np.zeros(len(keys), np.int64)
        np.add.at(total, at, values)
        return total

    applied = np.sum([money.amounts[name] for name in _APPLIED], axis=0)
    sums = {
        "transactions": added(of_transaction, amount),
        "earlier": added(of_transaction, np.where(earlier, amount, 0)),
        "applied": added(of_entry, applied),
        "suspense": added(of_entry, money.amounts["suspense"]),
        "rejected": added(of_entry, money.amounts["rejected"]),
        "open": added(of_transaction, np.where(now, 0, amount)),
    }
    names = pa.array(codes, pa.string())
    of_key = keys % width
    known_places = np.zeros(width, np.int64)
    for number in np.unique(of_key).tolist():
        known_places[number] = minor_units(codes[number])
    places = known_places[of_key]
    schema = with_places(RECEIPT_SCHEMA, scale)
    amount_type = pa.decimal128(AMOUNT.precision, scale)
    return pa.table(
        [
            terms.loan_id.take(pa.array(keys // width)),
            names.take(pa.array(keys % width)),
            *(as_decimals(sums[name], places, amount_type) for name in RECEIPTS),
        ],
        schema=schema,
    )
