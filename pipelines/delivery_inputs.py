"""What delivery marking reads: trades, and the tables that say how they settle.

Which columns are used besides the required ones depends on the parameters, and on the columns that
the trades have. Before trades are grouped, columns that are derived from each row are added:
`settles`; `isin`, if parameters ask for it; and, with names that begin with `__`, the columns that
allocation is ordered by, which aren't published.
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.batch.define.keyed_process import Lookup
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.rules.calendar.time_of_day import time_of_day_many
from ledgerbeam.rules.delivery.deliver import BUY, SELL, SETTLES
from ledgerbeam.rules.delivery.settlement import (
    MARKET,
    UNKNOWN,
    SettlementRule,
    map_distinct,
    market_of,
    settlement,
    settlement_many,
    text_of,
)

DELIVERY_QUANTITY = "delivery_quantity"
PRODUCT_TYPE = "product_type"
TIME = "__time"
PRODUCT = "__product"

TRADES = Contract(
    (
        Column("id", pa.int64()),
        Column("client_code", pa.string(), dictionary_encoded=True),
        Column("symbol", pa.string(), dictionary_encoded=True),
        Column("side", pa.string(), dictionary_encoded=True, one_of=(BUY, SELL)),
        Column("quantity", pa.int64(), minimum=0),
        Column("price", pa.decimal128(18, 4), required=False, nullable=True),
        Column("trade_date", pa.date32(), required=False),
        Column("exchange", pa.string(), required=False, dictionary_encoded=True),
        Column("segment", pa.string(), required=False, dictionary_encoded=True),
        Column("series", pa.string(), required=False, dictionary_encoded=True),
        Column("settlement_number", pa.string(), required=False, dictionary_encoded=True),
        Column("settlement_type", pa.string(), required=False, dictionary_encoded=True),
        Column(SETTLES, pa.string(), required=False, dictionary_encoded=True),
        Column(TIME, pa.int64(), required=False),
        Column(PRODUCT, pa.int64(), required=False),
    ),
    reserved=(DELIVERY_QUANTITY, SETTLES),
)
"""Trades as they come in: one row per trade; `quantity` in units of the symbol."""

SHIPPED_RULES = {
    name: str(files("ledgerbeam.rules.delivery") / "settlement_rules" / f"{name}.csv")
    for name in ("nse", "bse")
}
"""Files of settlement rules by the names that `--settlement-rules` accepts for them."""

SETTLEMENT_RULES = Lookup(
    Contract(
        (
            Column("exchange", pa.string()),
            Column("segment", pa.string(), required=False, nullable=True),
            Column("series", pa.string(), nullable=True),
            Column("settlement_type", pa.string(), required=False, nullable=True),
            Column("settles", pa.string()),
        )
    ),
    MARKET,
    SHIPPED_RULES,
)

INSTRUMENTS = Lookup(
    Contract(
        (
            Column("exchange", pa.string(), required=False, nullable=True),
            Column("symbol", pa.string()),
            Column("isin", pa.string()),
        )
    ),
    ("exchange", "symbol"),
)

_RANKS = {"delivery": 0, "intraday": 1}

PRODUCTS = Lookup(
    Contract(
        (
            Column("product", pa.string()),
            Column("product_type", pa.string(), dictionary_encoded=True, one_of=tuple(_RANKS)),
        )
    ),
    "product",
)

Tables = Mapping[str, pa.Table]
"""The lookups that a run has, by parameter."""


def with_derived(trades: pa.Table, lookups: Tables, settles: bool, times: bool) -> pa.Table:
    """Trades with the columns that are derived from each of them.

    Values that can't be derived are `UNKNOWN`, or negative: `why_rejected` gives the reasons.

    Args:
        trades: any number of trades.
        lookups: the run's lookups.
        settles: whether to add how the trades settle.
        times: whether to add their times of day.
    """
    if settles:
        trades = trades.append_column(SETTLES, settlement_many(_rules(lookups), trades))
    if "instruments" in lookups:
        isins = _isins(lookups)
        found = map_distinct(trades, ("exchange", "symbol"), lambda row: _isin(isins, row))
        trades = trades.append_column("isin", found)
    if "products" in lookups:
        ranks = _product_ranks(lookups)
        texts = map_distinct(trades, ("product",), lambda row: ranks.get(_product(row), "-1"))
        trades = trades.append_column(PRODUCT, texts.cast(pa.string()).cast(pa.int64()))
    if times:
        trades = trades.append_column(TIME, pa.array(time_of_day_many(trades.column("trade_time"))))
    return trades


def why_rejected(trades: pa.Table, lookups: Tables) -> dict[int, str]:
    """Reasons for rejecting rows of which a value could not be derived, by the row's number."""
    reasons: dict[int, str] = {}
    for name in (SETTLES, "isin", PRODUCT, TIME):
        if name not in trades.column_names:
            continue
        column = trades.column(name)
        if pa.types.is_integer(column.type):
            is_wrong = pc.less(column, 0)
        else:
            is_wrong = pc.equal(column.cast(pa.string()), UNKNOWN)
        rows = np.flatnonzero(is_wrong.to_numpy())
        for row, values in zip(rows.tolist(), trades.take(rows).to_pylist(), strict=True):
            reason = _reason(name, values, lookups)
            reasons[row] = f"{reasons[row]}; {reason}" if row in reasons else reason
    return reasons


def _reason(name: str, trade: Mapping[str, Any], lookups: Tables) -> str:
    if name == SETTLES:
        try:
            return settlement(_rules(lookups), market_of(trade))
        except ValueError as error:
            return f"{error}: see --settlement-rules"
    if name == "isin":
        exchange = trade.get("exchange")
        on = f" of exchange {exchange}" if exchange else ""
        return f"symbol {trade['symbol']}{on} is not in --instruments"
    if name == PRODUCT:
        return f"product {_product(trade)!r} is not in --products"
    return f"trade_time {text_of(trade['trade_time'])!r} is not a time ([YYYY-MM-DD ]HH:MM:SS)"


def _rules(lookups: Tables) -> list[SettlementRule] | None:
    table = lookups.get("settlement_rules")
    if table is None:
        return None
    return [
        SettlementRule(
            **{name: row.get(name, "*") or "" for name in MARKET}, settles=row["settles"]
        )
        for row in table.to_pylist()
    ]


def _isins(lookups: Tables) -> dict[tuple[str, str], str]:
    rows = lookups["instruments"].to_pylist()
    return {(row.get("exchange") or "", row["symbol"]): row["isin"] for row in rows}


def _isin(isins: Mapping[tuple[str, str], str], trade: Mapping[str, Any]) -> str:
    """The ISIN of the symbol on the trade's exchange, or else of the symbol on any exchange."""
    exchange, symbol = trade.get("exchange") or "", trade["symbol"]
    return isins.get((exchange, symbol)) or isins.get(("", symbol), UNKNOWN)


def _product_ranks(lookups: Tables) -> dict[str, str]:
    rows = lookups["products"].to_pylist()
    return {row["product"]: str(_RANKS[row["product_type"]]) for row in rows}


def _product(trade: Mapping[str, Any]) -> str:
    value = trade.get("product")
    return "" if value is None else text_of(value)
