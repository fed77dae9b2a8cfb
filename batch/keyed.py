"""From the definition of a keyed process to its pipeline.

    splits ─ Read ─┬─ pieces ─ GroupByShard ─ ExecuteShards ─ commits ─┬─ Finish ─┐
                   ├─ refused rows ─ WriteRefused ─────────────────────┼──────────┼─ Publish
                   ├─ summaries ───────────────────────────────────────┤          │
                   └─ hashes ─ CountDistinct ──────────────────────────┴──────────┘

Every attempt reads the whole input, which is pinned, and so gets the same rows and totals; rows
of shards that an earlier attempt has committed are dropped at once.
"""

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsList, TaggedOutput

from ledgerbeam import __version__
from ledgerbeam.batch import governor, logs
from ledgerbeam.batch.assembly import assemble
from ledgerbeam.batch.execution import IN_FLIGHT
from ledgerbeam.batch.finish import Finish
from ledgerbeam.batch.outcomes import outcomes_table
from ledgerbeam.batch.plan import Plan, RefusedRows, SplitSummary, prefix_of, row_totals
from ledgerbeam.batch.publish import Publish
from ledgerbeam.batch.rejects import LineCounts, RowPlaces, WriteRefused, write_shard_rejects
from ledgerbeam.batch.shard import execute_shard
from ledgerbeam.io.arrow_stream import decode_large, narrow
from ledgerbeam.io.inputs import Split
from ledgerbeam.io.readers import empty_rows, read_split
from ledgerbeam.io.records import ShardCommit, Totals
from ledgerbeam.io.spill import Piece, spill
from ledgerbeam.transforms.distinct import CountDistinct
from ledgerbeam.transforms.hashing import hash_distinct
from ledgerbeam.transforms.in_flight import DoInFlight
from ledgerbeam.transforms.partition import split_by_shard
from ledgerbeam.transforms.totals import add_totals

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
        piece: Any = Any if spills else tuple[int, pa.Table]
        # Calls in flight hold their outputs until they end: places on disk, but not tables.
        read_pieces = ReadPieces(plan)
        reader = DoInFlight(read_pieces, IN_FLIGHT) if spills else read_pieces
        read = (
            root
            | "Splits" >> beam.Create(plan.all_splits, reshuffle=False)
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
        no_rows = None if spills else (0, empty_rows(plan.splits[0][0]))
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
        publish = Publish(plan.process, plan.attempt, plan.kept, len(plan.all_splits))
        sides = [AsList(commits), AsList(rejects), AsList(summaries)]
        if plan.process.distinct is not None:
            counted = read[DISTINCT] | "CountDistinct" >> beam.CombineGlobally(CountDistinct())
            sides.append(AsList(counted))
        else:
            sides.append(AsList(root | "NothingToCount" >> beam.Create([], reshuffle=False)))
        sides.append(AsList(commits | "Finish" >> Finish(plan.process, plan.attempt, plan.kept)))
        return root | "Once" >> beam.Create([None]) | "Publish" >> beam.Map(publish, *sides)


def _count_read(summary: SplitSummary) -> SplitSummary:
    """Tell the runner's own monitoring, which is all that Beam's metrics are used for."""
    for name, value in summary.totals.items():
        if name.endswith(("rows", "refused", "other_dates")):
            Metrics.counter("read", name).inc(value)
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
        """Pieces as (shard, (input, piece)); tagged, a `SplitSummary`, hashes, `RefusedRows`."""
        process = self.plan.process
        number = self.plan.input_of(split.index)
        prefix = prefix_of(process, number)
        date_column = process.inputs[number].date_column
        all_totals: list[Totals] = []
        line_count = 0
        for batch, rows in enumerate(read_split(split)):
            table = _of_date(rows.table, date_column, process.business_date)
            line_count += rows.line_count
            all_totals.append(
                row_totals(process, number, table)
                | {
                    f"{prefix}rows": rows.row_count,
                    f"{prefix}refused": len(rows.refusals),
                    f"{prefix}other_dates": rows.table.num_rows - table.num_rows,
                }
            )
            if process.distinct is not None and not number:
                yield TaggedOutput(DISTINCT, hash_distinct(table.column(process.distinct[1])))
            if rows.refusals:
                yield TaggedOutput(REFUSED, RefusedRows(split.index, batch, rows.refusals))
            yield from self._pieces(table, number)
        summary = SplitSummary(split.index, line_count, add_totals(all_totals))
        yield TaggedOutput(SUMMARIES, summary)

    def _pieces(self, table: pa.Table, number: int) -> Iterable[tuple[int, tuple[int, Piece]]]:
        # What is written and read again on the way costs by the byte. The date is one for all.
        date_column = self.plan.process.inputs[number].date_column
        if date_column in table.column_names:
            table = table.drop_columns(date_column)
        table = narrow(table)
        done = self.plan.done
        pieces: Iterable[tuple[int, Piece]] = (
            (shard, decode_large(piece))
            for shard, piece in split_by_shard(table, self.plan.process.key, self.plan.shards)
            if shard not in done
        )
        if self.plan.spill_directory is not None:
            pieces = spill(self.plan.spill_directory, pieces)
        return ((shard, (number, piece)) for shard, piece in pieces)


class ExecuteShard:
    """Sorts a shard's rows into components, executes them, and commits the result."""

    def __init__(self, plan: Plan) -> None:
        """Hold the plan."""
        self._plan = plan

    def setup(self) -> None:
        """Put this process under the run's control."""
        attempt = self._plan.attempt
        logs.configure_worker(attempt.record.run, attempt.record.number)
        self._governor = governor.acquire(attempt.instance_uri, attempt.record.number)

    def teardown(self) -> None:
        """Let the governor go."""
        governor.release(self._governor)

    def __call__(
        self, element: tuple[int, Iterable[tuple[int, Piece] | None]], line_counts: LineCounts
    ) -> list[ShardCommit]:
        """The shard's marker.

        Raises:
            UserError: the shard is larger than the memory limit, can't be written, or too many
                of its components fail.
        """
        plan = self._plan
        shard, pieces = element
        assembled = assemble(plan, shard, [piece for piece in pieces if piece is not None])
        earlier = next((commit for commit in plan.retried if commit.shard == shard), None)
        places = RowPlaces(plan.all_splits, line_counts)
        done = execute_shard(
            plan.process, plan.attempt, self._governor, shard, assembled.components, places, earlier
        )
        totals = done.totals | assembled.refused_totals(plan.process)
        outcomes = None
        if done.outcomes:
            outcomes = plan.attempt.write_outcomes(shard, outcomes_table(done.outcomes))
        rejects = None
        if assembled.refusals:
            rejects = write_shard_rejects(plan, shard, assembled.refusals, places)
        return [
            plan.attempt.commit(
                ShardCommit(
                    shard=shard,
                    attempt=plan.attempt.record.number,
                    code_version=__version__,
                    part=plan.attempt.write_part(shard, done.results.table),
                    tables={
                        name: plan.attempt.write_part(shard, table, name)
                        for name, table in done.results.tables.items()
                    },
                    rejects=rejects,
                    outcomes=outcomes,
                    key=list(plan.process.key),
                    totals=totals,
                )
            )
        ]


def _of_date(table: pa.Table, column: str, date: datetime.date) -> pa.Table:
    """The rows of one date; all of them where there is no such column."""
    if column not in table.column_names:
        return table
    is_of_date = pc.equal(table.column(column), pa.scalar(date, pa.date32()))
    return table if pc.all(is_of_date, min_count=0).as_py() else table.filter(is_of_date)
