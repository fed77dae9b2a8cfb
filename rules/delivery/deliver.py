"""Delivery marking: which trades of a day go to delivery, and with how much of their quantity.

The trades of one client in one instrument and settlement are a component. Its net is what was
bought less what was sold. Trades of the net side (buys where the net is positive, sells where it is
negative) get delivery quantity in the order of allocation (by default that of their ids), each up
to its own quantity, until the net is used up. All other trades get 0. Where the settlement is
gross, each trade is delivered in full.

`deliver` is the rule for one component, `deliver_many` for a table of many components at once.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.arrays import Flags, Integers
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.delivery.settlement import GROSS

BUY = "B"
SELL = "S"
SETTLES = "settles"
"""Name of the column that says how a component settles; without it all net."""


class Trade(NamedTuple):
    """What the rule needs to know of a trade.

    Attributes:
        side: `B` or `S`.
        quantity: units of the symbol, not negative.
    """

    side: str
    quantity: int


def deliver(trades: Sequence[Trade], settles: str = "") -> list[int]:
    """Delivery quantities of one component's trades.

    Args:
        trades: in the order of allocation.
        settles: `gross`, or anything else for net.
    """
    if settles == GROSS:
        return [trade.quantity for trade in trades]
    net = net_quantity(trades)
    net_side = BUY if net > 0 else SELL
    left = abs(net)
    delivered = []
    for trade in trades:
        quantity = min(trade.quantity, left) if trade.side == net_side else 0
        left -= quantity
        delivered.append(quantity)
    return delivered


def net_quantity(trades: Iterable[Trade]) -> int:
    """Quantity bought less quantity sold."""
    return sum(trade.quantity if trade.side == BUY else -trade.quantity for trade in trades)


def deliver_many(components: Components) -> pa.Int64Array:
    """Delivery quantities, one for each row of the components.

    Args:
        components: a component is a client's trades in an instrument, in the order of allocation,
            with the columns `side` (`B` or `S`), `quantity` (int64, not negative), and `settles`
            where some are gross.
    """
    quantity = components.column("quantity").to_numpy()
    if not _sums_fit(quantity):
        return deliver_each(components)
    if not len(quantity):
        return pa.array([], pa.int64())
    buys = is_buy(components)
    net = np.add.reduceat(np.where(buys, quantity, -quantity), components.starts)
    sizes = np.diff(components.starts, append=len(quantity))
    on_net_side = buys == np.repeat(net > 0, sizes)
    eligible = np.where(on_net_side, quantity, 0)
    used = np.cumsum(eligible) - eligible
    used -= np.repeat(used[components.starts], sizes)
    left = np.repeat(np.abs(net), sizes) - used
    delivered = np.clip(left, 0, eligible)
    if SETTLES in components.table.column_names:
        delivered = np.where(np.repeat(is_gross(components), sizes), quantity, delivered)
    return pa.array(delivered)


def deliver_each(components: Components) -> pa.Int64Array:
    """The same as `deliver_many`, by calling `deliver` for one component after the other."""
    trades = _trades(components)
    delivered: list[int] = []
    for (start, end), settles in zip(components.bounds(), _settles(components), strict=True):
        delivered += deliver(trades[start:end], settles)
    return pa.array(delivered, pa.int64())


def obligations(components: Components) -> list[int] | Integers:
    """What each component has to deliver or to receive: its net, or all of it where it is gross.

    Returns:
        One for each, never negative; Python integers where int64 could overflow.
    """
    quantity = components.column("quantity").to_numpy()
    if len(quantity) and _sums_fit(quantity):
        signed = np.where(is_buy(components), quantity, -quantity)
        owed: Integers = np.abs(np.add.reduceat(signed, components.starts))
        if SETTLES in components.table.column_names:
            whole = np.add.reduceat(quantity, components.starts)
            owed = np.where(is_gross(components), whole, owed)
        return owed
    trades = _trades(components)
    return [
        sum(trade.quantity for trade in trades[start:end])
        if settles == GROSS
        else abs(net_quantity(trades[start:end]))
        for (start, end), settles in zip(components.bounds(), _settles(components), strict=True)
    ]


def product_type(quantity: int, delivered: int) -> str:
    """What a trade turned out to be: `delivery`, `intraday`, or `both` if a part is delivered."""
    if not delivered:
        return "intraday"
    return "delivery" if delivered == quantity else "both"


def product_type_many(quantity: pa.Int64Array, delivered: pa.Int64Array) -> pa.StringArray:
    """`product_type` of each trade."""
    nothing, all_ = pc.equal(delivered, 0), pc.equal(delivered, quantity)
    return pc.if_else(nothing, "intraday", pc.if_else(all_, "delivery", "both"))


def _trades(components: Components) -> list[Trade]:
    return list(map(Trade, components.values("side"), components.values("quantity")))


def is_buy(components: Components) -> Flags:
    """Bool `(rows,)`: which trades are buys."""
    side = components.column("side")
    if isinstance(side, pa.DictionaryArray):
        buys = np.array([value == BUY for value in side.dictionary.to_pylist()], bool)
        return buys[side.indices.to_numpy()] if len(buys) else np.zeros(len(side), bool)
    return np.asarray(pc.equal(side, BUY).to_numpy(zero_copy_only=False))


def is_gross(components: Components) -> Flags:
    """Bool `(components,)`: which settle gross, by `settles` of their first rows."""
    return np.array([value == GROSS for value in _settles(components)], bool)


def _settles(components: Components) -> list[str]:
    if SETTLES not in components.table.column_names:
        return [""] * len(components.starts)
    values: list[str] = components.column(SETTLES).take(pa.array(components.starts)).to_pylist()
    return values


def _sums_fit(quantity: Integers) -> bool:
    """Whether no sum over these rows can pass int64."""
    return not len(quantity) or int(quantity.max()) * len(quantity) < 2**63
