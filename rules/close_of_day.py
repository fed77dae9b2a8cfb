"""Close of day: a loan's state and transactions in, its new state and ledger entries out.

What is true of a loan at the close of a day is defined by its opening and by the transactions
posted by then, each taking effect on its effective date: reversed ones not at all, one that is
refused on the day it was posted. The entries in force are those that the days in between would
have made, in that order. A transaction that is back-dated, and a reversal, change the past; then
the loan is computed again from its opening, and the entries made are the difference: one that
takes back each entry no longer true, and one for each that is newly true. Entries are never
changed, and what was received is always applied + in suspense + rejected.

Interest makes no difference entry for every day: the accrual of the day makes up for it.
"""

import bisect
import dataclasses
import datetime
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ledgerbeam.rules.delinquency import accrued, days_past_due, late_fees, missed_payments
from ledgerbeam.rules.loan import (
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
    month_later,
)
from ledgerbeam.rules.payments import apply_transaction, refusal, rejected, release

MONEY_STEPS = (Step.APPLY_PAYMENTS, Step.FEES)
"""The steps that a computation from the opening repeats."""


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
        ValueError: two transactions with one id.
    """
    policy.check()
    state = dataclasses.replace(state)
    entries: list[Entry] = []
    if state.closed_through < business_date:
        ledger = _Ledger(terms, opening, transactions)
        for day in days_between(state.closed_through, business_date):
            state, made = _close_day(ledger, state, day, policy)
            entries += made
    return Closed(state, entries)


class _Ledger:
    """A loan's transactions, by the days on which they count."""

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
        self._refusals: dict[int, str | None] = {}
        self._standing: tuple[int, dict[datetime.date, list[Transaction]]] = (0, {})

    def refusal(self, transaction: Transaction) -> str | None:
        """Why a transaction is refused whatever the state of the loan; None if it isn't."""
        number = transaction.transaction_id
        if number not in self._refusals:
            boarded_on = self.opening.closed_through
            self._refusals[number] = refusal(self.terms, boarded_on, transaction)
        return self._refusals[number]

    def day_of(self, transaction: Transaction) -> datetime.date:
        """The day whose close the transaction changes: if refused, the one it was posted on."""
        if transaction.kind == TransactionKind.REVERSAL or self.refusal(transaction):
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

    def standing(self, through: datetime.date) -> dict[datetime.date, list[Transaction]]:
        """What was posted by a day and isn't reversed, by the day it counts on, by id.

        Reversals that undo something are gone with it; those that don't are left to be rejected.
        """
        days = bisect.bisect_right(self._posting_days, through)
        if days != self._standing[0]:
            self._standing = days, self._find_standing(through)
        return self._standing[1]

    def _find_standing(self, through: datetime.date) -> dict[datetime.date, list[Transaction]]:
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
        if transaction.kind != TransactionKind.REVERSAL or self.refusal(transaction):
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
    transactions = ledger.standing(day).get(day, ())
    for step in policy.steps:
        entries += _take_step(ledger, state, step, transactions, day, policy)
    state.closed_through = day
    return state, entries


def _close_again(
    ledger: _Ledger, state: State, day: datetime.date, policy: Policy
) -> tuple[State, list[Entry]]:
    """Close a day that changes earlier ones: what is booked becomes what would have been."""
    yesterday = day - datetime.timedelta(1)
    _, booked = _from_opening(ledger, yesterday, policy)
    again, true = _from_opening(ledger, day, policy)
    entries = difference(booked, true, day)
    again.accrued = state.accrued - sum(entry.interest for entry in entries)
    for step in policy.steps:
        if step not in MONEY_STEPS:
            entries += _take_step(ledger, again, step, [], day, policy)
    if Step.DELINQUENCY not in policy.steps:
        again.missed_payments, again.days_past_due = state.missed_payments, state.days_past_due
    again.closed_through = day
    return again, entries


def _from_opening(
    ledger: _Ledger, known: datetime.date, policy: Policy
) -> tuple[State, list[Entry]]:
    """The state and all entries in force at the close of `known`, by what was posted by then."""
    state = dataclasses.replace(ledger.opening)
    by_day = ledger.standing(known)
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
    if state.suspense and state.next_due > day:
        yield state.next_due
    due = max(state.next_due, month_later(state.late_fees_through, terms.due_day))
    late = due + datetime.timedelta(policy.grace_days)
    if late > day:
        yield late


def difference(booked: Sequence[Entry], true: Sequence[Entry], day: datetime.date) -> list[Entry]:
    """Entries, posted on `day`, that turn what is booked into what is true."""
    was = {_identity(entry): entry for entry in booked}
    now = {_identity(entry): entry for entry in true}
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
            if not state.balance:
                state.missed_payments = state.days_past_due = 0
                return []
            state.days_past_due = days_past_due(state.next_due, day)
            state.missed_payments = missed_payments(
                state.next_due, terms.due_day, day, policy.delinquency
            )
            return []
        case Step.FEES:
            entries = []
            for due, fee in late_fees(terms, state, day, policy):
                state.fees += fee
                state.late_fees_through = due
                entries.append(Entry(EntryKind.LATE_FEE, due, day, amount=fee))
            return entries


def _apply_payments(
    ledger: _Ledger,
    state: State,
    transactions: Sequence[Transaction],
    day: datetime.date,
    policy: Policy,
) -> list[Entry]:
    entries = []
    for transaction in transactions:
        reason = ledger.refusal(transaction)
        if reason is None and transaction.kind == TransactionKind.REVERSAL:
            reason = f"transaction {transaction.reverses} can't be reversed: it is unknown here, a "
            reason += "reversal itself, or reversed already"
        if reason is None:
            entries.append(apply_transaction(ledger.terms, state, transaction, day, policy))
        else:
            entries.append(rejected(transaction, day, reason))
    released = release(ledger.terms, state, day, policy)
    return entries if released is None else [*entries, released]


class Received(NamedTuple):
    """Where the money received for a loan is, in minor units."""

    received: int
    applied: int
    suspense: int
    rejected: int

    @property
    def is_balanced(self) -> bool:
        """Whether received = applied + suspense + rejected."""
        return self.received == self.applied + self.suspense + self.rejected


def received(entries: Iterable[Entry]) -> Received:
    """Sums over the entries that are about money received."""
    money = [entry for entry in entries if not is_charge(entry)]
    return Received(
        sum(entry.amount for entry in money),
        sum(
            entry.interest + entry.principal + entry.escrow + entry.fees + entry.curtailment
            for entry in money
        ),
        sum(entry.suspense for entry in money),
        sum(entry.rejected for entry in money),
    )
