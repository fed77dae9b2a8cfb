"""Planning a read: which files, formats, columns and splits an input has."""

import zipfile
from pathlib import Path

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.reading import read_whole

from ledgerbeam.io.datasets import lines
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import Input, plan_input, shard_count
from ledgerbeam.io.datasets.readers import ROW_LOCATION
from ledgerbeam.io.datasets.reading import ColumnNames, Reading
from ledgerbeam.io.errors import UserError

TRADES = Contract(
    (
        Column("id", pa.int64()),
        Column("side", pa.string(), dictionary_encoded=True),
        Column("price", pa.decimal128(18, 4), required=False, nullable=True),
    )
)


def plan(pattern: str | Path, columns: str = "", **options: str | int) -> Input:
    reading = Reading(ColumnNames.parse(columns), options.pop("format", None))  # type: ignore[arg-type]
    return plan_input(str(pattern), TRADES, reading, **options)  # type: ignore[arg-type]


def rows(planned: Input) -> list[tuple[object, ...]]:
    tables = [read_whole(split).table.drop_columns(ROW_LOCATION) for split in planned.splits]
    names = [field.name for field in planned.splits[0].fields]
    assert all(table.column_names == names for table in tables)
    return [tuple(row.values()) for row in pa.concat_tables(tables).to_pylist()]


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with the same columns in each format, in another order each."""
    write(tmp_path, "1.csv", "note,side,id\nc,B,1\n")
    write(tmp_path, "2.jsonl", '{"id": 2, "note": "j", "side": "S"}\n')
    pq.write_table(
        pa.table({"side": ["B"], "id": pa.array([3], pa.int8()), "note": ["p"]}),
        tmp_path / "3.parquet",
    )
    fields = [{"name": name, "type": "string"} for name in ("id", "note", "side")]
    with (tmp_path / "4.avro").open("wb") as sink:
        schema = {"type": "record", "name": "T", "fields": fields}
        fastavro.writer(sink, schema, [{"id": "4", "note": "a", "side": "S"}])
    return tmp_path


def test_files_of_all_formats_are_one_input(mixed: Path) -> None:
    (mixed / "more.csv").mkdir()  # a folder is no file, whatever its name
    planned = plan(f"{mixed}/[1-3].*,{mixed}/more.csv/../4.avro,{mixed}/3.parquet")
    assert [Path(file.uri).name for file in planned.files] == [
        "1.csv",
        "2.jsonl",
        "3.parquet",
        "4.avro",
    ]
    assert [split.index for split in planned.splits] == [0, 1, 2, 3]
    assert rows(planned) == [("c", "B", 1), ("j", "S", 2), ("p", "B", 3), ("a", "S", 4)]
    assert planned.files == plan(f"{mixed}/*.*").files


def test_a_file_that_is_named_twice_is_read_once(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mixed)
    planned = plan(f"1.csv,{mixed}/1.csv,./1.csv,file://{mixed}/1.csv,*.csv")
    assert [file.uri for file in planned.files] == [f"{mixed}/1.csv"]
    assert rows(planned) == [("c", "B", 1)]


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("t.CSV", None),
        ("t.txt", "csv"),
        ("t", "csv"),
        ("t.parquet", "csv"),
        ("date=2026-11-20/t.csv", None),
    ],
)
def test_names_tell_formats_unless_a_flag_does(
    tmp_path: Path, name: str, format_: str | None
) -> None:
    file = write(tmp_path, name, "id,side\n1,B\n")
    assert rows(plan_input(str(file), TRADES, Reading(format=format_))) == [(1, "B")]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("t.txt", {}, "its name doesn't tell its format: say --format, one of csv, jsonl"),
        ("t.gz", {}, "its name doesn't tell its format"),
        ("t.csv.bz2", {}, "its name doesn't tell its format"),
        ("t.parquet.gz", {}, "parquet is compressed inside: unpack the file"),
        ("t.csv.gz", {"format": "avro"}, "avro is compressed inside"),
        ("t.jsonl", {"columns": "id,side"}, "names in order is for CSV without a header"),
        ("t.csv", {"format": "parquet"}, "damaged or truncated Parquet file"),
        ("t.csv", {"columns": "id=no"}, "there is no column 'no' to rename: it has id, side"),
        ("t.csv", {"columns": "id,_"}, "wrong schema: no column side"),
    ],
)
def test_files_that_can_not_be_planned(
    tmp_path: Path, name: str, options: dict[str, str], message: str
) -> None:
    file = write(tmp_path, name, "id,side\n1,B\n")
    with pytest.raises(UserError, match=message):
        plan(file, **options)


@pytest.mark.parametrize(
    "pattern", ["none.csv", "none/*.csv", "folder", "1.csv,none.csv", "", "1.csv,"]
)
def test_no_such_file(mixed: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(mixed)
    (mixed / "folder").mkdir()
    with pytest.raises(UserError, match="no such file: check the path or the pattern"):
        plan(pattern)


def test_a_column_without_values_has_the_type_of_the_others(tmp_path: Path) -> None:
    for number, note in enumerate((pa.nulls(1), pa.array(["x"]), pa.nulls(1))):
        table = pa.table({"id": pa.array([number]), "side": ["B"], "note": note})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    assert rows(plan(f"{tmp_path}/*")) == [(0, "B", None), (1, "B", "x"), (2, "B", None)]
    assert rows(plan(f"{tmp_path}/0*")) == [(0, "B", None)]


@pytest.mark.parametrize("name", ["t[1].csv", "t?.csv", "a,b.csv", "*.csv"])
def test_a_file_of_exactly_that_name_is_meant(tmp_path: Path, name: str) -> None:
    write(tmp_path, "t1.csv", "id,side\n2,S\n")
    file = write(tmp_path, name, "id,side\n1,B\n")
    assert rows(plan(file)) == [(1, "B")]
    file.unlink()
    if "," not in name:
        assert rows(plan(file)) == [(2, "S")]


def test_files_of_differing_columns_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path, "1.csv", "id,side\n1,B\n")
    write(tmp_path, "2.csv", "id,side,price,note\n2,B,1,x\n")
    with pytest.raises(UserError, match=rf"2\.csv: .* differ from those of {first} in note, price"):
        plan(f"{tmp_path}/*.csv")
    pq.write_table(pa.table({"id": [3], "side": ["B"], "at": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"id": [4], "side": ["B"], "at": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(UserError, match=r"2\.parquet: .* differ .* in at"):
        plan(f"{tmp_path}/*.parquet")


def test_files_of_json_may_leave_out_fields(tmp_path: Path) -> None:
    write(tmp_path, "1.jsonl", '{"id": 1, "side": "B"}\n')
    write(tmp_path, "2.jsonl", '{"side": "S", "id": 2, "note": "x"}\n')
    assert rows(plan(f"{tmp_path}/*.jsonl")) == [(1, "B", None), (2, "S", "x")]


def test_integers_of_differing_width_are_one_column(tmp_path: Path) -> None:
    for name, type_ in (("1", pa.int32()), ("2", pa.int64()), ("3", pa.null())):
        at = pa.array([None if type_ == pa.null() else 7], type_)
        table = pa.table({"id": pa.array([int(name)], pa.int32()), "side": ["B"], "at": at})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    planned = plan(f"{tmp_path}/*.parquet")
    assert rows(planned) == [(1, "B", 7), (2, "B", 7), (3, "B", None)]
    assert planned.splits[0].fields[2].type == pa.int64()


def test_a_folder_with_brackets_is_meant_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, "day[1]/1.csv", "id,side\n1,B\n")
    write(tmp_path, "day1/1.csv", "id,side\n2,B\n")
    assert rows(plan(f"{tmp_path}/day[1]/*.csv")) == [(1, "B")]
    assert rows(plan(f"{tmp_path}/day[0-9]/*.csv")) == [(2, "B")]


@pytest.mark.parametrize("name", ["t.zip", "t.csv.zip"])
def test_the_one_file_of_an_archive_is_read(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("day")
        archive.writestr("day/t.csv", "id,side\n" + "1,B\n" * 3)
        archive.writestr("__MACOSX/day/._t.csv", b"\0")
    assert rows(plan(tmp_path / name)) == [(1, "B")] * 3


@pytest.mark.parametrize("kind", ["two", "none", "encrypted", "cut", "changed", "parquet"])
def test_archives_that_are_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "t.zip"
    names = {"two": ["1.csv", "2.csv"], "none": [], "parquet": ["t.parquet"]}.get(kind, ["t.csv"])
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "id,side\n1,B\n")
    data = bytearray(file.read_bytes())
    if kind == "encrypted":
        data[data.index(b"PK\x01\x02") + 8] |= 1
    elif kind == "cut":
        data = data[:-5]
    elif kind == "changed":
        data[data.index(b"1,B")] = ord("2")
    file.write_bytes(data)
    message = {
        "two": r"it has 2 files, and one is read: unpack it \(1.csv, 2.csv\)",
        "none": "damaged or truncated zip file",
        "encrypted": "t.csv is encrypted: unpack it",
        "cut": "damaged or truncated zip file",
        "changed": "damaged or truncated zip file: Bad CRC-32",
        "parquet": "parquet is compressed inside: unpack the file",
    }[kind]
    with pytest.raises(UserError, match=message):
        rows(plan(file))


def test_names_in_order_hold_for_every_file(tmp_path: Path) -> None:
    write(tmp_path, "1.csv", "1,x,B\n")
    write(tmp_path, "2.csv", "2,x,S\n")
    assert rows(plan(f"{tmp_path}/*.csv", "id,_,side")) == [(1, "B"), (2, "S")]


def test_parquet_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array([1]), pa.array(["B"]), pa.array([2])]
    table = pa.Table.from_arrays(columns, names=["id", "side", "id"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="a column name comes twice: id, side, id"):
        plan(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("text", "header", "renames"),
    [
        ("", (), {}),
        ("a, b", ("a", "b"), {}),
        ("a,_,b,_", ("a", " 1", "b", " 3"), {" 1": "_", " 3": "_"}),
        ("a=A,_=B,_=C", (), {"A": "a", "B": "_", "C": "_"}),
        ("a=b c,b=a", (), {"b c": "a", "a": "b"}),
    ],
)
def test_column_names(text: str, header: tuple[str, ...], renames: dict[str, str]) -> None:
    assert ColumnNames.parse(text) == (header, renames)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,a", "an empty name, or one that comes twice"),
        ("a,,b", "an empty name"),
        ("a,b=B", "not both"),
        ("a=A,a=B", "one that comes twice"),
        ("=A", "an empty name"),
        ("a=A,b=A", "a column of the file is named twice"),
    ],
)
def test_column_names_that_contradict_themselves(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--columns={text}: .*{message}"):
        ColumnNames.parse(text)


def test_the_header_is_looked_for_up_to_the_longest_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * 200_000
    file = write(tmp_path, "t.csv", f"id,side,{long}\n1,B,2\n")
    assert rows(plan(file)) == [(1, "B", "2")]
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100_000)
    with pytest.raises(UserError, match=r"t\.csv: a line is longer than .*: is it really csv"):
        plan(file)


@pytest.mark.parametrize(
    ("count", "shards"), [(0, 1), (1, 1), (10, 1), (11, 2), (100, 10), (10**9, 1 << 16)]
)
def test_shards_hold_about_as_many_rows_as_asked_for(count: int, shards: int) -> None:
    assert shard_count(count, 10) == shards
