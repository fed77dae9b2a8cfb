"""Control totals and other totals as a person reads them: amounts with decimals and currency."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ledgerbeam.io.commit.amounts import currency_of, label_of, shown
from ledgerbeam.io.commit.records import Control


class Balance(NamedTuple):
    """Two totals that must be equal.

    Attributes:
        of: what is compared, such as `balance`; empty where the equation says it.
        equation: of what each side is made.
        expected: what went in.
        actual: what came out.
        difference: the second less the first.
        balances: whether both are equal.
    """

    of: str
    equation: str
    expected: str
    actual: str
    difference: str
    balances: bool


class Group(NamedTuple):
    """The balances of a currency.

    Attributes:
        currency: its code; empty for counts.
        balances: in the order in which they were checked.
    """

    currency: str
    balances: Sequence[Balance]


class Sheet(NamedTuple):
    """Totals, a line each, with a column for each currency.

    Attributes:
        currencies: codes; empty for counts, which come first.
        lines: label, and a value by currency.
    """

    currencies: Sequence[str]
    lines: Sequence[tuple[str, Mapping[str, str]]]


def balances(controls: Sequence[Control], decimals: Mapping[str, int]) -> list[Group]:
    """The controls of a run, by currency; counts come first.

    Args:
        controls: as the manifest has them.
        decimals: of money that names no currency, by the total's name.
    """
    found: dict[str, list[Balance]] = {}
    for control in controls:
        currency = currency_of(control.name)
        name, _, equation = control.name.rpartition(": ")
        equation = equation.removesuffix(f", {currency}")
        name = "" if name == currency else label_of(name)
        expected, actual, difference = (
            shown(control.name, value, decimals)
            for value in (control.expected, control.actual, control.actual - control.expected)
        )
        one = Balance(name, equation, expected, actual, difference, control.balances)
        found.setdefault(currency, []).append(one)
    return [Group(currency, found[currency]) for currency in sorted(found)]


def sheet(totals: Mapping[str, int], decimals: Mapping[str, int]) -> Sheet:
    """Totals as a sheet, in their order.

    Args:
        totals: counts and minor units, by name.
        decimals: of money that names no currency, by the total's name.
    """
    lines: dict[str, dict[str, str]] = {}
    currencies: set[str] = set()
    for name, value in totals.items():
        if name.endswith("_hash"):
            continue
        currency = currency_of(name)
        currencies.add(currency)
        # The column says which currency it is.
        text = shown(name, value, decimals).removesuffix(f" {currency}")
        lines.setdefault(label_of(name), {})[currency] = text
    return Sheet(sorted(currencies), list(lines.items()))
