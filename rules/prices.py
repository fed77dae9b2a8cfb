"""Price changes: raise by a percentage, round to the price's own decimals, keep above a floor."""

from decimal import ROUND_HALF_EVEN, Context, Decimal

# Holds any product of a price and a percentage exactly.
_WIDE = Context(prec=76)


def raised_price(price: Decimal, percent: Decimal, floor: Decimal) -> Decimal:
    """The price after a raise.

    It is rounded half to even, once, to as many decimals as the price had. So 0.125 becomes 0.12,
    and 0.375 becomes 0.38.

    Args:
        price: before the raise.
        percent: of the price, to be added; negative for a cut.
        floor: the least price that comes out; of no more decimals than the price.
    """
    exact = _WIDE.multiply(price, _WIDE.add(100, percent)).scaleb(-2, _WIDE)
    unit = Decimal((0, (1,), int(price.as_tuple().exponent)))
    return max(exact.quantize(unit, ROUND_HALF_EVEN, _WIDE), floor.quantize(unit, context=_WIDE))
