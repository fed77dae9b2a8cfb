"""Text as it comes: a table written in any dialect reads the same, and what can't be is refused."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tests.support.reading import read_whole

from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.readers import ROW_LOCATION, unpack_location
from ledgerbeam.io.datasets.reading import reading_of
from ledgerbeam.io.datasets.values import ValueFormat
from ledgerbeam.io.errors import UserError

BOOK = Contract(
    (
        Column("id", pa.int64()),
        Column("name", pa.string(), nullable=True),
        Column("amount", pa.decimal128(18, 4), nullable=True),
        Column("day", pa.date32()),
    )
)
Row = tuple[int, str | None, Decimal | None, datetime.date]
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property; each overwrites the files of the one before."""
    return tmp_path_factory.mktemp("dialects")


def read(
    file: Path, contract: Contract = BOOK, bytes_per_split: int = 1 << 20, **settings: Any
) -> tuple[dict[int, tuple[Any, ...]], dict[int, str]]:
    """Rows, and reasons of refused records, by the line of the file that they begin with."""
    rows: dict[int, tuple[Any, ...]] = {}
    refused: dict[int, str] = {}
    before = 0
    planned = plan_input(str(file), contract, reading_of(settings), bytes_per_split=bytes_per_split)
    for split in planned.splits:
        part = read_whole(split)
        for record in part.table.to_pylist():
            _, line = unpack_location(record.pop(ROW_LOCATION))
            rows[before + line + 1] = tuple(record.values())
        refused |= {before + rejection.row + 1: rejection.reason for rejection in part.rejections}
        before += part.line_count
    return rows, refused


class Written(NamedTuple):
    """A way to write, and the settings that say it."""

    settings: dict[str, Any]
    encoding: str
    delimiter: str
    quote: str
    decimal: str
    thousands: str
    date: str
    null: str
    comment: str
    ending: str


@st.composite
def dialects(draw: st.DrawFn) -> Written:
    delimiter, said = draw(
        st.sampled_from([(",", ""), (";", ";"), ("|", "pipe"), ("\t", "tab"), ("\t", "\\t")])
    )
    decimal = draw(st.sampled_from([".", ","]))
    between = draw(st.sampled_from(["", "", ".", ",", " ", "'", "\u00a0"]))
    assume(between != decimal)
    encoding = draw(st.sampled_from(["utf-8", "cp1252", "latin-1", "utf-16", "utf-8-sig"]))
    date = draw(st.sampled_from(["%Y-%m-%d", "%d-%b-%Y", "%d/%m/%Y", "%Y%m%d", "%-d.%-m.%Y"]))
    settings = {
        "delimiter": said,
        "quote": draw(st.sampled_from(["", "'", '"'])),
        "decimal": decimal,
        "thousands": " " if between == "\u00a0" else between,
        "encoding": encoding,
        "date_format": date,
        "null": draw(st.sampled_from(["", "NA", "-,NA"])),
        "comment": draw(st.sampled_from(["", "#", "--"])),
    }
    quote = settings["quote"] or '"'
    ending = draw(st.sampled_from(["\n", "\r\n"]))
    null = settings["null"].partition(",")[0]
    comment = settings["comment"]
    return Written(
        settings, encoding, delimiter, quote, decimal, between, date, null, comment, ending
    )


NAMES = st.text("aé#-'\",;|\t\n\u00a0 Z", max_size=6).filter(lambda name: name == name.strip())
ROWS = st.lists(
    st.tuples(
        st.integers(-(10**9), 10**9),
        st.one_of(st.none(), NAMES.filter(lambda name: name not in ("", "-", "NA"))),
        st.one_of(st.none(), st.decimals(-(10**13), 10**13, places=4)),
        st.dates(datetime.date(1969, 1, 1)),
    ),
    max_size=6,
)


def number(value: Decimal | int, way: Written) -> str:
    sign, whole, part = "-" * (value < 0), *f"{abs(value):f}".partition(".")[::2]
    return sign + grouped(whole, way.thousands) + (way.decimal + part if part else "")


def grouped(digits: str, between: str) -> str:
    rest, last = digits[:-3], digits[-3:]
    if not between:
        return digits
    return f"{grouped(rest, between)}{between}{last}" if rest else last


def date(value: datetime.date, format_: str) -> str:
    return (
        format_.replace("%Y", f"{value.year:04}")
        .replace("%m", f"{value.month:02}")
        .replace("%d", f"{value.day:02}")
        .replace("%-m", str(value.month))
        .replace("%-d", str(value.day))
        .replace("%b", MONTHS[value.month - 1])
    )


def written(rows: list[Row], way: Written) -> bytes:
    def field(text: str | None) -> str:
        text = way.null if text is None else text
        quoted = way.quote + text.replace(way.quote, way.quote * 2) + way.quote
        plain = not set(text) & {way.quote, way.delimiter, "\n", "\r"}
        # A line that begins like a comment is none in quotes.
        return text if plain and not (way.comment and text.startswith(way.comment)) else quoted

    lines = [f"{way.comment} a 'comment\", {way.quote}"] if way.comment else []
    lines.append(way.delimiter.join(["id", "name", "amount", "day"]))
    for id_, name, amount, day in rows:
        texts = [
            number(id_, way),
            name,
            None if amount is None else number(amount, way),
            date(day, way.date),
        ]
        lines.append(way.delimiter.join(map(field, texts)))
        if way.comment and id_ % 2:
            lines.append(f"{way.comment}{way.quote}")
    return "".join(line + way.ending for line in lines).encode(way.encoding)


@given(ROWS, dialects(), st.integers(1, 60))
def test_a_table_reads_the_same_in_whatever_dialect_it_was_written(
    folder: Path, rows: list[Row], way: Written, bytes_per_split: int
) -> None:
    file = folder / "t.csv"
    file.write_bytes(written(rows, way))
    found, refused = read(file, bytes_per_split=bytes_per_split, **way.settings)
    assert refused == {}
    # What can't tell an empty text from none gives none.
    assert [(row[0], row[1] or None, *row[2:]) for row in found.values()] == rows


@given(
    st.text("0123456789.,- '", max_size=12),
    st.sampled_from([(".", ""), (".", ","), (",", "."), (",", " "), (".", "'"), (",", "")]),
)
@example("1,00,00,000.50", (".", ","))
@example("1,000", (".", ","))
@example("10,00", (".", ","))
@example("1.000", (",", "."))
@example("0,001", (".", ","))
def test_numbers_are_what_the_marks_say_or_refused(text: str, marks: tuple[str, str]) -> None:
    decimal, thousands = marks
    format_ = ValueFormat(decimal=decimal, thousands=thousands)
    unsigned = text.removeprefix("-")
    whole, mark, part = unsigned.partition(decimal)
    groups = whole.split(thousands) if thousands else [whole]
    first, *others = groups
    sizes = [len(group) for group in others]
    plausible = not others or (
        first[:1] not in ("", "0")
        and sizes[-1] == 3
        and (
            (set(sizes) == {3} and len(first) <= 3) or (set(sizes[:-1]) <= {2} and len(first) <= 2)
        )
    )
    is_number = all(group.isdigit() for group in groups) and (part.isdigit() or not mark)
    texts = pa.array(["1", text])
    if plausible and is_number:
        expected = "-" * (text != unsigned) + "".join(groups) + ("." + part if mark else "")
        assert format_.plain_number(text) == expected
        numbers = format_.plain_numbers(texts)
        assert numbers is not None
        assert numbers.to_pylist() == ["1", expected]
    else:
        with pytest.raises(ValueError, match="is not a number"):
            format_.plain_number(text)
        if not format_.has_plain_numbers:
            assert format_.plain_numbers(texts) is None


@pytest.mark.parametrize(
    ("format_", "text", "value"),
    [
        ("%d-%b-%Y", "20-NOV-2026", "2026-11-20"),
        ("%d-%b-%Y", "20-nov-2026", "2026-11-20"),
        ("%d %B %Y", "01 September 2026", "2026-09-01"),
        ("%m%Y", "112026", "2026-11-01"),
        ("%d-%b-%y", "03-Jan-23", "2023-01-03"),
        ("%d/%m/%y", "01/01/69", "1969-01-01"),
        ("%d/%m/%Y %H:%M:%S", "20/11/2026 23:59:59", "2026-11-20"),
        ("%-m/%-d/%Y", "1/9/2026", "2026-01-09"),
        ("%d-%b-%Y", "20-11-2026", None),
        ("%d-%b-%Y", "20-Sept-2026", None),
        ("%d-%b-%Y", " 20-Nov-2026", None),
        ("%d/%m/%Y", "1/9/2026", None),
        ("%d/%m/%Y", "31/02/2026", None),
        ("%d/%m/%Y %H:%M", "20/11/2026 24:00", None),
        ("%Y%m%d", "2026-11-20", None),
        ("%Y%m%d", "\u0662\u0660261120", None),
    ],
)
def test_dates_are_what_the_format_says_or_refused(
    format_: str, text: str, value: str | None
) -> None:
    if value is not None:
        assert ValueFormat(date_format=format_).date(text).isoformat() == value
        return
    with pytest.raises(ValueError, match=r"is not a date \(%"):
        ValueFormat(date_format=format_).date(text)


@pytest.mark.parametrize("bytes_per_split", [5, 1 << 20])
def test_every_bad_value_is_refused_with_its_line_and_reason(
    tmp_path: Path, bytes_per_split: int
) -> None:
    lines = [
        "# of the day",
        "id;name;amount;day;",
        "1;a;1.234,50;20-Nov-2026;",
        "2;a;1.23,50;20-Nov-2026;",
        "# 3;a;1;20-Nov-2026;",
        "4;a;1;2026-11-20;",
        "5; a;1;20-Nov-2026;",
        "6;a;NA;20-Nov-2026;",
        "7;a;1;20-Nov-2026",
        "8;a;1;20-Nov-2026;x",
        '9;"a\n9;b;1;20-Nov-2026;";-1;20-Nov-2026;',
        "10;€;1;NA;",
    ]
    file = tmp_path / "t.csv"
    file.write_bytes("\n".join(lines).encode("cp1252").replace(b"5; a", b"5;\x81"))
    rows, refused = read(
        file,
        bytes_per_split=bytes_per_split,
        delimiter=";",
        decimal=",",
        thousands=".",
        date_format="%d-%b-%Y",
        null="NA",
        comment="#",
        encoding="cp1252",
    )
    day = datetime.date(2026, 11, 20)
    assert rows == {
        3: (1, "a", Decimal("1234.5"), day),
        8: (6, "a", None, day),
        11: (9, "a\n9;b;1;20-Nov-2026;", Decimal(-1), day),
    }
    marks = "(decimal mark ',', thousands '.')"
    assert refused == {
        4: f"amount '1.23,50' is not a number {marks}",
        6: "day '2026-11-20' is not a date (%d-%b-%Y)",
        7: "not CP1252",
        9: "4 columns instead of 5",
        10: "'x' stands behind the last column",
        13: "day is missing",
    }


def test_white_space_is_refused_or_trimmed(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("id , name,amount,day\n 1 , a\t,1 , 2026-11-20\n2,b,,2026-11-20\n")
    day = datetime.date(2026, 11, 20)
    assert read(file, trim=True) == ({2: (1, "a", Decimal(1), day), 3: (2, "b", None, day)}, {})
    with pytest.raises(UserError, match="no column id, name"):
        read(file)
    file.write_text(file.read_text().replace("id , name", "id,name"))
    refused = read(file)[1]
    assert refused == {
        2: "id ' 1 ' is not a number; name ' a\\t' has white space around it: correct it, or say "
        "--trim=true; amount '1 ' is not a number; day ' 2026-11-20' is not a date (YYYY-MM-DD)"
    }


def test_files_without_quotes_have_quotes_as_characters(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('id|name|amount|day\n1|"a|1|2026-11-20\n2|b"|1|2026-11-20\n')
    rows, refused = read(file, bytes_per_split=3, delimiter="|", quote="none")
    assert [row[1] for row in rows.values()] == ['"a', 'b"']
    assert refused == {}


def test_json_numbers_are_json_whatever_the_decimal_mark(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(
        '// comment\n{"id": 1, "name": "a", "amount": 1.500, "day": "20/11/2026"}\n'
        '{"id": 2, "name": "b", "amount": "1.500", "day": "20/11/2026"}\n'
    )
    rows, refused = read(
        file, decimal=",", thousands=".", date_format="%d/%m/%Y", comment="//", bytes_per_split=9
    )
    assert [row[2] for row in rows.values()] == [Decimal("1.5"), Decimal(1500)]
    assert refused == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delimiter": ",,"}, "delimiter=,,: it must be one ASCII character"),
        ({"delimiter": "¦"}, "it must be one ASCII character"),
        ({"delimiter": '"'}, 'delimiter and quote are both "'),
        ({"quote": "ab"}, "quote=ab: it must be one ASCII character"),
        ({"encoding": "klingon"}, "encoding=klingon: no such encoding: utf-8, latin-1"),
        ({"encoding": "rot13"}, "no such encoding"),
        ({"comment": '"#'}, "rows may begin with a quote"),
        ({"decimal": ",", "thousands": "comma"}, "decimal and thousands are both ,"),
        ({"thousands": "1"}, "thousands=1: it must be one character, and no digit"),
        ({"date_format": "%d-%q-%Y"}, "date_format=%d-%q-%Y: %q is unknown"),
        ({"date_format": "%d-%m"}, "it needs one year and one month"),
        ({"date_format": "%Y-%m-%b"}, "it needs one year and one month"),
        ({"constants": "client_code"}, "--constants=client_code: write each once as COLUMN=VALUE"),
        ({"values": "side=B"}, "--values=side=B: write each once as COLUMN:TEXT=VALUE"),
        ({"values": "side:buy"}, "write each once as COLUMN:TEXT=VALUE"),
        ({"values": "side:buy=B,side:buy=S"}, "write each once as COLUMN:TEXT=VALUE"),
    ],
)
def test_settings_that_can_not_be_meant(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        reading_of(settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_file_that_its_codec_refuses_as_a_whole(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"id,name,amount,day\n1,a,1,2026-11-20\n")
    with pytest.raises(UserError, match=f"t.csv: not {encoding.upper()}: .* say its --encoding"):
        read(file, encoding=encoding)
