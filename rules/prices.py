"""Price changes: raise by a percentage, round to the price's decimals, keep above a floor."""

from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.money import (
    Rounding,
    decimals,
    multiply_divide_many,
    round_money,
    units,
)

# Holds any product of a price and a percentage exactly.
_WIDE = Context(prec=76)


def raised_price(
    price: Decimal,
    percent: Decimal,
    floor: Decimal,
    scale: int = 2,
    mode: Rounding = Rounding.HALF_EVEN,
) -> Decimal:
    """The price after a raise, rounded once.

    Args:
        price: before the raise.
        percent: of the price, to be added; negative for a cut.
        floor: the least price that comes out; of no more than `scale` decimals.
        scale: decimals of the new price.
        mode: for prices in the middle between two.
    """
    exact = _WIDE.multiply(price, _WIDE.add(100, percent)).scaleb(-2, _WIDE)
    return max(round_money(exact, scale, mode), floor)


def raised_prices(
    prices: pa.Array | pa.ChunkedArray,
    percent: Decimal,
    floor: Decimal,
    mode: Rounding = Rounding.HALF_EVEN,
) -> pa.Decimal128Array:
    """The prices of a column after a raise, each as `raised_price` gives it, in the same type.

    Args:
        prices: decimals of up to 18 digits, without nulls.
        percent: of the price, to be added; negative for a cut. It has up to 14 decimals.
        floor: the least price that comes out; of no more decimals than the prices have.
        mode: for prices in the middle between two.

    Raises:
        ValueError: a price is null.
        OverflowError: a price, before or after, has too many digits, or the percentage has.
    """
    scale = prices.type.scale
    factor = Fraction(100 + Fraction(percent)) / 100
    raised = multiply_divide_many(units(prices, scale), factor.numerator, factor.denominator, mode)
    return decimals(np.maximum(raised, int(floor.scaleb(scale))), prices.type)
