"""Totals: typed, stored flat, read again, whatever columns are called."""

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.processes import AWKWARD_AMOUNTS, DAY, MONEY, Awkward, AwkwardParameters
from tests.support.reading import instance_uri

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.io.commit.total_names import display_name
from ledgerbeam.transforms.columnar.shard_totals import (
    InputTotals,
    ReadTotals,
    ShardTotals,
    TotalNames,
    read_from_json,
    read_to_json,
)
from ledgerbeam.transforms.columnar.totals import NO_ROWS, TableTotals

# Names that a column may have, and that the framework has uses of its own for.
AWKWARD = [
    "components",
    "failed",
    "unknown",
    "retries",
    "result_rows",
    "result_components",
    "rows",
    "id_hash",
    "big_rows",
    "failed_rows",
    "refused_amount",
    "read_rows",
    "refused",
    "other_dates",
    "second_amount",
    "second_rows",
    "=amount",
    "=0.amount",
    "amount",
]
NUMBERS = st.integers(-(2**70), 2**70)
COUNTS = st.integers(0, 2**40)


@st.composite
def names_and_totals(draw: st.DrawFn) -> tuple[TotalNames, ShardTotals]:
    columns = st.lists(st.sampled_from(AWKWARD), unique=True, max_size=4)
    inputs = [
        InputTotals(name, tuple(draw(columns)), by_currency=draw(st.booleans()))
        for name in draw(st.sampled_from([["first"], ["first", "second"]]))
    ]

    def of(input_: InputTotals) -> TableTotals:
        codes = ["_USD", "_JPY"] if input_.by_currency else [""]
        amounts = {
            column + code: draw(NUMBERS)
            for column in input_.amounts
            for code in draw(st.lists(st.sampled_from(codes), unique=True, min_size=1))
        }
        return TableTotals(draw(COUNTS.filter(bool)), amounts, draw(COUNTS))

    def parts() -> tuple[TableTotals, ...]:
        return tuple(draw(st.sampled_from([NO_ROWS, of(input_)])) for input_ in inputs)

    own = draw(
        st.dictionaries(st.sampled_from(["net", "failed", "=x", "read_x", "x_rows"]), COUNTS)
    )
    totals = ShardTotals(
        components=draw(COUNTS),
        failed=draw(COUNTS),
        unknown=draw(COUNTS),
        retries=draw(COUNTS),
        result_rows=draw(COUNTS),
        result_components=draw(COUNTS),
        results=parts(),
        lost=parts(),
        rejected=parts(),
        own=own,
    )
    names = TotalNames(tuple(inputs))
    return names, ShardTotals(read=(NO_ROWS,) * len(inputs)) + totals


@given(names_and_totals())
def test_what_is_stored_is_read_again(given_: tuple[TotalNames, ShardTotals]) -> None:
    names, totals = given_
    assert ShardTotals.from_json(totals.to_json(names), names) == totals


def test_ordinary_names_are_stored_as_they_are() -> None:
    names = TotalNames((InputTotals("trades", ("quantity",)), InputTotals("fees", ("fee",), True)))
    totals = ShardTotals(
        components=2,
        results=(TableTotals(3, {"quantity": 5}, 7), TableTotals(1, {"fee_USD": 100}, 9)),
        lost=(TableTotals(1, {"quantity": 2}, 4), NO_ROWS),
        own={"net_quantity": 1},
    )
    assert totals.to_json(names) == {
        "components": 2, "failed": 0, "unknown": 0, "result_rows": 0, "result_components": 0,
        "rows": 3, "quantity": 5, "id_hash": 7,
        "fees_rows": 1, "fees_fee_USD": 100, "fees_id_hash": 9,
        "net_quantity": 1,
        "failed_rows": 1, "failed_quantity": 2, "failed_id_hash": 4,
    }  # fmt: skip
    read = [ReadTotals(TableTotals(4, {"quantity": 7}, 1), 1, 2), ReadTotals()]
    assert read_from_json(read_to_json(read, names), names) == read


@pytest.mark.parametrize("lost", ["components", "failed", "unknown", "big_rows", "result_rows"])
def test_no_column_is_called_so_that_its_total_is_lost(tmp_path: Path, lost: str) -> None:
    rows = {"account": ["A", "A", "B"], "id": [1, 2, 3]}
    amounts = {
        name: pa.array([Decimal("1.25"), Decimal(number), None], MONEY)
        for number, name in enumerate(AWKWARD_AMOUNTS)
    }
    pq.write_table(pa.table(rows | amounts), tmp_path / "rows.parquet")
    process = Awkward(
        AwkwardParameters(
            business_date=DAY, first=f"{tmp_path}/rows.parquet", output=f"{tmp_path}/out",
            max_rejects=1,
        )
    )  # fmt: skip
    manifest = run(process)
    expected = 125 + 100 * AWKWARD_AMOUNTS.index(lost)
    assert {display_name(name): value for name, value in manifest.totals.items()}[lost] == expected
    controls = {control.name: control for control in manifest.controls}
    control = controls[f"{lost}: in = out + rejected"]
    assert (control.expected, control.actual) == (expected, expected)
    assert manifest.counts["components"] == 1
    assert verify(instance_uri(manifest), process) == manifest.controls
