"""Close of day for many loans at once, with the same result as `close.close` for each.

A day on which nothing comes in but an ordinary payment is computed for all loans together. A loan
for which anything else comes in (two payments, a reversal, something back-dated, a curtailment, a
payoff, a change of the rate, anything that will be rejected) has that day closed by the plain
function. Where partial payments are applied, or a curtailment changes more than the term, that has
every day with a payment. A loan of unusual terms (see `TermsColumns.is_usual`) has all its days
closed so.
"""

import datetime
from typing import NamedTuple

import numpy as np

from ledgerbeam.rules.arrays import Dates, Flags, Integers
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.closing.delinquency import late_on_many, missed_payments_many, payable_on_many
from ledgerbeam.rules.closing.interest import interest_due_many, interest_many
from ledgerbeam.rules.closing.late_fees import late_fees
from ledgerbeam.rules.loans.book import States, Transactions
from ledgerbeam.rules.loans.entries import Entries
from ledgerbeam.rules.loans.loan import (
    RATE_UNITS,
    AfterCurtailment,
    Bucket,
    Entry,
    EntryKind,
    Partials,
    Policy,
    State,
    Step,
    Terms,
    Transaction,
    TransactionKind,
    days_between,
)
from ledgerbeam.rules.loans.terms_columns import TermsColumns
from ledgerbeam.rules.money import divide_rounded_many
from ledgerbeam.rules.terms.due_dates import month_later_many

_MAX_MOVE = 31
"""Days by which a business day convention moves a date at the most."""


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
    """Close every loan's days up to the business date; see `close.close`.

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
        self.batches: list[Entries] = []
        self.plain_rows: dict[int, tuple[Terms, State, list[Transaction]]] = {}
        self.plain_loans: list[int] = []
        self.plain_entries: list[Entry] = []
        self.by_plain_function = 0
        self.first_day: Dates = states.closed_through + 1
        self.is_behind = states.closed_through < np.datetime64(business_date)
        self.changes_rate: Flags = np.array([bool(each) for each in states.rate_changes], bool)
        has_begun = np.isnat(terms.first_due) | (opening.next_due > terms.first_due)
        self.is_unusual: Flags = ~(terms.is_usual & has_begun)
        self._sort_transactions(transactions.loans())

    def _sort_transactions(self, loans: Integers) -> None:
        """Find by day the ordinary payments, and the loans for which anything else counts."""
        rows = self.transactions
        closed, boarded = self.states.closed_through[loans], self.opening.closed_through[loans]
        self._reject_duplicates(loans)
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
        # What was posted before the book began, and is rejected, counts on its first day. Before it
        # is posted nothing is known of it.
        before = other[posted[other] <= boarded[other]]
        ahead = other[effective[other] > posted[other]]
        days = np.concatenate([effective[ahead], posted[other], boarded[before] + 1])
        of_loan = loans[np.concatenate([ahead, other, before])]
        at = at[is_ordinary]
        at = at[np.lexsort((loans[at], effective[at]))]
        self.days, self.loans, self.rows = effective[at], loans[at], at
        is_second = (self.loans[1:] == self.loans[:-1]) & (self.days[1:] == self.days[:-1])
        days = np.append(days, self.days[1:][is_second])
        of_loan = np.append(of_loan, self.loans[1:][is_second])
        order = np.argsort(days, kind="stable")
        self.other_days, self.other_loans = days[order], of_loan[order]

    def _reject_duplicates(self, loans: Integers) -> None:
        ids = self.transactions.transaction_id
        does_descend = np.zeros(len(self.states), bool)
        does_descend[loans[1:][(ids[1:] <= ids[:-1]) & (loans[1:] == loans[:-1])]] = True
        at = np.flatnonzero((does_descend & self.is_behind)[loans])
        at = at[np.lexsort((ids[at], loans[at]))]
        is_duplicate = (ids[at][1:] == ids[at][:-1]) & (loans[at][1:] == loans[at][:-1])
        for duplicate in ids[at][1:][is_duplicate]:
            raise ValueError(f"transaction {duplicate} is there twice")

    def close_day(self, day: datetime.date) -> None:
        """Take the steps of a day for the loans that were closed through the day before."""
        date = np.datetime64(day)
        is_open = self.is_behind & (self.states.closed_through == date - 1)
        is_other = self._needs_plain_function(date) & is_open
        self._close_by_plain_function(np.flatnonzero(is_other), day)
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
        is_other = self.changes_rate | self.is_unusual
        first, end = np.searchsorted(self.other_days, [date, date + 1])
        is_other[self.other_loans[first:end]] = True
        first, end = np.searchsorted(self.days, [date, date + 1])
        paying = self.loans[first:end]
        if self.policy.partials is Partials.APPLY:
            is_other[paying] = True
            is_other |= (state.suspense > 0) & (state.next_due <= date)
            return is_other
        if self.policy.after_curtailment is not AfterCurtailment.SHORTER_TERM:
            is_other[paying] = True
            is_other |= (state.suspense > 0) & (state.next_due <= date)
        # A payment to a loan that is paid off is rejected.
        is_other[paying[state.balance[paying] == 0]] = True
        return is_other

    def _close_by_plain_function(self, loans: Integers, day: datetime.date) -> None:
        states = []
        self._read_plain_rows(loans)
        for loan, before in zip(loans.tolist(), self.states.rows(loans), strict=True):
            terms, opening, transactions = self.plain_rows[loan]
            state, entries = close(terms, opening, before, transactions, day, self.policy)
            states.append(state)
            self.plain_loans += [loan] * len(entries)
            self.plain_entries += entries
        self.states.put(loans, states)
        self.changes_rate[loans] = [bool(state.rate_changes) for state in states]
        self.by_plain_function += len(loans)

    def _read_plain_rows(self, loans: Integers) -> None:
        # At the first time, of the loans of all days: turning columns into rows of Python has its
        # price for each call, and for each loan.
        wanted = loans if self.plain_rows else np.union1d(loans, self.other_loans)
        new = np.array([each for each in wanted.tolist() if each not in self.plain_rows], np.int64)
        rows = zip(
            self.terms.rows(new),
            self.opening.rows(new),
            self.transactions.rows_of(new),
            strict=True,
        )
        self.plain_rows |= zip(new.tolist(), rows, strict=True)

    def finish(self) -> ClosedMany:
        """Put everything together."""
        batches = [*self.batches, Entries.from_rows(self.plain_loans, self.plain_entries)]
        return ClosedMany(self.states, Entries.joined(batches), self.by_plain_function)

    def _apply_payments(self, at: Integers, is_open: Flags, day: datetime.date) -> None:
        date = np.datetime64(day)
        self._earn(at[self.states.ahead_until[at] <= date])
        first, end = np.searchsorted(self.days, [date, date + 1])
        pays = is_open[self.loans[first:end]]
        loan, rows = self.loans[first:end][pays], self.rows[first:end][pays]
        if len(loan):
            amount = self.transactions.amount[rows]
            allocated, base = self._apply_money(loan, amount, date)
            ids = self.transactions.transaction_id[rows]
            self._book(EntryKind.PAYMENT, loan, day, amount, allocated, base, ids)
        state, due = self.states, self.states.next_due[at]
        # What doesn't pay an instalment on the day it falls due does so on no later day by itself.
        is_due = (due == date) | ((due < date) & (self.first_day[at] == date))
        is_held = is_due & (state.suspense[at] > 0) & (state.balance[at] > 0)
        loan = np.setdiff1d(at[is_held], loan, assume_unique=True)
        if len(loan):
            nothing = np.zeros(len(loan), np.int64)
            allocated, base = self._apply_money(loan, nothing, date)
            is_release = np.any([share > 0 for share in allocated.values()], axis=0)
            shares = {bucket: share[is_release] for bucket, share in allocated.items()}
            self._book(
                EntryKind.SUSPENSE_RELEASE, loan[is_release], day, nothing[is_release], shares,
                base[is_release], None,
            )  # fmt: skip

    def _book(
        self,
        kind: EntryKind,
        loan: Integers,
        day: datetime.date,
        amount: Integers,
        allocated: dict[Bucket, Integers],
        base: Integers,
        ids: Integers | None,
    ) -> None:
        suspense = amount - np.sum([*allocated.values()], axis=0)
        amounts = {bucket.value: share for bucket, share in allocated.items()}
        amounts |= {"amount": amount, "suspense": suspense, "interest_base": base}
        self.batches.append(Entries.of(kind, loan, day, amounts, transaction_id=ids))

    def _earn(self, at: Integers) -> None:
        """What was paid ahead falls due: from now on interest is on what is left."""
        if not len(at):
            return
        state = self.states
        until = state.ahead_until[at]
        earned, base = self._interest(at, until)
        state.brought[at] += earned
        state.brought_base[at] += base
        state.accrued_from[at] = until
        state.ahead[at] = 0
        state.ahead_until[at] = np.datetime64("NaT")

    def _interest(self, at: Integers, ends: Dates) -> tuple[Integers, Integers]:
        """Interest up to days that no change of the balance comes before, and its base."""
        state, terms = self.states, self.terms
        principal = state.balance[at] + state.ahead[at]
        codes, due_day, starts = terms.day_count[at], terms.due_day[at], state.accrued_from[at]
        return interest_due_many(principal, state.rate[at], codes, due_day, starts, ends)

    def _apply_money(
        self, loan: Integers, amount: Integers, day: np.datetime64
    ) -> tuple[dict[Bucket, Integers], Integers]:
        """`payments.apply_money` for each of these loans, and its amount."""
        state, terms, policy = self.states, self.terms, self.policy
        available = state.suspense[loan] + amount
        total = {bucket: np.zeros(len(loan), np.int64) for bucket in Bucket}
        bases = np.zeros(len(loan), np.int64)
        is_completed = np.zeros(len(loan), bool)
        left = np.arange(len(loan))
        while len(left):
            left = left[self._has_begun(loan[left], day) & (available[left] > 0)]
            at = loan[left]
            part = self._instalment(at)
            escrow = terms.escrow_payment[at] - state.escrow_paid[at]
            demand = part.interest + part.principal + escrow
            is_covered = available[left] >= demand
            left, at, part, escrow = (
                left[is_covered],
                at[is_covered],
                part.take(is_covered),
                escrow[is_covered],
            )
            available[left] -= demand[is_covered]
            fees = np.zeros(len(at), np.int64)
            if policy.fees_first:
                fees = np.minimum(state.fees[at], available[left])
                available[left] -= fees
            shares = (
                (Bucket.INTEREST, part.interest), (Bucket.PRINCIPAL, part.principal),
                (Bucket.ESCROW, escrow), (Bucket.FEES, fees),
            )  # fmt: skip
            for bucket, share in shares:
                total[bucket][left] += share
            is_completed[left] = True
            base = part.base_paid()
            bases[left] += base
            self._complete(at, part, base, day)
            state.escrow[at] += escrow
            state.fees[at] -= fees
            state.next_due[at] = terms.after(at, state.next_due[at])
            state.instalment_paid[at] = state.escrow_paid[at] = 0
        is_current = state.next_due[loan] > day
        state.fees_ahead[loan[is_current]] = 0
        is_held = ~is_current | (self._has_begun(loan, day) & ~is_completed)
        is_held &= state.balance[loan] > 0
        excess = np.flatnonzero(~is_held & (available > 0))
        self._take_excess(loan, excess, available, total, day)
        state.suspense[loan] = available
        return total, bases

    def _instalment(self, at: Integers) -> "_OpenInstalments":
        """The oldest instalments that aren't paid; `payments.instalment` of each."""
        state, terms = self.states, self.terms
        balance, due = state.balance[at], state.next_due[at]
        interest, base = self._interest(at, due)
        interest += state.brought[at]
        base += state.brought_base[at]
        left = np.maximum(0, state.payment[at] - state.instalment_paid[at])
        is_last = due >= terms.maturity_date[at]
        principal = np.where(is_last, balance, np.minimum(balance, left - interest))
        carried = np.zeros(len(at), np.int64)
        short = np.flatnonzero(~is_last & (left < interest))
        if len(short):
            of = at[short]
            whole = interest_many(
                state.balance[of], state.rate[of], terms.day_count[of], terms.due_day[of],
                terms.before(of, due[short]), due[short],
            )  # fmt: skip
            added = np.minimum(
                np.maximum(0, whole - state.payment[of]), interest[short] - left[short]
            )
            principal[short] = -added
            carried[short] = interest[short] - left[short] - added
            interest[short] = left[short] + added
        return _OpenInstalments(interest, principal, carried, base)

    def _complete(
        self, at: Integers, part: "_OpenInstalments", base: Integers, day: np.datetime64
    ) -> None:
        """Put complete instalments into the states, as `payments._book` does."""
        state = self.states
        due = state.next_due[at]
        is_ahead = due > day
        early, on_time = at[is_ahead], at[~is_ahead]
        state.ahead[early] = part.principal[is_ahead]
        state.ahead_until[early] = due[is_ahead]
        state.brought[early] -= part.interest[is_ahead]
        state.brought_base[early] -= base[is_ahead]
        state.brought[on_time] = part.carried[~is_ahead]
        state.brought_base[on_time] = (part.base - base)[~is_ahead]
        state.accrued_from[on_time] = np.maximum(state.accrued_from[on_time], due[~is_ahead])
        state.accrued[at] -= part.interest
        state.balance[at] -= part.principal

    def _has_begun(self, at: Integers, day: np.datetime64) -> Flags:
        state = self.states
        begins = self.terms.before(at, state.next_due[at])
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
                self._bring_forward(at[share > 0], day)
                state.balance[at] -= share
            else:
                continue
            total[bucket][excess] += share
            available[excess] -= share

    def _bring_forward(self, at: Integers, day: np.datetime64) -> None:
        state = self.states
        due, base = self._interest(at, np.full(len(at), day))
        state.brought[at] += due
        state.brought_base[at] += base
        state.accrued_from[at] = np.maximum(state.accrued_from[at], day)

    def _accrue(self, at: Integers, day: datetime.date) -> None:
        state, terms = self.states, self.terms
        due = interest_many(
            state.balance[at] + state.ahead[at], state.rate[at], terms.day_count[at],
            terms.due_day[at], state.accrued_from[at], np.full(len(at), np.datetime64(day)),
        )  # fmt: skip
        amount = state.brought[at] + due - state.accrued[at]
        state.accrued[at] += amount
        is_entry = amount != 0
        self.batches.append(
            Entries.of(EntryKind.ACCRUAL, at[is_entry], day, {"amount": amount[is_entry]})
        )

    def _delinquency(self, at: Integers, day: datetime.date) -> None:
        state, terms = self.states, self.terms
        next_due, is_alive = state.next_due[at], state.balance[at] > 0
        payable = payable_on_many(terms.calendar, next_due, self.policy)
        days = (np.datetime64(day) - payable).astype(np.int64)
        state.days_past_due[at] = np.where(is_alive, np.maximum(days, 0), 0)
        day_of_month = (next_due - next_due.astype("datetime64[M]")).astype(np.int64) + 1
        due_day = np.where(terms.months[at] == 1, terms.due_day[at], day_of_month)
        missed = missed_payments_many(next_due, due_day, day, self.policy.delinquency)
        state.missed_payments[at] = np.where(is_alive, missed, 0)

    def _fees(self, at: Integers, day: datetime.date) -> None:
        """`late_fees.late_fees` for each of these loans."""
        if not self.policy.late_fee_rate:
            return
        state, terms, policy = self.states, self.terms, self.policy
        # Business day conventions move due dates and the end of grace by a few days.
        if policy.due_dates is not BusinessDayConvention.NONE:
            margin = _MAX_MOVE
        else:
            margin = -policy.grace_days if policy.grace_end is BusinessDayConvention.NONE else 0
        latest = np.datetime64(day) + margin
        at = at[(state.balance[at] > 0) & (state.next_due[at] <= latest)]
        due = self._next_late_fee(at)
        is_late = self._is_late(at, due, day)
        at, due = at[is_late], due[is_late]
        while len(at):
            # Where less may be owed than the payments that are missing, the plain function decides.
            unpaid = (due - state.next_due[at]).astype(np.int64) // self._least_days(at) + 2
            is_small = state.balance[at] <= state.payment[at] * unpaid
            is_small |= (state.fees_ahead[at] > 0) | (due >= terms.maturity_date[at])
            for loan in at[is_small].tolist():
                self._fees_by_plain_function(loan, day)
            at, due = at[~is_small], due[~is_small]
            fee = divide_rounded_many(state.payment[at] * policy.late_fee_rate, RATE_UNITS)
            state.fees[at] += fee
            state.late_fees_through[at] = due
            self._book_late_fees(at, due, fee, day)
            due = self._next_late_fee(at)
            is_late = self._is_late(at, due, day)
            at, due = at[is_late], due[is_late]

    def _next_late_fee(self, at: Integers) -> Dates:
        """`late_fees.next_late_fee` of each."""
        state, terms = self.states, self.terms
        due = state.next_due[at].copy()
        charged = np.flatnonzero(due <= state.late_fees_through[at])
        if len(charged):
            of, first = at[charged], due[charged]
            through = state.late_fees_through[of]
            months, days = terms.months[of], np.maximum(terms.days[of], 1)
            apart = through.astype("datetime64[M]") - first.astype("datetime64[M]")
            by_month = apart.astype(np.int64) // np.maximum(months, 1) * months
            last = np.where(
                months > 0,
                month_later_many(first, terms.due_day[of], by_month),
                first + (through - first).astype(np.int64) // days * days,
            )
            due[charged] = np.where(last > through, last, terms.after(of, last))
        return due

    def _least_days(self, at: Integers) -> Integers:
        months = self.terms.months[at]
        return np.where(months > 0, 28 * months, self.terms.days[at])

    def _is_late(self, at: Integers, due: Dates, day: datetime.date) -> Flags:
        late = late_on_many(self.terms.calendar, due, self.policy)
        return np.asarray((late <= np.datetime64(day)) & (due <= self.terms.maturity_date[at]))

    def _fees_by_plain_function(self, loan: int, day: datetime.date) -> None:
        state = self.states
        found = late_fees(self.terms.row(loan), state.row(loan), day, self.policy)
        for due, fee in found:
            state.fees[loan] += fee
            state.late_fees_through[loan] = due
            effective = np.array([due], "datetime64[D]")
            self._book_late_fees(np.array([loan]), effective, np.array([fee]), day)

    def _book_late_fees(self, at: Integers, due: Dates, fee: Integers, day: datetime.date) -> None:
        charged = fee != 0
        self.batches.append(
            Entries.of(
                EntryKind.LATE_FEE,
                at[charged],
                day,
                {"amount": fee[charged]},
                effective_date=due[charged],
            )
        )


class _OpenInstalments(NamedTuple):
    """Oldest instalments of loans, int64 `(loans,)` each; see `payments.OpenInstalment`."""

    interest: Integers
    principal: Integers
    carried: Integers
    base: Integers

    def take(self, at: Flags) -> "_OpenInstalments":
        """Those where the mask is true."""
        return _OpenInstalments(*(column[at] for column in self))

    def base_paid(self) -> Integers:
        """What the interest that is to be paid is the interest on."""
        if not self.carried.any():
            return self.base
        whole = self.interest + self.carried
        is_part = (self.carried != 0) & (whole > 0)
        share = divide_rounded_many(self.base * self.interest, np.where(is_part, whole, 1))
        return np.where(self.carried == 0, self.base, np.where(is_part, share, 0))
