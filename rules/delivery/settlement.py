"""How trades settle: net of each other or gross, by a table of rules.

A rule names an exchange, a segment, a series (BSE: group) and a settlement type, each as such or by
a pattern (`X?`, `*`), and says how such trades settle: `gross`, or the name of the netting that
they take part in. Of the rules that match a trade the most specific one counts: what is named as
such goes before a pattern and a pattern before `*`, first for the settlement type, then for the
series, the segment and the exchange. Auction trades are gross whatever the rules say.

`settlement` is the rule for one trade, `settlement_many` for the trades of a table.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.arrays import Integers

GROSS = "gross"
NET = "net"
UNKNOWN = ""

MARKET = ("exchange", "segment", "series", "settlement_type")
"""Columns of trades that rules are chosen by."""

_YES = frozenset(("true", "t", "yes", "y", "1"))
_NO = frozenset(("false", "f", "no", "n", "0", ""))


class SettlementRule(NamedTuple):
    """A row of the table.

    Attributes:
        exchange: such as `NSE`, or a pattern; so are the next three.
        segment: empty for trades without a segment, as with the next two.
        series: such as `EQ`.
        settlement_type: such as `Z`.
        settles: `gross`, or the name of a netting.
    """

    exchange: str
    segment: str
    series: str
    settlement_type: str
    settles: str


class Market(NamedTuple):
    """Where a trade was made.

    Attributes:
        exchange: None where the trades have no such column: then rules of every exchange match.
        segment: empty where the trades have no such column, as the next two.
        series: such as `EQ`.
        settlement_type: such as `Z`.
        auction: whether it is an auction trade, as text.
    """

    exchange: str | None = None
    segment: str = ""
    series: str = ""
    settlement_type: str = ""
    auction: str = ""

    def __str__(self) -> str:
        values = zip(MARKET, self[: len(MARKET)], strict=True)
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values if value)


def settlement(rules: Sequence[SettlementRule] | None, market: Market) -> str:
    """How a trade settles: `gross`, or the netting that it takes part in.

    Args:
        rules: of which one must match; None where all trades net that aren't of an auction.
        market: of the trade.

    Raises:
        ValueError: no rule matches, rules of the same rank disagree, or `auction` isn't understood.
    """
    auction = market.auction.lower()
    if auction in _YES:
        return GROSS
    if auction not in _NO:
        raise ValueError(f"auction {market.auction!r} is neither true nor false")
    if rules is None:
        return NET
    found: dict[tuple[int, ...], list[SettlementRule]] = {}
    for rule in rules:
        if rank := _rank(rule, market):
            found.setdefault(rank, []).append(rule)
    if not found:
        raise ValueError(f"there is no settlement rule for {market}")
    best = found[max(found)]
    if len({rule.settles for rule in best}) > 1:
        said = " and ".join(sorted({f"{rule.settles} on {rule.exchange}" for rule in best}))
        raise ValueError(f"settlement rules disagree about {market}: {said}")
    return best[0].settles


def _rank(rule: SettlementRule, market: Market) -> tuple[int, ...]:
    """How specific a rule is that matches; empty for one that doesn't."""
    of_exchange = 1 if market.exchange is None else _match(rule.exchange, market.exchange)
    ranks = (
        _match(rule.settlement_type, market.settlement_type),
        _match(rule.series, market.series),
        _match(rule.segment, market.segment),
        of_exchange,
    )
    return ranks if all(ranks) else ()


def _match(pattern: str, value: str) -> int:
    """3 for the same, 2 for a pattern that fits, 1 for `*`, else 0."""
    if pattern == "*":
        return 1
    if pattern == value:
        return 3
    return 2 if fnmatchcase(value, pattern) else 0


def settlement_many(rules: Sequence[SettlementRule] | None, trades: pa.Table) -> pa.DictionaryArray:
    """How each trade settles; `UNKNOWN` where `settlement` has an error to say.

    Args:
        rules: see `settlement`.
        trades: with those columns of `Market` that they have, as strings or booleans.
    """

    def known(market: Market) -> str:
        try:
            return settlement(rules, market)
        except ValueError:
            return UNKNOWN

    return map_distinct(trades, Market._fields, lambda row: known(market_of(row)))


def market_of(row: Mapping[str, object]) -> Market:
    """The market that a trade names; columns that it doesn't have, or that are null, are left."""
    named = {name: row[name] for name in Market._fields if row.get(name) is not None}
    return Market(**{name: text_of(value) for name, value in named.items()})


def text_of(value: object) -> str:
    """A value of a typed file as it would stand in text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Rows(NamedTuple):
    rows: list[dict[str, object]]
    numbers: Integers


def map_distinct(
    table: pa.Table, names: Sequence[str], value: Callable[[Mapping[str, Any]], str]
) -> pa.DictionaryArray:
    """A text for each row, computed once for all rows that are equal in some columns.

    Args:
        table: the rows.
        names: of the columns, of which those count that are there.
        value: the text for their values by name.
    """
    distinct = _distinct(table, [name for name in names if name in table.column_names])
    values = [value(row) for row in distinct.rows]
    kept = sorted(set(values))
    positions = {text: position for position, text in enumerate(kept)}
    codes = np.array([positions[text] for text in values], np.int32)
    indices = pa.array(codes[distinct.numbers] if len(codes) else codes)
    return pa.DictionaryArray.from_arrays(indices, pa.array(kept, pa.string()))


def _distinct(table: pa.Table, names: Sequence[str]) -> _Rows:
    """The distinct rows of some columns, and the number of each row among them."""
    numbers = np.zeros(table.num_rows, np.int64)
    for name in names:
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        if not isinstance(column, pa.DictionaryArray):
            column = column.dictionary_encode()
        codes = column.indices.fill_null(len(column.dictionary)).to_numpy().astype(np.int64)
        # Renumbered after each column, so that numbers never pass the count of rows squared.
        _, numbers = np.unique(numbers * (len(column.dictionary) + 1) + codes, return_inverse=True)
    _, firsts, numbers = np.unique(numbers, return_index=True, return_inverse=True)
    rows = table.take(pa.array(firsts)).select(list(names)).to_pylist()
    return _Rows(rows or [{}] * len(firsts), numbers)
