"""Reading tables by contract, with the rows that break it as a second output."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsList, TaggedOutput

import ledgerbeam.io.arrow.coder  # noqa: F401 - how Beam hands tables on
from ledgerbeam.io.arrow.spill import spill
from ledgerbeam.io.datasets.contract import Contract
from ledgerbeam.io.datasets.inputs import Split, Splits, SqlSplit, plan_input
from ledgerbeam.io.datasets.readers import ROW_LOCATION, Check, SplitRows, read_split
from ledgerbeam.io.datasets.reading import Reading
from ledgerbeam.io.datasets.rejections import (
    LineCounts,
    RejectedRows,
    RowLocator,
    splits_to_count,
)
from ledgerbeam.transforms.concurrency.in_flight import DoInFlight

ROWS = "rows"
REJECTED = "rejected"
LINE_COUNTS = "line_counts"
BYTES_PER_GROUP = 1 << 20
"""Of files that are read in one step, so that thousands of small files cost little each."""

SplitBatches = tuple[Split, Iterator[SplitRows]]
"""A split, and its rows, batch by batch."""


def _no_check(_: pa.Table) -> dict[int, list[str]]:
    return {}


class ReadTables(beam.PTransform):
    """Reads files by contract: CSV, JSON lines, Parquet or Avro, from local disk, GCS or S3.

    It is applied to the root of a pipeline and outputs two collections by name: `rows`, tables in
    the types of the contract, and `rejected`, tables of the rows that break it, with the columns
    `file` (its URI), `row` (line of text, or row, from 1), `raw` (the row as it is in the file) and
    `reason`. Each row of the files is in one of the two.

        from ledgerbeam.transforms import ReadTables

        with beam.Pipeline() as pipeline:
            read = pipeline | ReadTables("trades/*.csv", TRADES)
            _ = read.rejected | "Alert" >> beam.Map(lambda table: alert(table.num_rows))
            _ = read.rows | "ToPandas" >> beam.Map(pa.Table.to_pandas)

    The files are inspected when the transform is applied; one that has changed by the time it is
    read is an error. The pure function is `ledgerbeam.io.datasets.readers.read_split`.
    """

    def __init__(self, pattern: str, contract: Contract, reading: Reading | None = None) -> None:
        """Make the transform; no file is read yet.

        Args:
            pattern: URI of a file, a glob, or a published instance; several are separated by
                commas.
            contract: what the columns must be.
            reading: the format of the files; by default it follows from their names and headers.
        """
        super().__init__()
        self._pattern = pattern
        self._contract = contract
        self._reading = reading

    def expand(self, root: Any) -> Any:
        """Build the graph.

        Raises:
            UserError: no file matches, or a file's columns don't fit the contract.
        """
        splits = plan_input(self._pattern, self._contract, self._reading).splits
        read = root | "ReadSplits" >> ReadSplits(splits, _tables)
        rejected = read.rejected | "RejectedTables" >> beam.Map(_table_of)
        return Collections(rows=read.rows, rejected=rejected)


class ReadSplits(beam.PTransform):
    """Reads planned splits, and applies a function to their batches.

    Small splits are read together, in one call of the function.

    It outputs collections by name: `rows`, the outputs of the function; `rejected`, a
    `RejectedTable` for each batch with rows that break the contract; `line_counts`, if they are
    needed to locate a row of a split in its file; and one for each of `tags`.
    """

    def __init__(
        self,
        splits: Splits,
        function: Callable[[Iterator[SplitBatches]], Iterable[Any]],
        *,
        check_of: Callable[[Split], Check] = lambda _: _no_check,
        tags: Sequence[str] = (),
        in_flight: int = 1,
        type_: Any = pa.Table,
        spill_directory: str = "",
    ) -> None:
        """Make the transform.

        Args:
            splits: of one or of several inputs, numbered through.
            function: called with splits of one input, each with its batches, all of which it has to
                take; its outputs are `rows`, or `TaggedOutput`s of `tags`. Workers import it.
            check_of: what else may be wrong with rows of a split; workers import it, too.
            tags: names of its other outputs.
            in_flight: how many splits a process reads at a time, in threads. More than one holds
                the outputs of each until it is done.
            type_: of an element of `rows`.
            spill_directory: folder on a disk shared by all workers, to which rejected rows are
                written on their way; empty if runner and workers hold them in memory.
        """
        super().__init__()
        self._splits = splits
        self._counted = splits_to_count(splits)
        self._read = _ReadGroup(splits, function, check_of, spill_directory, self._counted)
        self._tags = tuple(tags)
        self._in_flight = in_flight
        self._type = type_

    def expand(self, root: Any) -> Any:
        """Build the graph."""
        many = self._in_flight > 1
        read: Any = DoInFlight(self._read, self._in_flight) if many else self._read
        tags = [*self._tags, *([LINE_COUNTS] if self._counted else [])]
        found = (
            root
            | "Splits" >> beam.Create(list(groups_of(self._splits)), reshuffle=False)
            | "SpreadSplits" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(read)
            .with_output_types(self._type)
            .with_outputs(REJECTED, *tags, main=ROWS)
        )
        # A side input keeps a step apart from the one before it, so it is left out where it can be.
        sides = [AsList(found[LINE_COUNTS])] if self._counted else []
        rejected = found[REJECTED] | "Locate" >> beam.Map(_Locate(self._splits), *sides)
        others = {tag: found[tag] for tag in (ROWS, *tags)}
        return Collections(others, rejected=rejected)


def groups_of(splits: Splits) -> Iterator[tuple[int, ...]]:
    """Positions of splits that are read in one step: of one input, and small if several."""
    group: list[int] = []
    size = 0
    for position, split in enumerate(splits):
        fits = size + split.file.size <= BYTES_PER_GROUP and not isinstance(split, SqlSplit)
        if group and not (fits and split.fields is splits[group[0]].fields):
            yield tuple(group)
            group, size = [], 0
        group.append(position)
        size += split.file.size
    if group:
        yield tuple(group)


class RejectedTable(NamedTuple):
    """Rejected rows of one batch of a split.

    Attributes:
        split: the index of the split.
        batch: number of the batch within the split.
        table: the rows, with the columns `file`, `row`, `raw` and `reason`.
    """

    split: int
    batch: int
    table: pa.Table


class Collections(dict[str, Any]):
    """The output collections of a transform, by name: as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class _ReadGroup:
    splits: Splits
    function: Callable[[Iterator[SplitBatches]], Iterable[Any]]
    check_of: Callable[[Split], Check]
    spill_directory: str
    counted: frozenset[int]

    def __call__(self, group: tuple[int, ...]) -> Iterator[Any]:
        found: list[TaggedOutput] = []

        def batches(split: Split) -> Iterator[SplitRows]:
            line_count = 0
            for number, rows in enumerate(read_split(split, self.check_of(split))):
                line_count += rows.line_count
                if rows.rejected.num_rows:
                    rejected = self._rejected(split, number, rows.rejected)
                    found.append(TaggedOutput(REJECTED, rejected))
                yield rows
            if split.index in self.counted:
                found.append(TaggedOutput(LINE_COUNTS, (split.index, line_count)))

        splits = (self.splits[position] for position in group)
        yield from self.function((split, batches(split)) for split in splits)
        # They are written by the same step, so only once the function has found them few enough.
        yield from found

    def _rejected(self, split: Split, batch: int, rows: pa.Table) -> RejectedRows:
        if not self.spill_directory:
            return RejectedRows(split.index, batch, rows)
        ((_, spilled),) = spill(self.spill_directory, [(0, rows)])
        return RejectedRows(split.index, batch, spilled)


@dataclass(frozen=True)
class _Locate:
    splits: Splits

    def __call__(self, rejected: RejectedRows, line_counts: LineCounts = ()) -> RejectedTable:
        table = RowLocator(self.splits, line_counts).located(rejected)
        return RejectedTable(rejected.split, rejected.batch, table)


def _table_of(rejected: RejectedTable) -> pa.Table:
    return rejected.table


def _tables(read: Iterator[SplitBatches]) -> Iterator[pa.Table]:
    for _, batches in read:
        for rows in batches:
            yield rows.table.drop_columns(ROW_LOCATION)
