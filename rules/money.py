"""Money in decimals and in whole minor units: the one place where amounts are rounded.

A plain rule computes with `Decimal` and `Fraction` and rounds with `round_money`. A vectorised
rule computes with int64 counts of minor units (cents of USD, fils of KWD) and rounds with
`divide_rounded_many` and `multiply_divide_many`, which give the same results exactly. Floats never
hold an amount.
"""

import decimal
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.arrays import Flags, Integers, array_of
from ledgerbeam.rules.currency import minor_units, scaled


class Rounding(StrEnum):
    """How an amount halfway between two minor units is rounded; others go to the nearest one.

    The values are the names that Python's `decimal` has for them.
    """

    HALF_EVEN = decimal.ROUND_HALF_EVEN
    """To the even neighbour, so that errors cancel out over many amounts."""
    HALF_UP = decimal.ROUND_HALF_UP
    """Away from zero."""


AMOUNT_DIGITS = 18
"""Digits of the amounts in a table: int64 holds every such amount in minor units."""


def has_more_decimals(amounts: pa.Array | pa.ChunkedArray, decimals: int) -> pa.BooleanArray:
    """Which amounts have more decimals than they may; null for nulls.

    Args:
        amounts: decimals of any scale; 1.200 has one.
        decimals: at most so many.
    """
    if decimals >= amounts.type.scale:
        return pc.not_equal(amounts, amounts)
    return pc.not_equal(pc.round(amounts, ndigits=decimals, round_mode="towards_zero"), amounts)


def more_decimals(name: str, amount: Decimal, currency: str) -> str:
    """Why an amount is rejected that isn't a whole number of its currency's minor units."""
    return f"{name} {amount:f} has more than the {minor_units(currency)} decimals of {currency}"


def round_money(
    value: Decimal | Fraction, scale: int = 2, mode: Rounding = Rounding.HALF_EVEN
) -> Decimal:
    """An amount with `scale` decimals, rounded once from the exact value.

        round_money(Fraction(1000, 3))  # Decimal('333.33')

    Args:
        value: the exact value, of any sign and size.
        scale: how many decimals the amount has.
        mode: how a value halfway between two amounts is rounded.
    """
    numerator, denominator = value.as_integer_ratio()
    units = divide_rounded(numerator * 10**scale, denominator, mode)
    return scaled(units, scale)


def divide_rounded(numerator: int, denominator: int, mode: Rounding = Rounding.HALF_EVEN) -> int:
    """`numerator / denominator` rounded to a whole number, for integers of any size.

    Args:
        numerator: of any sign.
        denominator: positive.
        mode: for quotients in the middle between two integers.
    """
    floor, rest = divmod(numerator, denominator)
    middle = 2 * rest - denominator
    to_next = floor % 2 == 1 if mode is Rounding.HALF_EVEN else floor >= 0
    return floor + (middle > 0 or (middle == 0 and to_next))


def divide_rounded_many(
    numerator: Integers, denominator: Integers | int, mode: Rounding = Rounding.HALF_EVEN
) -> Integers:
    """`numerator / denominator` rounded to whole numbers; int64, shapes broadcast.

    Args:
        numerator: int64 of any sign.
        denominator: positive.
        mode: for quotients in the middle between two integers.
    """
    floor, rest = np.divmod(numerator, denominator)
    return _round(floor, rest, denominator, mode)


def multiply_divide_many(
    amount: Integers,
    numerator: Integers | int,
    denominator: Integers | int,
    mode: Rounding = Rounding.HALF_EVEN,
) -> Integers:
    """`amount * numerator / denominator` rounded to whole numbers, products of up to 112 bits.

    Exact: float64 only guesses the quotient. Five roundings put the guess off by less than
    |product| * 2**-50 / denominator + 1/2, so what it leaves, product - guess * denominator, is
    within 2**62 + 2**60. Arithmetic of int64 wraps modulo 2**64, so this rest comes out right
    although the product itself doesn't fit. Where it is less than half the denominator the guess
    is right; elsewhere the rest, divided, corrects it and tells how to round.

    Args:
        amount: int64 of any sign; shapes broadcast.
        numerator: of any sign.
        denominator: positive, under 2**61.
        mode: for quotients in the middle between two integers.

    Raises:
        OverflowError: if a product could pass 2**112, a quotient 2**62 or a denominator 2**61.
    """
    amount, numerator, denominator = (
        np.asarray(value, np.int64) for value in (amount, numerator, denominator)
    )
    product = amount.astype(np.float64) * numerator
    guess = np.asarray(np.rint(product / denominator))
    if guess.size:
        largest_product, largest = np.abs(product).max(), np.abs(guess).max()
        if not (largest_product < 2.0**112 and largest < 2.0**62 and denominator.max() < 2**61):
            raise OverflowError(
                f"products up to {largest_product:.3g} and quotients up to {largest:.3g} are too "
                "large to be exact: use smaller amounts, or fewer decimals of the rate"
            )
    quotient = guess.astype(np.int64)
    rest = amount * numerator - quotient * denominator
    size = np.abs(rest)
    # Twice the size could pass int64.
    at = np.nonzero(size >= denominator - size)
    if len(at[0]):
        divisor = np.broadcast_to(denominator, rest.shape)[at]
        correction, rest = np.divmod(rest[at], divisor)
        quotient[at] = _round(quotient[at] + correction, rest, divisor, mode)
    return quotient


def units(amounts: pa.Array | pa.ChunkedArray, scale: int) -> Integers:
    """Decimals as whole numbers of 10**-scale, int64 `(rows,)`.

    Raises:
        ValueError: if an amount is null or has more decimals than `scale`.
        OverflowError: if an amount doesn't fit.
    """
    if amounts.null_count:
        raise ValueError(f"{amounts.null_count} of {len(amounts)} amounts are null")
    if not (pa.types.is_decimal128(amounts.type) and amounts.type.scale == scale):
        amounts = amounts.cast(pa.decimal128(38, scale))
    whole, fits = unscaled(amounts)
    if not fits.all():
        raise OverflowError(f"an amount has more than 18 digits at {scale} decimals")
    return whole


def unscaled(
    amounts: pa.Decimal128Array | pa.ChunkedArray,
) -> tuple[Integers, Flags]:
    """Decimals as whole numbers of 10**-scale of their own type, and which of them int64 holds.

    Nulls are not held.
    """
    amounts = array_of(amounts)
    words = np.frombuffer(amounts.buffers()[1] or b"", np.int64).reshape(-1, 2)
    words = words[amounts.offset : amounts.offset + len(amounts)]
    low = words[:, 0].copy()
    fits = words[:, 1] == low >> 63
    if amounts.null_count:
        fits &= amounts.is_valid().to_numpy(zero_copy_only=False)
    return low, fits


def decimals(units: Integers, kind: pa.Decimal128Type) -> pa.Decimal128Array:
    """Whole numbers of 10**-scale as decimals of type `kind`; the reverse of `units`.

    Raises:
        OverflowError: if an amount has more digits than the type.
    """
    if kind.precision < 19 and len(units) and max(units.max(), -units.min()) >= 10**kind.precision:
        raise OverflowError(f"an amount has more digits than {kind}")
    words = np.empty((len(units), 2), np.int64)
    words[:, 0] = units
    np.right_shift(units, 63, out=words[:, 1])
    return pa.Array.from_buffers(kind, len(units), [None, pa.py_buffer(words)])


def _round(
    floor: Integers, rest: Integers, denominator: Integers | int, mode: Rounding
) -> Integers:
    # Twice the rest could pass int64.
    middle = rest - (denominator - rest)
    to_next = (floor & 1) == 1 if mode is Rounding.HALF_EVEN else floor >= 0
    return np.asarray(floor + ((middle > 0) | ((middle == 0) & to_next)), np.int64)
