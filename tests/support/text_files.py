"""Text files as the project reads them, and as Python's own `csv` does, record by record."""

import csv
import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from tests.support.reading import read_whole

from ledgerbeam.io.datasets import lines as text_lines
from ledgerbeam.io.datasets import readers, text
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.readers import ROW_LOCATION, unpack_location
from ledgerbeam.io.datasets.reading import ColumnNames, Reading

PAIRS = Contract((Column("a", pa.string()), Column("b", pa.string(), nullable=True)))
BOM = b"\xef\xbb\xbf"

Rows = dict[int, tuple[str | int | None, ...]]


def read(
    file: Path,
    contract: Contract = PAIRS,
    columns: str = "",
    bytes_per_split: int = 1 << 20,
    block_bytes: int = text_lines.BLOCK_BYTES,
) -> tuple[Rows, dict[int, tuple[str, str]]]:
    """Rows, and (raw, reason) of refused lines, by the number of the line in the file."""
    planned = plan_input(
        str(file),
        contract,
        Reading(columns=ColumnNames.parse(columns)),
        bytes_per_split=bytes_per_split,
    )
    rows: Rows = {}
    refused: dict[int, tuple[str, str]] = {}
    lines_before = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_lines, "BLOCK_BYTES", block_bytes)
        patch.setattr(readers, "BYTES_PER_SPLIT", 2 * block_bytes)  # of each batch
        patch.setattr(text, "_RECORDS_AT_A_TIME", 1 + block_bytes // 8)
        for split in planned.splits:
            assert text.first_row_of(split) == lines_before
            part = read_whole(split)
            assert part.row_count == part.table.num_rows + len(part.rejections)
            for record in part.table.to_pylist():
                index, row = unpack_location(record.pop(ROW_LOCATION))
                assert index == split.index
                assert lines_before + row + 1 not in rows
                rows[lines_before + row + 1] = tuple(record.values())
            for rejection in part.rejections:
                assert lines_before + rejection.row + 1 not in rows | refused
                refused[lines_before + rejection.row + 1] = rejection.raw, rejection.reason
            lines_before += part.line_count
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    assert lines_before >= data.count(b"\n")
    return dict(sorted(rows.items())), dict(sorted(refused.items()))


def records_of(data: bytes) -> list[tuple[int, bytes, bool]]:
    """Records as RFC 4180 has them, byte by byte: first line, bytes, and whether it is whole."""
    records = []
    begin, first, line = 0, 1, 1
    in_quotes, at_field, closed = False, True, -2
    for at, byte in enumerate(data):
        if in_quotes:
            in_quotes = byte != ord('"')
            closed = at
            at_field = False
        elif byte == ord('"') and (at_field or closed == at - 1):
            in_quotes = True
        else:
            at_field = byte in b",\n"
        line += byte == ord("\n")
        if byte == ord("\n") and not in_quotes:
            records.append((first, data[begin:at], True))
            begin, first = at + 1, line
    if begin < len(data):
        records.append((first, data[begin:], not in_quotes))
    return records


def expected_rows(data: bytes) -> tuple[Rows, dict[int, bytes]]:
    """What Python's own `csv` reads record by record, and the records that it can't read."""
    rows: Rows = {}
    refused: dict[int, bytes] = {}
    for first, record, is_whole in records_of(data):
        if not is_whole:
            lines = enumerate(record.removesuffix(b"\n").split(b"\n"), first)
            refused |= {number: line for number, line in lines if line.rstrip(b"\r")}
            continue
        if not record.rstrip(b"\r"):
            continue
        try:
            (values,) = csv.reader([record.decode().removesuffix("\r")], strict=True)
            a, b = values
        except (csv.Error, ValueError):
            refused[first] = record
        else:
            if a and a == a.strip() and b == b.strip():
                rows[first] = (a, b)
            else:
                refused[first] = record
    return rows, refused
