"""Close of day for many loans at once, with the same result as `close_of_day.close` for each.

A day on which nothing comes in but an ordinary payment is computed for all loans together. A loan
for which anything else comes in (two payments, a reversal, something back-dated, a curtailment, a
payoff, a change of the rate, anything that will be rejected) has that day closed by the plain
function. Where partial payments are applied, that has every day with a payment.
"""

import datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ledgerbeam.rules.book import States, TermsColumns, Transactions
from ledgerbeam.rules.close_of_day import close
from ledgerbeam.rules.delinquency import interest_many, missed_many, months_later
from ledgerbeam.rules.entries import Entries
from ledgerbeam.rules.loan import (
    RATE_UNITS,
    Bucket,
    Entry,
    EntryKind,
    Partials,
    Policy,
    Step,
    TransactionKind,
    days_between,
)
from ledgerbeam.rules.money import round_div

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class ClosedMany(NamedTuple):
    """What closing many loans gives.

    Attributes:
        states: of all loans, closed through the business date.
        entries: made on the way.
        by_plain_function: how many days of a loan it closed.
    """

    states: States
    entries: Entries
    by_plain_function: int


def close_many(
    terms: TermsColumns,
    opening: States,
    states: States,
    transactions: Transactions,
    business_date: datetime.date,
    policy: Policy,
) -> ClosedMany:
    """Close every loan's days up to the business date; see `close_of_day.close`.

    Args:
        terms: of the loans.
        opening: their states when this book took them over, in the same order, as all columns.
        states: as they were last closed. Neither is changed.
        transactions: of the same loans, since the opening.
        business_date: loans closed through it already stay as they are.
        policy: how the book is run.

    Raises:
        ValueError: two transactions of a loan have one id.
    """
    policy.check()
    run = _Run(terms, opening, states, transactions, business_date, policy)
    if len(states):
        oldest = states.closed_through.min().item()
        for day in days_between(oldest, business_date):
            run.close_day(day)
    return run.finish()


class _Run:
    """Loans while they are being closed."""

    def __init__(
        self,
        terms: TermsColumns,
        opening: States,
        states: States,
        transactions: Transactions,
        business_date: datetime.date,
        policy: Policy,
    ) -> None:
        self.terms, self.opening = terms, opening
        self.transactions, self.business_date, self.policy = transactions, business_date, policy
        self.states = states.copy()
        self.pieces: list[Entries] = []
        self.plain_loans: list[int] = []
        self.plain_entries: list[Entry] = []
        self.by_plain_function = 0
        self.is_behind = states.closed_through < np.datetime64(business_date)
        self.changes_rate: Flags = np.array([bool(each) for each in states.rate_changes], bool)
        self._sort_transactions(transactions.loans())

    def _sort_transactions(self, loans: Integers) -> None:
        """Find by day the ordinary payments, and the loans for which anything else counts."""
        rows = self.transactions
        closed, boarded = self.states.closed_through[loans], self.opening.closed_through[loans]
        self._refuse_twins(loans)
        effective, posted = rows.effective_date, rows.posted_date
        is_new = (posted > closed) | (effective > closed) | (closed == boarded)
        last = np.datetime64(self.business_date)
        at = np.flatnonzero(is_new & (posted <= last) & self.is_behind[loans])
        loan = loans[at]
        payments = [code for code, kind in enumerate(rows.kinds) if kind == TransactionKind.PAYMENT]
        currencies = np.array(rows.currencies, object)
        is_ordinary = (
            np.isin(rows.kind[at], payments)
            & (posted[at] == effective[at])
            & (rows.amount[at] > 0)
            & (currencies[rows.currency[at]] == self.terms.currency[loan])
            & (effective[at] >= self.terms.origination_date[loan])
            & (effective[at] > boarded[at])
        )
        other = at[~is_ordinary]
        # What was posted before the book began, and is refused, counts on its first day.
        before = other[posted[other] <= boarded[other]]
        days = np.concatenate([effective[other], posted[other], boarded[before] + 1])
        of_loan = loans[np.concatenate([other, other, before])]
        at = at[is_ordinary]
        at = at[np.lexsort((loans[at], effective[at]))]
        self.days, self.loans, self.rows = effective[at], loans[at], at
        is_second = (self.loans[1:] == self.loans[:-1]) & (self.days[1:] == self.days[:-1])
        days = np.append(days, self.days[1:][is_second])
        of_loan = np.append(of_loan, self.loans[1:][is_second])
        order = np.argsort(days, kind="stable")
        self.other_days, self.other_loans = days[order], of_loan[order]

    def _refuse_twins(self, loans: Integers) -> None:
        ids = self.transactions.transaction_id
        does_descend = np.zeros(len(self.states), bool)
        does_descend[loans[1:][(ids[1:] <= ids[:-1]) & (loans[1:] == loans[:-1])]] = True
        at = np.flatnonzero((does_descend & self.is_behind)[loans])
        at = at[np.lexsort((ids[at], loans[at]))]
        is_twin = (ids[at][1:] == ids[at][:-1]) & (loans[at][1:] == loans[at][:-1])
        for twin in ids[at][1:][is_twin]:
            raise ValueError(f"transaction {twin} is there twice")

    def close_day(self, day: datetime.date) -> None:
        """Take the steps of a day for the loans that were closed through the day before."""
        date = np.datetime64(day)
        is_open = self.is_behind & (self.states.closed_through == date - 1)
        is_other = self._needs_plain_function(date) & is_open
        for loan in np.flatnonzero(is_other).tolist():
            self._close_by_plain_function(loan, day)
        is_open &= ~is_other
        at = np.flatnonzero(is_open)
        for step in self.policy.steps:
            match step:
                case Step.APPLY_PAYMENTS:
                    self._apply_payments(at, is_open, day)
                case Step.ACCRUE:
                    self._accrue(at, day)
                case Step.DELINQUENCY:
                    self._delinquency(at, day)
                case Step.FEES:
                    self._fees(at, day)
        self.states.closed_through[at] = date

    def _needs_plain_function(self, date: np.datetime64) -> Flags:
        """Which loans have more to do than an ordinary payment today."""
        state = self.states
        is_other = self.changes_rate.copy()
        first, behind = np.searchsorted(self.other_days, [date, date + 1])
        is_other[self.other_loans[first:behind]] = True
        first, behind = np.searchsorted(self.days, [date, date + 1])
        paying = self.loans[first:behind]
        if self.policy.partials is Partials.APPLY:
            is_other[paying] = True
            is_other |= (state.suspense > 0) & (state.next_due <= date)
        else:
            # A loan that is paid off rejects it.
            is_other[paying[state.balance[paying] == 0]] = True
        return is_other

    def _close_by_plain_function(self, loan: int, day: datetime.date) -> None:
        state, entries = close(
            self.terms.row(loan),
            self.opening.row(loan),
            self.states.row(loan),
            self.transactions.rows(loan),
            day,
            self.policy,
        )
        self.states.put(loan, state)
        self.changes_rate[loan] = bool(state.rate_changes)
        self.by_plain_function += 1
        self.plain_loans += [loan] * len(entries)
        self.plain_entries += entries

    def finish(self) -> ClosedMany:
        """Put everything together."""
        pieces = [*self.pieces, Entries.from_rows(self.plain_loans, self.plain_entries)]
        return ClosedMany(self.states, Entries.joined(pieces), self.by_plain_function)

    def _apply_payments(self, at: Integers, is_open: Flags, day: datetime.date) -> None:
        date = np.datetime64(day)
        first, behind = np.searchsorted(self.days, [date, date + 1])
        pays = is_open[self.loans[first:behind]]
        loan, rows = self.loans[first:behind][pays], self.rows[first:behind][pays]
        if len(loan):
            amount = self.transactions.amount[rows]
            poured = self._receive(loan, amount, date)
            ids = self.transactions.transaction_id[rows]
            self._book(EntryKind.PAYMENT, loan, day, amount, poured, ids)
        state = self.states
        held = (state.suspense[at] > 0) & (state.balance[at] > 0) & (state.next_due[at] <= date)
        loan = np.setdiff1d(at[held], loan, assume_unique=True)
        if len(loan):
            nothing = np.zeros(len(loan), np.int64)
            poured = self._receive(loan, nothing, date)
            is_release = np.any([share > 0 for share in poured.values()], axis=0)
            shares = {bucket: share[is_release] for bucket, share in poured.items()}
            released = nothing[is_release]
            self._book(EntryKind.SUSPENSE_RELEASE, loan[is_release], day, released, shares, None)

    def _book(
        self,
        kind: EntryKind,
        loan: Integers,
        day: datetime.date,
        amount: Integers,
        poured: dict[Bucket, Integers],
        ids: Integers | None,
    ) -> None:
        suspense = amount - np.sum([*poured.values()], axis=0)
        amounts = {bucket.value: share for bucket, share in poured.items()}
        amounts |= {"amount": amount, "suspense": suspense}
        self.pieces.append(Entries.of(kind, loan, day, amounts, transaction_id=ids))

    def _receive(
        self, loan: Integers, amount: Integers, day: np.datetime64
    ) -> dict[Bucket, Integers]:
        """`payments.receive` for each of these loans, and its amount."""
        state, terms, policy = self.states, self.terms, self.policy
        available = state.suspense[loan] + amount
        total = {bucket: np.zeros(len(loan), np.int64) for bucket in Bucket}
        is_completed = np.zeros(len(loan), bool)
        left = np.arange(len(loan))
        while len(left):
            left = left[self._has_begun(loan[left], day) & (available[left] > 0)]
            at = loan[left]
            due_interest, principal = self._instalment(at)
            escrow = terms.escrow_payment[at] - state.escrow_paid[at]
            fees = state.fees[at] if policy.fees_first else np.zeros(len(at), np.int64)
            demand = due_interest + principal + escrow + fees
            is_covered = available[left] >= demand
            left, at = left[is_covered], at[is_covered]
            shares = (
                (Bucket.INTEREST, due_interest), (Bucket.PRINCIPAL, principal),
                (Bucket.ESCROW, escrow), (Bucket.FEES, fees),
            )  # fmt: skip
            for bucket, share in shares:
                total[bucket][left] += share[is_covered]
            available[left] -= demand[is_covered]
            is_completed[left] = True
            state.brought[at] = 0
            state.accrued_from[at] = np.maximum(state.accrued_from[at], state.next_due[at])
            state.accrued[at] -= due_interest[is_covered]
            state.balance[at] -= principal[is_covered]
            state.escrow[at] += escrow[is_covered]
            state.fees[at] -= fees[is_covered]
            state.next_due[at] = months_later(state.next_due[at], terms.due_day[at])
            state.instalment_paid[at] = state.escrow_paid[at] = 0
        is_held = state.next_due[loan] <= day
        is_held |= self._has_begun(loan, day) & ~is_completed
        excess = np.flatnonzero(~is_held & (state.balance[loan] > 0) & (available > 0))
        self._take_excess(loan, excess, available, total, day)
        state.suspense[loan] = available
        return total

    def _instalment(self, at: Integers) -> tuple[Integers, Integers]:
        """Interest and principal of the oldest instalments that aren't paid."""
        state, terms = self.states, self.terms
        balance = state.balance[at]
        due_interest = state.brought[at] + interest_many(
            balance, state.rate[at], terms.day_count[at], state.accrued_from[at],
            state.next_due[at],
        )  # fmt: skip
        rest = state.payment[at] - state.instalment_paid[at] - due_interest
        principal = np.minimum(balance, np.maximum(0, rest))
        is_last = state.next_due[at] >= terms.maturity_date[at]
        return due_interest, np.where(is_last, balance, principal)

    def _has_begun(self, at: Integers, day: np.datetime64) -> Flags:
        state = self.states
        begins = months_later(state.next_due[at], self.terms.due_day[at], -1)
        return np.asarray((state.balance[at] > 0) & (begins <= day))

    def _take_excess(
        self,
        loan: Integers,
        excess: Integers,
        available: Integers,
        total: dict[Bucket, Integers],
        day: np.datetime64,
    ) -> None:
        state, at = self.states, loan[excess]
        for bucket in self.policy.waterfall:
            rest = available[excess]
            if bucket is Bucket.FEES:
                share = np.minimum(rest, state.fees[at])
                state.fees[at] -= share
            elif bucket is Bucket.CURTAILMENT:
                share = np.where(rest < state.balance[at], rest, 0)
                curtailed = at[share > 0]
                state.brought[curtailed] = self._accrued(curtailed, day)
                state.accrued_from[curtailed] = np.maximum(state.accrued_from[curtailed], day)
                state.balance[at] -= share
            else:
                continue
            total[bucket][excess] += share
            available[excess] -= share

    def _accrued(self, at: Integers, day: np.datetime64) -> Integers:
        state = self.states
        ends = np.full(len(at), day)
        return state.brought[at] + interest_many(
            state.balance[at], state.rate[at], self.terms.day_count[at], state.accrued_from[at],
            ends,
        )  # fmt: skip

    def _accrue(self, at: Integers, day: datetime.date) -> None:
        amount = self._accrued(at, np.datetime64(day)) - self.states.accrued[at]
        self.states.accrued[at] += amount
        is_entry = amount != 0
        self.pieces.append(
            Entries.of(EntryKind.ACCRUAL, at[is_entry], day, {"amount": amount[is_entry]})
        )

    def _delinquency(self, at: Integers, day: datetime.date) -> None:
        state = self.states
        next_due, is_alive = state.next_due[at], state.balance[at] > 0
        days = (np.datetime64(day) - next_due).astype(np.int64)
        state.days_past_due[at] = np.where(is_alive, np.maximum(days, 0), 0)
        missed = missed_many(next_due, self.terms.due_day[at], day, self.policy.delinquency)
        state.missed_payments[at] = np.where(is_alive, missed, 0)

    def _fees(self, at: Integers, day: datetime.date) -> None:
        """`delinquency.late_fees` for each of these loans."""
        if not self.policy.late_fee_rate:
            return
        state, terms = self.states, self.terms
        last = np.minimum(np.datetime64(day) - self.policy.grace_days, terms.maturity_date[at])
        is_late = (state.balance[at] > 0) & (state.next_due[at] <= last)
        at, last = at[is_late], last[is_late]
        due = np.maximum(
            state.next_due[at], months_later(state.late_fees_through[at], terms.due_day[at])
        )
        while (is_late := due <= last).any():
            at, due, last = at[is_late], due[is_late], last[is_late]
            fee = round_div(state.payment[at] * self.policy.late_fee_rate, RATE_UNITS)
            state.fees[at] += fee
            state.late_fees_through[at] = due
            self.pieces.append(
                Entries.of(EntryKind.LATE_FEE, at, day, {"amount": fee}, effective_date=due)
            )
            due = months_later(due, terms.due_day[at])
