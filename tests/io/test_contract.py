"""The schema contract: what each type takes from text and from typed files, and what it refuses."""

import datetime
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledgerbeam.io.datasets.contract import Column, Contract, conform
from ledgerbeam.io.errors import UserError

AMOUNT = pa.decimal128(18, 4)
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def take(
    values: Sequence[Any] | pa.Array, column: Column, type_: pa.DataType | None = None
) -> tuple[list[Any], dict[int, list[str]]]:
    """The column's values after `conform`, and the reasons by row."""
    array = values if isinstance(values, pa.Array) else pa.array(values, type_ or pa.string())
    # From here on, what a file with such a column would go through.
    is_text = type_ is None and not isinstance(values, pa.Array)
    fields = Contract((column,)).resolve(
        "t.csv", {column.name: None if is_text else array.type}, {}
    )
    table, rejections = conform(pa.table({column.name: array}), fields)
    expected = pa.dictionary(pa.int32(), column.type) if column.dictionary_encoded else column.type
    assert table.schema.types == [expected]
    table.validate(full=True)
    return table.column(0).to_pylist(), {row: list(reasons) for row, reasons in rejections.items()}


def of_type(type_: pa.DataType, **more: Any) -> Column:
    return Column("x", type_, **more)


# Oracles: what a value means, in plain Python. None where it is refused.


def integer_of(text: str) -> int | None:
    match = re.fullmatch(r"(-?[0-9]+)(\.0+)?", text, re.ASCII)
    value = int(match[1]) if match else None
    return value if value is not None and INT64_MIN <= value <= INT64_MAX else None


def decimal_of(text: str, precision: int, scale: int) -> Decimal | None:
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text, re.ASCII):
        return None
    whole, _, decimals = text.lstrip("-").partition(".")
    if len(whole.lstrip("0")) > precision - scale or decimals[scale:].strip("0"):
        return None
    return Decimal(text)


def date_of(text: str) -> datetime.date | None:
    match = re.fullmatch(r"([0-9]{4})-([0-9]{2})-([0-9]{2})", text, re.ASCII)
    try:
        return datetime.date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


DIGITS = st.text("0123456789", min_size=1, max_size=22)
NUMBERS = st.builds(
    lambda sign, whole, point, decimals: f"{sign}{whole}{point}{decimals}",
    st.sampled_from(["", "", "-", "+", " "]),
    DIGITS,
    st.sampled_from(["", "", ".", "e", ","]),
    st.one_of(st.just(""), DIGITS),
)
EDGES = st.sampled_from([0, INT64_MIN, INT64_MAX, 10**18, -(10**18), 10**14]).flatmap(
    lambda edge: st.integers(edge - 2, edge + 2).map(str)
)
DATES = st.one_of(
    st.dates().map(str),
    st.builds("{:04}-{:02}-{:02}".format, st.integers(0, 9999), *[st.integers(0, 32)] * 2),
)
ODD = st.one_of(
    st.sampled_from(["+1", "1 ", " 1", "0x1", "1e3", "1E3", "1_0", "007", "-0", "--1", "-"]),
    st.sampled_from(
        [".5", "5.", "1,5", "1.50000", "1.00001", "NaN", "inf", "NULL", "1\n", "1\x00"]
    ),
    st.sampled_from(["²", "٣", "\uff11", "\u22121", "2026-1-1", "20261120", "2026-11-20T00:00"]),
    st.sampled_from(["0000-01-01", "2026-02-29", "2024-02-29", "2026-11-20Z", "2026-11-31"]),
)
TEXTS = st.one_of(NUMBERS, EDGES, DATES, ODD, st.text(max_size=8))


@given(st.lists(TEXTS, max_size=8))
@example(["1.50000", "99999999999999.9999", "100000000000000", "0.00001"])
@example(["9223372036854775807", "9223372036854775808", "-9223372036854775809"])
def test_text_means_what_plain_python_says(texts: list[str]) -> None:
    oracles = {
        pa.int64(): integer_of,
        AMOUNT: lambda text: decimal_of(text, 18, 4),
        pa.decimal128(18, 0): lambda text: decimal_of(text, 18, 0),
        pa.decimal128(4, 4): lambda text: decimal_of(text, 4, 4),
        pa.decimal128(38, 4): lambda text: decimal_of(text, 38, 4),
        pa.date32(): date_of,
    }
    for type_, oracle in oracles.items():
        expected = [oracle(text) for text in texts]
        values, rejections = take(texts, of_type(type_))
        assert values == expected
        assert sorted(rejections) == [row for row, value in enumerate(expected) if value is None]


@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from([pa.int64(), AMOUNT, pa.date32()]))
def test_a_value_means_the_same_whatever_stands_next_to_it(
    texts: list[str], type_: pa.DataType
) -> None:
    together, refused_together = take([*texts, "?"], of_type(type_))
    for row, text in enumerate(texts):
        alone, refused_alone = take([text], of_type(type_))
        assert alone == together[row : row + 1]
        assert refused_alone.get(0) == refused_together.get(row)


@pytest.mark.parametrize(
    ("text", "type_", "reason"),
    [
        ("+1", pa.int64(), "x '+1' is not a number"),
        ("1e3", pa.int64(), "x '1e3' is not a number"),
        ("1.5", pa.int64(), "x '1.5' is not a whole number"),
        (str(2**63), pa.int64(), "x '9223372036854775808' is too large for a 64-bit integer"),
        ("1.00001", AMOUNT, "x '1.00001' has more than 4 decimals"),
        ("123456789012345", AMOUNT, "x '123456789012345' is too large for decimal128(18, 4)"),
        ("2026-02-29", pa.date32(), "x '2026-02-29' is not a date (YYYY-MM-DD)"),
        ("", pa.int64(), "x is missing"),
        ("", pa.string(), "x is missing"),
        ("7" * 500, pa.int64(), f"x '{'7' * 60}…' is too large for a 64-bit integer"),
    ],
)
def test_a_refusal_says_which_column_what_value_and_why(
    text: str, type_: pa.DataType, reason: str
) -> None:
    assert take([text], of_type(type_)) == ([text if type_ == pa.string() else None], {0: [reason]})


def test_strings_stay_as_they_are() -> None:
    texts = ["007", "a b", "NULL", "-0", "é", "1.50"]
    assert take(texts, of_type(pa.string())) == (texts, {})
    assert take(texts, of_type(pa.string(), dictionary_encoded=True)) == (texts, {})


@given(st.lists(st.one_of(st.none(), st.text(" a\t\u00a0\u3000é", max_size=4)), max_size=6))
def test_text_with_white_space_around_it_is_refused(texts: list[str | None]) -> None:
    expected = [row for row, text in enumerate(texts) if text is not None and text != text.strip()]
    for dictionary_encoded in (False, True):
        column = of_type(pa.string(), nullable=True, dictionary_encoded=dictionary_encoded)
        values, rejections = take(pa.array(["x", *texts], pa.string())[1:], column)
        assert values == texts
        assert sorted(rejections) == expected
        assert all("white space around it" in reason for (reason,) in rejections.values())


def test_empty_and_null_are_missing_where_the_contract_allows_it() -> None:
    column = of_type(AMOUNT, nullable=True)
    assert take(["", None, "1.5"], column) == ([None, None, Decimal("1.5")], {})
    assert take(["", None, "x"], column) == ([None] * 3, {2: ["x 'x' is not a number"]})
    values, rejections = take(["", None, "B"], of_type(pa.string(), dictionary_encoded=True))
    assert rejections == {0: ["x is missing"], 1: ["x is missing"]}
    assert values[2] == "B"


def test_one_of_and_minimum() -> None:
    side = of_type(pa.string(), dictionary_encoded=True, one_of=("B", "S"))
    refused = {1: ["x 'b' is none of B, S"], 2: ["x 'B ' is none of B, S"], 3: ["x is missing"]}
    assert take(["B", "b", "B ", None, "S"], side)[1] == refused
    at_least_0 = of_type(pa.int64(), minimum=0, nullable=True)
    assert take(["0", "-1", "", "5"], at_least_0)[1] == {1: ["x -1 is below 0"]}
    assert take(["", ""], at_least_0) == ([None, None], {})
    assert take([], at_least_0) == ([], {})


def test_a_row_tells_all_that_is_wrong_with_it() -> None:
    contract = Contract(
        (
            of_type(pa.int64(), minimum=0),
            Column("side", pa.string(), dictionary_encoded=True, one_of=("B",)),
            Column("day", pa.date32()),
        )
    )
    fields = contract.resolve("t.csv", dict.fromkeys(["day", "side", "x"]), {})
    table = pa.table({"day": ["today", "2026-11-20"], "side": ["C", "B"], "x": ["-5", "5"]})
    conformed, rejections = conform(table, fields)
    assert conformed.column_names == ["day", "side", "x"]
    assert dict(rejections) == {
        0: ["day 'today' is not a date (YYYY-MM-DD)", "side 'C' is none of B", "x -5 is below 0"]
    }


TWO_TO_63 = Decimal(2**63)


@pytest.mark.parametrize(
    ("array", "type_", "expected"),
    [
        (pa.array([1, None], pa.int32()), pa.int64(), [1, None]),
        (pa.array([1, 2**63], pa.uint64()), pa.int64(), [1, None]),
        (pa.array([Decimal("2.00"), Decimal("1.50")]), pa.int64(), [2, None]),
        (pa.array([TWO_TO_63 - 1, TWO_TO_63, -TWO_TO_63]), pa.int64(), [2**63 - 1, None, -(2**63)]),
        (pa.array([1, 2**62]), AMOUNT, [Decimal(1), None]),
        (pa.array([Decimal("0E-8"), Decimal("1.00000001")]), AMOUNT, [Decimal(0), None]),
        (pa.array([Decimal("1.50")], pa.decimal128(38, 2)), AMOUNT, [Decimal("1.5")]),
        (pa.array([Decimal("1.50")], pa.decimal256(60, 2)), AMOUNT, [Decimal("1.5")]),
        (pa.array(["7", "+7"], pa.large_string()), pa.int64(), [7, None]),
        (pa.array(["7", "+7"], pa.string_view()), pa.int64(), [7, None]),
        (pa.array(["7", "", "+7", "7"]).dictionary_encode(), pa.int64(), [7, None, None, 7]),
        (pa.array(["a", None], pa.large_string()), pa.string(), ["a", None]),
        (pa.array([86_400_000], pa.date64()), pa.date32(), [datetime.date(1970, 1, 2)]),
        (pa.array(["2026-11-20"]), pa.date32(), [datetime.date(2026, 11, 20)]),
        (pa.nulls(2), AMOUNT, [None, None]),
        (pa.nulls(2), pa.string(), [None, None]),
    ],
    ids=str,
)
def test_typed_columns_are_converted_where_no_value_changes(
    array: pa.Array, type_: pa.DataType, expected: list[Any]
) -> None:
    values, rejections = take(array, of_type(type_))
    assert values == expected
    assert sorted(rejections) == [row for row, value in enumerate(expected) if value is None]


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["B", "", None, "X", "B"]).dictionary_encode(),
        pa.array(["B", "", None, "X", "B"]).cast(pa.dictionary(pa.int32(), pa.large_string())),
        pa.DictionaryArray.from_arrays(
            pa.array([0, 1, 2, 3, 0], pa.int32()), pa.array(["B", "", None, "X"])
        ),
        pa.array(["B", "", None, "X", "B"], pa.string_view()),
    ],
    ids=["nulls by rows", "large", "null in the dictionary", "views"],
)
def test_values_that_repeat_stay_in_a_dictionary(array: pa.Array) -> None:
    values, rejections = take(
        array, of_type(pa.string(), dictionary_encoded=True, one_of=("B", "S"))
    )
    assert values == ["B", "", None, "X", "B"]
    assert rejections == {
        1: ["x is missing"],
        2: ["x is missing"],
        3: ["x 'X' is none of B, S"],
    }


@given(st.lists(st.decimals(places=6, allow_nan=False, min_value=-(10**9), max_value=10**9)))
def test_decimals_of_another_scale_keep_their_value_or_are_refused(values: list[Decimal]) -> None:
    array = pa.array(values, pa.decimal128(30, 6))
    taken, rejections = take(array, of_type(pa.decimal128(12, 2)))
    expected = [value if value == round(value, 2) else None for value in values]
    assert taken == expected
    assert sorted(rejections) == [row for row, value in enumerate(expected) if value is None]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (pa.float64(), AMOUNT),
        (pa.float32(), pa.int64()),
        (pa.float16(), pa.string()),
        (pa.dictionary(pa.int32(), pa.float64()), AMOUNT),
        (pa.timestamp("us"), pa.date32()),
        (pa.int64(), pa.date32()),
        (pa.int64(), pa.string()),
        (pa.bool_(), pa.int64()),
        (pa.binary(), pa.string()),
        (pa.list_(pa.int64()), pa.int64()),
        (pa.date32(), pa.int64()),
    ],
    ids=str,
)
def test_types_whose_values_would_change_are_refused(
    found: pa.DataType, wanted: pa.DataType
) -> None:
    with pytest.raises(UserError, match=r"t\.parquet: wrong schema: x is .*write it as"):
        Contract((of_type(wanted),)).resolve("t.parquet", {"x": found}, {})


CONTRACT = Contract(
    (Column("id", pa.int64()), Column("price", AMOUNT, required=False)), reserved=("result",)
)


def names(*columns: str, **renames: str) -> list[tuple[str, str]]:
    fields = CONTRACT.resolve("t.csv", dict.fromkeys(columns), renames)
    return [(field.name, field.source) for field in fields]


def test_columns_keep_the_order_of_the_file_and_further_ones_are_carried() -> None:
    assert names("note", "id") == [("note", "note"), ("id", "id")]
    assert names("no", "price", no="id") == [("id", "no"), ("price", "price")]
    assert names("id", "note", "result", note="_", result="_") == [("id", "id")]
    # Two columns change places.
    assert names("id", "price", id="price", price="id") == [("price", "id"), ("id", "price")]
    fields = CONTRACT.resolve("t.parquet", {"id": pa.int64(), "at": pa.timestamp("ns")}, {})
    assert [(field.name, field.type) for field in fields][1] == ("at", pa.timestamp("ns"))


@pytest.mark.parametrize(
    ("columns", "renames", "message"),
    [
        (["price"], {}, "wrong schema: no column id: it has price"),
        (["id"], {"id": "_"}, "wrong schema: no column id"),
        (["id", "result"], {}, "has a column 'result', which this workload writes"),
        (["id", "__position"], {}, "has a column '__position', which this workload writes"),
        (["id", "x"], {"x": "result"}, "has a column 'result', which this workload writes"),
        (["id", "x"], {"x": "id"}, "two columns are called 'id'"),
        (["id"], {"no": "id"}, "there is no column 'no' to rename: it has id"),
    ],
)
def test_columns_that_are_missing_reserved_or_named_twice(
    columns: list[str], renames: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        names(*columns, **renames)


def test_a_column_that_contradicts_itself_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="dictionary_encoded needs string"):
        of_type(pa.int64(), dictionary_encoded=True)
    with pytest.raises(ValueError, match="one_of needs dictionary_encoded"):
        of_type(pa.string(), one_of=("B",))
    with pytest.raises(ValueError, match="minimum needs int64"):
        of_type(pa.float64(), minimum=0)


def test_with_type_changes_one_column() -> None:
    changed = CONTRACT.with_type("id", pa.string())
    assert [column.type for column in changed.columns] == [pa.string(), AMOUNT]
    assert changed.reserved == CONTRACT.reserved
    with pytest.raises(UserError, match="--id-type=integer"):
        changed.resolve("t.parquet", {"id": pa.int32()}, {})
