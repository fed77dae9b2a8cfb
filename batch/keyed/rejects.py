"""Rejected rows, with the file and the row where they stood."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.results import Results
from ledgerbeam.batch.keyed.plan import Plan
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.datasets.inputs import Split, SqlSplit
from ledgerbeam.io.datasets.readers import ROW_LOCATION, raw_rows, unpack_location
from ledgerbeam.io.datasets.rejections import (
    REJECTS_SCHEMA,
    RowLocator,
    located,
    rejections_table,
)
from ledgerbeam.io.datasets.text import first_row_of
from ledgerbeam.io.errors import TooManyRejectionsError
from ledgerbeam.io.storage import uris
from ledgerbeam.transforms.shuffle import RejectedRowsOfShard

_ROWS_AT_A_TIME = 1 << 16
_MAX_PLACES = 5


def with_row_locations(results: Results, places: RowLocator) -> Results:
    """Results with the columns `file` and `row` in place of `ROW_LOCATION`, if they have it."""

    def located(table: pa.Table) -> pa.Table:
        if ROW_LOCATION not in table.column_names:
            return table
        positions = table.column(ROW_LOCATION).to_pylist()
        found = [
            (None, None) if position is None else places.locate(*unpack_location(position))
            for position in positions
        ]
        table = table.drop_columns(ROW_LOCATION)
        table = table.append_column("file", pa.array([file for file, _ in found], pa.string()))
        return table.append_column("row", pa.array([row for _, row in found], pa.int64()))

    return results.each(located)


class RejectionLimit:
    """Ends an attempt soon after more rows of a split are rejected than may be.

    It lets `MARGIN` rows more pass, so that a few hundred mistakes can be corrected at once, and
    their number be told exactly.
    """

    MARGIN = 10_000

    def __init__(self, process: KeyedProcess[Any], attempt: Attempt, split: Split) -> None:
        self._limit: int = getattr(process.parameters, "max_rejects", 0)
        self._attempt = attempt
        self._split = split
        self._first: list[pa.Table] = []
        self._kept = self._rejected = 0

    def check(self, rows: pa.Table) -> None:
        """Count rejected rows of the split.

        Args:
            rows: the rejected rows of the next batch, with the schema `REJECTED_ROWS`.

        Raises:
            TooManyRejectionsError: they are too many; the first ones have been written.
        """
        self._rejected += rows.num_rows
        if self._kept <= self.MARGIN and rows.num_rows:
            self._first.append(rows)
            self._kept += rows.num_rows
        # The rows of a table that stand before a split of it are known only once all are read.
        if self._rejected <= self._limit + self.MARGIN or isinstance(self._split, SqlSplit):
            return
        uri = self._split.file.uri
        table = located(pa.concat_tables(self._first), uri, first_row_of(self._split) + 1)
        file = self._attempt.write_rejects(f"split-{self._split.index:05d}-00000", table)
        first = table.slice(0, 1).to_pylist()[0]
        raise TooManyRejectionsError(
            f"nothing published: more than {self._limit + self.MARGIN:,} rows rejected, and "
            f"--max-rejects is {self._limit:,}: first {uri} row {first['row']} "
            f"({first['reason']}); reading ended there, and the first {table.num_rows:,} are in "
            f"{uris.join(self._attempt.instance_uri, file.name)}",
            rejected=self._rejected,
            limit=self._limit,
        )


def rejected_table(
    plan: Plan, rejected: Iterable[RejectedRowsOfShard], locator: RowLocator
) -> pa.Table:
    """Rows that were rejected once all rows of their shard were together, by `REJECTS_SCHEMA`.

    Args:
        plan: the plan of the attempt.
        rejected: the rejected rows by input and kind of rejection.
        locator: finds where rows stood in their files.
    """
    tables = [
        rejections_table(rows)
        for of_input in rejected
        for rows in _rejections_of(plan, of_input, locator)
    ]
    return pa.concat_tables([REJECTS_SCHEMA.empty_table(), *tables])


def _rejections_of(
    plan: Plan, rejected: RejectedRowsOfShard, places: RowLocator
) -> Iterator[list[tuple[str, int, str, str]]]:
    """The rows in parts, since a row in Python takes many times the memory of one in Arrow."""
    key, inputs = plan.process.key, plan.process.inputs
    ids = inputs[rejected.input].identity(key)
    names = key if rejected.is_orphan else (*key, *(name for name in ids if name not in key))
    same: dict[tuple[object, ...], _Places] = defaultdict(_Places)
    is_repeated = not rejected.reasons and not rejected.is_orphan
    parts = range(0, rejected.rows.num_rows, _ROWS_AT_A_TIME)
    for first in parts if is_repeated else ():
        rows = rejected.rows.slice(first, _ROWS_AT_A_TIME)
        for identity, place in zip(_values(rows, names), _located(rows, places), strict=True):
            same[identity].add(*place)
    # Columns with `__` were added by the framework or the definition, and aren't in the file.
    own = [name for name in rejected.rows.column_names if not name.startswith("__")]
    for first in parts:
        rows = rejected.rows.slice(first, _ROWS_AT_A_TIME)
        reasons: Iterable[str] = rejected.reasons[first : first + _ROWS_AT_A_TIME]
        if rejected.is_orphan:
            of_first = inputs[0].name
            reasons = (_orphan(names, values, of_first) for values in _values(rows, names))
        elif is_repeated:
            reasons = (_reason(names, values, same[values]) for values in _values(rows, names))
        raw = raw_rows(rows.select(own), list(range(rows.num_rows)))
        yield [
            (*place, line, reason)
            for place, line, reason in zip(_located(rows, places), raw, reasons, strict=True)
        ]


class _Places:
    """Where the rows of one identity stood: how many there are, and the first ones."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, file: str, row: int) -> None:
        self.count += 1
        if len(self.first) < _MAX_PLACES:
            self.first.append(f"{uris.base_name(file)} row {row}")


def _values(rows: pa.Table, names: tuple[str, ...]) -> Iterator[tuple[object, ...]]:
    return zip(*(rows.column(name).to_pylist() for name in names), strict=True)


def _located(rows: pa.Table, places: RowLocator) -> list[tuple[str, int]]:
    positions = rows.column(ROW_LOCATION).to_pylist()
    return [places.locate(*unpack_location(position)) for position in positions]


def _reason(names: tuple[str, ...], identity: tuple[object, ...], places: _Places) -> str:
    *key, last = [f"{name} {value}" for name, value in zip(names, identity, strict=True)]
    of_key = f" for {', '.join(key)}" if key else ""
    more = places.count - len(places.first)
    shown = ", ".join(places.first) + (f" and {more} more" if more else "")
    return f"{last} comes {places.count} times{of_key}: {shown}"


def _orphan(names: tuple[str, ...], identity: tuple[object, ...], first: str) -> str:
    key = ", ".join(f"{name} {value}" for name, value in zip(names, identity, strict=True))
    return f"there is no {key} in {first}"
