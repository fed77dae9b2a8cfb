"""A loan as its servicer keeps it: terms, state, transactions, entries and policy.

Amounts are integers of the currency's minor unit (cents); rates are integers of a millionth of a
percent (3.5% is 3,500,000), so that every sum is exact. Dates are days of the calendar.
"""

import calendar
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from ledgerbeam.rules.day_count import DayCount

RATE_SCALE = 6
RATE_UNITS = 100 * 10**RATE_SCALE
"""A yearly rate of 100%."""


class Bucket(StrEnum):
    """What money received can be applied to."""

    INTEREST = "interest"
    PRINCIPAL = "principal"
    ESCROW = "escrow"
    FEES = "fees"
    CURTAILMENT = "curtailment"


class Partials(StrEnum):
    """What becomes of less than an instalment; a servicer may do either (24 CFR 203.556(b))."""

    HOLD = "hold"
    """It stays in suspense until there is enough for the whole instalment."""
    APPLY = "apply"
    """It is applied to the oldest instalment due, bucket by bucket; if none is due, it is held."""


class DelinquencyMethod(StrEnum):
    """When a payment counts as missed; see `ledgerbeam.rules.delinquency`."""

    MBA = "MBA"
    OTS = "OTS"


class Step(StrEnum):
    """The business steps of a day."""

    APPLY_PAYMENTS = "apply-payments"
    ACCRUE = "accrue"
    DELINQUENCY = "delinquency"
    FEES = "fees"


class Policy(NamedTuple):
    """How a servicer's book is run.

    Attributes:
        waterfall: order in which money is applied. The default is that of Fannie Mae's Servicing
            Guide F-1-09 for instruments dated March 1999 or later, with what is left over
            reducing the principal.
        partials: what becomes of less than an instalment.
        grace_days: a late fee is charged at the close of the day so many days after the due date.
        late_fee_rate: of the instalment's principal and interest, in rate units.
        delinquency: when a payment counts as missed.
        steps: the steps of a day, in order; what isn't named isn't done.
    """

    waterfall: tuple[Bucket, ...] = tuple(Bucket)
    partials: Partials = Partials.HOLD
    grace_days: int = 15
    late_fee_rate: int = 5 * 10**RATE_SCALE
    delinquency: DelinquencyMethod = DelinquencyMethod.MBA
    steps: tuple[Step, ...] = tuple(Step)

    def check(self) -> None:
        """Refuse what can't be meant.

        Raises:
            ValueError: a bucket or a step is named twice, a bucket of an instalment is missing,
                or a number is negative.
        """
        if min(self.grace_days, self.late_fee_rate) < 0:
            raise ValueError(
                f"grace_days {self.grace_days} and late_fee_rate {self.late_fee_rate} must not be "
                "negative"
            )
        for name, values in (("waterfall", self.waterfall), ("steps", self.steps)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} {', '.join(values)} names something twice")
        missing = set(INSTALMENT) - set(self.waterfall)
        if missing:
            raise ValueError(
                f"waterfall {', '.join(self.waterfall)} lacks {', '.join(sorted(missing))}: "
                "an instalment that is paid only in part would never be done"
            )

    @property
    def fees_first(self) -> bool:
        """Whether fees are collected before an instalment is complete."""
        order = self.waterfall
        return Bucket.FEES in order and any(
            bucket in INSTALMENT for bucket in order[order.index(Bucket.FEES) :]
        )


INSTALMENT = (Bucket.INTEREST, Bucket.PRINCIPAL, Bucket.ESCROW)
"""The buckets of an instalment: a "periodic payment" of 12 CFR 1026.36(c)(1)(i)."""


class Terms(NamedTuple):
    """What stays the same over a loan's life.

    Attributes:
        due_day: day of the month on which instalments fall due; the last day of shorter months.
        escrow_payment: deposit for taxes and insurance in each instalment.
    """

    loan_id: str
    currency: str
    day_count: DayCount
    origination_date: datetime.date
    maturity_date: datetime.date
    due_day: int
    escrow_payment: int


class RateChange(NamedTuple):
    """A rate from a day on, and the payment of principal and interest that goes with it."""

    effective_date: datetime.date
    rate: int
    payment: int


@dataclass(slots=True)
class State:
    """Where a loan stands at the close of a day.

    Attributes:
        closed_through: the day.
        balance: unpaid principal.
        rate: a year.
        payment: principal and interest of an instalment.
        next_due: due date of the oldest instalment that isn't paid in full.
        accrued_from: interest is computed on `balance` from this day on: the due date last paid,
            or a later curtailment.
        brought: interest for the time before `accrued_from` that isn't paid.
        accrued: interest accrued up to the close and not paid, as booked.
        suspense: money received and not yet applied.
        fees: charged and not paid.
        escrow: deposits held for taxes and insurance.
        instalment_paid: principal and interest of the instalment at `next_due` that are paid.
        escrow_paid: likewise its escrow.
        late_fees_through: late fees are charged for instalments due up to this day.
        missed_payments: by the policy's method.
        days_past_due: since `next_due`, 0 if that is still to come.
        rate_changes: in force, and later than `accrued_from`.
    """

    closed_through: datetime.date
    balance: int
    rate: int
    payment: int
    next_due: datetime.date
    accrued_from: datetime.date
    late_fees_through: datetime.date
    brought: int = 0
    accrued: int = 0
    suspense: int = 0
    fees: int = 0
    escrow: int = 0
    instalment_paid: int = 0
    escrow_paid: int = 0
    missed_payments: int = 0
    days_past_due: int = 0
    rate_changes: tuple[RateChange, ...] = ()


class TransactionKind(StrEnum):
    """What a transaction asks for."""

    PAYMENT = "payment"
    CURTAILMENT = "curtailment"
    PAYOFF = "payoff"
    REVERSAL = "reversal"
    RATE_CHANGE = "rate_change"


class Transaction(NamedTuple):
    """What came in for a loan.

    Attributes:
        effective_date: the day as of which it counts.
        posted_date: the day on which the servicer knew of it; later if it is back-dated.
        amount: money received; 0 for reversals and changes of the rate.
        reverses: for a reversal, the id of the transaction to be undone.
        rate: for a change of the rate, the new one.
        payment: for a change of the rate, the new payment of principal and interest.
    """

    transaction_id: int
    kind: str
    effective_date: datetime.date
    posted_date: datetime.date
    amount: int = 0
    currency: str = "USD"
    reverses: int | None = None
    rate: int | None = None
    payment: int | None = None


class EntryKind(StrEnum):
    """What an entry records."""

    PAYMENT = "payment"
    CURTAILMENT = "curtailment"
    PAYOFF = "payoff"
    RATE_CHANGE = "rate_change"
    SUSPENSE_RELEASE = "suspense_release"
    REVERSAL = "reversal"
    REJECTED = "rejected"
    ACCRUAL = "accrual"
    LATE_FEE = "late_fee"


class Entry(NamedTuple):
    """One line of a loan's ledger; never changed, only taken back by another entry.

    Attributes:
        kind: for an entry that takes another one back, `reversal`.
        effective_date: the day as of which it counts.
        posted_date: the day at whose close it was made.
        transaction_id: the transaction behind it; None for the servicer's own steps.
        amount: money received; interest accrued or fee charged for `accrual` and `late_fee`.
        interest: what of the amount went there, as do `principal`, `escrow`, `fees`,
            `curtailment`, `suspense` (negative where suspense was used) and `rejected`; together
            they are the amount, except for `accrual` and `late_fee`.
        reverses: for a reversal, the kind of the entry that it takes back: that of the same
            transaction and effective date.
        reason: why a transaction was rejected.
    """

    kind: EntryKind
    effective_date: datetime.date
    posted_date: datetime.date
    transaction_id: int | None = None
    amount: int = 0
    interest: int = 0
    principal: int = 0
    escrow: int = 0
    fees: int = 0
    curtailment: int = 0
    suspense: int = 0
    rejected: int = 0
    reverses: EntryKind | None = None
    reason: str | None = None


AMOUNTS = (
    "amount", "interest", "principal", "escrow", "fees", "curtailment", "suspense", "rejected",
)  # fmt: skip
"""The fields of an entry that are amounts."""

CHARGES = (EntryKind.ACCRUAL, EntryKind.LATE_FEE)
"""Entries by which the loan owes more; all others are about money received."""


def is_charge(entry: Entry) -> bool:
    """Whether the entry is about what is owed, not about money received."""
    return entry.kind in CHARGES or entry.reverses in CHARGES


def month_later(day: datetime.date, due_day: int, months: int = 1) -> datetime.date:
    """The due date `months` after the month of `day`, or before it if negative."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    if due_day > 28:
        due_day = min(due_day, calendar.monthrange(year, month + 1)[1])
    return datetime.date(year, month + 1, due_day)


def days_between(after: datetime.date, through: datetime.date) -> Iterator[datetime.date]:
    """The days after one and through another, oldest first."""
    for number in range(1, (through - after).days + 1):
        yield after + datetime.timedelta(number)


def in_minor_units(amount: Decimal, decimals: int, what: str = "amount") -> int:
    """An amount as an integer of its minor unit.

    Args:
        amount: in units of the currency.
        decimals: of the currency; `RATE_SCALE` for a rate in percent.
        what: the amount is, for the error.

    Raises:
        ValueError: it has more decimals, or isn't a number.
    """
    if not isinstance(amount, Decimal) or not amount.is_finite():
        raise ValueError(f"{what} {amount} is not a decimal")
    scaled = amount.scaleb(decimals)
    if scaled != scaled.to_integral_value():
        raise ValueError(
            f"{what} {amount} has {-int(amount.as_tuple().exponent)} decimals, "
            f"not at most {decimals}"
        )
    return int(scaled)


def in_words(minor_units: int) -> str:
    """An amount of two decimals as text, such as 1,234.50."""
    return f"{Decimal(minor_units).scaleb(-2):,.2f}"
