"""Where the money of all transactions is: a reconciliation that is independent of the ledger.

Which transactions have had their effect by a day follows from the transactions alone: posted and
effective by then, and not reversed. What a night's entries applied, put in suspense and rejected
must be what had its effect since the loan was last closed.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.arrays import Dates, Flags, Integers
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.loans.book import NONE, States, Transactions
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
    ahead = np.flatnonzero((effective > first) & (transactions.amount != 0))
    ahead = ahead[rejected_many(terms, opening, transactions, loans[ahead], ahead)]
    since[ahead] = first[ahead]
    is_reversal = _of_kind(transactions, transactions.kind, TransactionKind.REVERSAL)
    at = np.flatnonzero(is_reversal)
    since[at] = first[at]
    until = np.full(len(posted), _NEVER)
    undone = _find_transactions(transactions, loans[at], transactions.reverses[at])
    counts = (undone >= 0) & ~is_reversal[undone] & (posted[undone] <= posted[at])
    counts &= ~rejected_many(terms, opening, transactions, loans[at], at)
    at, undone = at[counts], undone[counts]
    # Of several reversals the first one counts: it is assigned last.
    order = np.lexsort((transactions.transaction_id[at], posted[at], loans[at]))[::-1]
    until[undone[order]] = first[at[order]]
    return _Effects(since, until)


def _of_kind(transactions: Transactions, codes: Integers, *kinds: TransactionKind) -> Flags:
    """Which codes of transactions stand for one of these kinds; bool of the shape of `codes`."""
    is_of = np.array([kind in kinds for kind in transactions.kinds], bool)
    return is_of[codes] if len(is_of) else np.zeros(len(codes), bool)


def rejected_many(
    terms: TermsColumns, opening: States, transactions: Transactions, loans: Integers, at: Integers
) -> Flags:
    """Whether there is a `payments.rejection_reason` for each of some transactions.

    Args:
        terms: of the loans.
        opening: their states when this book took them over.
        transactions: of the same loans.
        loans: the loan of each, int64 `(some,)`.
        at: their rows, int64 `(some,)`.

    Returns:
        bool `(some,)`.
    """
    effective, amount = transactions.effective_date[at], transactions.amount[at]
    kind = transactions.kind[at]
    is_rejected = ~_of_kind(transactions, kind, *TransactionKind)
    is_rejected |= effective < terms.origination_date[loans]
    is_rejected |= effective <= opening.closed_through[loans]
    is_reversal = _of_kind(transactions, kind, TransactionKind.REVERSAL)
    is_change = _of_kind(transactions, kind, TransactionKind.RATE_CHANGE)
    # A rate or a payment that is missing is -1.
    has_no_terms = (transactions.rate[at] < 0) | (transactions.payment[at] <= 0)
    has_no_terms |= effective < transactions.posted_date[at]
    currencies = np.array([*transactions.currencies, None], object)
    is_foreign = currencies[transactions.currency[at]] != terms.currency[loans]
    is_rejected |= np.select(
        [is_reversal, is_change],
        [(amount != 0) | (transactions.reverses[at] == NONE), (amount != 0) | has_no_terms],
        is_foreign | (amount <= 0),
    )
    return is_rejected


def _find_transactions(transactions: Transactions, loans: Integers, numbers: Integers) -> Integers:
    """The rows of loans' transactions, which are sorted by id; -1 for those that aren't there.

    Args:
        transactions: of all loans.
        loans: int64 `(some,)`.
        numbers: their ids, int64 `(some,)`.

    Returns:
        int64 `(some,)`.
    """
    ids = transactions.transaction_id
    low, end = transactions.offsets[loans], transactions.offsets[loans + 1]
    high = end.copy()
    while (is_open := low < high).any():
        middle = (low + high) // 2
        is_less = is_open & (ids[np.minimum(middle, len(ids) - 1)] < numbers)
        low = np.where(is_less, middle + 1, low)
        high = np.where(is_open & ~is_less, middle, high)
    is_there = low < end
    is_there[is_there] = ids[low[is_there]] == numbers[is_there]
    return np.where(is_there, low, -1)


def rejected_transactions(transactions: Transactions, entries: Entries) -> pa.Array:
    """The row of the transaction that each entry rejects; null for other entries."""
    rows = np.full(len(entries), -1)
    at = np.flatnonzero(entries.kind == _REJECTED)
    rows[at] = _find_transactions(transactions, entries.loan[at], entries.transaction_id[at])
    return pa.array(rows, mask=rows < 0)


def entry_currencies(
    terms: TermsColumns, transactions: Transactions, entries: Entries
) -> pa.DictionaryArray:
    """The currency of each entry: the loan's; of money rejected, the transaction's."""
    of_loans = pa.array(terms.currency, pa.string()).dictionary_encode()
    codes = of_loans.indices.to_numpy()[entries.loan]
    names = of_loans.dictionary.to_pylist()
    known = {name: number for number, name in enumerate(names)}
    at = np.flatnonzero(entries.original_kind() == _REJECTED)
    if len(at):
        rows = _find_transactions(transactions, entries.loan[at], entries.transaction_id[at])
        assert (rows >= 0).all()
        for name in transactions.currencies:
            known.setdefault(name, len(known))
        of_transactions = np.array([known[name] for name in transactions.currencies], np.int32)
        codes[at] = of_transactions[transactions.currency[rows]]
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([*known], pa.string()))


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
    of_entries = entry_currencies(terms, transactions, money)
    numbers = of_entries.indices.to_numpy()
    in_use = np.flatnonzero(np.bincount(numbers, minlength=len(of_entries.dictionary)))
    names_in_use = {of_entries.dictionary[n].as_py(): n for n in in_use.tolist()}
    # Suspense released in a currency without transactions is a row of its own.
    codes += sorted(names_in_use.keys() - set(codes))
    width = max(len(codes), 1)
    renumbered = np.zeros(len(of_entries.dictionary), np.int64)
    for name, number in names_in_use.items():
        renumbered[number] = codes.index(name)
    of_transactions = loans * width + transactions.currency
    entry_keys = money.loan * width + renumbered[numbers]
    is_key = np.zeros(len(terms) * width, bool)
    is_key[of_transactions] = is_key[entry_keys] = True
    keys = np.flatnonzero(is_key)
    # Transactions of a loan stand together, and most of them have one currency.
    starts = np.flatnonzero(np.diff(of_transactions, prepend=-1))
    of_start = of_transactions[starts]

    def by_transaction(values: Integers) -> Integers:
        return added(of_start, np.add.reduceat(values, starts) if len(starts) else values)

    def added(at: Integers, values: Integers) -> Integers:
        total = np.zeros(len(is_key), np.int64)
        np.add.at(total, at, values)
        return total[keys]

    applied = np.sum([money.amounts[name] for name in _APPLIED], axis=0)
    sums = {
        "transactions": by_transaction(amount),
        "earlier": by_transaction(np.where(earlier, amount, 0)),
        "applied": added(entry_keys, applied),
        "suspense": added(entry_keys, money.amounts["suspense"]),
        "rejected": added(entry_keys, money.amounts["rejected"]),
        "open": by_transaction(np.where(now, 0, amount)),
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
