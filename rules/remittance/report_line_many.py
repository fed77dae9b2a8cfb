"""An investor's month of many loans at once: the same lines as `report_line` gives for each."""

import datetime
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.arrays import Dates, Flags, Integers
from ledgerbeam.rules.closing.close import check_matches_book
from ledgerbeam.rules.closing.close_many import close_many
from ledgerbeam.rules.closing.delinquency import missed_payments_many
from ledgerbeam.rules.closing.interest import interest_due_many
from ledgerbeam.rules.loans.book import States
from ledgerbeam.rules.loans.columns import (
    AMOUNT,
    PERCENT,
    amounts_of,
    as_decimals,
    encoded,
    with_places,
)
from ledgerbeam.rules.loans.entries import KINDS, Entries
from ledgerbeam.rules.loans.loan import (
    STATE_VERSION,
    EntryKind,
    Policy,
    RateChange,
    Step,
    TransactionKind,
)
from ledgerbeam.rules.loans.read_book import Book
from ledgerbeam.rules.loans.terms_columns import TermsColumns
from ledgerbeam.rules.money import units
from ledgerbeam.rules.remittance.remit import Investor, RemittanceType
from ledgerbeam.rules.remittance.remit_many import (
    MONTH_SCHEMA,
    PUBLISHED_SCHEMA,
    published_lines,
    remit_many,
)
from ledgerbeam.rules.remittance.report_line import (
    MonthMoney,
    book_policy,
    changes_of,
    month_ends,
    not_booked,
    nothing_to_report,
    rejections_of,
)
from ledgerbeam.rules.remittance.scheduled_month import first_due_of, rates_of, scheduled_month
from ledgerbeam.rules.terms.due_dates import month_later, month_later_many

HOLDING_SCHEMA = pa.schema(
    {
        "investor_id": pa.string(),
        "pool_id": pa.string(),
        "participation": PERCENT,
        "scheduled_balance": AMOUNT,
    }
)
MONTH_MONEY_SCHEMA = pa.schema([(name, AMOUNT) for name in MonthMoney._fields])
REPORT_SCHEMA = pa.schema(
    [
        *PUBLISHED_SCHEMA,
        *MONTH_MONEY_SCHEMA,
        ("rejections", pa.string()),
    ]
)
"""A line of the report: the remittance, where the month's money is, and what was rejected."""

_REJECTED = KINDS.index(EntryKind.REJECTED)
_PAYOFF = KINDS.index(EntryKind.PAYOFF)
_RATE_CHANGE = KINDS.index(EntryKind.RATE_CHANGE)


def report_line_many(
    book: Book,
    holdings: pa.Table,
    investors: Mapping[str, Investor],
    business_date: datetime.date,
    policy: Policy,
) -> pa.Table:
    """`report_line.report_line` of every loan.

    Args:
        book: of the loans.
        holdings: columns of `HOLDING_SCHEMA`, a row a loan, in the same order.
        investors: by their ids.
        business_date: the day of the report.
        policy: how the book is run.

    Returns:
        A row of `REPORT_SCHEMA` for every loan, in the same order; amounts have the decimals of
        `scheduled_balance`.

    Raises:
        ValueError: as for `report_line`; for any of the loans.
    """
    scale = holdings.field("scheduled_balance").type.scale
    schema = with_places(REPORT_SCHEMA, scale)
    if not len(book.terms):
        return schema.empty_table()
    terms, places = book.terms, book.terms.places
    opened = book.opening.closed_through
    if opened.max() >= np.datetime64(business_date):
        raise nothing_to_report(opened.max().item(), business_date)
    months = _Months(book, holdings, investors)
    states = book.opening
    scheduled = amounts_of(holdings.column("scheduled_balance"), places, "scheduled_balance")
    ledger = _Bookings(book)
    for end in month_ends(opened.min().item(), business_date):
        closed = close_many(
            terms, book.opening, states, book.transactions, end, book_policy(policy)
        )
        before, states = states, closed.states
        _check_book(book, states, end)
        if Step.DELINQUENCY in policy.steps:
            _note_delinquency(terms, states, end, policy)
        lines = remit_many(months.table(before, states, closed.entries, scheduled, end), investors)
        # Loans that are opened after this month keep their scheduled balance.
        is_open = before.closed_through < np.datetime64(end)
        ending = lines.column("ending_balance").to_numpy()
        scheduled = np.where(is_open, ending, scheduled)
        ledger.take(closed.entries)
    money = ledger.money(closed.entries, before, business_date)
    rejections = _rejections(closed.entries, len(terms))
    published = published_lines(lines, places, scale)
    amount = schema.field("received").type
    received = [as_decimals(column, places, amount) for column in money]
    return pa.table([*published.columns, *received, rejections], schema=schema)


def _check_book(book: Book, states: States, day: datetime.date) -> None:
    """Reject another book than the one that was closed.

    Raises:
        BookMismatchError: the states on the book at the close of the day are others.
    """
    if book.on_book is None:
        return
    closed_through = book.on_book.closed_through
    is_known = (closed_through == np.datetime64(day)) & (
        book.opening.closed_through < closed_through
    )
    # States by older versions of the rules may differ.
    is_known &= book.opening.version >= STATE_VERSION
    for loan in np.flatnonzero(is_known & (book.on_book.differs(states))).tolist():
        check_matches_book(book.terms.row(loan), book.on_book.row(loan), states.row(loan))


def _note_delinquency(
    terms: TermsColumns, states: States, day: datetime.date, policy: Policy
) -> None:
    """`close.note_delinquency` of all loans, but for the days past due."""
    due = states.next_due
    day_of_month = (due - due.astype("datetime64[M]")).astype(np.int64) + 1
    due_day = np.where(terms.months == 1, terms.due_day, day_of_month)
    missed = missed_payments_many(due, due_day, day, policy.delinquency)
    states.missed_payments = np.where(states.balance > 0, missed, 0)


class _Months:
    """Months of loans, as `LoanMonth` has them."""

    def __init__(self, book: Book, holdings: pa.Table, investors: Mapping[str, Investor]) -> None:
        self._book = book
        self._holdings = holdings
        self._participation = units(holdings.column("participation"), PERCENT.scale)
        types = {name: each.remittance_type for name, each in investors.items()}
        of_loans = encoded(holdings.column("investor_id"))
        is_scheduled = [
            types.get(name) is RemittanceType.SCHEDULED_SCHEDULED
            for name in of_loans.dictionary.to_pylist()
        ]
        self._is_scheduled: Flags = np.array(is_scheduled, bool)[of_loans.indices.to_numpy()]
        terms = book.terms
        self._is_usual = terms.is_usual & (terms.months == 1)
        self._first_due = _first_due_many(book)
        self._first_due_of: dict[int, datetime.date] = {}

    def table(
        self,
        before: States,
        after: States,
        entries: Entries,
        scheduled_balance: Integers,
        month: datetime.date,
    ) -> pa.Table:
        """`loan_month` of every loan, as `MONTH_SCHEMA` says."""
        terms = self._book.terms
        count = len(terms)
        balance = np.where(self._is_scheduled, scheduled_balance, before.balance)
        rate = before.rate.copy()
        interest, base, instalments = self._by_schedule(before, balance, month)
        changed = np.unique(
            np.concatenate(
                [
                    entries.loan[entries.kind == _RATE_CHANGE],
                    np.flatnonzero([bool(changes) for changes in before.rate_changes]),
                ]
            )
        )
        # The instalment of a first period may differ from the others.
        is_first = self._book.terms.first_due.astype("datetime64[M]") == np.datetime64(month, "M")
        by_plain_rule = np.union1d(np.flatnonzero(~self._is_usual | is_first), changed)
        for loan in by_plain_rule.astype(np.int64).tolist():
            made = entries.take(entries.loan == loan) if loan in changed else None
            rates = rates_of(
                before.row(loan), self._changes(loan, made), before.closed_through[loan].item()
            )
            found = scheduled_month(
                terms.row(loan), self._first(loan), rates, int(balance[loan]), month
            )
            interest[loan], base[loan] = found.due
            instalments[loan] = found.principal
            is_one = not rates.changes and after.rate[loan] == before.rate[loan] == rates.rate
            rate[loan] = rates.rate if is_one else -1
        is_money, is_payoff = ~entries.is_charge(), entries.original_kind() == _PAYOFF
        amounts = entries.amounts

        def of_loans(values: Integers, which: Flags) -> Integers:
            return _sums(entries.loan, np.where(which, values, 0), count)

        columns = {
            "rate": rate,
            "participation": self._participation,
            "actual_balance": before.balance,
            "actual_ending_balance": after.balance,
            "scheduled_balance": scheduled_balance,
            "curtailment": _sums(entries.loan, amounts["curtailment"], count),
            "payoff": of_loans(amounts["principal"], is_payoff),
            "collected": of_loans(amounts["interest"], is_money),
            "collected_base": of_loans(amounts["interest_base"], is_money),
            "month_interest": interest,
            "month_base": base,
            "instalments": np.where(self._is_scheduled, instalments, 0),
            "matured": (np.datetime64(month_later(month, 31, 0)) >= terms.maturity_date).astype(
                np.int64
            ),
            "missed_payments": after.missed_payments,
        }
        names = {
            "loan_id": terms.loan_id,
            "investor_id": self._holdings.column("investor_id"),
            "pool_id": self._holdings.column("pool_id"),
            "currency": pa.array(terms.currency, pa.string()),
        }
        return pa.table(
            [names[name] if name in names else columns[name] for name in MONTH_SCHEMA.names],
            names=MONTH_SCHEMA.names,
        )

    def _by_schedule(
        self, before: States, balance: Integers, month: datetime.date
    ) -> tuple[Integers, Integers, Integers]:
        """`scheduled_month` of loans with usual terms whose rate doesn't change."""
        terms, count = self._book.terms, len(balance)
        interest, base, instalments = np.zeros((3, count), np.int64)
        at = np.flatnonzero(self._is_usual)
        due = month_later_many(np.full(len(at), month, "datetime64[D]"), terms.due_day[at], 0)
        begin = month_later_many(due, terms.due_day[at], -1)
        interest[at], base[at] = interest_due_many(
            balance[at], before.rate[at], terms.day_count[at], terms.due_day[at], begin, due
        )
        left = balance[at]
        repaid = np.minimum(left, before.payment[at] - interest[at])
        repaid = np.where(due >= terms.maturity_date[at], left, repaid)
        is_due = (due >= self._first_due[at]) & (due <= terms.maturity_date[at])
        instalments[at] = np.where(is_due, repaid, 0)
        return interest, base, instalments

    def _first(self, loan: int) -> datetime.date:
        if loan not in self._first_due_of:
            book = self._book
            self._first_due_of[loan] = first_due_of(book.terms.row(loan), book.opening.row(loan))
        return self._first_due_of[loan]

    def _changes(self, loan: int, made: Entries | None) -> list[RateChange]:
        if made is None:
            return []
        ids = made.transaction_id[made.kind == _RATE_CHANGE].tolist()
        rows = [each for each in self._book.transactions.rows(loan) if each.transaction_id in ids]
        return changes_of(rows)


def _first_due_many(book: Book) -> Dates:
    """`first_due_of` of loans with usual terms."""
    terms = book.terms
    originated, due_day = terms.origination_date, terms.due_day
    same_month = month_later_many(originated, due_day, 0)
    begins = np.where(same_month >= originated, same_month, month_later_many(originated, due_day))
    inferred = np.minimum(month_later_many(begins, due_day), book.opening.next_due)
    return np.where(np.isnat(terms.first_due), inferred, terms.first_due)


class _Bookings:
    """Which transactions have entries, month after month."""

    def __init__(self, book: Book) -> None:
        self._book = book
        rows = book.transactions
        self._loans = rows.loans()
        # Ids are unique within a loan, not among loans.
        self._ids = np.unique(rows.transaction_id)
        self._keys = self._key(self._loans, rows.transaction_id)
        self._before = self._now = np.zeros(len(self._loans), bool)
        self._rejected = self._before.copy()

    def take(self, entries: Entries) -> None:
        """Record a month's entries."""
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
        """`month_money` every loan, in the order of `MonthMoney`, for the month recorded last."""
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
        return [money[name] for name in MonthMoney._fields]


def _money_amounts(entries: Entries) -> dict[str, Integers]:
    """`close.money_received` of each entry; 0 for charges."""
    is_money = ~entries.is_charge()
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
