"""Repayment schedules: when a loan is repaid, and how much of each instalment is interest.

Instalment k falls due k frequencies after the loan is disbursed: months later on the same day of
the month (or its last day, where the month is shorter), or weeks later. Its interest is the
balance before it, times the annual rate, times the part of a year since the due date before, by
the loan's day count; rounded to the currency's minor unit. Its principal follows from the method:

- `level`: what is left of the level payment after interest. The level payment is the one whose
  present value is the principal, principal = Σ payment * Π 1 / (1 + period factor), rounded.
- `equal_principal`: the principal divided by the number of instalments, rounded.
- `interest_only:N`: nothing in the first N instalments, then as `level` over the others.

The last instalment repays what is left, and none repays more than that. A rounded payment can
repay a small loan early; the instalments after that are zero. In a long period the interest can
exceed the level payment: from 28 February to 31 March 30/360 counts 33 days, which is too much for
a loan of thirty years at 8.5%. The balance may grow then, but not beyond what was lent.

This module reads like that text and works on one loan, exactly, with decimals and fractions.
`ledgerbeam.rules.schedule_tables` does the same for many loans at once.
"""

import datetime
import re
from calendar import monthrange
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from ledgerbeam.rules.day_count import DayCount, year_fraction
from ledgerbeam.rules.money import Rounding, div_exactly, minor_units, round_money

LEVEL = "level"
EQUAL_PRINCIPAL = "equal_principal"

PRINCIPAL_DIGITS = 15
"""Most digits of a principal in minor units: ten trillion dollars."""
RATE_DECIMALS = 6
HIGHEST_RATE = 1000
"""Highest annual rate, in percent."""
LONGEST_YEARS = 100
"""From the day a loan is disbursed to its last instalment."""
LAST_YEAR = datetime.MAXYEAR - LONGEST_YEARS
"""The last in which a loan may be disbursed, so that its due dates are dates."""


class Loan(NamedTuple):
    """What a schedule depends on.

    Attributes:
        loan_id: identifies the loan.
        currency: ISO 4217 code; decides how many decimals the amounts have.
        principal: what is lent, positive.
        annual_rate_percent: 3.5 is 3.5% a year; not negative.
        day_count: how days become parts of a year; one of `DayCount`.
        disbursed_on: from when on interest accrues.
        frequency: between due dates, an ISO 8601 duration of one unit, such as `P1M` or `P2W`.
        term: the number of instalments, those of interest only included.
        method: `level`, `equal_principal` or `interest_only:N`.
    """

    loan_id: str
    currency: str
    principal: Decimal
    annual_rate_percent: Decimal
    day_count: str
    disbursed_on: datetime.date
    frequency: str
    term: int
    method: str


class Instalment(NamedTuple):
    """One instalment; `payment` is `principal + interest`, `balance` what is owed after it."""

    number: int
    due_date: datetime.date
    principal: Decimal
    interest: Decimal
    payment: Decimal
    balance: Decimal


class Frequency(NamedTuple):
    """The time between due dates: either months or days, the other is 0."""

    months: int
    days: int


class Method(NamedTuple):
    """How principal is repaid: by level payments or equal parts, after `interest_only` periods."""

    level: bool
    interest_only: int


def schedule(loan: Loan, rounding: Rounding = Rounding.HALF_EVEN) -> list[Instalment]:
    """All instalments of a loan.

    Args:
        loan: as lent.
        rounding: of the level payment, of equal parts of principal and of interest.

    Raises:
        ValueError: if the loan can't be scheduled (see `check_loan`), or a level payment doesn't
            cover interest, so that more would be owed than was lent.
    """
    check_loan(loan)
    scale = minor_units(loan.currency)
    method = parse_method(loan.method)
    frequency = parse_frequency(loan.frequency)
    due_dates = [due_date(loan.disbursed_on, frequency, k) for k in range(loan.term + 1)]
    factors = period_factors(loan.annual_rate_percent, parse_day_count(loan.day_count), due_dates)
    balance = round_money(loan.principal, scale)
    if method.level:
        payment = level_payment(balance, factors[method.interest_only :], scale, rounding)
    else:
        equal_part = round_money(Fraction(balance) / loan.term, scale, rounding)

    instalments = []
    for number, factor in enumerate(factors, 1):
        interest = interest_on(balance, factor, scale, rounding)
        if number == loan.term:
            principal = balance
        elif number <= method.interest_only:
            principal = round_money(Decimal(0), scale)
        elif not method.level:
            principal = min(equal_part, balance)
        else:
            principal = min(payment - interest, balance)
        if balance - principal > loan.principal:
            raise ValueError(negative_amortisation(number, interest, payment))
        balance -= principal
        instalments.append(
            Instalment(
                number, due_dates[number], principal, interest, principal + interest, balance
            )
        )
    return instalments


def due_date(disbursed_on: datetime.date, frequency: Frequency, number: int) -> datetime.date:
    """When instalment `number` falls due; number 0 is the day the loan is disbursed."""
    if not frequency.months:
        return disbursed_on + datetime.timedelta(number * frequency.days)
    months = disbursed_on.year * 12 + disbursed_on.month - 1 + number * frequency.months
    year, month = months // 12, months % 12 + 1
    return datetime.date(year, month, min(disbursed_on.day, monthrange(year, month)[1]))


def period_factors(
    annual_rate_percent: Decimal, day_count: DayCount, dates: Sequence[datetime.date]
) -> list[Fraction]:
    """Interest of each period on a balance of 1, exactly; one less than there are dates."""
    rate = Fraction(annual_rate_percent) / 100
    return [rate * year_fraction(start, end, day_count) for start, end in pairwise(dates)]


def interest_on(
    balance: Decimal, factor: Fraction, scale: int = 2, rounding: Rounding = Rounding.HALF_EVEN
) -> Decimal:
    """Interest of one period."""
    return round_money(Fraction(balance) * factor, scale, rounding)


def level_payment(
    principal: Decimal,
    factors: Sequence[Fraction],
    scale: int = 2,
    rounding: Rounding = Rounding.HALF_EVEN,
) -> Decimal:
    """The payment at the end of every period that repays `principal`, however long the periods.

    It solves principal = Σ payment * Π 1 / (1 + factor) exactly, and is rounded once. For equal
    periods that is the annuity formula, principal * factor / (1 - (1 + factor) ** -periods).
    """
    units = int(round_money(principal, scale).scaleb(scale))
    ratios = [factor.as_integer_ratio() for factor in factors]
    return Decimal(level_payment_units(units, ratios, rounding)).scaleb(-scale)


def level_payment_units(
    principal: int, factors: Sequence[tuple[int, int]], rounding: Rounding
) -> int:
    """`level_payment` in minor units, for factors as pairs of numerator and denominator."""
    # The present value of payments of 1, from the last to the first: a fraction, which is not
    # reduced on the way, because that would take most of the time.
    numerator, denominator = 0, 1
    for above, below in reversed(factors):
        numerator, denominator = (numerator + denominator) * below, denominator * (below + above)
    return div_exactly(principal * denominator, numerator, rounding)


def previous_balance(
    balance: Decimal,
    payment: Decimal,
    factor: Fraction,
    scale: int = 2,
    rounding: Rounding = Rounding.HALF_EVEN,
) -> Decimal:
    """The balance one period earlier: what, with its interest and less `payment`, is `balance`.

    Rounding here undoes the rounding of interest: that moved the sum by half a minor unit at
    most, so the balance is off by 1/2 / (1 + factor) and is the nearest. Where no balance leads
    to exactly this one, the result is the one that comes nearest to it.
    """
    return round_money(Fraction(balance + payment) / (1 + factor), scale, rounding)


def negative_amortisation(number: int, interest: Decimal, payment: Decimal) -> str:
    """Why a loan is refused that would come to more than was lent."""
    return (
        f"negative amortisation: after instalment {number} more would be owed than was lent, as "
        f"its interest of {interest} exceeds the level payment of {payment}"
    )


def check_loan(loan: Loan) -> None:
    """Refuses a loan whose terms can't be scheduled.

    Raises:
        ValueError: with the first thing that is wrong, in one line.
    """
    for name, value in loan._asdict().items():
        if value is None:
            raise ValueError(f"{name} is empty")
    decimals = minor_units(loan.currency)
    parse_day_count(loan.day_count)
    frequency = parse_frequency(loan.frequency)
    method = parse_method(loan.method)
    _check_principal(loan.principal, loan.currency, decimals)
    _check_rate(loan.annual_rate_percent)
    if loan.disbursed_on.year > LAST_YEAR:
        raise ValueError(f"disbursed_on is not in the years {datetime.MINYEAR} to {LAST_YEAR}")
    if loan.term < 1:
        raise ValueError(f"term {loan.term} is not at least 1")
    if loan.term > longest_term(frequency):
        raise ValueError(f"term {loan.term} of {loan.frequency} is more than {LONGEST_YEARS} years")
    if method.interest_only >= loan.term:
        raise ValueError(
            f"method {loan.method} leaves no instalment of a term of {loan.term} to repay principal"
        )


def _check_principal(principal: Decimal, currency: str, decimals: int) -> None:
    if principal <= 0:
        raise ValueError(f"principal {principal} is not positive")
    units = Fraction(principal) * 10**decimals
    if units.denominator != 1:
        raise ValueError(
            f"principal {principal} has more than the {decimals} decimals of {currency}"
        )
    if units >= 10**PRINCIPAL_DIGITS:
        raise ValueError(f"principal {principal} has more than {PRINCIPAL_DIGITS} digits")


def _check_rate(rate: Decimal) -> None:
    if not 0 <= rate <= HIGHEST_RATE:
        raise ValueError(f"annual_rate_percent {rate} is not from 0 to {HIGHEST_RATE}")
    if (Fraction(rate) * 10**RATE_DECIMALS).denominator != 1:
        raise ValueError(f"annual_rate_percent {rate} has more than {RATE_DECIMALS} decimals")


def longest_term(frequency: Frequency) -> int:
    """The most instalments a loan may have."""
    if frequency.months:
        return LONGEST_YEARS * 12 // frequency.months
    return LONGEST_YEARS * 365 // frequency.days


def parse_day_count(text: str) -> DayCount:
    """The day count of a name.

    Raises:
        ValueError: if there is none.
    """
    try:
        return DayCount(text)
    except ValueError:
        raise ValueError(f"day_count {text!r} is not one of {', '.join(DayCount)}") from None


def parse_frequency(text: str) -> Frequency:
    """The period of an ISO 8601 duration of days, weeks, months or years.

    Raises:
        ValueError: for anything else, or a period of nothing.
    """
    found = re.fullmatch(r"P([1-9][0-9]{0,4})([DWMY])", text)
    if found is None:
        raise ValueError(f"frequency {text!r} is not a duration such as P1M or P2W")
    number, unit = int(found[1]), found[2]
    if unit in "MY":
        return Frequency(months=number * (12 if unit == "Y" else 1), days=0)
    return Frequency(months=0, days=number * (7 if unit == "W" else 1))


def parse_method(text: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: if there is none.
    """
    if text in (LEVEL, EQUAL_PRINCIPAL):
        return Method(text == LEVEL, interest_only=0)
    found = re.fullmatch(r"interest_only:([0-9]{1,5})", text)
    if found is None:
        raise ValueError(
            f"method {text!r} is not {LEVEL}, {EQUAL_PRINCIPAL} or interest_only:N, with N the "
            "number of instalments without principal"
        )
    return Method(level=True, interest_only=int(found[1]))
