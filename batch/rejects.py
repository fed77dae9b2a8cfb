"""Refused rows: named by where they stood, written beside the results."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from ledgerbeam.batch.assembly import RefusedInShard
from ledgerbeam.batch.plan import Plan, RefusedRows
from ledgerbeam.batch.results import Results
from ledgerbeam.io import storage
from ledgerbeam.io.inputs import Split
from ledgerbeam.io.readers import POSITION, raw_rows, unpack_position
from ledgerbeam.io.records import FileRecord

REJECTS_SCHEMA = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("raw", pa.string()), ("reason", pa.string())]
)
"""Refused rows: file, line (text) or row (else) from 1, the row as it stood, what is wrong."""

LineCounts = Iterable[tuple[int, int]]
"""Lines or rows of the file that each split covers, by the split's index."""


class RowPlaces:
    """Finds the file, and the line or row in it, of a row of a split."""

    def __init__(self, splits: tuple[Split, ...], line_counts: LineCounts) -> None:
        """Count nothing yet: most shards have no row that is asked for."""
        self._splits = splits
        self._line_counts = line_counts

    @cached_property
    def _first_rows(self) -> list[int]:
        """By split: the lines of its file in front of it."""
        counts: Mapping[int, int] = dict(self._line_counts)
        first_rows = []
        next_row: Counter[str] = Counter()
        for split in self._splits:
            uri = split.file.uri
            first_rows.append(next_row[uri] if split.first_row is None else split.first_row)
            next_row[uri] += counts[split.index]
        return first_rows

    def locate(self, split: int, row: int) -> tuple[str, int]:
        """URI of the file, and the line (text) or row (else) in it, counted from 1."""
        return self._splits[split].file.uri, self._first_rows[split] + row + 1


def with_places(results: Results, places: RowPlaces) -> Results:
    """Results that say by file and row what their `POSITION` says, where they have it."""

    def located(table: pa.Table) -> pa.Table:
        if POSITION not in table.column_names:
            return table
        positions = table.column(POSITION).to_pylist()
        found = [
            (None, None) if position is None else places.locate(*unpack_position(position))
            for position in positions
        ]
        table = table.drop_columns(POSITION)
        table = table.append_column("file", pa.array([file for file, _ in found], pa.string()))
        return table.append_column("row", pa.array([row for _, row in found], pa.int64()))

    return results.each(located)


@dataclass(frozen=True)
class WriteRefused:
    """Writes rows that break the contract."""

    plan: Plan

    def __call__(self, refused: RefusedRows, line_counts: LineCounts) -> FileRecord:
        """The file that was written."""
        places = RowPlaces(self.plan.all_splits, line_counts)
        rows = [
            (*places.locate(refused.split, refusal.row), refusal.raw, refusal.reason)
            for refusal in refused.refusals
        ]
        name = f"split-{refused.split:05d}-{refused.batch:05d}"
        return self.plan.attempt.write_rejects(name, rejects_table(rows))


def write_shard_rejects(
    plan: Plan, shard: int, refusals: Iterable[RefusedInShard], places: RowPlaces
) -> FileRecord:
    """Write rows that were found wrong when the shard's rows were together.

    Args:
        plan: of the run.
        shard: that the rows are in.
        refusals: the rows by input, each kind with its reason.
        places: where rows stood.
    """
    rows = [row for refused in refusals for row in _rejects_of(plan, refused, places)]
    return plan.attempt.write_rejects(f"shard-{shard:05d}", rejects_table(rows))


def _rejects_of(
    plan: Plan, refused: RefusedInShard, places: RowPlaces
) -> list[tuple[str, int, str, str]]:
    key, inputs = plan.process.key, plan.process.inputs
    positions = refused.rows.column(POSITION).to_pylist()
    located = [places.locate(*unpack_position(position)) for position in positions]
    table = refused.rows.drop_columns(POSITION)
    if refused.reasons:
        raw = raw_rows(table, list(range(table.num_rows)))
        return [
            (*place, line, reason)
            for place, line, reason in zip(located, raw, refused.reasons, strict=True)
        ]
    order = inputs[refused.number].order
    names = key if refused.is_orphan or order in key else (*key, order)
    identities = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
    same: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for identity, (file, row) in zip(identities, located, strict=True):
        same[identity].append(f"{storage.base_name(file)} row {row}")
    raw = raw_rows(table, list(range(table.num_rows)))
    return [
        (
            *place,
            line,
            _orphan(names, identity, inputs[0].name)
            if refused.is_orphan
            else _reason(names, identity, same[identity]),
        )
        for place, line, identity in zip(located, raw, identities, strict=True)
    ]


def rejects_table(rows: list[tuple[str, int, str, str]]) -> pa.Table:
    """Refused rows as `REJECTS_SCHEMA` says."""
    columns = zip(*rows, strict=True)
    types = REJECTS_SCHEMA.types
    arrays = [pa.array(values, type_) for values, type_ in zip(columns, types, strict=True)]
    return pa.table(arrays, schema=REJECTS_SCHEMA)


def _reason(names: tuple[str, ...], identity: tuple[object, ...], places: list[str]) -> str:
    *key, last = [f"{name} {value}" for name, value in zip(names, identity, strict=True)]
    of_key = f" for {', '.join(key)}" if key else ""
    shown = ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
    return f"{last} comes {len(places)} times{of_key}: {shown}"


def _orphan(names: tuple[str, ...], identity: tuple[object, ...], first: str) -> str:
    key = ", ".join(f"{name} {value}" for name, value in zip(names, identity, strict=True))
    return f"there is no {key} in {first}"
