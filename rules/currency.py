"""Currencies and their minor units, without arrays: what only shows amounts imports no more."""

import decimal
from decimal import Decimal
from functools import cache

_WITHOUT_MINOR_UNIT = 2
WIDE = decimal.Context(prec=76)
"""Holds every decimal128 and decimal256 exactly; the default context has 28 digits."""


@cache
def minor_units(currency: str) -> int:
    """How many decimals amounts of a currency have, by ISO 4217.

    Codes to which ISO gives no minor unit, such as gold (XAU) and the code for tests (XTS), have
    two: amounts of them must count in something.

    Raises:
        ValueError: if `currency` isn't three capital letters, or ISO 4217 doesn't list it or has
            withdrawn it.
    """
    if not (
        len(currency) == 3 and currency.isascii() and currency.isalpha() and currency.isupper()
    ):
        raise ValueError(f"currency {currency!r} is not three capital letters, such as USD")
    # Reads its table when it is imported, which costs more than all the rest of this module.
    from iso4217 import Currency

    try:
        decimals: int | None = Currency(currency).exponent
    except ValueError:
        raise ValueError(f"currency {currency} is not in the list of ISO 4217") from None
    return _WITHOUT_MINOR_UNIT if decimals is None else decimals


def scaled(units: int, decimals: int) -> Decimal:
    """A whole number of 10**-decimals as an amount: 98000 with 2 of them is 980.00."""
    return Decimal(units).scaleb(-decimals, WIDE)


def to_decimal(units: int, currency: str) -> Decimal:
    """A count of a currency's minor units as an amount with the currency's decimals.

        to_decimal(123450, "USD")  # Decimal('1234.50')

    Raises:
        ValueError: if ISO 4217 doesn't list the currency.
    """
    return scaled(units, minor_units(currency))


def format_money(units: int, currency: str) -> str:
    """An amount for people: `1,234.50 EUR`, `-1,235 JPY`.

    Args:
        units: minor units, of any sign and size.
        currency: ISO 4217 code, which also says how many decimals there are.

    Raises:
        ValueError: if ISO 4217 doesn't list the currency.
    """
    return f"{to_decimal(units, currency):,f} {currency}"
