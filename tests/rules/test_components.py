"""Components: rows of a key with what is related to them, cut, chosen, made by hand."""

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.processes import (
    MONEY,
    LoanParameters,
    Outstanding,
)

from ledgerbeam.rules.components import Component, Components
from ledgerbeam.transforms.columnar.components import align, sort_components


class TestAlign:
    """Components of a further input, put beside those of the first."""

    @given(st.data())
    def test_against_dictionaries(self, data: st.DataObject) -> None:
        keys = st.tuples(st.integers(-2, 2), st.sampled_from("ABé"))
        sides = [data.draw(st.lists(st.tuples(keys, st.integers(0, 9)), max_size=20)) for _ in "12"]
        encoded = [data.draw(st.booleans()) for _ in "12"]
        first, others = (
            sort_components(table_of(rows, is_encoded), ("branch", "loan"), "order").components
            for rows, is_encoded in zip(sides, encoded, strict=True)
        )
        aligned, orphans = align(first, others, ("branch", "loan"))
        ours = sorted({key for key, _ in sides[0]}, key=lambda key: (key[0], key[1].encode()))
        assert len(aligned.starts) == len(ours)
        columns = ("branch", "loan", "order")
        for key, (start, end) in zip(ours, aligned.bounds(), strict=True):
            rows = aligned.table.slice(start, end - start).select(columns).to_pylist()
            found = [((row["branch"], row["loan"]), row["order"]) for row in rows]
            assert found == sorted(row for row in sides[1] if row[0] == key)
        expected = sorted(row for row in sides[1] if row[0] not in ours)
        found = sorted(((row["branch"], row["loan"]), row["order"]) for row in orphans.to_pylist())
        assert found == expected

    @given(st.data())
    def test_slices_and_choices_keep_what_is_related(self, data: st.DataObject) -> None:
        keys = st.tuples(st.integers(0, 2), st.sampled_from("AB"))
        sides = [data.draw(st.lists(st.tuples(keys, st.integers(0, 9)), max_size=15)) for _ in "12"]
        first, others = (
            sort_components(table_of(rows, True), ("branch", "loan"), "order").components
            for rows in sides
        )
        aligned, _ = align(first, others, ("branch", "loan"))
        whole = first._replace(related={"others": aligned})
        everything = contents(whole)
        count = len(first.starts)
        start = data.draw(st.integers(0, count))
        end = data.draw(st.integers(start, count))
        assert contents(whole.slice(start, end)) == everything[start:end]
        chosen = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
        assert contents(whole.select(chosen)) == [
            content for content, is_chosen in zip(everything, chosen, strict=True) if is_chosen
        ]


def table_of(rows: list[tuple[tuple[int, str], int]], is_encoded: bool) -> pa.Table:
    loans = pa.array([loan for (_, loan), _ in rows], pa.string())
    return pa.table(
        {
            "branch": pa.array([branch for (branch, _), _ in rows], pa.int64()),
            "loan": loans.dictionary_encode() if is_encoded else loans,
            "order": pa.array([order for _, order in rows], pa.int64()),
        }
    )


def contents(components: Components) -> list[Any]:
    return [
        (component.key, component.values("order"), component.related("others").records())
        for component in components.each(("branch", "loan"))
    ]


class TestComponents:
    """One unit of work, as rules and their tests see it."""

    ROWS = pa.table({"loan": ["L", "L"], "amount": pa.array([Decimal(1), Decimal(2)], MONEY)})

    def test_made_by_hand(self) -> None:
        paid = pa.table({"amount": pa.array([Decimal(3)], MONEY)})
        component = Component.of(("L",), self.ROWS, {"paid": paid})
        assert (len(component), component.key, component.first("loan")) == (2, ("L",), "L")
        assert component.values("amount") == [Decimal(1), Decimal(2)]
        assert component.records()[1] == {"loan": "L", "amount": Decimal(2)}
        assert component.related("paid").values("amount") == [Decimal(3)]
        assert repr(component) == "Component(L: 2 rows)"

    def test_what_one_component_lacks_is_not_taken_from_another(self) -> None:
        own = pa.table({"loan": ["A", "B"], "order": [1, 2]})
        others = pa.table({"loan": ["B"], "amount": [7]})
        related = {"amounts": Components(others, np.array([0, 0]))}
        first, second = Components(own, np.array([0, 1]), related).each(("loan",))
        assert second.related("amounts").first("amount") == 7
        with pytest.raises(IndexError, match="there are no amounts for loan A"):
            first.related("amounts").first("amount")

    def test_a_rule_is_tested_without_a_run(self) -> None:
        parameters = LoanParameters(output="o", loans="l", transactions="t")
        loan = pa.table({"principal": pa.array([Decimal(9), Decimal(1)], MONEY)})
        paid = pa.table({"amount": pa.array([Decimal("0.50")], MONEY)})
        component = Component.of((1, "L"), loan, {"transactions": paid})
        assert list(Outstanding(parameters).execute(component)) == [
            {"outstanding": Decimal("9.50"), "paid": 1}
        ]
