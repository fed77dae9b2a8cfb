"""An investor's month of many loans at once: the same lines as `loan_month` gives for each."""

import datetime
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.rules.book import AMOUNT, PERCENT, States, TermsColumns, Transactions
from ledgerbeam.rules.close_many import close_many
from ledgerbeam.rules.delinquency import months_later
from ledgerbeam.rules.entries import KINDS, Entries
from ledgerbeam.rules.loan import EntryKind, Policy, TransactionKind
from ledgerbeam.rules.loan_month import (
    Money,
    month_ends,
    not_booked,
    nothing_to_report,
    rejections_of,
)
from ledgerbeam.rules.money import decimals, units
from ledgerbeam.rules.remittance import Investor
from ledgerbeam.rules.remittance_columns import LINE_SCHEMA, MONTH_SCHEMA, remit_many

Integers = npt.NDArray[np.int64]
Dates = npt.NDArray[np.datetime64]
Flags = npt.NDArray[np.bool_]

HOLDING_SCHEMA = pa.schema(
    {
        "investor_id": pa.string(),
        "pool_id": pa.string(),
        "participation": PERCENT,
        "scheduled_balance": AMOUNT,
    }
)
MONEY_SCHEMA = pa.schema([(name, AMOUNT) for name in Money._fields])
REPORT_SCHEMA = pa.schema([*LINE_SCHEMA, *MONEY_SCHEMA, ("rejections", pa.string())])
"""A line of the report: the remittance, where the month's money is, and what was rejected."""

_REJECTED = KINDS.index(EntryKind.REJECTED)
_PAYOFF = KINDS.index(EntryKind.PAYOFF)
_NEVER = np.datetime64("9999-12-31")


def report_lines(
    loans: pa.Table,
    transactions: pa.Table,
    offsets: Integers,
    investors: Mapping[str, Investor],
    business_date: datetime.date,
    policy: Policy,
) -> pa.Table:
    """`loan_month.report_line` of every loan.

    Args:
        loans: columns of `TERMS_SCHEMA`, `STATE_SCHEMA` and `HOLDING_SCHEMA`, a row a loan.
        transactions: columns of `TRANSACTION_SCHEMA`, those of a loan together and by id, in the
            order of the loans.
        offsets: int64 `(loans + 1,)`, where the transactions of each loan begin.
        investors: by their ids.
        business_date: the day of the report.
        policy: how the book is run.

    Returns:
        A row of `REPORT_SCHEMA` for every loan, in the same order.

    Raises:
        ValueError: as for `report_line`; for any of the loans.
    """
    if not loans.num_rows:
        return REPORT_SCHEMA.empty_table()
    book = _Book(
        TermsColumns.from_table(loans),
        States.from_table(loans),
        Transactions.from_table(transactions, offsets),
    )
    opened = book.opening.closed_through
    if opened.max() >= np.datetime64(business_date):
        raise nothing_to_report(opened.max().item(), business_date)
    held = loans.select(["loan_id", "investor_id", "pool_id", "currency", "participation"])
    states, scheduled = book.opening, units(loans.column("scheduled_balance"), AMOUNT.scale)
    reported_due = states.next_due.copy()
    ledger = _Bookings(book)
    for end in month_ends(opened.min().item(), business_date):
        closed = close_many(book.terms, book.opening, states, book.transactions, end, policy)
        before, states = states, closed.states
        months = _months(held, book.terms, before, states, closed.entries, scheduled, reported_due)
        lines = remit_many(months, investors)
        # Others are opened later.
        is_open = before.closed_through < np.datetime64(end)
        ending = units(lines.column("ending_balance"), AMOUNT.scale)
        scheduled = np.where(is_open, ending, scheduled)
        reported_due = np.where(is_open, np.maximum(reported_due, states.next_due), reported_due)
        ledger.take(closed.entries)
    money = ledger.money(closed.entries, before, business_date)
    rejections = _rejections(closed.entries, loans.num_rows)
    return pa.table(
        [*lines.columns, *(decimals(column, AMOUNT) for column in money), rejections],
        schema=REPORT_SCHEMA,
    )


class _Book(NamedTuple):
    terms: TermsColumns
    opening: States
    transactions: Transactions


def _months(
    held: pa.Table,
    terms: TermsColumns,
    before: States,
    after: States,
    entries: Entries,
    scheduled_balance: Integers,
    reported_due: Dates,
) -> pa.Table:
    """`loan_month` of every loan, as `MONTH_SCHEMA` says."""
    rate, payment = before.rate.copy(), before.payment.copy()
    for loan in np.flatnonzero([bool(changes) for changes in before.rate_changes]).tolist():
        for change in before.rate_changes[loan]:
            if change.effective_date <= before.closed_through[loan].item():
                rate[loan], payment[loan] = change.rate, change.payment
    is_payoff = (entries.kind == _PAYOFF) | (entries.reverses == _PAYOFF)
    payoff = _sums(entries.loan, np.where(is_payoff, entries.amounts["principal"], 0), len(terms))
    payoff = np.where(after.balance == 0, np.maximum(payoff, 0), 0)
    months, days = np.zeros((2, len(terms)), np.int64)
    if payoff.any():
        paid_off_on = np.full(len(terms), np.datetime64("0001-01-01"))
        is_paid = entries.kind == _PAYOFF
        np.maximum.at(paid_off_on, entries.loan[is_paid], entries.effective_date[is_paid])
        at = np.flatnonzero(payoff)
        months[at], days[at] = _since_instalment(
            after.next_due[at], terms.due_day[at], paid_off_on[at]
        )
    collected = after.next_due.astype("datetime64[M]") - reported_due.astype("datetime64[M]")
    columns = {
        "rate": rate,
        "payment": payment,
        "actual_balance": before.balance,
        "actual_ending_balance": after.balance,
        "scheduled_balance": scheduled_balance,
        "curtailment": _sums(entries.loan, entries.amounts["curtailment"], len(terms)),
        "instalments": np.maximum(collected.astype(np.int64), 0),
        "payoff": payoff,
        "payoff_months": months,
        "payoff_days": days,
        "missed_payments": after.missed_payments,
    }
    arrays = []
    for field in MONTH_SCHEMA:
        if field.name in columns:
            values = columns[field.name]
            is_decimal = pa.types.is_decimal(field.type)
            arrays.append(decimals(values, field.type) if is_decimal else pa.array(values))
        else:
            arrays.append(held.column(field.name))
    return pa.table(arrays, names=MONTH_SCHEMA.names)


def _since_instalment(next_due: Dates, due_day: Integers, day: Dates) -> tuple[Integers, Integers]:
    """`since_instalment` of many loans."""
    paid = months_later(next_due, due_day, -1)
    months = (day.astype("datetime64[M]") - paid.astype("datetime64[M]")).astype(np.int64)
    months -= day < months_later(paid, due_day, months)
    months = np.maximum(months, 0)
    days = (day - months_later(paid, due_day, months)).astype(np.int64)
    return months, np.maximum(days, 0)


class _Bookings:
    """Which transactions have entries, month after month."""

    def __init__(self, book: _Book) -> None:
        self._book = book
        rows = book.transactions
        self._loans = rows.loans()
        # Ids are those of a loan: only with it do they tell transactions apart.
        self._ids = np.unique(rows.transaction_id)
        self._keys = self._key(self._loans, rows.transaction_id)
        self._before = self._now = np.zeros(len(self._loans), bool)
        self._rejected = self._before.copy()

    def take(self, entries: Entries) -> None:
        """Take note of a month's entries."""
        rows = self.find(entries.loan, entries.transaction_id)
        self._before = self._before | self._now
        self._now = np.zeros_like(self._before)
        self._now[rows[rows >= 0]] = True
        is_rejected = (entries.kind == _REJECTED) & (rows >= 0)
        self._rejected[rows[is_rejected]] = True

    def find(self, loan: Integers, transaction_id: Integers) -> Integers:
        """The rows of transactions; -1 where a loan has none of that id."""
        if not len(self._keys):
            return np.full(len(loan), -1)
        wanted = self._key(loan, transaction_id)
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        is_id = self._ids[
            np.minimum(np.searchsorted(self._ids, transaction_id), len(self._ids) - 1)
        ]
        return np.where((self._keys[at] == wanted) & (is_id == transaction_id), at, -1)

    def _key(self, loan: Integers, transaction_id: Integers) -> Integers:
        return loan * (len(self._ids) + 1) + np.searchsorted(self._ids, transaction_id)

    def money(
        self, entries: Entries, before: States, business_date: datetime.date
    ) -> list[Integers]:
        """`money_of` every loan, in the order of `Money`, for the month taken note of last."""
        rows, loans, terms = self._book.transactions, self._loans, self._book.terms
        count = len(terms)
        last = np.datetime64(business_date)
        is_own = np.array(rows.currencies, object)[rows.currency] == terms.currency[loans]
        reversal = [n for n, kind in enumerate(rows.kinds) if kind == TransactionKind.REVERSAL]
        is_reversal = np.isin(rows.kind, reversal) & (rows.posted_date <= last) & ~self._rejected
        is_first = before.closed_through == self._book.opening.closed_through
        is_new = is_first[loans] | (rows.posted_date > before.closed_through[loans])
        undone, undone_before = (
            self.find(loans[at], rows.reverses[at])
            for at in (np.flatnonzero(is_reversal & is_new), np.flatnonzero(is_reversal & ~is_new))
        )
        booked_before, booked = self._before.copy(), self._now.copy()
        booked_before[undone_before] = True
        booked[undone] = True
        is_due = np.maximum(rows.posted_date, rows.effective_date) <= last
        lost = is_own & is_due & (rows.amount != 0) & ~booked & ~booked_before
        if lost.any():
            raise not_booked(int(rows.transaction_id[np.argmax(lost)]))
        is_received = is_own & booked & ~booked_before
        reversed_ = undone[is_own[undone]]
        of_entry = self.find(entries.loan, entries.transaction_id)
        is_counted = (of_entry < 0) | (is_own[of_entry] if len(is_own) else True)
        shares = {
            name: _sums(entries.loan, np.where(is_counted, values, 0), count)
            for name, values in _money_amounts(entries).items()
        }
        money = {
            "received": _sums(loans, np.where(is_received, rows.amount, 0), count),
            "reversed": _sums(loans[reversed_], rows.amount[reversed_], count),
            "other_months": _sums(loans, np.where(is_own & ~is_received, rows.amount, 0), count),
            **shares,
        }
        return [money[name] for name in Money._fields]


def _money_amounts(entries: Entries) -> dict[str, Integers]:
    """`close_of_day.received` of each entry; 0 for charges."""
    charges = [KINDS.index(EntryKind.ACCRUAL), KINDS.index(EntryKind.LATE_FEE)]
    is_money = ~(np.isin(entries.kind, charges) | np.isin(entries.reverses, charges))
    parts = ("interest", "principal", "escrow", "fees", "curtailment")
    applied = np.sum([entries.amounts[name] for name in parts], axis=0)
    return {
        "applied": np.where(is_money, applied, 0),
        "suspense": np.where(is_money, entries.amounts["suspense"], 0),
        "rejected": np.where(is_money, entries.amounts["rejected"], 0),
    }


def _rejections(entries: Entries, count: int) -> pa.StringArray:
    reasons: dict[int, list[tuple[int | None, str | None]]] = {}
    for at in np.flatnonzero(entries.kind == _REJECTED).tolist():
        reason = (int(entries.transaction_id[at]), entries.reason[at])
        reasons.setdefault(int(entries.loan[at]), []).append(reason)
    words = {loan: rejections_of(of_loan) for loan, of_loan in reasons.items()}
    return pa.array([words.get(loan) for loan in range(count)], pa.string())


def _sums(loan: Integers, values: Integers, count: int) -> Integers:
    sums = np.zeros(count, np.int64)
    np.add.at(sums, loan, values)
    return sums
