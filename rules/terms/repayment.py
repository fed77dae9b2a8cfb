"""How a loan is repaid: the method, what becomes of a first period of another length, the payment.

Used by the schedules that a loan is lent by, and by the book that it is kept in, so that both agree
on every instalment.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple

from ledgerbeam.rules.money import Rounding, divide_rounded, round_money

LEVEL = "level"
EQUAL_PRINCIPAL = "equal_principal"


class FirstPeriod(StrEnum):
    """What becomes of the interest of a first period that is longer or shorter than the others.

    Its broken-period interest is that of the days by which it is longer, or less for those by which
    it is shorter.
    """

    TO_THE_DAY = "to-the-day"
    """The first instalment has interest to the day, and the same payment as the others, which is
    worth the principal with a first period of this length."""
    FIRST_INSTALMENT = "first-instalment"
    """The payment is that of whole periods; broken-period interest is added to the first one."""
    UPFRONT = "upfront"
    """Broken-period interest is settled when the loan is disbursed; all periods are whole ones."""


class Method(NamedTuple):
    """How principal is repaid: by level payments or equal parts, after `interest_only` periods."""

    level: bool
    interest_only: int


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


def parse_first_period(text: str | None) -> FirstPeriod:
    """What a name means; nothing is `to-the-day`.

    Raises:
        ValueError: if there is none of that name.
    """
    try:
        return FirstPeriod(text or FirstPeriod.TO_THE_DAY)
    except ValueError:
        raise ValueError(f"first_period {text!r} is not one of {', '.join(FirstPeriod)}") from None


def interest_on(
    balance: Decimal, factor: Fraction, scale: int = 2, rounding: Rounding = Rounding.HALF_EVEN
) -> Decimal:
    """Interest of one period, rounded.

    Args:
        balance: that bears it.
        factor: interest of the period on a balance of 1.
        scale: decimals of the interest.
        rounding: of the interest.
    """
    return round_money(Fraction(balance) * factor, scale, rounding)


def level_payment(
    principal: Decimal,
    factors: Sequence[Fraction],
    scale: int = 2,
    rounding: Rounding = Rounding.HALF_EVEN,
    round_up_to: Decimal | None = None,
) -> Decimal:
    """The payment at the end of every period that repays `principal`, however long the periods.

    It solves principal = Σ payment * Π 1 / (1 + factor) exactly, and is rounded once. For equal
    periods that is the annuity formula, principal * factor / (1 - (1 + factor) ** -periods).

    Args:
        principal: what is repaid.
        factors: interest of each period on a balance of 1.
        scale: decimals of the payment.
        rounding: of the payment.
        round_up_to: the payment is rounded up to a multiple of this instead.
    """
    units = int(round_money(principal, scale).scaleb(scale))
    ratios = [factor.as_integer_ratio() for factor in factors]
    multiple = int(round_money(round_up_to or Decimal(0), scale).scaleb(scale))
    return Decimal(level_payment_units(units, ratios, rounding, multiple)).scaleb(-scale)


def level_payment_units(
    principal: int, factors: Sequence[tuple[int, int]], rounding: Rounding, multiple: int = 0
) -> int:
    """`level_payment` in minor units, for factors as pairs of numerator and denominator."""
    # The present value of payments of 1, from the last to the first: a fraction, which is not
    # reduced on the way, because that would take most of the time.
    numerator, denominator = 0, 1
    for above, below in reversed(factors):
        numerator, denominator = (numerator + denominator) * below, denominator * (below + above)
    return rounded_payment(principal * denominator, numerator, rounding, multiple)


def equal_part(
    principal: Decimal,
    term: int,
    scale: int = 2,
    rounding: Rounding = Rounding.HALF_EVEN,
    round_up_to: Decimal | None = None,
) -> Decimal:
    """The principal of each of `term` instalments, rounded.

    Args:
        principal: what is repaid.
        term: the number of instalments.
        scale: decimals of the part.
        rounding: of the part.
        round_up_to: the part is rounded up to a multiple of this instead.
    """
    units = int(round_money(principal, scale).scaleb(scale))
    multiple = int(round_money(round_up_to or Decimal(0), scale).scaleb(scale))
    return Decimal(rounded_payment(units, term, rounding, multiple)).scaleb(-scale)


def rounded_payment(numerator: int, denominator: int, rounding: Rounding, multiple: int) -> int:
    """A fraction of minor units as a whole number; up to a multiple, if that isn't 0."""
    if multiple:
        return -(-numerator // (denominator * multiple)) * multiple
    return divide_rounded(numerator, denominator, rounding)
