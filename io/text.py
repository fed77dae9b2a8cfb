"""CSV and JSON lines: blocks of whole lines, parsed into tables of strings.

A record is one line, in both formats: that is what makes a file splittable at any byte and lets
a refused row be named by its line number. A quoted newline is therefore refused with its line.
Values stay text here; the contract gives them types.
"""

import csv
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from ledgerbeam.io.inputs import LONGEST_LINE, Split, damaged, line_too_long, open_text

BLOCK_BYTES = 4 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

csv.field_size_limit(LONGEST_LINE)  # as Arrow, which has no limit of its own


class Refusal(NamedTuple):
    """A row that is not taken.

    Attributes:
        row: line of the split (text) or row of the split, from 0.
        raw: the row as it stood: the line of a text file, else the row as a JSON object.
        reason: what is wrong with it.
    """

    row: int
    raw: str
    reason: str


class TextBlock(NamedTuple):
    """Consecutive lines of a split.

    Attributes:
        table: one string column for each column of the file that is wanted.
        lines: int64 `(rows,)`, the line of the split that each row stands in, from 0.
        refusals: lines that could not be parsed at all.
        data: the lines' bytes.
        first_line: the line of the split that the block begins with.
        line_count: lines in the block, blank ones included.
    """

    table: pa.Table
    lines: npt.NDArray[np.int64]
    refusals: list[Refusal]
    data: bytes
    first_line: int
    line_count: int

    def raw(self, rows: list[int]) -> list[str]:
        """The lines that the given rows of the table stand in."""
        lines = self.data.split(b"\n")
        numbers = (self.lines[rows] - self.first_line).tolist()
        return [_readable(lines[number]) for number in numbers]


def read_text(split: Split) -> Iterator[TextBlock]:
    """The lines of a split, as tables.

    Raises:
        UserError: a damaged compressed file, or a line longer than `LONGEST_LINE` bytes.
    """
    first_line = 0
    parse = _parse_csv if split.format == "csv" else _parse_json_lines
    for data in _blocks_of_lines(split):
        if first_line == 0 and split.start == 0:
            data = data.removeprefix(BYTE_ORDER_MARK)
        count = data.count(b"\n") + (not data.endswith(b"\n"))
        skip = first_line == 0 and split.start == 0 and split.format == "csv" and split.has_header
        body = data.partition(b"\n")[2] if skip else data
        table, lines, refusals = parse(split, body)
        offset = first_line + skip
        yield TextBlock(
            table,
            lines + offset,
            [refusal._replace(row=refusal.row + offset) for refusal in refusals],
            data,
            first_line,
            count,
        )
        first_line += count


def _blocks_of_lines(split: Split) -> Iterator[bytes]:
    """The split's bytes in blocks that end where a line ends.

    A line belongs to the split that its first byte stands in.
    """
    # If the byte in front of the split ends a line, nothing more than that byte is passed over.
    position = max(split.start - 1, 0)
    in_line_before = split.start > 0
    rest = b""
    with open_text(split.file.uri, split.compression) as text:
        if position:
            text.seek(position)
        while block := _read_block(split, text):
            rest += block
            if in_line_before:
                begin = rest.find(b"\n") + 1
                in_line_before = not begin
                position += begin or len(rest)
                rest = rest[begin:] if begin else b""
                if split.end is not None and position >= split.end:
                    return
            if split.end is not None and position + len(rest) >= split.end:
                # The last line of the split is the one that its last byte stands in.
                cut = rest.find(b"\n", max(split.end - position - 1, 0)) + 1
                if cut:
                    yield rest[:cut]
                    return
            elif cut := rest.rfind(b"\n") + 1:
                yield rest[:cut]
                position += cut
                rest = rest[cut:]
            if len(rest) > LONGEST_LINE:
                raise line_too_long(split.file.uri, split.format)
    if rest:
        yield rest


def _read_block(split: Split, text: pa.NativeFile) -> bytes:
    try:
        return bytes(text.read(BLOCK_BYTES))
    except OSError as error:
        raise damaged(split.file.uri, split.compression or "text", error) from error


_Parsed = tuple[pa.Table, npt.NDArray[np.int64], list[Refusal]]


def _parse_csv(split: Split, data: bytes) -> _Parsed:
    """Parse whole blocks by Arrow where each line is a row, else line by line.

    In regular text no row can be too many, so that as many rows as lines means that every line is
    a row of its own.
    """
    wanted = [field.source for field in split.fields]
    line_count = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    if data and _is_regular(data):
        try:
            table = pa_csv.read_csv(
                pa.py_buffer(data),
                pa_csv.ReadOptions(
                    use_threads=False, block_size=len(data) + 1, column_names=list(split.header)
                ),
                pa_csv.ParseOptions(newlines_in_values=False),
                pa_csv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(split.header, pa.string()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            pass  # some line is broken: find out which
        else:
            if table.num_rows == line_count:
                return table, np.arange(line_count, dtype=np.int64), []
    return _parse_csv_by_line(split, data, wanted)


def _is_regular(data: bytes) -> bool:
    """Whether Arrow parses each line, or group of lines joined by quotes, as `csv` does.

    Arrow takes a lone carriage return for the end of a row, drops a byte order mark, checks the
    encoding of the columns that are asked for alone, goes on where text follows a closing quote,
    and takes the end of the text for one.
    """
    if data.count(b"\r") > data.count(b"\r\n") or data.startswith(BYTE_ORDER_MARK):
        return False
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            return False
    if b'"' not in data:
        return True
    text = np.frombuffer(b"\n%b\n" % data, np.uint8)
    quotes = np.flatnonzero(text == ord('"'))
    # Two quotes within quotes, which are one of the value, count as a closing and an opening one.
    opens = np.isin(text[quotes[0::2] - 1], list(b',\n"'))
    closes = np.isin(text[quotes[1::2] + 1], list(b',\r\n"'))
    return bool(len(opens) == len(closes) and opens.all() and closes.all())


def _parse_csv_by_line(split: Split, data: bytes, wanted: list[str]) -> _Parsed:
    rows: list[list[str]] = []
    lines: list[int] = []
    refusals: list[Refusal] = []
    for number, line in enumerate(data.split(b"\n")):
        if not line.rstrip(b"\r"):
            continue
        try:
            values = next(csv.reader([line.decode().removesuffix("\r")], strict=True))
            if len(values) != len(split.header):
                raise ValueError(f"{len(values)} columns instead of {len(split.header)}")
        except UnicodeDecodeError as error:
            refusals.append(Refusal(number, _readable(line), f"not UTF-8: {error.reason}"))
        except (ValueError, csv.Error) as error:
            reason = str(error).replace("unexpected end of data", "an open quote")
            refusals.append(Refusal(number, _readable(line), reason))
        else:
            rows.append(values)
            lines.append(number)
    by_name = dict(zip(split.header, zip(*rows, strict=True), strict=True)) if rows else {}
    table = pa.table({name: pa.array(by_name.get(name, ()), pa.string()) for name in wanted})
    return table, np.array(lines, np.int64), refusals


def _parse_json_lines(split: Split, data: bytes) -> _Parsed:
    wanted = [field.source for field in split.fields]
    known = set(split.header)
    columns: dict[str, list[str | None]] = {name: [] for name in wanted}
    lines: list[int] = []
    refusals: list[Refusal] = []
    for number, line in enumerate(data.split(b"\n")):
        if not line.strip():
            continue
        try:
            record = _json_record(line, known)
            values = [_json_text(name, record.get(name)) for name in wanted]
        except ValueError as error:
            refusals.append(Refusal(number, _readable(line), str(error)))
            continue
        for name, value in zip(wanted, values, strict=True):
            columns[name].append(value)
        lines.append(number)
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return table, np.array(lines, np.int64), refusals


def _json_record(line: bytes, known: set[str]) -> dict[str, object]:
    try:
        # Numbers stay text: a float would change an amount.
        record = json.loads(
            line.decode(),
            parse_int=str,
            parse_float=str,
            parse_constant=str,
            object_pairs_hook=_no_repeats,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason}") from error
    except RecursionError as error:
        raise ValueError("not a JSON object of plain values") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    unknown = record.keys() - known
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}: the first line of the file has it not")
    return record


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} comes twice")
    return record


def _json_text(name: str, value: object) -> str | None:
    if isinstance(value, str):
        value.encode()  # half a surrogate pair is no text
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    raise ValueError(f"{name} is a list or an object, not a value")


def _readable(line: bytes) -> str:
    return line.removesuffix(b"\r").decode(errors="backslashreplace")
