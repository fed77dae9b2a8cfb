"""Small files that stand for very much: one clear line, before memory is filled."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.reading import read_whole

from ledgerbeam.io.datasets import avro, lines
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.reading import Reading
from ledgerbeam.io.errors import UserError

NUMBERS = Contract((Column("id", pa.int64()),))


def read(file: Path, max_decompressed: int | None = None) -> list[int]:
    planned = plan_input(str(file), NUMBERS, Reading(max_decompressed=max_decompressed))
    rows = [read_whole(split) for split in planned.splits]
    assert not any(part.rejected.num_rows for part in rows)
    return [id_ for part in rows for id_ in part.table.column("id").to_pylist()]


def zeros(file: Path) -> Path:
    """A file that unpacks to 3 MiB."""
    rows = (3 << 20) // 2
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(b"id\n" + b"0\n" * rows))
    elif file.suffix == ".zst":
        with pa.CompressedOutputStream(str(file), "zstd") as sink:
            sink.write(b"id\n" + b"0\n" * rows)
    elif file.suffix == ".parquet":
        table = pa.table({"id": pa.array([0] * rows, pa.int64())})
        pq.write_table(table, file, use_dictionary=False, compression="zstd")
    else:
        with file.open("wb") as sink:
            fastavro.writer(
                sink, schema_of("long"), ({"id": 0} for _ in range(2 * rows)), "deflate"
            )
    return file


def schema_of(type_: Any) -> Any:
    return {"type": "record", "name": "t", "fields": [{"name": "id", "type": type_}]}


@pytest.mark.parametrize("name", ["t.csv.gz", "t.csv.zst", "t.parquet", "t.avro"])
def test_a_file_unpacks_to_no_more_than_is_allowed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = zeros(tmp_path / name)
    assert file.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"unpacks to more than 1 MiB: .* --max-decompressed=MIB"):
        read(file, max_decompressed=1)
    assert set(read(file)) == {0}
    # By default, it follows from the size of the file.
    monkeypatch.setattr(lines, "_MIN_LIMIT", 1 << 10)
    monkeypatch.setattr(lines, "_MAX_RATIO", 2)
    with pytest.raises(UserError, match=r"unpacks to more than 0 MiB"):
        read(file)
    assert set(read(file, max_decompressed=100)) == {0}


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz"])
def test_a_block_of_avro_is_no_larger_than_fits_into_memory(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "t.avro"
    with file.open("wb") as sink:
        rows = ({"id": n} for n in range(20_000))
        fastavro.writer(sink, schema_of("long"), rows, codec, sync_interval=10_000)
    assert read(file) == list(range(20_000))
    monkeypatch.setattr(avro, "MAX_BLOCK_BYTES", 9_000)
    with pytest.raises(UserError, match=r"damaged or truncated Avro file: a block "):
        read(file)


@pytest.mark.parametrize("count", [2**40, -1])
def test_a_block_of_avro_holds_no_more_records_than_bytes(tmp_path: Path, count: int) -> None:
    sink = io.BytesIO()
    fastavro.writer(sink, schema_of("null"), [{"id": None}] * 5)
    header = sink.getvalue()[: -(2 + 16)]
    number, rest = b"", (count << 1) ^ (count >> 63)
    while rest > 127:
        number, rest = number + bytes([rest & 127 | 128]), rest >> 7
    file = tmp_path / "t.avro"
    file.write_bytes(header + number + bytes([rest]) + b"\0" + header[-16:])
    with pytest.raises(UserError, match=r"damaged or truncated Avro file: a block of"):
        read(file)


@pytest.mark.parametrize(
    "type_",
    [
        {"type": "array", "items": "null"},
        ["null", {"type": "array", "items": {"type": "record", "name": "e", "fields": []}}],
        {"type": "map", "values": {"type": "array", "items": "null"}},
        {
            "type": "record",
            "name": "n",
            "fields": [{"name": "next", "type": ["null", "n"]}],
        },
    ],
)
def test_types_of_avro_without_an_end_are_refused(tmp_path: Path, type_: Any) -> None:
    schema = schema_of("long")
    schema["fields"].append({"name": "more", "type": type_})
    file = tmp_path / "t.avro"
    with file.open("wb") as sink:
        fastavro.writer(sink, schema, [])
    with pytest.raises(UserError, match=r"wrong schema: .* values without end"):
        plan_input(str(file), NUMBERS, Reading())


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("9" * 100_000, "too large for a 64-bit integer"),
        ("1E+999999999", "is not a number"),
        ("[" * 100_000 + "]" * 100_000, "not a JSON object of plain values"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "not a JSON object of plain values"),
    ],
)
def test_numbers_and_nesting_without_end_cost_a_row(
    tmp_path: Path, value: str, reason: str, is_first: bool
) -> None:
    bad, good = f'{{"id": {value}}}', json.dumps({"id": 1})
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join([bad, good] if is_first else [good, bad]))
    if is_first and not value[0].isdigit():
        with pytest.raises(UserError, match="line 1: not JSON"):
            plan_input(str(file), NUMBERS)
        return
    (split,) = plan_input(str(file), NUMBERS).splits
    part = read_whole(split)
    assert part.table.column("id").to_pylist() == [1]
    assert reason in part.rejections[0].reason
