"""Totals and controls as people read them, and as programs do: money is never minor units."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ledgerbeam.io.commit.total_names import display_name
from ledgerbeam.rules.currency import format_money, minor_units, scaled

# A total `balance_USD`; a control `balance_USD: in = out`, `USD: in = out` or `in = out, USD`.
_CODE = re.compile(r"(?:^|_|, )([A-Z]{3})(?:$|: )")
_REFUSED, _REJECTED = "refused_", "rejected_"
_KINDS = re.compile("^(failed|refused)_")


def currency_of(name: str) -> str:
    """The currency that a total or a control names; empty for none that ISO 4217 lists."""
    found = _CODE.search(name)
    if found is None:
        return ""
    try:
        minor_units(found[1])
    except ValueError:
        return ""
    return found[1]


def label_of(name: str) -> str:
    """A total's name for people, without its currency, which `shown` gives."""
    name = display_name(_standard_name(name))
    currency = currency_of(name)
    return name.removesuffix(f"_{currency}" if currency else "").replace("_", " ")


def totals_json(totals: Mapping[str, int], decimals: Mapping[str, int]) -> dict[str, Any]:
    """Totals for programs; those stored as `refused_…` are given as `rejected_…` too.

    Money is `{"amount": "980.00", "currency": "USD", "scale": 2}`, where `currency` is null if the
    total names none. Counts and hashes are integers.

    Args:
        totals: by name, as they are stored.
        decimals: of money that names no currency, by the total's name.
    """
    read = {name: _for_programs(name, value, decimals) for name, value in totals.items()}
    return {**read, **{_standard_name(name): value for name, value in read.items()}}


def read_totals(totals: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Totals as they are stored, from what `totals_json` gave, and the decimals it was given."""
    values, decimals = {}, {}
    for name, value in totals.items():
        if f"{_REFUSED}{name.removeprefix(_REJECTED)}" in totals and name.startswith(_REJECTED):
            continue  # The same total by its other name.
        if not isinstance(value, Mapping):
            values[name] = value
            continue
        values[name] = int(value["amount"].replace(".", ""))  # it has as many decimals as its scale
        if value["currency"] is None:
            decimals[_decimals_name(name)] = value["scale"]
    return values, decimals


def _for_programs(name: str, value: int, decimals: Mapping[str, int]) -> Any:
    currency = currency_of(name)
    scale = minor_units(currency) if currency else _decimals_of(name, decimals)
    if not currency and not scale:
        return value
    return {
        "amount": decimal_text(scaled(value, scale)),
        "currency": currency or None,
        "scale": scale,
    }


def decimal_text(value: Decimal) -> str:
    """All digits of a decimal, where `str` writes some with an exponent: `0.00000000`."""
    return f"{value:f}"


def _standard_name(name: str) -> str:
    return f"{_REJECTED}{name.removeprefix(_REFUSED)}" if name.startswith(_REFUSED) else name


def shown(name: str, value: int, decimals: Mapping[str, int]) -> str:
    """The value of a total or a control for people: `98,000`, `980.00 USD`, or `980.00`.

    Args:
        name: of the total or control.
        value: a count, or minor units.
        decimals: of money that names no currency, by the total's name.
    """
    currency = currency_of(name)
    if currency:
        return format_money(value, currency)
    return f"{scaled(value, _decimals_of(name, decimals)):,f}"


def _decimals_of(name: str, decimals: Mapping[str, int]) -> int:
    return decimals.get(_decimals_name(name), 0)


def _decimals_name(name: str) -> str:
    return display_name(_KINDS.sub("", name.partition(":")[0]))
