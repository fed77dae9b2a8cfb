"""Files of every format, changed by chance: read as others read them, or refused in one line.

Every row is there: as a row, or as one that was refused with its reason.
"""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.fuzz.mutations import cases, mutated, refused
from tests.support.reading import read_whole
from tests.support.text_files import BOM, expected_rows, read

from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.reading import Reading, reading_of

NOTES = Contract(
    (Column("id", pa.int64()), Column("note", pa.string(), required=False, nullable=True))
)
ROWS = [{"id": number, "note": f"n{number}" if number % 3 else None} for number in range(40)]
PAIRS = b'a,b\n1,x\n"2","y, ""z"""\n3,"two\nlines"\r\n4,\xc3\xa9\n5,\n'
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS[:8])
CSV_TOKENS = [b'"', b",", b"\n", b"\r", b"\r\n", b'""', b'","', BOM, b"a,b\n", b"\xff", b" ", b"\\"]
JSON_TOKENS = [
    *(b'"', b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r", b"\\", b"\\u0000", b"\\ud800"),
    *(b"null", b"true", b"NaN", b"-", b"0", b"1e400", b"1e-9", b"9" * 40, b'"id":', b'"note":'),
    BOM,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all cases; each overwrites the files of the one before."""
    return tmp_path_factory.mktemp("files")


def written(folder: Path, name: str, data: bytes) -> Path:
    file = folder / name
    file.write_bytes(data)
    return file


def notes(file: Path, reading: Reading | None = None) -> tuple[list[dict[str, Any]], int]:
    """Rows, and how many were refused."""
    planned = plan_input(str(file), NOTES, reading or Reading())
    rows: list[dict[str, Any]] = []
    rejected = 0
    for split in planned.splits:
        part = read_whole(split)
        assert part.row_count == part.table.num_rows + len(part.rejections)
        assert all(rejection.reason for rejection in part.rejections)
        found = part.table.to_pylist()
        rows += [{name: row.get(name) for name in ("id", "note")} for row in found]
        rejected += len(part.rejections)
    return rows, rejected


@given(data=mutated(PAIRS, CSV_TOKENS))
@cases()
def test_csv_is_what_python_reads_record_by_record(folder: Path, data: bytes) -> None:
    found = refused(lambda: read(written(folder, "t.csv", data), columns="a,b"))
    expected, bad = expected_rows(data.removeprefix(BOM))
    assert found is not None, "columns that were named are in every file"
    assert found[0] == expected
    assert set(found[1]) == set(bad)


@given(data=mutated(PAIRS, CSV_TOKENS), split=st.integers(1, 30))
@cases(0.5)
def test_csv_with_a_header_that_may_have_changed(folder: Path, data: bytes, split: int) -> None:
    file = written(folder, "t.csv", data)
    assert refused(lambda: read(file)) == refused(lambda: read(file, bytes_per_split=split))


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "delimiter": st.sampled_from(
            ["", ";", "tab", "pipe", "blank", "\\t", "ab", "é", '"', "\n"]
        ),
        "quote": st.sampled_from(["", "'", "none", '""', "é", ","]),
        "comment": st.sampled_from(["", "#", "--", "n", "\n", '"']),
        "encoding": st.sampled_from(["", "latin-1", "cp1252", "utf-16", "utf-8-sig", "rot13", "x"]),
        "decimal": st.sampled_from(["", ",", ".", "..", "1", "-"]),
        "thousands": st.sampled_from(["", ",", ".", "blank", "'", "00"]),
        "null": st.sampled_from(["", "NA", "-,NA", ",", "1"]),
        "trim": st.booleans(),
        "columns": st.sampled_from(
            ["", "id,note", "id", "id=id", "id=note,note=id", "_=note", "=", ",", "id,id", "_,_"]
        ),
        "constants": st.sampled_from(["", "note=x", "id=1", "id=x", "=", "x=", "note=x,note=y"]),
        "values": st.sampled_from(["", "note:n1=x", "id:1=2", ":=", "note:=", "a", "note:n1="]),
    },
)


@given(settings=SETTINGS, data=mutated(b"id,note\n1,n1\n2,\n#3,x\n4,'a,b'\n", CSV_TOKENS))
@example(settings={"encoding": "utf-16"}, data=b"id,note\n1,n1\n")
@cases()
def test_csv_by_any_settings(folder: Path, settings: dict[str, Any], data: bytes) -> None:
    reading = refused(lambda: reading_of(settings))
    if reading is not None:
        refused(lambda: notes(written(folder, "t.csv", data), reading))


def _is_plain(row: Any) -> bool:
    """Whether nothing can be wrong with a row as JSON has it."""
    if not isinstance(row, dict) or row.keys() != {"id", "note"}:
        return False
    id_, note = row["id"], row["note"]
    is_number = isinstance(id_, int) and not isinstance(id_, bool) and abs(id_) < 2**63
    return is_number and (note is None or (isinstance(note, str) and note.isalnum()))


def _unique(pairs: list[tuple[str, Any]]) -> Any:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name comes twice")
    return dict(pairs)


@given(data=mutated(LINES, JSON_TOKENS))
@example(data=b"\n" + LINES)
@cases()
def test_json_lines_are_what_python_reads(folder: Path, data: bytes) -> None:
    found = refused(lambda: notes(written(folder, "t.jsonl", data)))
    if found is None:
        return
    lines = [line for line in data.removeprefix(BOM).split(b"\n") if line.strip(b" \t\r")]
    assert len(found[0]) + found[1] == len(lines)
    plain = []
    for line in lines:
        try:
            row = json.loads(line.decode(), object_pairs_hook=_unique)
        except ValueError:
            continue
        if _is_plain(row):
            plain.append((row["id"], row["note"] or None))
    rows = iter([(row["id"], row["note"]) for row in found[0]])
    assert all(row in rows for row in plain)  # each behind the one before it


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=15)
    return sink.getvalue()


def _avro(codec: str) -> bytes:
    sink = io.BytesIO()
    fields = [{"name": "id", "type": "long"}, {"name": "note", "type": ["null", "string"]}]
    schema = fastavro.parse_schema({"type": "record", "name": "t", "fields": fields})
    fastavro.writer(sink, schema, ROWS, codec=codec, sync_interval=100)
    return sink.getvalue()


def _zip(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("t.csv"), CSV, method)
    return sink.getvalue()


def _zstd() -> bytes:
    packed: bytes = pa.Codec("zstd").compress(CSV, asbytes=True)
    return packed


CSV = b"id,note\n" + b"".join(f"{row['id']},{row['note'] or ''}\n".encode() for row in ROWS)


def _from_parquet(data: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(io.BytesIO(data)).read().to_pylist()
    return rows


def _from_avro(data: bytes) -> list[Any]:
    return list(fastavro.reader(io.BytesIO(data)))


def _from_gzip(data: bytes) -> bytes:
    return gzip.decompress(data)


def _from_zip(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (name,) = archive.namelist()
        return archive.read(name)


TABLES: dict[str, tuple[bytes, Callable[[bytes], list[Any]]]] = {
    "t.parquet": (_parquet(), _from_parquet),
    "t.avro": (_avro("null"), _from_avro),
    "d.avro": (_avro("deflate"), _from_avro),
}
PACKED: dict[str, tuple[bytes, Callable[[bytes], bytes] | None]] = {
    "t.csv.gz": (gzip.compress(CSV, mtime=0), _from_gzip),
    "t.zip": (_zip(), _from_zip),
    "s.zip": (_zip(zipfile.ZIP_STORED), _from_zip),
    "t.csv.zst": (_zstd(), None),
}


@pytest.mark.parametrize("name", TABLES)
@given(data=st.data())
@cases(0.5)
def test_tables_are_what_others_read(folder: Path, name: str, data: st.DataObject) -> None:
    original, others = TABLES[name]
    changed = data.draw(mutated(original, [b'"long"', b'"null"', b"id", b"note", b"PAR1"]))
    found = refused(lambda: notes(written(folder, name, changed)))
    if found is None:
        return
    rows, rejected = found
    expected = others(changed)
    assert len(rows) + rejected == len(expected)
    if not rejected and expected and isinstance(expected[0].get("id"), int):
        assert rows == [{n: row.get(n) for n in ("id", "note")} for row in expected]


@pytest.mark.parametrize("name", PACKED)
@given(data=st.data())
@cases(0.5)
def test_packed_files_are_what_others_unpack(folder: Path, name: str, data: st.DataObject) -> None:
    original, others = PACKED[name]
    changed = data.draw(
        mutated(original, [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\x1f\x8b"])
    )
    found = refused(lambda: notes(written(folder, name, changed)))
    if found is None or others is None:
        return
    text = others(changed)
    plain = notes(written(folder, "unpacked.csv", text))
    assert found == plain
