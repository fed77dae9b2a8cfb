"""From the definition of a keyed process to its pipeline.

    splits ─ Read ─┬─ pieces ─ GroupByKey ─ ExecuteShards ─ commits ──┐
                   ├─ refused rows ─ WriteRejects ────────────────────┼─ Publish
                   └─ summaries ──────────────────────────────────────┘

Every attempt reads the whole input, which is pinned, and so gets the same rows and totals; rows
of shards that an earlier attempt has committed are dropped at once.
"""

import datetime
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsList, TaggedOutput

from ledgerbeam import __version__
from ledgerbeam.batch.process import KeyedProcess
from ledgerbeam.io import storage
from ledgerbeam.io.arrow_stream import compact
from ledgerbeam.io.attempts import (
    Attempt,
    Control,
    FileRecord,
    Manifest,
    ShardCommit,
    Totals,
)
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.inputs import Split
from ledgerbeam.io.readers import POSITION, empty_rows, raw_row, read_split, unpack_position
from ledgerbeam.io.spill import Piece, load_piece, piece_bytes, spill
from ledgerbeam.io.text import Refusal
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.components import sort_components, without
from ledgerbeam.transforms.hashing import hash_array
from ledgerbeam.transforms.in_flight import DoInFlight
from ledgerbeam.transforms.partition import split_by_shard

IN_FLIGHT = 2
SUMMARIES = "summaries"
REFUSED = "refused"

REJECTS_SCHEMA = pa.schema(
    [("file", pa.string()), ("row", pa.int64()), ("raw", pa.string()), ("reason", pa.string())]
)
"""Refused rows: file, line (text) or row (else) from 1, the row as it stood, what is wrong."""


class SplitSummary(NamedTuple):
    """What reading a split gave, apart from its rows.

    Attributes:
        split: its index.
        line_count: lines or rows of the file that the split covers.
        totals: `rows`, `other_dates`, `refused`, and the row totals of the rest.
        distinct: uint64, hashes of the distinct values of the column that the process counts.
    """

    split: int
    line_count: int
    totals: Totals
    distinct: np.ndarray


class RefusedRows(NamedTuple):
    """Rows of a split that break the contract."""

    split: int
    refusals: list[Refusal]


@dataclass(frozen=True)
class Plan:
    """All that a pipeline is built from.

    Attributes:
        process: the definition, with its parameters.
        splits: of the input; at least one.
        attempt: where results go.
        committed: shards that earlier attempts on the same input have committed.
        spill_directory: where pieces are spilled; None where they go through GroupByKey.
        memory_limit: bytes that the pieces of one shard may have; None for what the worker has.
    """

    process: KeyedProcess[Any]
    splits: tuple[Split, ...]
    attempt: Attempt
    committed: tuple[ShardCommit, ...]
    spill_directory: str | None
    memory_limit: int | None = None

    @property
    def shards(self) -> int:
        """How many shards the instance has."""
        return self.attempt.record.shards


class KeyedBatch(beam.PTransform):
    """Runs a plan: reads, shuffles, executes, commits each shard, and publishes.

    Outputs one `Manifest`. It is applied to the root of a pipeline.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def expand(self, root: Any) -> beam.PCollection:
        """Build the graph that the module's docstring shows."""
        plan = self._plan
        # What is spilled is a place on disk; else the table itself goes through GroupByKey.
        piece: Any = pa.Table if plan.spill_directory is None else Any
        read = (
            root
            | "Splits" >> beam.Create(plan.splits, reshuffle=False)
            | "SpreadSplits" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(DoInFlight(ReadPieces(plan), IN_FLIGHT))
            .with_output_types(tuple[int, piece])
            .with_outputs(SUMMARIES, REFUSED, main="pieces")
        )
        summaries = read[SUMMARIES] | "CountRead" >> beam.Map(_count_read)
        line_counts = AsList(summaries | "LineCounts" >> beam.Map(_line_count))
        rejects = (
            read[REFUSED]
            | "SpreadRefused" >> beam.Reshuffle()
            | "WriteRejects" >> beam.Map(WriteRejects(plan), line_counts)
        )
        done = {commit.shard for commit in plan.committed}
        # A piece without rows for each shard, so that a shard without rows is committed too.
        no_rows = empty_rows(plan.splits[0]) if plan.spill_directory is None else None
        shards = root | "Shards" >> beam.Create(
            [(shard, no_rows) for shard in range(plan.shards) if shard not in done],
            reshuffle=False,
        ).with_output_types(tuple[int, piece])
        commits = (
            (read.pieces, shards)
            | "Pieces" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "ExecuteShards" >> beam.ParDo(DoInFlight(ExecuteShard(plan), IN_FLIGHT), line_counts)
        )
        return (
            root
            | "Once" >> beam.Create([None])
            | "Publish"
            >> beam.Map(Publish(plan), AsList(commits), AsList(rejects), AsList(summaries))
        )


def _count_read(summary: SplitSummary) -> SplitSummary:
    """Tell the runner's own monitoring, which is all that Beam's metrics are used for."""
    for name in ("rows", "refused", "other_dates"):
        Metrics.counter("read", name).inc(summary.totals[name])
    return summary


def _count_committed(commit: ShardCommit) -> ShardCommit:
    Metrics.counter("committed", "rows").inc(commit.part.rows)
    Metrics.counter("committed", "bytes").inc(commit.part.size)
    return commit


def _line_count(summary: SplitSummary) -> tuple[int, int]:
    return summary.split, summary.line_count


@dataclass(frozen=True)
class ReadPieces:
    """Reads a split and cuts its rows into pieces."""

    plan: Plan

    def __call__(self, split: Split) -> list[Any]:
        """Pieces as (shard, piece), a `SplitSummary`, and `RefusedRows` if there are any."""
        process = self.plan.process
        rows = read_split(split)
        table = _of_date(rows.table, process.date_column, process.business_date)
        totals = process.row_totals(table) | {
            "rows": rows.row_count,
            "refused": len(rows.refusals),
            "other_dates": rows.table.num_rows - table.num_rows,
        }
        distinct = _distinct_hashes(table.column(process.distinct[1]))
        summary = SplitSummary(split.index, rows.line_count, totals, distinct)
        outputs: list[Any] = [TaggedOutput(SUMMARIES, summary)]
        if rows.refusals:
            outputs.append(TaggedOutput(REFUSED, RefusedRows(split.index, rows.refusals)))
        done = {commit.shard for commit in self.plan.committed}
        pieces = (
            (shard, piece)
            for shard, piece in split_by_shard(table, process.key, self.plan.shards)
            if shard not in done
        )
        if self.plan.spill_directory is not None:
            outputs += spill(self.plan.spill_directory, pieces)
        else:
            outputs += [(shard, compact(piece)) for shard, piece in pieces]
        return outputs


@dataclass(frozen=True)
class ExecuteShard:
    """Sorts a shard's rows into components, executes them, and commits the result."""

    plan: Plan

    def __call__(
        self, element: tuple[int, Iterable[Piece | None]], line_counts: list[tuple[int, int]]
    ) -> list[ShardCommit]:
        """The shard's marker.

        Raises:
            UserError: the shard is larger than the memory limit, or can't be written.
        """
        process, attempt = self.plan.process, self.plan.attempt
        shard, pieces = element
        components, repeated = self._components(shard, [p for p in pieces if p is not None])
        table = components.table.drop_columns(POSITION)
        for name, column in process.execute(components).items():
            table = table.append_column(name, column)
        executed = Components(table, components.starts)
        refused_totals = process.row_totals(repeated)
        totals = {
            **process.row_totals(table),
            **process.component_totals(executed),
            **{f"refused_{name}": value for name, value in refused_totals.items()},
            "rows": table.num_rows,
            "refused": repeated.num_rows,
            "components": len(components.starts),
        }
        rejects = None
        if repeated.num_rows:
            rejects = self._write_repeated(shard, repeated, line_counts)
        return [
            attempt.commit(
                ShardCommit(
                    shard=shard,
                    attempt=attempt.record.number,
                    code_version=__version__,
                    part=attempt.write_part(shard, table),
                    rejects=rejects,
                    totals=totals,
                )
            )
        ]

    def _components(self, shard: int, pieces: list[Piece]) -> tuple[Components, pa.Table]:
        """The shard's components, and the rows that repeat another's key and order."""
        process = self.plan.process
        size = sum(piece_bytes(piece) for piece in pieces)
        limit = self.plan.memory_limit or _memory_a_shard()
        if size > limit:
            raise UserError(
                f"shard {shard} of {self.plan.shards} has {size >> 20} MiB, and "
                f"{limit >> 20} MiB fit into memory: give more --shards, or "
                "workers with more memory where a single component is that large"
            )
        tables = [load_piece(piece) for piece in pieces] or [empty_rows(self.plan.splits[0])]
        rows = sort_components(pa.concat_tables(tables), process.key, process.order)
        if not rows.repeats.any():
            return rows.components, rows.components.table.slice(0, 0)
        repeated = rows.components.table.filter(pa.array(rows.repeats))
        return without(rows.components, rows.repeats), repeated.sort_by(POSITION)

    def _write_repeated(
        self, shard: int, repeated: pa.Table, line_counts: list[tuple[int, int]]
    ) -> FileRecord:
        process = self.plan.process
        places = RowPlaces(self.plan.splits, dict(line_counts))
        positions = repeated.column(POSITION).to_pylist()
        records = repeated.drop_columns(POSITION).to_pylist()
        by_identity: dict[tuple[Any, ...], list[str]] = {}
        identities = [
            tuple(record[name] for name in (*process.key, process.order)) for record in records
        ]
        located = [places.locate(*unpack_position(position)) for position in positions]
        for identity, (file, row) in zip(identities, located, strict=True):
            by_identity.setdefault(identity, []).append(f"{storage.base_name(file)} row {row}")
        rejects = [
            (file, row, raw_row(record), self._repeat_reason(identity, by_identity[identity]))
            for identity, (file, row), record in zip(identities, located, records, strict=True)
        ]
        return self.plan.attempt.write_rejects(f"shard-{shard:05d}", rejects_table(rejects))

    def _repeat_reason(self, identity: tuple[Any, ...], where: list[str]) -> str:
        process = self.plan.process
        key = ", ".join(
            f"{name} {value}" for name, value in zip(process.key, identity, strict=False)
        )
        shown = ", ".join(where[:5]) + (f" and {len(where) - 5} more" if len(where) > 5 else "")
        return f"{process.order} {identity[-1]!r} comes {len(where)} times for {key}: {shown}"


@dataclass(frozen=True)
class WriteRejects:
    """Writes the refused rows of a split, named by their place in the file."""

    plan: Plan

    def __call__(self, refused: RefusedRows, line_counts: list[tuple[int, int]]) -> FileRecord:
        """The file that was written."""
        places = RowPlaces(self.plan.splits, dict(line_counts))
        rows = []
        for refusal in refused.refusals:
            file, row = places.locate(refused.split, refusal.row)
            rows.append((file, row, refusal.raw, refusal.reason))
        return self.plan.attempt.write_rejects(f"split-{refused.split:05d}", rejects_table(rows))


class RowPlaces:
    """Finds the file, and the line or row in it, of a row of a split."""

    def __init__(self, splits: tuple[Split, ...], line_counts: Mapping[int, int]) -> None:
        """Count up the lines of each file, split by split."""
        self._splits = splits
        self._first_rows: dict[int, int] = {}
        next_row: Counter[str] = Counter()
        for split in splits:
            uri = split.file.uri
            known = split.first_row
            self._first_rows[split.index] = next_row[uri] if known is None else known
            next_row[uri] += line_counts[split.index]

    def locate(self, split: int, row: int) -> tuple[str, int]:
        """URI of the file, and the line (text) or row (else) in it, counted from 1."""
        return self._splits[split].file.uri, self._first_rows[split] + row + 1


@dataclass(frozen=True)
class Publish:
    """Checks that everything is there and balances, and makes the manifest."""

    plan: Plan

    def __call__(
        self,
        _: None,
        commits: list[ShardCommit],
        rejects: list[FileRecord],
        summaries: list[SplitSummary],
    ) -> Manifest:
        """The manifest.

        Raises:
            UserError: more rows were refused than allowed, or a control doesn't balance.
        """
        plan, attempt = self.plan, self.plan.attempt
        by_shard = {commit.shard: commit for commit in [*commits, *plan.committed]}
        if sorted(by_shard) != list(range(plan.shards)):
            raise RuntimeError(f"{len(by_shard)} of {plan.shards} shards are committed")
        if sorted(summary.split for summary in summaries) != list(range(len(plan.splits))):
            raise RuntimeError(f"{len(summaries)} summaries of {len(plan.splits)} splits")
        shards = [by_shard[shard] for shard in range(plan.shards)]
        read = sum_totals(summary.totals for summary in summaries)
        out = sum_totals(commit.totals for commit in shards)
        refused = read["refused"] + out["refused"]
        reject_files = sorted(rejects, key=lambda file: file.name)
        self._check_refused(refused, [*reject_files, *(c.rejects for c in shards if c.rejects)])
        distinct_values = distinct([summary.distinct for summary in summaries])
        counts = {
            "rows_in": read["rows"],
            "rows_out": out["rows"],
            "rejected": refused,
            "other_dates": read["other_dates"],
            "components": out["components"],
            plan.process.distinct[0]: len(distinct_values),
        }
        manifest = Manifest(
            attempt=attempt.record,
            published_at=datetime.datetime.now(datetime.UTC),
            shards=shards,
            rejects=reject_files,
            columns=attempt.columns_of(shards[0].part),
            counts=counts,
            totals={name: value for name, value in out.items() if name not in COUNTS},
            controls=[*controls_of(read, out), *plan.process.controls(out)],
        )
        attempt.publish(manifest)
        return manifest

    def _check_refused(self, refused: int, files: list[FileRecord]) -> None:
        limit = self.plan.process.parameters.max_rejects
        if refused <= limit:
            return
        instance = self.plan.attempt.instance_uri
        first = self.plan.attempt.read_rows(files[0], 1)[0]
        folders = {file.name.partition("/")[0] for file in files}
        folder = folders.pop() if len(folders) == 1 else "attempt-*"
        raise UserError(
            f"nothing published: {refused:,} {'row' if refused == 1 else 'rows'} refused, and "
            f"--max-rejects is {limit:,}: first {first['file']} row {first['row']}: "
            f"{first['reason']}: all are in {storage.join(instance, folder)}/rejects-*.parquet"
        )


COUNTS = ("rows", "refused", "components")


def controls_of(read: Totals, out: Totals) -> list[Control]:
    """The comparisons that hold for every keyed process: of rows, and of each row total."""
    rows_out = out["rows"] + out["refused"] + read["refused"] + read["other_dates"]
    controls = [
        Control(
            name="rows: in = out + rejected + other dates", expected=read["rows"], actual=rows_out
        )
    ]
    for name in read:
        if f"refused_{name}" in out:
            actual = out[name] + out[f"refused_{name}"]
            if name.endswith("_hash"):
                actual %= 2**64
            controls.append(
                Control(name=f"{name}: in = out + rejected", expected=read[name], actual=actual)
            )
    return controls


def _memory_a_shard() -> int:
    """Bytes that a shard's pieces may have: sorting and writing take about five times as much."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return physical // (5 * IN_FLIGHT)


def rejects_table(rows: list[tuple[str, int, str, str]]) -> pa.Table:
    """Refused rows as `REJECTS_SCHEMA` says."""
    columns = zip(*rows, strict=True)
    return pa.table(
        [
            pa.array(values, type_)
            for values, type_ in zip(columns, REJECTS_SCHEMA.types, strict=True)
        ],
        schema=REJECTS_SCHEMA,
    )


def sum_totals(all_totals: Iterable[Totals]) -> Totals:
    """Totals added up by name; those called `…_hash` modulo 2^64."""
    sums: Counter[str] = Counter()
    for totals in all_totals:
        sums.update(totals)
    return {
        name: value % 2**64 if name.endswith("_hash") else value for name, value in sums.items()
    }


def _of_date(table: pa.Table, column: str, date: datetime.date) -> pa.Table:
    """The rows of one date; all of them where there is no such column."""
    if column not in table.column_names:
        return table
    is_of_date = pc.equal(table.column(column), pa.scalar(date, pa.date32()))
    return table if pc.all(is_of_date, min_count=0).as_py() else table.filter(is_of_date)


def _distinct_hashes(column: pa.ChunkedArray) -> np.ndarray:
    """uint64, sorted: hashes of the values that occur."""
    hashes = []
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            used = np.zeros(len(chunk.dictionary), bool)
            used[chunk.indices.to_numpy()] = True
            hashes.append(hash_array(chunk.dictionary)[used])
        else:
            hashes.append(hash_array(chunk))
    return distinct(hashes)


def distinct(arrays: list[np.ndarray]) -> np.ndarray:
    """The distinct values of uint64 arrays, sorted. Sorting beats `np.unique` 50 times here."""
    values = np.sort(np.concatenate([np.zeros(0, np.uint64), *arrays]))
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values
