"""The pipeline of a keyed process.

    splits ─ Read ─┬─ batches ─ GroupByShard ─ ExecuteShards ─ commits ─┬─ Finish ─┐
                   ├─ rejected ─ WriteRejections ─┐                     └──────────┼─ Publish
                   └─ notes ──────────────────────┴─ CollectNotes ─────────────────┘

Every attempt reads the whole input, which is pinned, and so gets the same rows and totals; rows of
shards that an earlier attempt has committed are dropped as soon as they are read.

Flink's batch runner writes all outputs of a step once for each of them, and most engines write what
stands between two steps that can't be one. So all that is rare goes by one collection, the notes,
and nothing stands between reading and grouping, or, where no line counts are needed, between
grouping and executing.
"""

import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsList, TaggedOutput

from ledgerbeam.batch import logs, traces
from ledgerbeam.batch.define.money import check_money
from ledgerbeam.batch.execute import worker_control
from ledgerbeam.batch.execute.executions import ShardControl
from ledgerbeam.batch.execute.helpers import Helpers, helpers_of
from ledgerbeam.batch.execute.reduce import Finish
from ledgerbeam.batch.execute.worker_control import IN_FLIGHT
from ledgerbeam.batch.keyed.assemble import (
    assemble_shard,
    bytes_in_flight,
    bytes_of,
    rejected_totals,
)
from ledgerbeam.batch.keyed.notes import CollectNotes
from ledgerbeam.batch.keyed.plan import Plan, SplitSummary, row_totals
from ledgerbeam.batch.keyed.publish import Publish
from ledgerbeam.batch.keyed.rejects import RejectionLimit, rejected_table
from ledgerbeam.batch.keyed.shard import execute_shard
from ledgerbeam.batch.model.outcomes import outcomes_table
from ledgerbeam.io.arrow.spill import Batch
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.records import FileRecord, ShardCommit
from ledgerbeam.io.datasets.inputs import Split
from ledgerbeam.io.datasets.readers import Check, SplitRows, is_of
from ledgerbeam.io.datasets.rejections import LineCounts, RowLocator
from ledgerbeam.io.memory import memory_limit
from ledgerbeam.io.secrets import remember_all
from ledgerbeam.transforms.columnar.hashing import hash_distinct
from ledgerbeam.transforms.columnar.shard_totals import ReadTotals
from ledgerbeam.transforms.concurrency.in_flight import DoInFlight
from ledgerbeam.transforms.concurrency.room import Room
from ledgerbeam.transforms.publish import Part, commit_part, count_committed
from ledgerbeam.transforms.read import LINE_COUNTS, ReadSplits, RejectedTable, SplitBatches
from ledgerbeam.transforms.shuffle import Cut, element_type, no_rows

NOTES = "notes"
ROWS_PER_CUT = 50_000

_ROOM = Room()
"""For the shards that this process executes: a large one waits until it is alone."""


class KeyedBatch(beam.PTransform):
    """Runs a plan: reads, shuffles, executes, commits each shard, and publishes.

    Outputs one `Manifest`. It is applied to the root of a pipeline.
    """

    def __init__(self, plan: Plan, helpers: Helpers | None = None, key: str = "") -> None:
        """Make the transform.

        Args:
            plan: what is run.
            helpers: the processes that execute shards beside this one, if there are any.
            key: under which they are open.
        """
        super().__init__()
        self._plan = plan
        self._key = key
        self._in_flight = IN_FLIGHT if helpers is None else helpers.in_flight

    def expand(self, root: Any) -> beam.PCollection:
        """Build the graph that the module's docstring shows."""
        plan = self._plan
        spills = plan.context.spill_directory is not None
        read = root | "Read" >> ReadSplits(
            plan.all_splits,
            CutRows(plan),
            check_of=CheckMoney(plan),
            tags=(NOTES,),
            # Calls in flight hold their outputs in memory until they end. Paths of spilled batches
            # are small enough for that, and tables are not.
            in_flight=IN_FLIGHT if spills else 1,
            type_=element_type(spills),
            spill_directory=plan.context.spill_directory or "",
        )
        line_counts = [AsList(read[LINE_COUNTS])] if LINE_COUNTS in read else []
        rejects = read.rejected | "WriteRejections" >> beam.Map(
            _write_rejections, plan.context.attempt
        )
        notes = (
            (read[NOTES] | "CountRead" >> beam.Map(_count_read), rejects)
            | "AllNotes" >> beam.Flatten()
            # There is at least one split, and so a note.
            | "CollectNotes" >> beam.CombineGlobally(CollectNotes()).without_defaults()
        )
        execute = DoInFlight(ExecuteShard(CommitShard(plan), self._key), self._in_flight)
        commits = (
            read.rows
            | "GroupByShard" >> beam.GroupByKey()
            | "ExecuteShards" >> beam.ParDo(execute, *line_counts)
            | "CountCommitted" >> beam.Map(count_committed)
        )
        reports = commits | "Finish" >> Finish(
            plan.process, plan.context.attempt, plan.context.kept
        )
        publish = Publish(
            plan.process, plan.context.attempt, plan.context.kept, len(plan.all_splits)
        )
        return notes | "Publish" >> beam.Map(publish, AsList(commits), AsList(reports))


def _count_read(note: Any) -> Any:
    """Count read rows in Beam's metrics, which are used only for the runner's monitoring."""
    if isinstance(note, SplitSummary):
        Metrics.counter("read", "rows").inc(note.totals.rows.rows)
        Metrics.counter("read", "rejected").inc(note.totals.rejected)
        Metrics.counter("read", "other_dates").inc(note.totals.other_dates)
    return note


def _write_rejections(rejected: RejectedTable, attempt: Attempt) -> FileRecord:
    return attempt.write_rejects(f"split-{rejected.split:05d}-{rejected.batch:05d}", rejected.table)


@dataclass(frozen=True)
class CheckMoney:
    """Checks the amounts of a split's rows against their currencies."""

    plan: Plan

    def __call__(self, split: Split) -> Check:
        """The check for rows of a split."""
        rows = self.plan.row_inputs[self.plan.input_of(split.index)]
        return partial(check_money, currencies=rows.currencies)


@dataclass(frozen=True)
class CutRows:
    """Cuts the rows of splits into batches for their shards, and counts them."""

    plan: Plan

    def __call__(self, read: Iterator[SplitBatches]) -> Iterator[Any]:
        """Yield `(shard, (input, batch))`, and as notes a `SplitSummary` and hashes to count."""
        plan = self.plan
        # Rows of small splits are cut together: a batch for a shard has a price of its own.
        tables: list[pa.Table] = []
        number = 0

        def cut() -> Iterator[Any]:
            table = pa.concat_tables(tables)
            tables.clear()
            yield from Cut(
                number,
                plan.inputs[number],
                plan.process.key,
                plan.shards,
                plan.done,
                plan.context.spill_directory or "",
            )(table)

        for split, batches in read:
            if not split.index:
                # So that there are shards without rows, too.
                for shard in range(plan.shards):
                    if shard not in plan.done:
                        yield shard, no_rows(plan.inputs)
            number = plan.input_of(split.index)
            for output in self._counted(split, number, batches):
                if not isinstance(output, pa.Table):
                    yield output
                    continue
                tables.append(output)
                if sum(table.num_rows for table in tables) >= ROWS_PER_CUT:
                    yield from cut()
        if tables:
            yield from cut()

    def _counted(
        self, split: Split, number: int, batches: Iterator[SplitRows]
    ) -> Iterator[pa.Table | TaggedOutput]:
        """The rows of a split that take part, as tables, and what was counted."""
        plan, process = self.plan, self.plan.process
        input_ = plan.row_inputs[number]
        totals = ReadTotals()
        dates: list[datetime.date] = []
        limit = RejectionLimit(process, plan.context.attempt, split)
        for rows in batches:
            limit.check(rows.rejected)
            table = _of_date(rows.table, input_.date_column, process.business_date)
            other_dates = rows.table.num_rows - table.num_rows
            table = process.derived(input_.name, table)
            others = table.num_rows
            if process.only:
                table = table.filter(pa.array(is_of(table, process.only)))
            others -= table.num_rows
            of_table = row_totals(input_, process.key, table)
            totals = totals.add(
                ReadTotals(
                    replace(of_table, rows=rows.row_count - others),
                    rows.rejected.num_rows,
                    other_dates,
                )
            )
            if input_.dated_by in table.column_names:
                newest = pc.max(table.column(input_.dated_by)).as_py()
                dates += [] if newest is None else [newest]
            if process.distinct is not None and not number:
                yield TaggedOutput(NOTES, hash_distinct(table.column(process.distinct[1])))
            yield table
        summary = SplitSummary(split.index, number, totals, max(dates, default=None))
        yield TaggedOutput(NOTES, summary)


@dataclass(frozen=True)
class CommitShard:
    """Sorts a shard's rows into components, executes them, and commits the result."""

    plan: Plan

    def begin(self) -> None:
        """Set up the log of a process that executes shards, and have secrets redacted in it."""
        attempt = self.plan.context.attempt
        logs.configure_worker(attempt.record.run, attempt.record.number)
        remember_all(self.plan.process.parameters)

    def __call__(
        self,
        control: ShardControl,
        shard: int,
        batches: Sequence[tuple[int, Batch]],
        line_counts: LineCounts,
    ) -> ShardCommit:
        """Execute and commit a shard, and return its marker.

        Raises:
            UserError: the shard is larger than the memory limit, can't be written, or too many
                of its components fail.
        """
        with _ROOM.take(bytes_of(batches), bytes_in_flight(memory_limit())):
            return self._execute(control, shard, batches, line_counts)

    def _execute(
        self,
        control: ShardControl,
        shard: int,
        batches: Sequence[tuple[int, Batch]],
        line_counts: LineCounts,
    ) -> ShardCommit:
        plan = self.plan
        assembled = assemble_shard(plan, shard, batches)
        earlier = next((commit for commit in plan.context.retried if commit.shard == shard), None)
        places = RowLocator(plan.all_splits, line_counts)
        done = execute_shard(
            plan.process,
            plan.context.attempt,
            control,
            shard,
            assembled.components,
            places,
            earlier,
            plan.context.chosen,
        )
        totals = replace(done.totals, rejected=rejected_totals(plan, assembled.rejected))
        rejected = rejected_table(plan, assembled.rejected, places) if assembled.rejected else None
        part = Part(
            done.results.table,
            totals.to_json(plan.process.total_names),
            plan.process.key,
            tables=done.results.tables,
            outcomes=outcomes_table(done.outcomes) if done.outcomes else None,
            rejects=rejected,
        )
        return commit_part(plan.context.attempt, shard, part)


class ExecuteShard:
    """Has a shard executed and committed, in this process or in one of its helpers."""

    def __init__(self, task: CommitShard, helpers: str) -> None:
        self._task = task
        self._key = helpers

    def setup(self) -> None:
        """Set up the worker's log and acquire its worker control."""
        self._task.begin()
        attempt = self._task.plan.context.attempt
        self._control = worker_control.acquire(attempt.instance_uri, attempt.record.number)
        self._helpers = helpers_of(self._key)

    def teardown(self) -> None:
        """Release the worker control."""
        worker_control.release(self._control)

    def __call__(
        self, element: tuple[int, Iterable[tuple[int, Batch]]], line_counts: LineCounts = ()
    ) -> list[ShardCommit]:
        """The marker of a shard, in a list; errors are those of `CommitShard`."""
        shard, batches = element[0], list(element[1])
        with traces.span("shard", shard=shard):
            if self._helpers is None:
                return [self._task(self._control, shard, batches, line_counts)]
            arguments = (batches, [*line_counts])
            return [self._helpers.execute(self._control, shard, bytes_of(batches), arguments)]


def _of_date(table: pa.Table, column: str, date: datetime.date) -> pa.Table:
    """The rows of one date; all rows if there is no such column."""
    if column not in table.column_names:
        return table
    is_of_date = pc.equal(table.column(column), pa.scalar(date, pa.date32()))
    return table if pc.all(is_of_date, min_count=0).as_py() else table.filter(is_of_date)
