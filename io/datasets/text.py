"""CSV and JSON lines: blocks of whole records, parsed into tables of strings.

A record of JSON is one line; a record of CSV may have several, because its fields may hold line
ends in quotes. A record's line number is that of its first line. Values stay text here; the
contract gives them types.
"""

import csv
import decimal
import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from ledgerbeam.io.datasets.contract import sources
from ledgerbeam.io.datasets.dialect import Dialect
from ledgerbeam.io.datasets.inputs import Split, csv_reader
from ledgerbeam.io.datasets.lines import BYTE_ORDER_MARK, MAX_LINE_BYTES, Records, read_records
from ledgerbeam.io.datasets.values import ValueFormat

csv.field_size_limit(MAX_LINE_BYTES)  # like Arrow, which has no limit of its own
# Numbers in JSON with more digits than any column could hold are left unchanged.
_MAX_DIGITS = 100
# As Python objects, the records of a block of short lines would take a hundred times its size.
_RECORDS_AT_A_TIME = 1 << 16


class Rejection(NamedTuple):
    """A row that is rejected.

    Attributes:
        row: line (of text) or row (of other files) in the split, from 0.
        raw: the original row: the record of a text file, or the row as a JSON object.
        reason: what is wrong with it.
    """

    row: int
    raw: str
    reason: str


REJECTED_ROWS = pa.schema([("row", pa.int64()), ("raw", pa.string()), ("reason", pa.string())])
"""Rejected rows as a table: the attributes of `Rejection` as columns."""


def rejected_rows(rejections: Sequence[Rejection]) -> pa.Table:
    """Rejections as a table, with the schema `REJECTED_ROWS`: it takes a tenth of the memory."""
    columns = zip(*rejections, strict=True) if rejections else ((), (), ())
    arrays = [pa.array(c, type_) for c, type_ in zip(columns, REJECTED_ROWS.types, strict=True)]
    return pa.table(arrays, schema=REJECTED_ROWS)


class TextBlock(NamedTuple):
    """Consecutive records of a split.

    Attributes:
        table: one string column for each column of the file that is read.
        lines: int64 `(rows,)`, the line of the split that each row begins with, from 0.
        rejected: records that could not be parsed at all, with the schema `REJECTED_ROWS`.
        records: the records.
        first_line: the line of the split that the records begin with.
        line_count: number of lines of the records and of a header before them, blank ones included.
    """

    table: pa.Table
    lines: npt.NDArray[np.int64]
    rejected: pa.Table
    records: Records
    first_line: int
    line_count: int

    def raw(self, rows: list[int]) -> list[str]:
        """The records of the given rows of the table."""
        bounds = self.records.bounds()
        at = np.searchsorted(self.records.first_lines(), self.lines[rows] - self.first_line)
        data = self.records.data
        return [_readable(data[bounds[n] : bounds[n + 1]]) for n in at.tolist()]


def read_text(split: Split) -> Iterator[TextBlock]:
    """The records of a split, as tables.

    Raises:
        InputError: a compressed file is damaged, or a record is longer than `MAX_LINE_BYTES` bytes.
    """
    line = counted = 0
    header_is_ahead = split.start == 0 and split.format == "csv" and split.has_header
    for records in read_records(split.text, split.in_quotes):
        body = records
        if header_is_ahead:
            body, header_is_ahead = _behind_header(split, records)
            line += _line_count(records.data[: len(records.data) - len(body.data)])
        for part, (table, lines, rejections) in _parsed(split, body):
            end = line + _line_count(part.data)
            rejected = [rejection._replace(row=rejection.row + line) for rejection in rejections]
            yield TextBlock(table, lines + line, rejected_rows(rejected), part, line, end - counted)
            line = counted = end


def first_row_of(split: Split) -> int:
    """How many rows or lines of its file are before a split; the text before it is read for that.

    Raises:
        InputError: the file can't be read.
    """
    if split.first_row is not None or not split.start:
        return split.first_row or 0
    before = split.text._replace(start=0, end=split.start)
    return sum(_line_count(records.data) for records in read_records(before, False))


def _parsed(split: Split, records: Records) -> Iterator[tuple[Records, "_Parsed"]]:
    """Records in parts, each with what is in it."""
    if records.is_open:
        is_first = True
        for lines in records.lines(_RECORDS_AT_A_TIME):
            yield lines, _refuse(split, lines, is_first)
            is_first = False
        return
    whole = _parse_csv(split, records) if split.format == "csv" else None
    if whole is not None:
        yield records, whole
        return
    parse = _parse_csv_by_record if split.format == "csv" else _parse_json_lines
    for part in records.parts(_RECORDS_AT_A_TIME):
        yield part, parse(split, part)


def _line_count(data: bytes) -> int:
    return data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))


def _behind_header(split: Split, records: Records) -> tuple[Records, bool]:
    """The records after the header, and whether there were only comments and no header yet."""
    comment = split.dialect.comment.encode()
    bounds = records.bounds().tolist()
    for number, begin in enumerate(bounds[:-1]):
        if not comment or not records.data.startswith(comment, begin):
            return records.behind(number + 1), False
    return records.behind(len(bounds) - 1), True


_Parsed = tuple[pa.Table, npt.NDArray[np.int64], list[Rejection]]


def _refuse(split: Split, records: Records, has_quote: bool) -> _Parsed:
    """Reject lines after a quote that is never closed: the end of its field is unknown.

    Args:
        split: the split.
        records: each line as a record.
        has_quote: whether the quote is in the first of these lines.
    """
    reason = "an open quote, which nothing closes"
    rejections = [
        Rejection(
            number, _readable(line), f"behind {reason}" if number or not has_quote else reason
        )
        for number, line in _each(records)
        if line.rstrip(b"\r") or (has_quote and not number)
    ]
    return _table({}, split), np.zeros(0, np.int64), rejections


def _table(columns: dict[str, list[str | None]], split: Split) -> pa.Table:
    rows = len(next(iter(columns.values()), ()))
    names = sources(split.fields)
    if not names:
        return pa.table({" ": pa.nulls(rows)})  # a table without columns has no rows
    return pa.table({name: pa.array(columns.get(name, ()), pa.string()) for name in names})


def _parse_csv(split: Split, records: Records) -> _Parsed | None:
    """Parse a whole block by Arrow where each record is a row; None if it isn't so.

    Regular text never gives more rows than records, so equal numbers mean that every record is one
    row.
    """
    data, dialect = records.data, split.dialect
    names = sources(split.fields)
    ends_empty = _has_trailing_delimiter(split)
    comment = dialect.comment.encode()
    has_comments = comment and (data.startswith(comment) or b"\n" + comment in data)
    if data and not has_comments and _is_regular(data, dialect):
        try:
            table = pa_csv.read_csv(
                pa.py_buffer(data),
                pa_csv.ReadOptions(
                    use_threads=False, block_size=len(data) + 1, column_names=list(split.header)
                ),
                pa_csv.ParseOptions(
                    delimiter=dialect.delimiter,
                    quote_char=dialect.quote or False,
                    newlines_in_values=records.ends is not None,
                ),
                pa_csv.ConvertOptions(
                    include_columns=[*names, ""] if ends_empty else names,
                    column_types=dict.fromkeys(split.header, pa.string()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            pass  # some record is broken: find out which
        else:
            lines = records.first_lines()
            is_whole = table.num_rows == len(lines)
            if is_whole and ends_empty:
                is_whole = not any(table.column("").to_pylist())
                table = table.select(names)
            if is_whole and names:
                return table, lines, []
    return None


def _has_trailing_delimiter(split: Split) -> bool:
    """Whether the last column has no name, and must be empty."""
    return len(split.header) > 1 and not split.header[-1] and "" not in sources(split.fields)


def _is_regular(data: bytes, dialect: Dialect) -> bool:
    """Whether Arrow parses each line, or lines joined by quotes, as Python's `csv` does.

    Arrow treats a lone carriage return as the end of a row, drops a byte order mark, checks only
    the encoding of the requested columns, accepts text after a closing quote, and treats the end
    of the text as a closing quote.
    """
    if data.count(b"\r") > data.count(b"\r\n") or data.startswith(BYTE_ORDER_MARK):
        return False
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            return False
    quote = dialect.quote.encode()
    if not quote or quote not in data:
        return True
    text = np.frombuffer(b"\n%b\n" % data, np.uint8)
    quotes = np.flatnonzero(text == ord(quote))
    delimiter = ord(dialect.delimiter)
    # Two quotes within quotes, which are one quote of the value, count as closing and opening.
    before, behind = text[quotes[0::2] - 1], text[quotes[1::2] + 1]
    opens = (before == delimiter) | (before == ord("\n")) | (before == ord(quote))
    closes = (behind == delimiter) | (behind == ord("\n")) | (behind == ord(quote))
    closes |= behind == ord("\r")
    return bool(len(opens) == len(closes) and opens.all() and closes.all())


def _parse_csv_by_record(split: Split, records: Records) -> _Parsed:
    rows: list[list[str]] = []
    lines: list[int] = []
    rejections: list[Rejection] = []
    comment = split.dialect.comment.encode()
    for line, record in _each(records):
        if not record.rstrip(b"\r") or (comment and record.startswith(comment)):
            continue
        try:
            (values,) = csv_reader([record.decode().removesuffix("\r")], split.dialect)
            rows.append(_fields_of(values, split))
        except UnicodeDecodeError as error:
            rejections.append(
                Rejection(line, _readable(record), _not_decoded(split.dialect, error))
            )
        except (ValueError, csv.Error) as error:
            rejections.append(Rejection(line, _readable(record), str(error)))
        else:
            lines.append(line)
    values_of = map(list, zip(*rows, strict=True))
    columns = dict(zip(split.header, values_of, strict=True)) if rows else {}
    return _table(columns, split), np.array(lines, np.int64), rejections


def _fields_of(values: list[str], split: Split) -> list[str]:
    """A field for each name of the header.

    Raises:
        ValueError: there are more or fewer, or there is text after the trailing delimiter.
    """
    count = len(split.header)
    if split.dialect.trailing_delimiter and len(values) == count - 1:
        values = [*values, ""]
    if len(values) != count:
        raise ValueError(f"{len(values)} columns instead of {count}")
    if values[-1] and _has_trailing_delimiter(split):
        raise ValueError(f"{values[-1]!r} stands behind the last column")
    return values


def _each(records: Records) -> Iterator[tuple[int, bytes]]:
    """The line that each record begins with, and its bytes without the line end."""
    if records.ends is None:
        yield from enumerate(records.data.removesuffix(b"\n").split(b"\n"))
        return
    bounds = records.bounds().tolist()
    for line, begin, end in zip(
        records.first_lines().tolist(), bounds[:-1], bounds[1:], strict=True
    ):
        yield line, records.data[begin:end].removesuffix(b"\n")


def _not_decoded(dialect: Dialect, error: UnicodeDecodeError) -> str:
    if dialect.is_utf_8:
        return f"not UTF-8: {error.reason}"
    return f"not {dialect.encoding.upper()}"


def _parse_json_lines(split: Split, records: Records) -> _Parsed:
    names = sources(split.fields)
    known = set(split.header)
    numbers = {
        field.source: field.values
        for field in split.fields
        if field.column is not None and not pa.types.is_string(field.type)
    }
    columns: dict[str, list[str | None]] = {name: [] for name in names}
    lines: list[int] = []
    rejections: list[Rejection] = []
    comment = split.dialect.comment.encode()
    for line, record in _each(records):
        if not record.strip() or (comment and record.startswith(comment)):
            continue
        try:
            parsed = _json_record(record, known, split.dialect)
            values = [_json_text(name, parsed.get(name), numbers.get(name)) for name in names]
        except ValueError as error:
            rejections.append(Rejection(line, _readable(record), str(error)))
            continue
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
        lines.append(line)
    return _table(columns, split), np.array(lines, np.int64), rejections


class _Number(str):
    """A number of JSON, as it is written."""

    __slots__ = ()


def _json_record(line: bytes, known: set[str], dialect: Dialect) -> dict[str, object]:
    try:
        # Numbers stay text: a float could change an amount.
        record = json.loads(
            line.decode(),
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=str,
            object_pairs_hook=_no_repeats,
        )
    except UnicodeDecodeError as error:
        raise ValueError(_not_decoded(dialect, error)) from error
    except RecursionError as error:
        raise ValueError("not a JSON object of plain values") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    unknown = record.keys() - known
    if unknown:
        raise ValueError(
            f"unknown field {min(unknown)!r}: none of the first records of the file has it"
        )
    return record


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} comes twice")
    return record


def _json_text(name: str, value: object, format_: ValueFormat | None) -> str | None:
    """The text of a value; a number for a column of numbers as `format_` writes it."""
    if isinstance(value, _Number) and format_ is not None:
        return format_.localised(_without_exponent(value))
    if isinstance(value, str):
        value.encode()  # fails for half a surrogate pair, which is no text
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    raise ValueError(f"{name} is a list or an object, not a value")


def _without_exponent(number: str) -> str:
    """The same number without an exponent: 1.50E+2 becomes 150."""
    if "e" not in number and "E" not in number:
        return number
    try:
        value = Decimal(number)
    except decimal.InvalidOperation:
        return number
    return f"{value:f}" if abs(value.adjusted()) < _MAX_DIGITS > len(number) else number


def _readable(line: bytes) -> str:
    return line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="backslashreplace")
