"""CSV for people: no cell is a formula, and nothing else is changed."""

import csv
import datetime
import io
from decimal import Decimal

import pyarrow as pa
import pytest

from ledgerbeam.io.datasets.spreadsheet import spreadsheet_csv


def cells(table: pa.Table) -> list[list[str]]:
    return list(csv.reader(io.StringIO(spreadsheet_csv(table).decode(), newline="")))


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        '=HYPERLINK("http://x","y")',
        "+1+1",
        "-2+3",
        "-",
        "--1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "-1,=2",
        "-1\n=2",
    ],
)
@pytest.mark.parametrize("is_encoded", [False, True])
def test_a_text_that_looks_like_a_formula_has_an_apostrophe(text: str, is_encoded: bool) -> None:
    column = pa.array([text, "plain"])
    table = pa.table({text: column.dictionary_encode() if is_encoded else column})
    assert cells(table) == [["'" + text], ["'" + text], ["plain"]]


@pytest.mark.parametrize(
    "text", ["-5", "+1.50", "-1,234.50", "-1.234,50", "-1E+3", "a=b", "'=1", " =1", "A-1", "10%"]
)
def test_numbers_and_other_texts_stay_as_they_are(text: str) -> None:
    assert cells(pa.table({"text": [text]})) == [["text"], [text]]


def test_other_types_stay_as_they_are() -> None:
    table = pa.table(
        {"money": [Decimal("-1.50")], "count": [-1], "day": [datetime.date(2026, 11, 30)]}
    )
    assert cells(table) == [["money", "count", "day"], ["-1.50", "-1", "2026-11-30"]]
    assert spreadsheet_csv(table.slice(0, 0)) == b'"money","count","day"\n'
