"""Damaged and compressed files: read whole, or refused in one line; never taken for short ones."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.reading import read_whole

from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.reading import ColumnNames, Reading
from ledgerbeam.io.errors import UserError

TRADES = Contract(
    (
        Column("id", pa.int64()),
        Column("side", pa.string(), dictionary_encoded=True, one_of=("B", "S")),
        Column("note", pa.string(), required=False),
    )
)


def read(file: Path, columns: str = "", bytes_per_split: int = 1 << 20) -> list[int]:
    """The ids of all rows."""
    planned = plan_input(
        str(file),
        TRADES,
        Reading(columns=ColumnNames.parse(columns)),
        bytes_per_split=bytes_per_split,
    )
    parts = [read_whole(split) for split in planned.splits]
    return [number for part in parts for number in part.table.column("id").to_pylist()]


def csv_bytes(count: int) -> bytes:
    rows = "".join(f"{number},{'BS'[number % 2]}\n" for number in range(count))
    return f"id,side\n{rows}".encode()


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return packed


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESS[suffix]
    data = csv_bytes(1000)
    file = tmp_path / f"t.csv.{suffix}"
    # Several members, one of them empty, cut in the middle of a line.
    file.write_bytes(compress(data[:501]) + compress(b"") + compress(data[501:]))
    assert read(file, bytes_per_split=10) == list(range(1000))
    empty = tmp_path / f"e.csv.{suffix}"
    empty.write_bytes(compress(b""))
    assert read(empty, "id,side") == []
    lines = tmp_path / f"t.jsonl.{suffix}"
    lines.write_bytes(compress(b'{"id": 1, "side": "B"}\n'))
    assert read(lines) == [1]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_truncated_compressed_file_is_never_a_short_one(tmp_path: Path, suffix: str) -> None:
    first, second = (COMPRESS[suffix](csv_bytes(20)[at]) for at in (slice(0, 50), slice(50, None)))
    file = tmp_path / f"t.csv.{suffix}"
    read_whole = []
    for length in range(len(first + second) + 1):
        file.write_bytes((first + second)[:length])
        try:
            read(file)
        except UserError as error:
            assert "damaged or truncated" in str(error)  # noqa: PT017 - the others are counted
        else:
            read_whole.append(length)
    # A file that ends where a member ends is whole.
    assert read_whole == [len(first), len(first + second)]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("tail", [b"\0", b"\0" * 100, b"garbage", b"id,side\n"])
def test_what_follows_the_compressed_text_is_no_text(
    tmp_path: Path, suffix: str, tail: bytes
) -> None:
    file = tmp_path / f"t.csv.{suffix}"
    file.write_bytes(COMPRESS[suffix](csv_bytes(20)) + tail)
    with pytest.raises(UserError, match="damaged or truncated"):
        read(file)


def files_to_damage(folder: Path) -> dict[str, bytes]:
    """A file of each format that tells damage, with its content."""
    rows = [{"id": n, "side": "BS"[n % 2], "note": f"n{n}"} for n in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet", row_group_size=50)
    types = {"id": "long", "side": "string", "note": "string"}
    fields = [{"name": name, "type": type_} for name, type_ in types.items()]
    schema = fastavro.parse_schema({"type": "record", "name": "Trade", "fields": fields})
    with (folder / "t.avro").open("wb") as sink:
        fastavro.writer(sink, schema, rows, codec="deflate", sync_interval=500)
    (folder / "t.csv.gz").write_bytes(gzip.compress(csv_bytes(200)))
    names = ["t.parquet", "t.avro", "t.csv.gz"]
    return {name: (folder / name).read_bytes() for name in names}


def test_damage_is_told_in_one_line_and_never_another_error(tmp_path: Path) -> None:
    generator = random.Random(7)
    for name, data in files_to_damage(tmp_path).items():
        file = tmp_path / name
        told = 0
        for _ in range(150):
            changed = bytearray(data)
            for _ in range(generator.choice([1, 1, 5, 50])):
                changed[generator.randrange(len(data))] = generator.randrange(256)
            file.write_bytes(changed)
            try:
                read(file)
            except UserError as error:
                assert str(file) in str(error)  # noqa: PT017 - not every change is damage
                told += 1
        assert told > 100


@pytest.mark.parametrize("name", ["t.parquet", "t.avro", "t.csv.gz"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    data = files_to_damage(tmp_path)[name]
    file = tmp_path / name
    for length in [0, 1, 4, 8, 100, len(data) // 2, len(data) - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(UserError, match=f"{name}: damaged or truncated"):
            read(file)


@pytest.mark.parametrize("begun", [b"\x80", b"\x02\xff\xff"])
def test_an_avro_file_that_ends_within_a_number_is_refused(tmp_path: Path, begun: bytes) -> None:
    file = tmp_path / "t.avro"
    file.write_bytes(files_to_damage(tmp_path)["t.avro"] + begun)
    with pytest.raises(UserError, match=r"t\.avro: damaged or truncated"):
        read(file)


@pytest.mark.parametrize("name", ["t.parquet", "t.avro", "t.csv.gz", "t.csv.zst"])
def test_files_that_are_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(csv_bytes(50))
    with pytest.raises(UserError, match=f"{name}: damaged or truncated"):
        read(tmp_path / name)


def test_parquet_text_that_is_not_utf_8(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"\0\0\0\0\1\0\0\0")
    broken = pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"\xff"))
    table = pa.table({"id": [1], "side": ["B"], "note": broken})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"damaged or truncated Parquet file: .*UTF8"):
        read(tmp_path / "t.parquet")
