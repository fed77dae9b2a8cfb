"""CSV and JSON lines: every line belongs to one split, and is a row or refused by its number."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.text_files import BOM, PAIRS, expected_rows, read

from ledgerbeam.io.datasets import inputs
from ledgerbeam.io.datasets import lines as text_lines
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.errors import UserError

NUMBERS = Contract(
    (
        Column("id", pa.int64()),
        Column("side", pa.string(), dictionary_encoded=True, one_of=("B", "S")),
        Column("price", pa.decimal128(18, 4), required=False, nullable=True),
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property; each overwrites the files of the one before."""
    return tmp_path_factory.mktemp("text")


def write(folder: Path, data: bytes, name: str = "t.csv") -> Path:
    file = folder / name
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return file


PLAIN_LINES = st.builds(lambda a, b: f"{a},{b}".encode(), *[st.text("abé0 ", max_size=5)] * 2)
QUOTED_LINES = st.lists(st.text('ab,"\r\n', max_size=5), min_size=2, max_size=2).map(
    lambda values: ",".join('"' + v.replace('"', '""') + '"' for v in values).encode()
)
ODD_LINES = st.one_of(
    st.lists(st.sampled_from([*b'",,aB \r']), max_size=12).map(bytes),
    st.sampled_from([b"", b"\r", b"\r\r", BOM + b"a,b", b"a,\xff", b"\xff,a", b'"a', b"a,b,c"]),
    st.sampled_from([b'"a"b,c', b'""a,b', b'"a"""b,c', b'a""b,c', b'a,"b" ', b"a\rb,c", b"a,b\r"]),
)
FILES = st.tuples(
    st.lists(
        st.one_of(PLAIN_LINES, PLAIN_LINES, QUOTED_LINES, ODD_LINES),
        max_size=10,
    ),
    st.sampled_from([b"", b"\n"]),
    st.sampled_from([b"", BOM]),
).map(lambda parts: parts[2] + b"\n".join(parts[0]) + (parts[1] if parts[0] else b""))


@given(FILES, st.integers(1, 40), st.integers(1, 40))
@example(b"", 1, 1)
@example(b"a,b", 1, 1)
@example(BOM + b"a,b\nc,d", 1, 1)
@example(b"a,b\n" * 8, 4, 3)
@example(b'a,"b\nc",d\ne,f\n', 5, 40)
@example(b'"a"b,c\n', 40, 40)
@example(b'a"b,"\n', 40, 40)
@example(b"a,b\rc,d\n\n", 40, 40)
@example(b"a,b\n" + BOM + b"c,d\n", 4, 40)
@example(b'a,"b\r\nc,d\r\n"\r\ne,f\r\n', 3, 2)
@example(b'a,"\nb,c\n\n","\n",d"\n"\n', 1, 1)
def test_any_split_and_block_size_reads_what_csv_reads_record_by_record(
    folder: Path, data: bytes, bytes_per_split: int, block_bytes: int
) -> None:
    rows, refused = expected_rows(data.removeprefix(BOM))
    whole = read(write(folder, data), columns="a,b")
    assert whole[0] == rows
    assert {number: raw for number, (raw, _) in whole[1].items()} == {
        number: record.removesuffix(b"\r").decode(errors="backslashreplace")
        for number, record in refused.items()
    }
    in_parts = read(write(folder, data), PAIRS, "a,b", bytes_per_split, block_bytes)
    assert in_parts == whole
    # With a header everything stands one line further down.
    below_header = read(write(folder, b"a,b\n" + data), PAIRS, "", bytes_per_split, block_bytes)
    body_rows, body_refused = expected_rows(data)
    assert below_header[0] == {number + 1: row for number, row in body_rows.items()}
    assert set(below_header[1]) == {number + 1 for number in body_refused}


@given(
    st.lists(st.sampled_from(["a", "é", '"', ",", "\\", "null", "1"]), max_size=6).map("".join),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_json_lines_are_split_as_csv_is(
    folder: Path, value: str, bytes_per_split: int, block_bytes: int
) -> None:
    records = [{"a": f"{number}{value}", "b": value or None} for number in range(4)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    lines[2:2] = ["", "broken", " \r"]
    data = "\n".join(lines).encode()
    rows, refused = read(write(folder, data, "t.jsonl"), PAIRS, "", bytes_per_split, block_bytes)
    numbers = [1, 2, 6, 7]
    assert rows == {
        number: tuple(record.values()) for number, record in zip(numbers, records, strict=True)
    }
    assert list(refused) == [4]


@pytest.mark.parametrize("blank", ["\n", " \r\n", "\n" * 1_001])
def test_the_fields_of_json_lines_are_those_of_the_first_record_that_there_is(
    tmp_path: Path, blank: str
) -> None:
    file = write(tmp_path, f'{blank}{{"a": "1", "b": "2", "c": "3"}}\n'.encode(), "t.jsonl")
    assert read(file) == ({blank.count("\n") + 1: ("1", "2", "3")}, {})


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_csv_in_its_usual_forms(tmp_path: Path, ending: bytes, last: bool, name: str) -> None:
    lines = [b"id,note,side", b'1,"a, ""b""",B', b'"2",,"S"', b"007, x ,B"]
    data = BOM + ending.join(lines) + (ending if last else b"")
    rows = {2: (1, 'a, "b"', "B"), 3: (2, "", "S"), 4: (7, " x ", "B")}
    assert read(write(tmp_path, data, name), NUMBERS) == (rows, {})


def test_columns_by_order_and_by_rename(tmp_path: Path) -> None:
    file = write(tmp_path, b"B,x,1,y\nS,x,2,y\n")
    assert read(file, NUMBERS, "side,_,id,_") == ({1: ("B", 1), 2: ("S", 2)}, {})
    assert read(file, NUMBERS, "side,_1,id,_")[0] == {1: ("B", "x", 1), 2: ("S", "x", 2)}
    file = write(tmp_path, b"way,,no,side\nB,x,1,y\nS,x,2,y\n")
    assert read(file, NUMBERS, "side=way,id=no,_=side,_=")[0] == {2: ("B", 1), 3: ("S", 2)}


@pytest.mark.parametrize("bytes_per_split", [7, 20, 1 << 20])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_refused_row_is_named_by_its_line(
    tmp_path: Path, name: str, bytes_per_split: int
) -> None:
    lines = [
        b"id,side",
        b"1,B",
        b"x,B",
        b"",
        b"3,B",
        b"4",
        b"\r",
        b"5,\xff",
        b'6,"B',
        b"7,B",
        b'"8',
        b'9,"B',
        b"10,B",
    ]
    rows, refused = read(write(tmp_path, b"\n".join(lines), name), NUMBERS, "", bytes_per_split)
    assert rows == {2: (1, "B"), 5: (3, "B")}
    assert refused == {
        3: ("x,B", "id 'x' is not a number"),
        6: ("4", "1 columns instead of 2"),
        8: ("5,\\xff", "not UTF-8: invalid start byte"),
        9: ('6,"B\n7,B\n"8', "',' expected after '\"'"),
        12: ('9,"B', "an open quote, which nothing closes"),
        13: ("10,B", "behind an open quote, which nothing closes"),
    }


@pytest.mark.parametrize(
    "line",
    [b'1,"B"\xff', b'1,B,"x"y', b"1,B,\xff", b"1,B\r2,S", b"1,B,\xef\xbb\xbf\xff"],
)
def test_a_line_is_refused_whatever_stands_next_to_it(tmp_path: Path, line: bytes) -> None:
    # The last column is left out; a line that is cut off before it makes all be read one by one.
    alone = read(write(tmp_path, line + b"\n"), NUMBERS, "id,side,_")
    beside = read(write(tmp_path, line + b"\n2\n"), NUMBERS, "id,side,_")
    assert alone[0] == beside[0] == {}
    assert alone[1][1] == beside[1][1]


@pytest.mark.parametrize("data", [b"id,side\n", b"id,side", BOM + b"id,side\r\n", b"id,side\n\n\n"])
def test_a_header_alone_is_an_empty_input(tmp_path: Path, data: bytes) -> None:
    assert read(write(tmp_path, data), NUMBERS) == ({}, {})


def test_an_empty_file_needs_its_columns_named(tmp_path: Path) -> None:
    file = write(tmp_path, b"")
    assert read(file, NUMBERS, "id,side") == ({}, {})
    with pytest.raises(UserError, match=r"no header line: .* needs --columns"):
        read(file, NUMBERS)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"id,side,id\n", "line 1: a column name comes twice: id, side, id"),
        (b'id,"side\nB\n', "line 1: the column names can't be read: unexpected end of data"),
        (b"\nid,side\n", "no header line"),
        ("id,side,é\n".encode("latin-1"), "line 1: not UTF-8"),
        ("id,side\n".encode("utf-16"), "line 1: not UTF-8"),
        (b"1,B,5\n", "no column id, side: it has 1, B, 5"),
    ],
)
def test_headers_that_are_none(tmp_path: Path, header: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, header), NUMBERS)


def test_long_lines_are_read_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a block, than a split, and than what Python's csv reads by default.
    value = "x" * 300_000
    file = write(tmp_path, f"1,B,{value}\n2,S,{value}\n3\n".encode())
    rows, refused = read(file, NUMBERS, "id,side,note", 100_000, 5_000)
    assert rows == {1: (1, "B", value), 2: (2, "S", value)}
    assert list(refused) == [3]
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 200_000)
    with pytest.raises(UserError, match="a line is longer than"):
        read(file, NUMBERS, "id,side,note", 100_000, 5_000)


def json_lines(folder: Path, *lines: str | dict[str, Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return write(folder, "".join(f"{text}\n" for text in texts).encode(), "t.jsonl")


def test_json_numbers_keep_their_text(tmp_path: Path) -> None:
    file = json_lines(
        tmp_path,
        '{"id": 1, "side": "B", "price": 1.10, "note": 12345678901234567890.10}',
        '{"id": "2", "side": "B", "price": "0.0001", "note": 1e400}',
        '{"id": 3.0, "side": "B", "price": 90071992547409.9301, "note": true}',
        '{"note": "", "side": "S", "id": 4, "price": null}',
        '{"side": "S", "id": 5}',
    )
    rows, refused = read(file, NUMBERS)
    assert refused == {}
    assert [tuple(map(str, row)) for row in rows.values()] == [
        ("1", "B", "1.1000", "12345678901234567890.10"),
        ("2", "B", "0.0001", "1e400"),
        ("3", "B", "90071992547409.9301", "true"),
        ("4", "S", "None", ""),
        ("5", "S", "None", "None"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": 1e-3, "side": "B"}', "id '0.001' is not a whole number"),
        ('{"id": 1e999999999, "side": "B"}', "id '1e999999999' is not a number"),
        ('{"id": "1e3", "side": "B"}', "id '1e3' is not a number"),
        ('{"id": 12345678901234567890, "side": "B"}', "is too large for a 64-bit integer"),
        ('{"id": 1, "side": "B", "price": NaN}', "price 'NaN' is not a number"),
        ('{"id": true, "side": "B"}', "id 'true' is not a number"),
        ('{"id": null, "side": "B"}', "id is missing"),
        ('{"side": "B"}', "id is missing"),
        ('{"id": 1, "side": "B", "extra": [1]}', "extra is a list or an object, not a value"),
        ('{"id": 1, "id": 2, "side": "B"}', "field 'id' comes twice"),
        ('{"id": [1], "side": "B"}', "id is a list or an object, not a value"),
        ('{"id": {"x": 1}, "side": "B"}', "id is a list or an object, not a value"),
        ("[1, 2]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"id": 1, "side": "B"', "not JSON"),
        ('{"id": 01, "side": "B"}', "not JSON"),
        ('{"id": 1} {"id": 2}', "not JSON"),
        ('{"id": 1, "side": "\\ud800"}', "surrogates not allowed"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_json_lines_that_are_refused(tmp_path: Path, line: str, reason: str) -> None:
    good = {"id": 7, "side": "B", "price": "1.5"}
    rows, refused = read(json_lines(tmp_path, good, "", line, good), NUMBERS)
    assert list(rows) == [1, 4]
    assert list(refused) == [3]
    assert reason in refused[3][1]
    assert refused[3][0] == line


@pytest.mark.parametrize(
    "line", [b'{"id": 1, "side": "\xff"}', b'{"id": 1, "side": "\xed\xa0\x80"}']
)
def test_json_that_is_not_utf_8(tmp_path: Path, line: bytes) -> None:
    file = write(tmp_path, b'{"id": 1, "side": "B"}\n' + line, "t.jsonl")
    rows, refused = read(file, NUMBERS)
    assert list(rows) == [1]
    assert "not UTF-8" in refused[2][1]


def test_json_columns_come_from_the_first_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = json_lines(tmp_path, {"no": 1, "x": 1, "side": "B"}, {"side": "S", "no": 2})
    assert read(file, NUMBERS, "id=no,_=x") == ({1: (1, "B"), 2: (2, "S")}, {})
    file = json_lines(tmp_path, {"id": 1, "side": "B"}, {"id": 2, "side": "S", "x": "y"}, "{")
    rows, refused = read(file, NUMBERS)
    assert (rows, list(refused)) == ({1: (1, "B", None), 2: (2, "S", "y")}, [3])
    # A field that only later records have costs them.
    monkeypatch.setattr(inputs, "_JSON_RECORDS", 1)
    rows, refused = read(file, NUMBERS)
    assert (rows, list(refused)) == ({1: (1, "B")}, [2, 3])
    assert refused[2][1].startswith("unknown field 'x': none of the first records")
    # A blank line is no record; without any, they are those that the contract requires.
    file = json_lines(tmp_path, "", {"side": "S", "no": 2}, {"side": "S", "no": 3, "x": 1})
    rows, refused = read(file, NUMBERS, "id=no")
    assert rows == {2: ("S", 2)}
    assert refused[3][1].startswith("unknown field 'x'")
    assert read(write(tmp_path, b"", "e.jsonl"), NUMBERS) == ({}, {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: not a JSON object"),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"\\ud800": 1}', "line 1: not JSON"),
        ('{"id": 1}', "wrong schema: no column side"),
    ],
)
def test_json_without_columns_in_its_first_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(json_lines(tmp_path, line), NUMBERS)
