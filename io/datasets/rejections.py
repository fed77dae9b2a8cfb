"""Rejected rows: the location of each, and the table that they are written to."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.io.arrow.spill import Batch, load_batch
from ledgerbeam.io.datasets.inputs import Split

REJECTS_SCHEMA = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("raw", pa.string()), ("reason", pa.string())]
)
"""Rejected rows: file, line (text) or row (other files) from 1, original row, what is wrong."""


LineCounts = Iterable[tuple[int, int]]
"""Number of lines or rows that each of the `splits_to_count` has, by the split's index."""


def splits_to_count(splits: Iterable[Split]) -> frozenset[int]:
    """Indices of splits whose lines must be counted, for others of their file to be located.

    They are those behind which another split of the same file begins at a row that isn't known.
    """
    later: set[str] = set()
    found = set()
    for split in reversed(list(splits)):
        if split.file.uri in later:
            found.add(split.index)
        if split.first_row is None:
            later.add(split.file.uri)
    return frozenset(found)


class RowLocator:
    """Finds the file of a row of a split, and the row's line or row number in the file."""

    def __init__(self, splits: Sequence[Split], line_counts: LineCounts) -> None:
        self._splits = splits
        self._line_counts = line_counts

    @cached_property
    def _first_rows(self) -> list[int]:
        """By split: the number of lines of its file before it."""
        counts: Mapping[int, int] = dict(self._line_counts)
        to_count = splits_to_count(self._splits)
        first_rows = []
        next_row: Counter[str] = Counter()
        for split in self._splits:
            uri = split.file.uri
            first_rows.append(next_row[uri] if split.first_row is None else split.first_row)
            if split.index in to_count:
                next_row[uri] += counts[split.index]
        return first_rows

    def located(self, rejected: "RejectedRows") -> pa.Table:
        """The rows of a batch, with the schema `REJECTS_SCHEMA`."""
        uri, first = self.locate(rejected.split, 0)
        return located(load_batch(rejected.rows), uri, first)

    def locate(self, split: int, row: int) -> tuple[str, int]:
        """URI of the file, and the line (text) or row (other files) in it, counted from 1."""
        return self._splits[split].file.uri, self._first_rows[split] + row + 1


def located(rows: pa.Table, uri: str, first: int) -> pa.Table:
    """Rejected rows of a split with the schema `REJECTS_SCHEMA`.

    Args:
        rows: the rows, with the schema `REJECTED_ROWS`.
        uri: URI of the file.
        first: the line or row of the file that the split begins with, from 1.
    """
    files = pa.repeat(pa.scalar(uri, pa.string()), rows.num_rows)
    numbers = pc.add(rows.column("row"), first)
    return pa.table(
        [files, numbers, rows.column("raw"), rows.column("reason")], schema=REJECTS_SCHEMA
    )


def rejections_table(rows: list[tuple[str, int, str, str]]) -> pa.Table:
    """Rejected rows, with the schema `REJECTS_SCHEMA`."""
    columns = zip(*rows, strict=True)
    types = REJECTS_SCHEMA.types
    arrays = [pa.array(values, type_) for values, type_ in zip(columns, types, strict=True)]
    return pa.table(arrays, schema=REJECTS_SCHEMA)


class RejectedRows(NamedTuple):
    """Rows that break the contract, of one batch of a split, with the schema `REJECTED_ROWS`."""

    split: int
    batch: int
    rows: Batch
