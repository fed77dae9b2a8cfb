"""Price changes: raise by a percentage, round to the price's decimals, keep above a floor."""

from decimal import Context, Decimal

from ledgerbeam.rules.money import Rounding, round_money

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
