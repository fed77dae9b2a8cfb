"""Close of day: a loan's state and transactions in, its new state and ledger entries out.

What is true of a loan at the close of a day is defined by its opening and by the transactions
posted by then, each taking effect on its effective date: reversed ones not at all, one that is
rejected on the day it was posted. The entries in force are those that the days in between would
have made, in that order. A transaction that is back-dated, and a reversal, change the past; then
the loan is computed again from its opening, and the entries made are the difference: one that
takes back each entry no longer true, and one for each that is newly true. Entries are never
changed, and what was received is always applied + in suspense + rejected.

Interest makes no difference entry for every day: the accrual of the day makes up for it.
"""

import bisect
import datetime
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ledgerbeam.rules.closing.delinquency import days_past_due, late_on, missed_payments, payable_on
from ledgerbeam.rules.closing.interest import accrued, bring_forward
from ledgerbeam.rules.closing.late_fees import late_fees, next_late_fee
from ledgerbeam.rules.closing.payments import (
    apply_transaction,
    pass_empty_instalments,
    rejection_entry,
    rejection_reason,
    release_suspense,
    take_rates,
)
from ledgerbeam.rules.currency import format_money
from ledgerbeam.rules.loans.loan import (
    AMOUNTS,
    Entry,
    EntryKind,
    Policy,
    State,
    Step,
    Terms,
    Transaction,
    TransactionKind,
    days_between,
    is_charge,
)
from ledgerbeam.rules.terms.due_dates import MONTHLY

MONEY_STEPS = (Step.APPLY_PAYMENTS, Step.FEES)
"""The steps that a computation from the opening repeats."""


_MONEY = ("balance", "suspense", "escrow", "fees", "instalment_paid", "escrow_paid", "brought")
_RECOMPUTED = (
    *_MONEY, "next_due", "accrued_from", "late_fees_through", "rate", "payment", "brought_base",
    "ahead", "ahead_until", "fees_ahead", "rate_changes",
)  # fmt: skip
"""Fields of a state that a computation from the opening finds again, money first."""


class BookMismatchError(ValueError):
    """The state of a loan doesn't follow from its opening and its transactions.

    Attributes:
        loan_id: the loan.
        field: of the state.
        on_book: its value there; money as text.
        computed: its value by the transactions.
    """

    def __init__(self, loan_id: str, field: str, on_book: object, computed: object) -> None:
        super().__init__(
            f"loan {loan_id}: {field} is {on_book} on the book, and {computed} by its opening and "
            "the transactions given: transactions of earlier nights are missing or changed, or "
            "the policy is another"
        )
        self.loan_id, self.field = loan_id, field
        self.on_book, self.computed = on_book, computed


class Closed(NamedTuple):
    """What closing gives.

    Attributes:
        state: at the close of the business date.
        entries: made on the way, oldest first.
    """

    state: State
    entries: list[Entry]


def close(
    terms: Terms,
    opening: State,
    state: State,
    transactions: Iterable[Transaction],
    business_date: datetime.date,
    policy: Policy,
) -> Closed:
    """Close a loan's days up to the business date, one after the other.

    Args:
        terms: of the loan.
        opening: its state when this book took it over; `opening.closed_through` is that day.
        state: as it was last closed, or the opening. Neither is changed.
        transactions: all since the opening, in any order. Those posted later don't count.
        business_date: if it is closed already, nothing happens.
        policy: the same for the whole life of the book; another one would rewrite the past.

    Raises:
        BookMismatchError: a transaction changes the past, and that isn't what the transactions
            given have led to.
        ValueError: two transactions with one id.
    """
    policy.check()
    state = state.copy()
    entries: list[Entry] = []
    if state.closed_through < business_date:
        ledger = _Ledger(terms, opening, transactions)
        for day in days_between(state.closed_through, business_date):
            state, made = _close_day(ledger, state, day, policy)
            entries += made
    return Closed(state, entries)


class _Ledger:
    """A loan's transactions, by the days on which they take effect."""

    def __init__(self, terms: Terms, opening: State, transactions: Iterable[Transaction]) -> None:
        self.terms = terms
        self.opening = opening
        self.by_id: dict[int, Transaction] = {}
        self.posted: defaultdict[datetime.date, list[Transaction]] = defaultdict(list)
        for transaction in transactions:
            if transaction.transaction_id in self.by_id:
                raise ValueError(f"transaction {transaction.transaction_id} is there twice")
            self.by_id[transaction.transaction_id] = transaction
            self.posted[transaction.posted_date].append(transaction)
        self._posting_days = sorted(self.posted)
        self._rejection_reasons: dict[int, str | None] = {}
        self._in_force: tuple[int, dict[datetime.date, list[Transaction]]] = (0, {})

    def rejection_reason(self, transaction: Transaction) -> str | None:
        """Why a transaction is rejected whatever the state of the loan; None if it isn't."""
        number = transaction.transaction_id
        if number not in self._rejection_reasons:
            boarded_on = self.opening.closed_through
            self._rejection_reasons[number] = rejection_reason(self.terms, boarded_on, transaction)
        return self._rejection_reasons[number]

    def day_of(self, transaction: Transaction) -> datetime.date:
        """The day whose close the transaction changes: if rejected, the one it was posted on."""
        if transaction.kind == TransactionKind.REVERSAL or self.rejection_reason(transaction):
            first_day = self.opening.closed_through + datetime.timedelta(1)
            return max(transaction.posted_date, first_day)
        return transaction.effective_date

    def changes_the_past(self, day: datetime.date) -> bool:
        """Whether something posted on `day` changes an earlier one."""
        return any(self._oldest_change(each) < day for each in self.posted.get(day, ()))

    def _oldest_change(self, transaction: Transaction) -> datetime.date:
        undone = self._undone_by(transaction)
        if undone is None:
            return self.day_of(transaction)
        return min(self.day_of(transaction), self.day_of(undone))

    def _undone_by(self, transaction: Transaction) -> Transaction | None:
        if transaction.kind != TransactionKind.REVERSAL or transaction.reverses is None:
            return None
        return self.by_id.get(transaction.reverses)

    def in_force(self, through: datetime.date) -> dict[datetime.date, list[Transaction]]:
        """What was posted by a day and isn't reversed: by the day it takes effect, then by id.

        Reversals that undo something are left out with it; the others stay, to be rejected.
        """
        days = bisect.bisect_right(self._posting_days, through)
        if days != self._in_force[0]:
            self._in_force = days, self._find_in_force(through)
        return self._in_force[1]

    def _find_in_force(self, through: datetime.date) -> dict[datetime.date, list[Transaction]]:
        known = sorted(
            (each for each in self.by_id.values() if each.posted_date <= through),
            key=lambda each: (each.posted_date, each.transaction_id),
        )
        undone: set[int] = set()
        gone: set[int] = set()
        for each in known:
            if self._reverses(each, undone):
                assert each.reverses is not None
                undone.add(each.reverses)
                gone.add(each.transaction_id)
        by_day = defaultdict(list)
        for each in known:
            if each.transaction_id not in undone | gone:
                by_day[self.day_of(each)].append(each)
        # Rates first: a payment of the day is computed with them.
        for day in by_day:
            by_day[day].sort(
                key=lambda each: (each.kind != TransactionKind.RATE_CHANGE, each.transaction_id)
            )
        return dict(by_day)

    def _reverses(self, transaction: Transaction, undone: set[int]) -> bool:
        """Whether it is a reversal of something that can be reversed."""
        if transaction.kind != TransactionKind.REVERSAL or self.rejection_reason(transaction):
            return False
        other = self._undone_by(transaction)
        return (
            other is not None
            and other.kind != TransactionKind.REVERSAL
            and other.posted_date <= transaction.posted_date
            and other.transaction_id not in undone
        )


def _close_day(
    ledger: _Ledger, state: State, day: datetime.date, policy: Policy
) -> tuple[State, list[Entry]]:
    if ledger.changes_the_past(day):
        return _close_again(ledger, state, day, policy)
    entries: list[Entry] = []
    transactions = ledger.in_force(day).get(day, ())
    for step in policy.steps:
        entries += _take_step(ledger, state, step, transactions, day, policy)
    state.closed_through = day
    return state, entries


def _close_again(
    ledger: _Ledger, state: State, day: datetime.date, policy: Policy
) -> tuple[State, list[Entry]]:
    """Close a day that changes earlier ones, with entries that correct those booked."""
    yesterday = day - datetime.timedelta(1)
    before, booked = _from_opening(ledger, yesterday, policy)
    check_matches_book(ledger.terms, state, before)
    again, correct = _from_opening(ledger, day, policy)
    entries = _correcting_entries(booked, correct, day)
    again.accrued = state.accrued - sum(entry.interest for entry in entries)
    for step in policy.steps:
        if step not in MONEY_STEPS:
            entries += _take_step(ledger, again, step, [], day, policy)
    if Step.DELINQUENCY not in policy.steps:
        again.missed_payments, again.days_past_due = state.missed_payments, state.days_past_due
    again.closed_through = day
    return again, entries


def check_matches_book(terms: Terms, on_book: State, computed: State) -> None:
    """Reject a state on the book that isn't the one that is computed from the opening.

    Raises:
        BookMismatchError: a field of the state differs.
    """
    for name in _RECOMPUTED:
        one, other = getattr(on_book, name), getattr(computed, name)
        if one != other:
            if name in _MONEY:
                one, other = (format_money(each, terms.currency) for each in (one, other))
            raise BookMismatchError(terms.loan_id, name, one, other)


def _from_opening(
    ledger: _Ledger, known: datetime.date, policy: Policy
) -> tuple[State, list[Entry]]:
    """The state and all entries in force at the close of `known`, by what was posted by then."""
    state = ledger.opening.copy()
    by_day = ledger.in_force(known)
    steps = [step for step in policy.steps if step in MONEY_STEPS]
    entries: list[Entry] = []
    day = state.closed_through + datetime.timedelta(1)
    coming = sorted(each for each in by_day if each > day)
    while day <= known:
        for step in steps:
            entries += _take_step(ledger, state, step, by_day.get(day, ()), day, policy)
        while coming and coming[0] <= day:
            del coming[0]
        day = min([*coming[:1], *_own_events(ledger.terms, state, day, policy), _NEVER])
    return state, entries


_NEVER = datetime.date.max


def _own_events(
    terms: Terms, state: State, day: datetime.date, policy: Policy
) -> Iterator[datetime.date]:
    """The next days on which money moves without a transaction: a due date and a late fee."""
    if (state.suspense or terms.method.interest_only) and state.next_due > day:
        yield state.next_due
    if state.ahead_until is not None:
        yield state.ahead_until
    if state.balance:
        due = next_late_fee(terms, state)
        # An instalment that never gets a fee may precede one that does.
        while due <= terms.maturity_date and late_on(terms, due, policy) <= day:
            due = terms.due_dates.after(due)
        if due <= terms.maturity_date:
            yield late_on(terms, due, policy)


def _correcting_entries(
    booked: Sequence[Entry], correct: Sequence[Entry], day: datetime.date
) -> list[Entry]:
    """Entries, posted on `day`, that turn the entries booked into the correct ones."""
    was = {_identity(entry): entry for entry in booked}
    now = {_identity(entry): entry for entry in correct}
    entries = [_reversal(entry, day) for key, entry in was.items() if now.get(key) != entry]
    entries += [
        entry._replace(posted_date=day) for key, entry in now.items() if was.get(key) != entry
    ]
    return entries


def _identity(entry: Entry) -> tuple[int | None, datetime.date, EntryKind]:
    return entry.transaction_id, entry.effective_date, entry.kind


def _reversal(entry: Entry, day: datetime.date) -> Entry:
    amounts = {name: -getattr(entry, name) for name in AMOUNTS}
    return entry._replace(
        kind=EntryKind.REVERSAL, posted_date=day, reverses=entry.kind, reason=None, **amounts
    )


def _take_step(
    ledger: _Ledger,
    state: State,
    step: Step,
    transactions: Sequence[Transaction],
    day: datetime.date,
    policy: Policy,
) -> list[Entry]:
    terms = ledger.terms
    match step:
        case Step.APPLY_PAYMENTS:
            return _apply_payments(ledger, state, transactions, day, policy)
        case Step.ACCRUE:
            amount = accrued(terms, state, day) - state.accrued
            state.accrued += amount
            return [Entry(EntryKind.ACCRUAL, day, day, amount=amount)] if amount else []
        case Step.DELINQUENCY:
            note_delinquency(terms, state, day, policy)
            return []
        case Step.FEES:
            entries = []
            for due, fee in late_fees(terms, state, day, policy):
                state.fees += fee
                state.late_fees_through = due
                if fee:
                    entries.append(Entry(EntryKind.LATE_FEE, due, day, amount=fee))
            return entries


def note_delinquency(terms: Terms, state: State, day: datetime.date, policy: Policy) -> None:
    """Set `missed_payments` and `days_past_due` of a state, as of the close of a day."""
    if not state.balance:
        state.missed_payments = state.days_past_due = 0
        return
    state.days_past_due = days_past_due(payable_on(terms, state.next_due, policy), day)
    due_day = terms.due_day if terms.frequency == MONTHLY else state.next_due.day
    state.missed_payments = missed_payments(state.next_due, due_day, day, policy.delinquency)


def _apply_payments(
    ledger: _Ledger,
    state: State,
    transactions: Sequence[Transaction],
    day: datetime.date,
    policy: Policy,
) -> list[Entry]:
    entries = []
    if state.ahead_until is not None and state.ahead_until <= day:
        # The instalment that was paid ahead falls due: its interest is earned.
        bring_forward(ledger.terms, state, state.ahead_until)
        take_rates(state)
    if ledger.terms.method.interest_only:
        pass_empty_instalments(ledger.terms, state, day)
    for transaction in transactions:
        reason = ledger.rejection_reason(transaction)
        if reason is None and transaction.kind == TransactionKind.REVERSAL:
            reason = f"transaction {transaction.reverses} can't be reversed: it is unknown here, a "
            reason += "reversal itself, or reversed already"
        if reason is None:
            entries.append(apply_transaction(ledger.terms, state, transaction, day, policy))
        else:
            entries.append(rejection_entry(transaction, day, reason))
    released = release_suspense(ledger.terms, state, day, policy)
    return entries if released is None else [*entries, released]


class MoneyReceived(NamedTuple):
    """Where the money received for a loan is, in minor units."""

    received: int
    applied: int
    suspense: int
    rejected: int

    @property
    def is_balanced(self) -> bool:
        """Whether received = applied + suspense + rejected."""
        return self.received == self.applied + self.suspense + self.rejected


def money_received(entries: Iterable[Entry]) -> MoneyReceived:
    """Sums over the entries that are about money received, in minor units."""
    money = [entry for entry in entries if not is_charge(entry)]
    return MoneyReceived(
        sum(entry.amount for entry in money),
        sum(
            entry.interest + entry.principal + entry.escrow + entry.fees + entry.curtailment
            for entry in money
        ),
        sum(entry.suspense for entry in money),
        sum(entry.rejected for entry in money),
    )
