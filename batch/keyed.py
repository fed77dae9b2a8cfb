"""From the definition of a keyed process to its pipeline.

    splits ─ Read ─┬─ pieces ─ GroupByShard ─ ExecuteShards ─ commits ─┐
                   ├─ refused rows ─ WriteRefused ─────────────────────┼─ Publish
                   ├─ summaries ───────────────────────────────────────┤
                   └─ hashes ─ CountDistinct ──────────────────────────┘

Every attempt reads the whole input, which is pinned, and so gets the same rows and totals; rows
of shards that an earlier attempt has committed are dropped at once.
"""

import datetime
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput

from ledgerbeam import __version__
from ledgerbeam.batch.plan import Plan, RefusedRows, SplitSummary
from ledgerbeam.batch.publish import Publish
from ledgerbeam.batch.rejects import LineCounts, WriteRefused, write_repeated
from ledgerbeam.io.arrow_stream import decode_large, join, narrow
from ledgerbeam.io.attempts import ShardCommit
from ledgerbeam.io.contract import encode_few_values
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.inputs import Split
from ledgerbeam.io.readers import POSITION, empty_rows, read_split
from ledgerbeam.io.spill import Piece, load_piece, piece_bytes, spill
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.components import sort_components, without
from ledgerbeam.transforms.distinct import CountDistinct
from ledgerbeam.transforms.hashing import hash_distinct
from ledgerbeam.transforms.in_flight import DoInFlight
from ledgerbeam.transforms.partition import split_by_shard

IN_FLIGHT = 2
SUMMARIES = "summaries"
REFUSED = "refused"
DISTINCT = "distinct"


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
        spills = plan.spill_directory is not None
        piece: Any = Any if spills else pa.Table
        # Calls in flight hold their outputs until they end: places on disk, but not tables.
        read_pieces = ReadPieces(plan)
        reader = DoInFlight(read_pieces, IN_FLIGHT) if spills else read_pieces
        read = (
            root
            | "Splits" >> beam.Create(plan.splits, reshuffle=False)
            | "SpreadSplits" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(reader)
            .with_output_types(tuple[int, piece])
            .with_outputs(SUMMARIES, REFUSED, DISTINCT, main="pieces")
        )
        summaries = read[SUMMARIES] | "CountRead" >> beam.Map(_count_read)
        line_counts = AsList(summaries | "LineCounts" >> beam.Map(_line_count))
        rejects = read[REFUSED] | "WriteRefused" >> beam.Map(WriteRefused(plan), line_counts)
        # A piece without rows for each shard, so that a shard without rows is committed too.
        no_rows = None if spills else empty_rows(plan.splits[0])
        shards = root | "Shards" >> beam.Create(
            [(shard, no_rows) for shard in range(plan.shards) if shard not in plan.done],
            reshuffle=False,
        ).with_output_types(tuple[int, piece])
        commits = (
            (read.pieces, shards)
            | "Pieces" >> beam.Flatten()
            | "GroupByShard" >> beam.GroupByKey()
            | "ExecuteShards" >> beam.ParDo(DoInFlight(ExecuteShard(plan), IN_FLIGHT), line_counts)
            | "CountCommitted" >> beam.Map(_count_committed)
        )
        distinct = read[DISTINCT] | "CountDistinct" >> beam.CombineGlobally(CountDistinct())
        return (
            root
            | "Once" >> beam.Create([None])
            | "Publish"
            >> beam.Map(
                Publish(plan),
                AsList(commits),
                AsList(rejects),
                AsList(summaries),
                AsSingleton(distinct),
            )
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

    def __call__(self, split: Split) -> Iterator[Any]:
        """Pieces as (shard, piece); tagged, a `SplitSummary`, hashes to count, `RefusedRows`."""
        process = self.plan.process
        totals: Counter[str] = Counter()
        line_count = 0
        for number, rows in enumerate(read_split(split)):
            table = _of_date(rows.table, process.date_column, process.business_date)
            line_count += rows.line_count
            totals.update(process.row_totals(table))
            totals["rows"] += rows.row_count
            totals["refused"] += len(rows.refusals)
            totals["other_dates"] += rows.table.num_rows - table.num_rows
            yield TaggedOutput(DISTINCT, hash_distinct(table.column(process.distinct[1])))
            if rows.refusals:
                yield TaggedOutput(REFUSED, RefusedRows(split.index, number, rows.refusals))
            yield from self._pieces(table)
        summary = SplitSummary(split.index, line_count, dict(totals))
        yield TaggedOutput(SUMMARIES, summary)

    def _pieces(self, table: pa.Table) -> Iterable[tuple[int, Piece]]:
        # What is written and read again on the way costs by the byte. The date is one for all.
        date_column = self.plan.process.date_column
        if date_column in table.column_names:
            table = table.drop_columns(date_column)
        table = narrow(table)
        done = self.plan.done
        pieces = (
            (shard, decode_large(piece))
            for shard, piece in split_by_shard(table, self.plan.process.key, self.plan.shards)
            if shard not in done
        )
        if self.plan.spill_directory is not None:
            return spill(self.plan.spill_directory, pieces)
        return pieces


@dataclass(frozen=True)
class ExecuteShard:
    """Sorts a shard's rows into components, executes them, and commits the result."""

    plan: Plan

    def __call__(
        self, element: tuple[int, Iterable[Piece | None]], line_counts: LineCounts
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
            rejects = write_repeated(self.plan, shard, repeated, line_counts)
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
        tables = [table for table in map(load_piece, pieces) if table.num_rows]
        table = join(tables) if tables else empty_rows(self.plan.splits[0])
        table = encode_few_values(table, process.contract)
        rows = sort_components(table, process.key, process.order)
        components = rows.components._replace(table=self._all_columns(rows.components.table))
        if not rows.repeats.any():
            return components, components.table.slice(0, 0)
        repeated = components.table.filter(pa.array(rows.repeats))
        return without(components, rows.repeats), repeated.sort_by(POSITION)

    def _all_columns(self, table: pa.Table) -> pa.Table:
        """The columns that were left out or made narrow on the way here, as they were."""
        process = self.plan.process
        for index, field in enumerate(self.plan.splits[0].fields):
            if field.name not in table.column_names:
                date = pa.scalar(process.business_date, pa.date32())
                table = table.add_column(index, field.name, pa.repeat(date, table.num_rows))
            elif pa.types.is_decimal(field.type):
                column = table.column(index).cast(field.type)
                table = table.set_column(index, field.name, column)
        return table


def _memory_a_shard() -> int:
    """Bytes that a shard's pieces may have: sorting and writing take about five times as much.

    At most 2 GiB in any case, which is as much text as one Arrow array can hold.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical // (5 * IN_FLIGHT), 2**31 - 1)


def _of_date(table: pa.Table, column: str, date: datetime.date) -> pa.Table:
    """The rows of one date; all of them where there is no such column."""
    if column not in table.column_names:
        return table
    is_of_date = pc.equal(table.column(column), pa.scalar(date, pa.date32()))
    return table if pc.all(is_of_date, min_count=0).as_py() else table.filter(is_of_date)
