"""Delivery marking: examples by hand, and both forms of the rule held equal on anything."""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledgerbeam.rules.components import Components
from ledgerbeam.rules.delivery.deliver import (
    BUY,
    SELL,
    Trade,
    deliver,
    deliver_each,
    deliver_many,
    is_buy,
    net_quantity,
    obligations,
    product_type,
    product_type_many,
)
from ledgerbeam.transforms.columnar.components import sort_components

LARGEST = 2**63 - 1

Rule = Callable[[Components], pa.Int64Array]
Groups = Sequence[Sequence[Trade]]


def components(groups: Groups, sides: Sequence[str] | None = None) -> Components:
    """Components of trades in the order of their ids; `sides` is a dictionary to encode by."""
    trades = [trade for group in groups for trade in group]
    side = pa.array([trade.side for trade in trades], pa.string())
    if sides is not None:
        codes = pa.array([sides.index(trade.side) for trade in trades], pa.int32())
        side = pa.DictionaryArray.from_arrays(codes, pa.array(sides, pa.string()))
    quantity = pa.array([trade.quantity for trade in trades], pa.int64())
    starts = np.cumsum([0, *map(len, groups)])[: len(groups)]
    return Components(pa.table({"side": side, "quantity": quantity}), starts.astype(np.int64))


def each_by_itself(marked: Components) -> pa.Int64Array:
    """The plain rule, component after component, trade after trade."""
    rows = marked.table.to_pylist()
    delivered: list[int] = []
    for start, end in marked.bounds():
        delivered += deliver([Trade(row["side"], row["quantity"]) for row in rows[start:end]])
    return pa.array(delivered, pa.int64())


RULES = pytest.mark.parametrize("rule", [deliver_many, deliver_each, each_by_itself])

small = st.integers(0, 5)
huge = st.integers(LARGEST - 5, LARGEST)
trades = st.builds(Trade, st.sampled_from([BUY, SELL]), small | st.integers(0, LARGEST) | huge)
small_trades = st.builds(Trade, st.sampled_from([BUY, SELL]), st.integers(0, 1000))
groups_of_trades = st.lists(st.lists(trades, min_size=1, max_size=8), max_size=8) | st.lists(
    st.lists(small_trades, min_size=1, max_size=30), max_size=8
)
encodings = st.none() | st.permutations([BUY, SELL, "unused"])


class TestExamples:
    """One client's trades in one symbol, in the order of their ids."""

    @RULES
    @pytest.mark.parametrize(
        ("trades", "delivered"),
        [
            pytest.param("B10 S4", [6, 0], id="bought more than sold: the buys deliver"),
            pytest.param("S10 B4", [6, 0], id="sold more than bought: the sells deliver"),
            pytest.param("B4 S6 B4 B4", [4, 0, 2, 0], id="in id order until the net is used up"),
            pytest.param("B3 B3 S1", [3, 2, 0], id="each up to its own quantity"),
            pytest.param(
                "S7 B2 S7 B2 S7", [7, 0, 7, 0, 3], id="the last on the net side gets less"
            ),
            pytest.param("B5 S5", [0, 0], id="as much sold as bought: no net, no delivery"),
            pytest.param("B0 B2 S0 B0", [0, 2, 0, 0], id="zero quantities are kept and get 0"),
            pytest.param("B0 S0", [0, 0], id="nothing but zeros"),
            pytest.param("B9", [9], id="a single buy"),
            pytest.param("S9", [9], id="a single sell"),
            pytest.param("B1 B2 B3", [1, 2, 3], id="one side only: all of it"),
        ],
    )
    def test_a_component(self, rule: Rule, trades: str, delivered: list[int]) -> None:
        group = [Trade(trade[0], int(trade[1:])) for trade in trades.split()]
        assert rule(components([group])).to_pylist() == delivered

    @RULES
    def test_components_do_not_mix(self, rule: Rule) -> None:
        bought = [Trade(BUY, 5)]
        sold = [Trade(SELL, 3), Trade(BUY, 1)]
        assert rule(components([bought, sold, bought])).to_pylist() == [5, 2, 0, 5]

    @RULES
    def test_no_components(self, rule: Rule) -> None:
        delivered = rule(components([]))
        assert delivered.to_pylist() == []
        assert delivered.type == pa.int64()

    @RULES
    def test_the_trade_of_the_least_id_comes_first(self, rule: Rule) -> None:
        table = pa.table(
            {
                "client": ["a", "a", "b", "a"],
                "id": [30, 10, 5, 20],
                "side": [BUY, BUY, SELL, SELL],
                "quantity": [4, 4, 4, 2],
            }
        )
        marked = sort_components(table, ["client"], "id").components
        by_id = dict(zip(marked.column("id").to_pylist(), rule(marked).to_pylist(), strict=True))
        assert by_id == {10: 4, 20: 0, 30: 2, 5: 4}

    @RULES
    @pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
    @pytest.mark.parametrize("off", [-1, 0, 1])
    def test_quantities_at_the_edge_of_overflow(self, rule: Rule, count: int, off: int) -> None:
        quantity = min(2**63 // count + off, LARGEST)
        group = [Trade(SELL, quantity)] * count
        assert rule(components([group])).to_pylist() == [quantity] * count

    @RULES
    def test_quantities_that_no_sum_can_hold(self, rule: Rule) -> None:
        group = [Trade(BUY, LARGEST), Trade(BUY, LARGEST), Trade(SELL, LARGEST), Trade(SELL, 1)]
        assert rule(components([group])).to_pylist() == [LARGEST - 1, 0, 0, 0]


class TestAnything:
    @given(groups_of_trades, encodings)
    @example([[Trade(BUY, LARGEST)] * 3, [Trade(SELL, LARGEST), Trade(BUY, 1)]], None)
    @example([], [SELL, "unused", BUY])
    def test_both_forms_are_equal(self, groups: Groups, sides: list[str] | None) -> None:
        marked = components(groups, sides)
        expected = each_by_itself(marked)
        assert deliver_many(marked).equals(expected)
        assert deliver_each(marked).equals(expected)

    @given(groups_of_trades, encodings)
    def test_the_paragraph_holds(self, groups: Groups, sides: list[str] | None) -> None:
        delivered = iter(deliver_many(components(groups, sides)).to_pylist())
        for group in groups:
            own = [next(delivered) for _ in group]
            net = sum(trade.quantity * (1 if trade.side == BUY else -1) for trade in group)
            assert sum(own) == abs(net)
            used_up = False
            for trade, quantity in zip(group, own, strict=True):
                assert 0 <= quantity <= trade.quantity
                if trade.side == (BUY if net > 0 else SELL) and net:
                    assert not (used_up and quantity)
                    used_up |= quantity < trade.quantity
                else:
                    assert quantity == 0
        assert next(delivered, None) is None

    @given(groups_of_trades, encodings)
    def test_nets_are_exact(self, groups: Groups, sides: list[str] | None) -> None:
        owed = obligations(components(groups, sides))
        assert [int(net) for net in owed] == [abs(net_quantity(group)) for group in groups]

    @given(groups_of_trades, st.randoms(use_true_random=False))
    @example([[Trade(BUY, LARGEST)] * 3, [Trade(SELL, 4), Trade(BUY, 1)]], Random(1))
    def test_gross_components_among_others(self, groups: Groups, random: Random) -> None:
        ways = [random.choice(["gross", "net", "net-t0"]) for _ in groups]
        marked = components(groups)
        sizes = [len(group) for group in groups]
        column = pa.array(np.repeat(np.array(ways, object), sizes), pa.string())
        table = marked.table.append_column("settles", column.dictionary_encode())
        marked = marked._replace(table=table)
        expected = []
        owed = []
        for group, way in zip(groups, ways, strict=True):
            quantities = [trade.quantity for trade in group]
            is_gross = way == "gross"
            expected += quantities if is_gross else deliver(group)
            owed.append(sum(quantities) if is_gross else abs(net_quantity(group)))
        assert deliver_many(marked).to_pylist() == expected
        assert deliver_each(marked).to_pylist() == expected
        assert [int(each) for each in obligations(marked)] == owed

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)).map(sorted)))
    def test_product_types(self, pairs: list[list[int]]) -> None:
        quantities = [most for _, most in pairs]
        delivered = [least for least, _ in pairs]
        each = [product_type(q, d) for q, d in zip(quantities, delivered, strict=True)]
        both = (pa.array(quantities, pa.int64()), pa.array(delivered, pa.int64()))
        assert product_type_many(*both).to_pylist() == each
        by_kind = {"delivery": 1.0, "intraday": 0.0}
        for kind, quantity, part in zip(each, quantities, delivered, strict=True):
            assert by_kind.get(kind, 0.5) == (part / quantity if quantity else 0) or kind == "both"

    @given(groups_of_trades, encodings)
    def test_buys_are_told_from_sells(self, groups: Groups, sides: list[str] | None) -> None:
        buys = is_buy(components(groups, sides))
        assert buys.tolist() == [trade.side == BUY for group in groups for trade in group]

    @given(groups_of_trades)
    def test_the_input_is_left_alone(self, groups: Groups) -> None:
        marked = components(groups)
        before = marked.table.to_pylist(), marked.starts.tolist()
        deliver_many(marked)
        deliver_each(marked)
        assert (marked.table.to_pylist(), marked.starts.tolist()) == before


class TestComponents:
    def test_bounds(self) -> None:
        group = [Trade(BUY, 1)]
        assert list(components([group * 2, group, group * 3]).bounds()) == [(0, 2), (2, 3), (3, 6)]

    def test_no_bounds(self) -> None:
        assert list(components([]).bounds()) == []
        assert components([]).ends().dtype == np.int64

    def test_a_column_in_chunks_is_joined(self) -> None:
        table = pa.table({"side": pa.chunked_array([["B"], ["S"]]), "quantity": [1, 2]})
        assert Components(table, np.array([0])).column("side").to_pylist() == ["B", "S"]
        assert Components(table.slice(0, 0), np.zeros(0, np.int64)).column("side").to_pylist() == []
