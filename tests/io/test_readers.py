"""Parquet and Avro: what they hold comes out in the types of the contract, else untouched."""

import gzip
import json
import os
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.reading import read_whole

from ledgerbeam.io.datasets import lines as text_lines
from ledgerbeam.io.datasets import readers
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.readers import ROW_LOCATION, pack_locations, unpack_location
from ledgerbeam.io.datasets.reading import ColumnNames, Reading
from ledgerbeam.io.datasets.text import Rejection
from ledgerbeam.io.errors import InputError, UserError

TRADES = Contract(
    (
        Column("id", pa.int64()),
        Column("side", pa.string(), dictionary_encoded=True, one_of=("B", "S")),
        Column("price", pa.decimal128(18, 4), required=False, nullable=True),
        Column("day", pa.date32(), required=False),
    )
)
DAY = date(2026, 11, 20)


def read(
    pattern: str | Path, columns: str = "", **options: Any
) -> tuple[pa.Table, list[Rejection]]:
    """All rows of an input, and the refused ones with their rows in the file, from 0."""
    planned = plan_input(
        str(pattern), TRADES, Reading(columns=ColumnNames.parse(columns)), **options
    )
    tables, rejections = [], []
    for split in planned.splits:
        part = read_whole(split)
        places = [unpack_location(value) for value in part.table.column(ROW_LOCATION).to_pylist()]
        assert {index for index, _ in places} <= {split.index}
        assert len({row for _, row in places}) == part.table.num_rows
        first = split.first_row or 0
        rejections += [
            rejection._replace(row=first + rejection.row) for rejection in part.rejections
        ]
        tables.append(part.table.drop_columns(ROW_LOCATION))
    return pa.concat_tables(tables), rejections


def ids(pattern: str | Path, **options: Any) -> list[int]:
    table, rejections = read(pattern, **options)
    assert rejections == []
    return list(table.column("id").to_pylist())


def trades(count: int, first: int = 0) -> pa.Table:
    numbers = range(first, first + count)
    return pa.table({"id": pa.array(numbers, pa.int64()), "side": ["BS"[n % 2] for n in numbers]})


def parquet(file: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, file, **options)
    return file


@pytest.mark.parametrize("rows_per_group", [1, 3, 10, 1000])
@pytest.mark.parametrize("rows_per_split", [1, 7, 1000])
def test_row_groups_become_splits(tmp_path: Path, rows_per_group: int, rows_per_split: int) -> None:
    file = parquet(tmp_path / "t.parquet", trades(100), row_group_size=rows_per_group)
    assert ids(file, rows_per_split=rows_per_split) == list(range(100))
    planned = plan_input(str(file), TRADES, rows_per_split=rows_per_split)
    assert planned.estimated_rows == 100
    groups_per_split = -(-rows_per_split // rows_per_group)
    assert len(planned.splits) == -(-100 // min(rows_per_group * groups_per_split, 100))


def test_refused_rows_of_parquet_are_named_by_their_row_in_the_file(tmp_path: Path) -> None:
    table = trades(30)
    sides = ["X" if n in (0, 7, 29) else "B" for n in range(30)]
    at = pa.array([2**60 + 1] * 30, pa.timestamp("ns"))
    far = pa.array([2**60] * 30, pa.timestamp("us"))
    table = table.set_column(1, "side", [sides]).append_column("at", at).append_column("far", far)
    file = parquet(tmp_path / "t.parquet", table, row_group_size=4)
    rows, rejections = read(file, rows_per_split=8)
    assert rows.num_rows == 27
    raw = (
        '{"id": 7, "side": "X", "at": "2006-07-14 23:58:24.606846977", '
        '"far": "<value out of range: 1152921504606846976>"}'
    )
    assert [rejection.row for rejection in rejections] == [0, 7, 29]
    assert rejections[1] == Rejection(7, raw, "side 'X' is none of B, S")


@pytest.mark.parametrize("groups", [0, 1])
def test_parquet_without_rows(tmp_path: Path, groups: int) -> None:
    table = trades(0).append_column("note", pa.array([], pa.binary()))
    with pq.ParquetWriter(tmp_path / "t.parquet", table.schema) as writer:
        for _ in range(groups):
            writer.write_table(table)
    found, rejections = read(tmp_path / "t.parquet")
    dictionary = pa.dictionary(pa.int32(), pa.string())
    assert found.schema == pa.schema(
        [("id", pa.int64()), ("side", dictionary), ("note", pa.binary())]
    )
    assert (found.num_rows, rejections) == (0, [])


def test_parquet_columns_without_any_type_are_an_empty_input(tmp_path: Path) -> None:
    table = pa.table({"id": pa.nulls(0), "side": pa.nulls(0)})
    found, _ = read(parquet(tmp_path / "t.parquet", table))
    assert found.schema.types == [pa.int64(), pa.dictionary(pa.int32(), pa.string())]


CARRIED = {
    "seconds": pa.array([1, None], pa.timestamp("ms")),
    "nanoseconds": pa.array([2**60 + 1, None], pa.timestamp("ns", "Asia/Kolkata")),
    "lists": pa.array([[1, 2], None]),
    "structs": pa.array([{"x": 1, "y": "a"}, None]),
    "maps": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
    "bytes": pa.array([b"\xff", None]),
    "fixed": pa.array([b"ab", None], pa.binary(2)),
    "flags": pa.array([True, None]),
    "floats": pa.array([1.5, None]),
    "halves": pa.array([1.5, None], pa.float16()),
    "nothing": pa.nulls(2),
    "times": pa.array([1, None], pa.time64("ns")),
    "durations": pa.array([1, None], pa.duration("ns")),
    "unsigned": pa.array([2**64 - 1, None], pa.uint64()),
    "wide": pa.array([Decimal("1.5"), None], pa.decimal256(60, 2)),
    "large": pa.array(["a", None], pa.large_string()),
    "dotted.name": pa.array(["a", None]),
    "": pa.array(["a", None]),
}


def test_further_columns_are_carried_through_untouched(tmp_path: Path) -> None:
    table = pa.table({**CARRIED, "id": [1, 2], "side": ["B", "S"]})
    found, _ = read(parquet(tmp_path / "t.parquet", table))
    assert found.column_names == table.column_names
    assert found.drop_columns(["id", "side"]).equals(table.drop_columns(["id", "side"]))


@pytest.mark.parametrize(
    ("array", "plain"),
    [
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.string()),
        (pa.array([1, None, 1]).dictionary_encode(), pa.int64()),
        (pa.array(["a", None, "a"], pa.string_view()), pa.string()),
        (pa.array([b"a", None, b"a"], pa.binary_view()), pa.binary()),
    ],
    ids=str,
)
def test_carried_columns_come_in_types_that_kernels_know(
    tmp_path: Path, array: pa.Array, plain: pa.DataType
) -> None:
    table = pa.table({"id": [1, 2, 3], "side": ["B", "S", "X"], "note": array})
    found, rejections = read(parquet(tmp_path / "t.parquet", table, row_group_size=1))
    assert found.column("note").type == plain
    assert found.column("note").to_pylist() == array.to_pylist()[:2]
    assert [rejection.row for rejection in rejections] == [2]
    assert found.take([1, 0]).column("note").to_pylist() == array.to_pylist()[1::-1]


@pytest.mark.parametrize("index", [pa.int8(), pa.int32(), pa.uint32()])
@pytest.mark.parametrize("value", [pa.string(), pa.large_string()])
def test_dictionaries_of_any_kind_are_one_type(
    tmp_path: Path, index: pa.DataType, value: pa.DataType
) -> None:
    table = trades(10)
    coded = table.column("side").cast(pa.dictionary(index, value))
    parquet(tmp_path / "a.parquet", table.set_column(1, "side", coded), row_group_size=3)
    parquet(tmp_path / "b.parquet", trades(10, 10))
    found, _ = read(tmp_path / "*.parquet")
    assert found.column("id").to_pylist() == list(range(20))
    assert found.column("side").to_pylist() == ["B", "S"] * 10


def avro(
    file: Path, fields: Sequence[tuple[str, Any]], *records: tuple[Any, ...], **o: Any
) -> Path:
    schema = {
        "type": "record",
        "name": "Trade",
        "fields": [{"name": name, "type": type_} for name, type_ in fields],
    }
    names = [name for name, _ in fields]
    with file.open("wb") as sink:
        rows = [dict(zip(names, record, strict=True)) for record in records]
        fastavro.writer(sink, fastavro.parse_schema(schema), rows, **o)
    return file


SIDE = {"type": "enum", "name": "Side", "symbols": ["B", "S"]}
PRICE = {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}
FIXED = {
    "type": "fixed",
    "name": "F",
    "size": 8,
    "logicalType": "decimal",
    "precision": 12,
    "scale": 6,
}
AT = {"type": "long", "logicalType": "timestamp-micros"}


def test_avro(tmp_path: Path) -> None:
    new_year, long_ago = datetime(2026, 1, 2, tzinfo=UTC), datetime(1969, 1, 2, tzinfo=UTC)
    records = [
        (1, "B", Decimal("1.10"), DAY, "x", b"\xff", 0.1, True, new_year, time(1)),
        (2, "S", None, DAY, None, b"", 1.0, False, long_ago, time(2)),
    ]
    file = avro(
        tmp_path / "t.avro",
        [
            ("id", "int"),
            ("side", SIDE),
            ("price", ["null", PRICE]),
            ("day", {"type": "int", "logicalType": "date"}),
            ("note", ["string", "null"]),
            ("raw", "bytes"),
            ("rate", "double"),
            ("ok", "boolean"),
            ("at", AT),
            ("time", {"type": "int", "logicalType": "time-millis"}),
        ],
        *records,
    )
    found, rejections = read(file)
    assert rejections == []
    at, clock = pa.timestamp("us", "UTC"), pa.time32("ms")
    carried = [pa.string(), pa.binary(), pa.float64(), pa.bool_(), at, clock]
    assert found.schema.types[2:] == [pa.decimal128(18, 4), pa.date32(), *carried]
    assert [tuple(row.values()) for row in found.to_pylist()] == records


def test_avro_types_are_read_as_the_specification_says(tmp_path: Path) -> None:
    way = {"type": "enum", "name": "Way", "symbols": ["B", "S"]}
    fields = [
        ("id", {"type": "long", "logicalType": "number-of-a-trade"}),
        ("side", way),
        ("other", "Way"),
        ("either", ["null", "Way"]),
        ("nothing", "null"),
        ("key", {"type": "string", "logicalType": "uuid"}),
        ("word", {"type": "string", "logicalType": "date"}),
    ]
    key = UUID(int=7)
    record = (1, "B", "S", None, None, key, "x")
    found, rejections = read(avro(tmp_path / "t.avro", fields, record))
    assert rejections == []
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (1, "B", "S", None, None, str(key), "x")
    ]


def test_avro_rows_that_break_the_contract(tmp_path: Path) -> None:
    fields = [("id", ["null", "string"]), ("side", "string"), ("price", FIXED)]
    records = [
        ("1", "B", Decimal("1.100000")),
        ("x", "b", Decimal("1.000001")),
        (None, "S", Decimal(0)),
    ]
    found, rejections = read(avro(tmp_path / "t.avro", fields, *records, codec="deflate"))
    assert found.to_pylist() == [{"id": 1, "side": "B", "price": Decimal("1.1")}]
    assert rejections == [
        Rejection(
            1,
            '{"id": "x", "side": "b", "price": "1.000001"}',
            "id 'x' is not a number; side 'b' is none of B, S; "
            "price '1.000001' has more than 4 decimals",
        ),
        Rejection(2, '{"id": null, "side": "S", "price": "0.000000"}', "id is missing"),
    ]
    assert read(avro(tmp_path / "e.avro", fields))[0].num_rows == 0


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("double", "wrong schema: price is double, and must|floats are refused"),
        (["int", "string"], "which is not read: leave it out with --columns=_=price"),
        ({"type": "array", "items": "int"}, "which is not read: leave it out"),
        (["null", {"type": "map", "values": "int"}], "which is not read: leave it out"),
        ({**PRICE, "precision": 39}, "which is not read: leave it out"),
        (AT, "price is timestamp"),
    ],
)
def test_avro_columns_that_are_not_read_can_be_left_out(
    tmp_path: Path, type_: Any, message: str
) -> None:
    file = avro(tmp_path / "t.avro", [("id", "long"), ("price", type_), ("side", SIDE)])
    with pytest.raises(UserError, match=message):
        read(file)
    assert read(file, "_=price")[0].column_names == ["id", "side"]


@pytest.mark.parametrize("change", ["longer", "same size", "gone"])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_file_that_changes_after_planning_stops_the_run(
    tmp_path: Path, name: str, change: str
) -> None:
    file = tmp_path / name
    file.write_bytes(b"id,side\n0,B\n1,S\n")
    if name == "t.parquet":
        parquet(file, trades(2))
    (split,) = plan_input(str(file), TRADES).splits
    assert read_whole(split).table.num_rows == 2
    data = file.read_bytes()
    file.unlink()
    if change != "gone":
        file.write_bytes(data + b"2,B\n" if change == "longer" else data)
        os.utime(file, ns=(0, 0))  # the clock of a file system may stand for milliseconds
    with pytest.raises(UserError, match=r"t\..*: the file (has changed|is gone) since the run"):
        read_whole(split)


@pytest.mark.parametrize("name", ["t.csv.gz", "t.jsonl.zst", "t.avro", "t.parquet"])
def test_what_cannot_be_split_comes_in_batches(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory follows the batch, not the file."""
    monkeypatch.setattr(text_lines, "BLOCK_BYTES", 200)
    monkeypatch.setattr(readers, "_AVRO_BATCH_ROWS", 10)
    monkeypatch.setattr(readers, "_PARQUET_BATCH_ROWS", 10)
    monkeypatch.setattr(readers, "ROWS_PER_SPLIT", 20)
    bad = 77
    rows = [{"id": n, "side": "X" if n == bad else "BS"[n % 2]} for n in range(1, 101)]
    file = tmp_path / name
    if name == "t.csv.gz":
        lines = ["id,side", *(f"{row['id']},{row['side']}" for row in rows)]
        file.write_bytes(gzip.compress("\n".join(lines).encode()))
    elif name == "t.jsonl.zst":
        lines = [json.dumps(row) for row in rows]
        with pa.CompressedOutputStream(str(file), "zstd") as sink:
            sink.write("\n".join(lines).encode())
    elif name == "t.avro":
        columns = [{"name": "id", "type": "long"}, {"name": "side", "type": "string"}]
        schema = {"type": "record", "name": "trade", "fields": columns}
        with file.open("wb") as sink:
            fastavro.writer(sink, schema, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    (split,) = plan_input(str(file), TRADES).splits
    batches = list(readers.read_split(split))
    assert len(batches) > 3
    assert all(batch.row_count < 50 for batch in batches)
    whole = read_whole(split)
    assert whole.table.column("id").to_pylist() == [n for n in range(1, 101) if n != bad]
    header = name == "t.csv.gz"
    assert [rejection.row for rejection in whole.rejections] == [bad - 1 + header]
    positions = [unpack_location(p)[1] for p in whole.table.column(ROW_LOCATION).to_pylist()]
    assert positions == [n - 1 + header for n in range(1, 101) if n != bad]


def test_positions_hold_large_numbers() -> None:
    last_row = (1 << 40) - 1
    packed = pack_locations(65_535, pa.array([0, last_row]).to_numpy())
    assert packed.type == pa.uint64()
    assert [unpack_location(value) for value in packed.to_pylist()] == [
        (65_535, 0),
        (65_535, last_row),
    ]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_input_that_has_to_be_right_as_a_whole_names_the_row_that_is_not(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        path.write_text("id,side\n1,B\n2,S\n3,X\n")
    else:
        pq.write_table(pa.table({"id": [1, 2, 3], "side": ["B", "S", "X"]}), path)
    contract = Contract(TRADES.columns[:2])
    with pytest.raises(InputError, match="side 'X' is none of B, S") as raised:
        readers.read_whole(str(path), contract)
    assert raised.value.attributes == {"file": str(path), "row": 4 if suffix == "csv" else 3}


@pytest.mark.parametrize("other", ["repeating", "unique", "missing"])
def test_texts_that_repeat_come_encoded_where_that_is_asked_for(other: str, tmp_path: Path) -> None:
    repeating = ["  padded", None, "b"] * 2_000
    others: dict[str, list[str | None]] = {
        "repeating": repeating,
        "unique": [f"R{row:08d}" for row in range(6_000)],
        "missing": [None] * 6_000,
    }
    numbers = list(range(6_000))
    for name, texts in (("1", repeating), ("2", others[other])):
        own = {"id": numbers, "text": pa.array(texts, None if other == "missing" else pa.string())}
        pq.write_table(pa.table(own), tmp_path / f"{name}.parquet")
    contract = Contract((Column("id", pa.int64()),), keeps_dictionaries=True)
    read = []
    for asked in (contract, Contract(contract.columns)):
        input_ = plan_input(f"{tmp_path}/*.parquet", asked)
        parts = [rows.table for split in input_.splits for rows in readers.read_split(split)]
        read.append(pa.concat_tables(parts))
    kept, plain = (table.column("text") for table in read)
    assert pa.types.is_dictionary(kept.type) == (other != "unique")
    assert plain.type == pa.string()
    assert kept.cast(pa.string()).equals(plain)
    assert plain.to_pylist() == [*repeating, *others[other]]
