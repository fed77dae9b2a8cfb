"""Delivery marking: which trades of a day go to delivery, and with how much of their quantity.

The trades of one client in one symbol are a component. Its net is what was bought less what was
sold. Trades of the net side (buys where the net is positive, sells where it is negative) get
delivery quantity in the order of their ids, each up to its own quantity, until the net is used
up. All other trades get 0.

The rule stands here twice: `deliver` reads like the paragraph above and works on one component,
`mark_deliveries` does the same for a table of many components at once.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.components import Components

BUY = "B"
SELL = "S"


class Trade(NamedTuple):
    """What the rule needs to know of a trade.

    Attributes:
        side: `B` or `S`.
        quantity: units of the symbol, not negative.
    """

    side: str
    quantity: int


def deliver(trades: Sequence[Trade]) -> list[int]:
    """Delivery quantities of one component's trades, for `trades` in the order of their ids."""
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


def mark_deliveries(components: Components) -> pa.Int64Array:
    """Delivery quantities, one for each row of the components.

    Args:
        components: a component is a client's trades in a symbol, in the order of their ids, with
            the columns `side` (`B` or `S`) and `quantity` (int64, not negative).
    """
    quantity = components.column("quantity").to_numpy()
    if not _sums_fit(quantity):
        return mark_each(components)
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
    return pa.array(np.clip(left, 0, eligible))


def mark_each(components: Components) -> pa.Int64Array:
    """The same as `mark_deliveries`, by calling `deliver` for one component after the other."""
    trades = _trades(components)
    delivered: list[int] = []
    for start, end in components.bounds():
        delivered += deliver(trades[start:end])
    return pa.array(delivered, pa.int64())


def net_quantities(components: Components) -> list[int] | npt.NDArray[np.int64]:
    """Net quantity of each component; Python integers where int64 could overflow."""
    quantity = components.column("quantity").to_numpy()
    if len(quantity) and _sums_fit(quantity):
        signed = np.where(is_buy(components), quantity, -quantity)
        nets: npt.NDArray[np.int64] = np.add.reduceat(signed, components.starts)
        return nets
    trades = _trades(components)
    return [net_quantity(trades[start:end]) for start, end in components.bounds()]


def _trades(components: Components) -> list[Trade]:
    return list(map(Trade, components.values("side"), components.values("quantity")))


def is_buy(components: Components) -> npt.NDArray[np.bool_]:
    """Bool `(rows,)`: which trades are buys."""
    side = components.column("side")
    if isinstance(side, pa.DictionaryArray):
        buys = np.array([value == BUY for value in side.dictionary.to_pylist()], bool)
        return buys[side.indices.to_numpy()] if len(buys) else np.zeros(len(side), bool)
    return np.asarray(pc.equal(side, BUY).to_numpy(zero_copy_only=False))


def _sums_fit(quantity: npt.NDArray[np.int64]) -> bool:
    """Whether no sum over these rows can pass int64."""
    return not len(quantity) or int(quantity.max()) * len(quantity) < 2**63
