"""Differences between rows of two tables, held against plain Python."""

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.components import side_by_side, sort_components
from ledgerbeam.transforms.columnar.differences import Sides, names_of_columns

TYPES = {
    pa.int64(): st.integers(-3, 3),
    pa.string(): st.sampled_from(["", "a", "b"]),
    pa.dictionary(pa.int32(), pa.string()): st.sampled_from(["", "a", "b"]),
    pa.decimal128(18, 2): st.decimals(-2, 2, places=2),
    pa.float64(): st.sampled_from([0.0, 1.5]),
    pa.bool_(): st.booleans(),
    pa.date32(): st.dates(),
}


@st.composite
def datasets(draw: st.DrawFn) -> list[dict[int, Any]]:
    values = st.none() | TYPES[draw(st.shared(st.sampled_from([*TYPES]), key="type"))]
    return [draw(st.dictionaries(st.integers(0, 8), values)) for _ in range(2)]


def table_of(rows: dict[int, Any], type_: pa.DataType) -> Components:
    schema = pa.schema([("key", pa.int64()), ("value", type_)])
    rows_ = [{"key": key, "value": value} for key, value in rows.items()]
    return sort_components(pa.Table.from_pylist(rows_, schema), ("key",), None).components


def sides_of(before: Components, after: Components) -> tuple[list[int], Sides]:
    keys, aligned = side_by_side([before, after], ("key",))
    return keys.table.column("key").to_pylist(), Sides.of(*aligned)


@given(datasets(), st.shared(st.sampled_from([*TYPES]), key="type"))
def test_differences_are_those_of_a_full_join(
    rows: list[dict[int, Any]], type_: pa.DataType
) -> None:
    before, after = rows
    keys, sides = sides_of(table_of(before, type_), table_of(after, type_))
    assert keys == sorted(before.keys() | after.keys())
    assert (sides.before >= 0).tolist() == [key in before for key in keys]
    assert (sides.after >= 0).tolist() == [key in after for key in keys]
    assert sides.differing("value").tolist() == [
        key in before and key in after and before[key] != after[key] for key in keys
    ]
    assert sides.values("value").to_pylist() == [
        after[key] if key in after else before[key] for key in keys
    ]


amounts = st.dictionaries(st.integers(0, 8), st.none() | st.decimals(-(10**9), 10**9, places=2))


@given(amounts, amounts, st.sampled_from([pa.decimal128(18, 2), pa.decimal128(30, 4)]))
def test_a_change_is_after_less_before_and_nothing_counts_zero(
    before: dict[int, Decimal | None], after: dict[int, Decimal | None], type_: pa.DataType
) -> None:
    keys, sides = sides_of(table_of(before, pa.decimal128(18, 2)), table_of(after, type_))
    changes = sides.change("value")
    assert changes.type.scale == type_.scale
    assert changes.to_pylist() == [(after.get(k) or 0) - (before.get(k) or 0) for k in keys]
    # Scales differ, values don't.
    differing = [k in before and k in after and before[k] != after[k] for k in keys]
    assert sides.differing("value").tolist() == differing


@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [
        (pa.array([1]), pa.array([Decimal("1.00")]), False),
        (pa.array([1]), pa.array([Decimal("1.01")]), True),
        (pa.array(["1"]), pa.array([1]), False),
        (pa.array([float("nan")]), pa.array([float("nan")]), False),
        (pa.array([float("nan")]), pa.array([None], pa.float64()), True),
        (pa.array([10**37], pa.decimal128(38, 0)), pa.array([0], pa.decimal128(38, 37)), True),
    ],
)
def test_values_of_different_types(before: pa.Array, after: pa.Array, differs: bool) -> None:
    sides = Sides(
        np.array([0]), np.array([0]), pa.table({"value": before}), pa.table({"value": after})
    )
    assert sides.differing("value").tolist() == [differs]


@given(st.lists(st.lists(st.booleans(), min_size=20, max_size=20), max_size=30))
def test_names_of_the_columns_that_differ(flags: list[list[bool]]) -> None:
    columns = [f"c{number}" for number in range(20)]
    by_column = {
        name: np.array([row[at] for row in flags], bool) for at, name in enumerate(columns)
    }
    assert names_of_columns(by_column, len(flags)).to_pylist() == [
        ",".join(name for name, differs in zip(columns, row, strict=True) if differs)
        for row in flags
    ]


def test_no_columns_to_compare() -> None:
    assert names_of_columns({}, 2).to_pylist() == ["", ""]
