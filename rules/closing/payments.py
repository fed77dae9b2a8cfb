"""Payment application: what becomes of the money that comes in for a loan.

Money pays instalments, the oldest first, each whole; then, by the waterfall, fees and a
curtailment of the principal. Exactly:

- An instalment can be paid once its period has begun, that is from the due date before it on.
  What is received for it and what is in suspense must cover it; then it is applied, and the next
  one follows. Fees that come before a bucket of the instalment in the waterfall are taken
  with it, if the money is enough for both: what covers an instalment is credited to it although
  fees are open (12 CFR 1026.36(c)(1)(i)).
- Where partial payments are to be applied, such fees are taken first, and the instalment may stay
  open for it; that makes nothing late (`ledgerbeam.rules.closing.late_fees`).
- What is left when an instalment is due and not covered goes to suspense (or, if partial payments
  are to be applied, to that instalment). So does what doesn't cover the instalment of a period
  that has begun, if it was all that came: it is taken for a part of it.
- Anything else that is left goes to fees and curtailment. What would pay off the loan is held in
  suspense instead: that takes a payoff.

Suspense is released when a payment makes it up to an instalment, at the close of a day on which
an instalment due is covered by it, and by a payoff. It is the rule of 12 CFR 1026.36(c)(1)(ii):
partial payments that are held are credited once they make a periodic payment.

An instalment that is paid before it falls due has the interest of its whole period, which is
earned day by day until then: what it repays bears interest until it falls due.

A curtailment reduces the principal from its day on; if instalments are due, it is a payment
(Fannie Mae Servicing Guide C-1.2-01 has additional principal applied to current loans). A payoff
takes the principal, the interest up to and not including the day, and the fees; interest that was
paid beyond the day is given back in it, and a surplus stays in suspense, to be returned.

An instalment is never more than the payment, but for the last one, which is all that is owed.
Interest of its period beyond the payment is added to the principal, as in the schedule that the
loan is lent by; other interest is carried to the instalments that follow.

The functions here change the state that they are given. `close` calls them.
"""

import datetime
from fractions import Fraction
from typing import NamedTuple

from ledgerbeam.rules.closing.interest import (
    bring_forward,
    interest,
    interest_due,
    payoff_interest,
    period_interest,
)
from ledgerbeam.rules.currency import format_money
from ledgerbeam.rules.loans.loan import (
    INSTALMENT,
    RATE_UNITS,
    AfterCurtailment,
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
)
from ledgerbeam.rules.money import Rounding, divide_rounded
from ledgerbeam.rules.terms.accrual import loan_fraction
from ledgerbeam.rules.terms.repayment import FirstPeriod, level_payment_units, rounded_payment

Amounts = dict[Bucket, int]

_KINDS = frozenset(TransactionKind)


class OpenInstalment(NamedTuple):
    """What is left to pay of one instalment, in minor units.

    Attributes:
        interest: to be paid.
        principal: to be paid; negative where interest is added to it.
        carried: interest that is left for the instalments that follow.
        base: what `interest` and `carried` are the interest on; see `Entry.interest_base`.
    """

    due_date: datetime.date
    interest: int
    principal: int
    escrow: int
    carried: int = 0
    base: int = 0

    @property
    def total(self) -> int:
        """All that is to be paid."""
        return self.interest + self.principal + self.escrow

    def demands(self) -> Amounts:
        """What is to be paid, by bucket."""
        return dict(zip(INSTALMENT, self[1:4], strict=True))


def instalment(terms: Terms, state: State) -> OpenInstalment:
    """The oldest instalment of a loan that isn't paid in full.

    Its interest is that of its period, its principal the rest of the payment, or an equal part;
    the last one takes all that is owed.
    """
    due_date = state.next_due
    due = interest_due(terms, state, due_date)
    due = due._replace(interest=due.interest + state.brought, base=due.base + state.brought_base)
    escrow = terms.escrow_payment - state.escrow_paid
    if due_date >= terms.maturity_date:
        return OpenInstalment(due_date, due.interest, state.balance, escrow, 0, due.base)
    if not terms.pays_principal(due_date):
        return OpenInstalment(due_date, due.interest, 0, escrow, 0, due.base)
    payment = _payment_in_force(state, due_date)
    if not terms.method.level:
        principal = min(state.balance, payment - state.instalment_paid)
        return OpenInstalment(due_date, due.interest, principal, escrow, 0, due.base)
    if due_date == terms.first_due and terms.first_period is FirstPeriod.FIRST_INSTALMENT:
        whole = period_interest(terms, state.balance, state.rate, due_date)
        payment += interest(terms, state, due_date) - whole
    left = max(0, payment - state.instalment_paid)
    principal = left - due.interest
    if principal >= 0:
        return OpenInstalment(
            due_date, due.interest, min(state.balance, principal), escrow, 0, due.base
        )
    added = max(0, period_interest(terms, state.balance, state.rate, due_date) - payment)
    added = min(added, -principal)
    paid = left + added
    return OpenInstalment(due_date, paid, -added, escrow, due.interest - paid, due.base)


def _payment_in_force(state: State, due: datetime.date) -> int:
    """The payment of the instalment that falls due on a day."""
    payment = state.payment
    for change in state.rate_changes:
        if change.effective_date < due:
            payment = change.payment
    return payment


def rejection_reason(
    terms: Terms, boarded_on: datetime.date, transaction: Transaction
) -> str | None:
    """Why a transaction can't be what it says, whatever the state of the loan; None if it can.

    Args:
        terms: of the loan that the transaction names.
        boarded_on: the day through which the loan was closed when this book took it over.
        transaction: to be checked.
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
        return f"a {kind} has an amount of {format_money(amount, terms.currency)}: it takes none"
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
        return f"amount {format_money(amount, currency)} is not positive"
    return None


def apply_transaction(
    terms: Terms, state: State, transaction: Transaction, day: datetime.date, policy: Policy
) -> Entry:
    """Apply a transaction without `rejection_reason` to the state, as of `day`.

    Returns:
        The entry that records it; of kind `rejected` where the state doesn't allow it.
    """
    kind, amount = transaction.kind, transaction.amount
    if kind == TransactionKind.RATE_CHANGE:
        assert transaction.rate is not None
        assert transaction.payment is not None
        change = RateChange(transaction.effective_date, transaction.rate, transaction.payment)
        state.rate_changes = (*state.rate_changes, change)
        take_rates(state)
        return Entry(EntryKind.RATE_CHANGE, day, day, transaction.transaction_id)
    if not state.balance:
        return rejection_entry(transaction, day, "the loan is paid off")
    if kind == TransactionKind.PAYOFF:
        return _pay_off(terms, state, transaction, day, policy)
    if kind == TransactionKind.CURTAILMENT and state.next_due > day:
        if amount >= state.balance:
            reason = (
                f"curtailment of {format_money(amount, terms.currency)} is not less than the "
                f"balance of {format_money(state.balance, terms.currency)}: that takes a payoff"
            )
            return rejection_entry(transaction, day, reason)
        _curtail(terms, state, amount, day, policy)
        allocation = Allocation({Bucket.CURTAILMENT: amount}, 0)
    else:
        allocation = apply_money(terms, state, amount, day, policy)
    entry = Entry(EntryKind(kind), day, day, transaction.transaction_id, amount)
    return _with(entry, allocation)


def rejection_entry(transaction: Transaction, day: datetime.date, reason: str) -> Entry:
    """The entry of a transaction that isn't applied; its money is to be returned."""
    return Entry(
        EntryKind.REJECTED, day, day, transaction.transaction_id,
        amount=transaction.amount, rejected=transaction.amount, reason=reason,
    )  # fmt: skip


def release_suspense(
    terms: Terms, state: State, day: datetime.date, policy: Policy
) -> Entry | None:
    """Apply suspense to instalments due, if it covers them."""
    if not (state.suspense and state.balance and state.next_due <= day):
        return None
    allocation = apply_money(terms, state, 0, day, policy)
    if not any(allocation.by_bucket.values()):
        return None
    return _with(Entry(EntryKind.SUSPENSE_RELEASE, day, day), allocation)


class Allocation(NamedTuple):
    """Where money went, in minor units.

    Attributes:
        by_bucket: what went into each bucket.
        base: what the interest in it is the interest on; see `Entry.interest_base`.
    """

    by_bucket: Amounts
    base: int


def apply_money(
    terms: Terms, state: State, amount: int, day: datetime.date, policy: Policy
) -> Allocation:
    """Apply an amount and the suspense; what is left is the new suspense.

    Args:
        terms: of the loan.
        state: of the loan; it is changed.
        amount: received, in minor units; 0 to apply the suspense alone.
        day: on which the money counts.
        policy: how the book is run.
    """
    available = state.suspense + amount
    total: Amounts = dict.fromkeys(Bucket, 0)
    base = completed = 0
    is_held_back = policy.partials is Partials.HOLD
    while (is_open := _has_begun(terms, state, day)) and available:
        part = instalment(terms, state)
        demands = part.demands()
        needed = part.total
        if policy.fees_first:
            demands[Bucket.FEES] = state.fees
            if is_held_back:
                demands[Bucket.FEES] = max(0, min(state.fees, available - needed))
            needed += demands[Bucket.FEES]
        is_covered = available >= needed
        if not is_covered:
            if is_held_back or part.due_date > day:
                break
            # Only a complete instalment adds interest to the principal.
            added = min(0, part.principal)
            demands[Bucket.PRINCIPAL] -= added
            demands[Bucket.INTEREST] += added
        allocated = allocate(available, demands, policy.waterfall)
        base += _book(terms, state, part, allocated, day, is_covered)
        for bucket, share in allocated.items():
            total[bucket] += share
        available -= sum(allocated.values())
        completed += is_covered
    if state.next_due > day:
        state.fees_ahead = 0
    is_held = bool(state.balance) and (state.next_due <= day or (is_open and not completed))
    if not is_held:
        available = _take_excess(terms, state, available, day, policy, total)
    state.suspense = available
    return Allocation(total, base)


def allocate(available: int, demands: Amounts, waterfall: tuple[Bucket, ...]) -> Amounts:
    """Fill the buckets in their order, each up to its demand, as far as the money goes.

    Example:
        >>> allocate(9, {Bucket.INTEREST: 5, Bucket.FEES: 7}, (Bucket.INTEREST, Bucket.FEES))
        {<Bucket.INTEREST: 'interest'>: 5, <Bucket.FEES: 'fees'>: 4}
    """
    allocated = {}
    for bucket in waterfall:
        allocated[bucket] = min(available, demands.get(bucket, 0))
        available -= allocated[bucket]
    return allocated


def _curtail(terms: Terms, state: State, amount: int, day: datetime.date, policy: Policy) -> None:
    """Reduce the principal from `day` on; the interest up to then is brought forward."""
    bring_forward(terms, state, day)
    state.balance -= amount
    take_rates(state)
    match policy.after_curtailment:
        case AfterCurtailment.NEW_INSTALMENT:
            state.payment = _new_payment(terms, state)
        case AfterCurtailment.NEXT_DUE:
            due_dates = terms.due_dates
            for _ in range(amount // state.payment):
                later = due_dates.after(state.next_due)
                if later > terms.maturity_date:
                    break
                state.next_due = later


def _new_payment(terms: Terms, state: State) -> int:
    """The payment that repays the balance by the maturity date, from the next due date on."""
    due_dates = terms.due_dates
    end = max(terms.maturity_date, state.next_due)
    coming = [state.next_due, *due_dates.between(state.next_due, end)]
    coming = [due for due in coming if terms.pays_principal(due)] or coming[-1:]
    multiple = terms.round_payment_to
    if not terms.method.level:
        payment = rounded_payment(state.balance, len(coming), Rounding.HALF_EVEN, multiple)
    else:
        starts = [due_dates.regular_before(coming[0]), *coming[:-1]]
        rate = Fraction(state.rate, RATE_UNITS)
        factors = [
            rate * loan_fraction(due_dates, terms.day_count, start, end, terms.calendar)
            for start, end in zip(starts, coming, strict=True)
        ]
        ratios = [factor.as_integer_ratio() for factor in factors]
        payment = level_payment_units(state.balance, ratios, Rounding.HALF_EVEN, multiple)
    return max(1, payment)


def payoff_amount(
    terms: Terms, state: State, day: datetime.date, policy: Policy | None = None
) -> int:
    """What pays off the loan on `day`, in minor units: principal, interest to the day, and fees.

    The interest is on the balance as of the last paid instalment date, at the rate that applies,
    up to and not including the day that the funds are received (Fannie Mae Servicing Guide
    F-1-09); a partial month counts as the policy has it.
    """
    method = (policy or Policy()).payoff_interest
    return state.balance + payoff_interest(terms, state, day, method).interest + state.fees


def _pay_off(
    terms: Terms, state: State, transaction: Transaction, day: datetime.date, policy: Policy
) -> Entry:
    needed = payoff_amount(terms, state, day, policy)
    amount, held = transaction.amount, state.suspense
    if amount + held < needed:
        code = terms.currency
        with_suspense = f" and {format_money(held, code)} in suspense" if held else ""
        reason = (
            f"payoff of {format_money(amount, code)}{with_suspense} is short of "
            f"{format_money(needed, code)}"
        )
        return rejection_entry(transaction, day, reason)
    due = payoff_interest(terms, state, day, policy.payoff_interest)
    entry = Entry(
        EntryKind.PAYOFF, day, day, transaction.transaction_id,
        amount=amount, interest=due.interest, principal=state.balance, fees=state.fees,
        suspense=amount - needed, interest_base=due.base,
    )  # fmt: skip
    state.accrued -= due.interest
    state.balance = state.brought = state.brought_base = state.fees = state.fees_ahead = 0
    state.ahead, state.ahead_until = 0, None
    state.suspense += entry.suspense
    return entry


def _has_begun(terms: Terms, state: State, day: datetime.date) -> bool:
    """Whether the period of the oldest unpaid instalment has begun."""
    return bool(state.balance) and terms.due_dates.before(state.next_due) <= day


def _book(
    terms: Terms,
    state: State,
    part: OpenInstalment,
    allocated: Amounts,
    day: datetime.date,
    is_complete: bool,
) -> int:
    """Put into the state what was allocated; returns what the interest in it is the interest on."""
    paid_interest, repaid = allocated[Bucket.INTEREST], allocated[Bucket.PRINCIPAL]
    whole = part.interest + part.carried
    # Where interest is paid in part, its base counts in the same proportion.
    base = part.base if paid_interest == whole else _share(part.base, paid_interest, whole)
    if part.due_date > day:
        # Interest paid ahead is earned day by day until it falls due, on the repaid principal too.
        state.ahead, state.ahead_until = repaid, part.due_date
        state.brought -= paid_interest
        state.brought_base -= base
    else:
        # The interest of the instalment is computed; from its due date on, another balance counts.
        state.brought = whole - paid_interest
        state.brought_base = part.base - base
        state.accrued_from = max(state.accrued_from, part.due_date)
    state.accrued -= paid_interest
    state.balance -= repaid
    state.escrow += allocated[Bucket.ESCROW]
    state.fees -= allocated.get(Bucket.FEES, 0)
    if is_complete:
        state.next_due = terms.due_dates.after(state.next_due)
        state.instalment_paid = state.escrow_paid = 0
    else:
        state.instalment_paid += repaid + (paid_interest if terms.method.level else 0)
        state.escrow_paid += allocated[Bucket.ESCROW]
        state.fees_ahead += allocated.get(Bucket.FEES, 0)
    take_rates(state)
    return base


def complete_instalment(terms: Terms, state: State, part: OpenInstalment) -> None:
    """Pay an instalment in full on its due date."""
    allocated = dict.fromkeys(Bucket, 0) | part.demands()
    _book(terms, state, part, allocated, part.due_date, is_complete=True)


def pass_empty_instalments(terms: Terms, state: State, day: datetime.date) -> None:
    """Pass over instalments that fall due and ask for nothing: interest of less than a cent."""
    while state.balance and state.next_due <= min(day, terms.maturity_date):
        part = instalment(terms, state)
        if part.total:
            return
        complete_instalment(terms, state, part)


def _share(base: int, part: int, whole: int) -> int:
    return divide_rounded(base * part, whole) if whole > 0 else 0


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
            _curtail(terms, state, share, day, policy)
        total[bucket] += share
        available -= share
    return available


def take_rates(state: State) -> None:
    """Make rates current that apply from `accrued_from` on."""
    while state.rate_changes and state.rate_changes[0].effective_date <= state.accrued_from:
        change, *later = state.rate_changes
        state.rate, state.payment = change.rate, change.payment
        state.rate_changes = tuple(later)


def _with(entry: Entry, allocation: Allocation) -> Entry:
    """The entry with what went into each bucket, and the rest of its amount in suspense."""
    allocated = allocation.by_bucket
    interest_, principal, escrow, fees, curtailment = (allocated.get(each, 0) for each in Bucket)
    return entry._replace(
        interest=interest_,
        principal=principal,
        escrow=escrow,
        fees=fees,
        curtailment=curtailment,
        suspense=entry.amount - sum(allocated.values()),
        interest_base=allocation.base,
    )
