"""Payment application: what becomes of the money that comes in for a loan.

Money pays instalments, the oldest first, each whole; then, by the waterfall, fees and a
curtailment of the principal. Exactly:

- An instalment can be paid once its period has begun, that is from the due date before it on.
  What is received for it and what is in suspense must cover it; then it is applied, and the next
  one is looked at. Fees that come before a bucket of the instalment in the waterfall have to be
  covered too.
- What is left when an instalment is due and not covered goes to suspense (or, if partial payments
  are to be applied, to that instalment). So does what doesn't cover the instalment of a period
  that has begun, if it was all that came: it is taken for a part of it.
- Anything else that is left goes to fees and curtailment. What would pay off the loan is held in
  suspense instead: that takes a payoff.

Suspense is released when a payment makes it up to an instalment, at the close of a day on which
an instalment due is covered by it, and by a payoff. It is the rule of 12 CFR 1026.36(c)(1)(ii):
partial payments that are held are credited once they make a periodic payment.

A curtailment reduces the principal from its day on; if instalments are due, it is a payment
(Fannie Mae Servicing Guide C-1.2-01 has additional principal applied to current loans). A payoff
takes the principal, the interest up to and not including the day, and the fees; a surplus stays
in suspense, to be returned.

The functions here change the state that they are given. `close_of_day` calls them.
"""

import datetime
from typing import NamedTuple

from ledgerbeam.rules.delinquency import accrued, interest
from ledgerbeam.rules.loan import (
    INSTALMENT,
    Bucket,
    Entry,
    EntryKind,
    Partials,
    Policy,
    RateChange,
    State,
    Terms,
    Transaction,
    TransactionKind,
    in_words,
    month_later,
)

Amounts = dict[Bucket, int]

_KINDS = frozenset(TransactionKind)


class Instalment(NamedTuple):
    """What is left to pay of one instalment."""

    due_date: datetime.date
    interest: int
    principal: int
    escrow: int

    def demands(self) -> Amounts:
        """The same by bucket."""
        return dict(zip(INSTALMENT, self[1:], strict=True))


def instalment(terms: Terms, state: State) -> Instalment:
    """The oldest instalment that isn't paid in full.

    Its interest is that of its period, its principal the rest of the payment; the last one takes
    all of the principal. A payment that doesn't cover the interest repays nothing.
    """
    payment = state.payment
    for change in state.rate_changes:
        if change.effective_date < state.next_due:
            payment = change.payment
    due_interest = state.brought + interest(state, terms.day_count, state.next_due)
    principal = min(state.balance, max(0, payment - state.instalment_paid - due_interest))
    if state.next_due >= terms.maturity_date:
        principal = state.balance
    return Instalment(
        state.next_due, due_interest, principal, terms.escrow_payment - state.escrow_paid
    )


def refusal(terms: Terms, boarded_on: datetime.date, transaction: Transaction) -> str | None:
    """Why a transaction can't be what it says, whatever the state of the loan; None if it can.

    Args:
        terms: of the loan that the transaction names.
        boarded_on: the day through which the loan was closed when this book took it over.
        transaction: to be looked at.
    """
    _, kind, effective, posted, amount, currency, reverses, rate, payment = transaction
    if kind not in _KINDS:
        return f"kind {kind} is none of {', '.join(TransactionKind)}"
    if effective < terms.origination_date:
        return (
            f"effective_date {effective} is before the loan's origination {terms.origination_date}"
        )
    if effective <= boarded_on:
        return f"effective_date {effective} is not after {boarded_on}, when the loan was boarded"
    if kind in (TransactionKind.REVERSAL, TransactionKind.RATE_CHANGE) and amount:
        return f"a {kind} has an amount of {in_words(amount)}: it takes none"
    if kind == TransactionKind.REVERSAL:
        return "a reversal names no transaction" if reverses is None else None
    if kind == TransactionKind.RATE_CHANGE:
        if rate is None or payment is None or rate < 0 or payment <= 0:
            return "a rate_change lacks its rate or payment, or has a negative one"
        if effective < posted:
            return f"rate_change effective {effective} is in the past: it was posted on {posted}"
        return None
    if currency != terms.currency:
        return f"currency {currency} is not the loan's {terms.currency}"
    if amount <= 0:
        return f"amount {in_words(amount)} is not positive"
    return None


def apply_transaction(
    terms: Terms, state: State, transaction: Transaction, day: datetime.date, policy: Policy
) -> Entry:
    """Apply what is not refused, as of `day`, and say in an entry how."""
    kind, amount = transaction.kind, transaction.amount
    if kind == TransactionKind.RATE_CHANGE:
        assert transaction.rate is not None
        assert transaction.payment is not None
        change = RateChange(transaction.effective_date, transaction.rate, transaction.payment)
        state.rate_changes = (*state.rate_changes, change)
        _take_rates(state)
        return Entry(EntryKind.RATE_CHANGE, day, day, transaction.transaction_id)
    if not state.balance:
        return rejected(transaction, day, "the loan is paid off")
    if kind == TransactionKind.PAYOFF:
        return _pay_off(terms, state, transaction, day)
    if kind == TransactionKind.CURTAILMENT and state.next_due > day:
        if amount >= state.balance:
            reason = (
                f"curtailment of {in_words(amount)} is not less than the balance of "
                f"{in_words(state.balance)}: that takes a payoff"
            )
            return rejected(transaction, day, reason)
        curtail(terms, state, amount, day)
        poured = {Bucket.CURTAILMENT: amount}
    else:
        poured = receive(terms, state, amount, day, policy)
    entry = Entry(EntryKind(kind), day, day, transaction.transaction_id, amount)
    return _with(entry, poured)


def rejected(transaction: Transaction, day: datetime.date, reason: str) -> Entry:
    """The entry of a transaction that isn't applied; its money is to be returned."""
    return Entry(
        EntryKind.REJECTED, day, day, transaction.transaction_id,
        amount=transaction.amount, rejected=transaction.amount, reason=reason,
    )  # fmt: skip


def release(terms: Terms, state: State, day: datetime.date, policy: Policy) -> Entry | None:
    """Apply suspense to instalments due, if it covers them."""
    if not (state.suspense and state.balance and state.next_due <= day):
        return None
    poured = receive(terms, state, 0, day, policy)
    if not any(poured.values()):
        return None
    return _with(Entry(EntryKind.SUSPENSE_RELEASE, day, day), poured)


def receive(terms: Terms, state: State, amount: int, day: datetime.date, policy: Policy) -> Amounts:
    """Apply an amount and the suspense; what is left is the new suspense.

    Returns:
        What went into each bucket.
    """
    available = state.suspense + amount
    total: Amounts = dict.fromkeys(Bucket, 0)
    completed = 0
    while (is_open := _has_begun(terms, state, day)) and available:
        part = instalment(terms, state)
        demands = part.demands()
        if policy.fees_first:
            demands[Bucket.FEES] = state.fees
        is_covered = available >= sum(demands.values())
        if not is_covered and (policy.partials is Partials.HOLD or part.due_date > day):
            break
        poured = pour(available, demands, policy.waterfall)
        _book(terms, state, part, poured, is_covered)
        for bucket, share in poured.items():
            total[bucket] += share
        available -= sum(poured.values())
        completed += is_covered
    is_held = state.next_due <= day or (is_open and not completed)
    if not is_held and state.balance:
        available = _take_excess(terms, state, available, day, policy, total)
    state.suspense = available
    return total


def pour(available: int, demands: Amounts, waterfall: tuple[Bucket, ...]) -> Amounts:
    """Fill the buckets in their order, each up to its demand, as far as the money goes."""
    poured = {}
    for bucket in waterfall:
        poured[bucket] = min(available, demands.get(bucket, 0))
        available -= poured[bucket]
    return poured


def curtail(terms: Terms, state: State, amount: int, day: datetime.date) -> None:
    """Reduce the principal from `day` on; the interest up to then is brought forward."""
    state.brought = accrued(terms, state, day)
    state.accrued_from = max(state.accrued_from, day)
    state.balance -= amount
    _take_rates(state)


def payoff_amount(terms: Terms, state: State, day: datetime.date) -> int:
    """What pays off the loan on `day`: principal, interest to the day, and fees.

    The interest is on the balance as of the last paid instalment date, at the rate that applies,
    up to and not including the day that the funds are received (Fannie Mae Servicing Guide
    F-1-09), by the loan's day count.
    """
    return state.balance + accrued(terms, state, day) + state.fees


def _pay_off(terms: Terms, state: State, transaction: Transaction, day: datetime.date) -> Entry:
    needed = payoff_amount(terms, state, day)
    amount, held = transaction.amount, state.suspense
    if amount + held < needed:
        with_suspense = f" and {in_words(held)} in suspense" if held else ""
        reason = f"payoff of {in_words(amount)}{with_suspense} is short of {in_words(needed)}"
        return rejected(transaction, day, reason)
    due_interest = accrued(terms, state, day)
    entry = Entry(
        EntryKind.PAYOFF, day, day, transaction.transaction_id,
        amount=amount, interest=due_interest, principal=state.balance, fees=state.fees,
        suspense=amount - needed,
    )  # fmt: skip
    state.accrued -= due_interest
    state.balance = state.brought = state.fees = 0
    state.suspense += entry.suspense
    return entry


def _has_begun(terms: Terms, state: State, day: datetime.date) -> bool:
    """Whether the period of the oldest unpaid instalment has begun."""
    return bool(state.balance) and month_later(state.next_due, terms.due_day, -1) <= day


def _book(terms: Terms, state: State, part: Instalment, poured: Amounts, is_complete: bool) -> None:
    # The interest of the instalment is computed; from its due date on, another balance counts.
    state.brought = part.interest - poured[Bucket.INTEREST]
    state.accrued_from = max(state.accrued_from, part.due_date)
    state.accrued -= poured[Bucket.INTEREST]
    state.balance -= poured[Bucket.PRINCIPAL]
    state.escrow += poured[Bucket.ESCROW]
    state.fees -= poured.get(Bucket.FEES, 0)
    if is_complete:
        state.next_due = month_later(state.next_due, terms.due_day)
        state.instalment_paid = state.escrow_paid = 0
    else:
        state.instalment_paid += poured[Bucket.INTEREST] + poured[Bucket.PRINCIPAL]
        state.escrow_paid += poured[Bucket.ESCROW]
    _take_rates(state)


def _take_excess(
    terms: Terms, state: State, available: int, day: datetime.date, policy: Policy, total: Amounts
) -> int:
    """Fees and curtailment in their order; returns what neither takes."""
    for bucket in policy.waterfall:
        share = 0
        if bucket is Bucket.FEES:
            share = min(available, state.fees)
            state.fees -= share
        elif bucket is Bucket.CURTAILMENT and 0 < available < state.balance:
            share = available
            curtail(terms, state, share, day)
        total[bucket] += share
        available -= share
    return available


def _take_rates(state: State) -> None:
    """Make rates current that apply from `accrued_from` on."""
    while state.rate_changes and state.rate_changes[0].effective_date <= state.accrued_from:
        change, *later = state.rate_changes
        state.rate, state.payment = change.rate, change.payment
        state.rate_changes = tuple(later)


def _with(entry: Entry, poured: Amounts) -> Entry:
    """The entry with what went into each bucket, and the rest of its amount in suspense."""
    interest_, principal, escrow, fees, curtailment = (poured.get(each, 0) for each in Bucket)
    return entry._replace(
        interest=interest_,
        principal=principal,
        escrow=escrow,
        fees=fees,
        curtailment=curtailment,
        suspense=entry.amount - sum(poured.values()),
    )
