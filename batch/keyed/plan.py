"""The plan of a keyed pipeline, and the values that its steps exchange."""

import datetime
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from ledgerbeam.batch.define.keyed_process import KeyedProcess, RowInput
from ledgerbeam.batch.execute.prepared import AttemptContext
from ledgerbeam.io.datasets.inputs import Splits
from ledgerbeam.io.datasets.readers import ROW_LOCATION, empty_rows
from ledgerbeam.transforms.columnar.shard_totals import ReadTotals
from ledgerbeam.transforms.columnar.totals import TableTotals, table_totals
from ledgerbeam.transforms.shuffle import ShuffledInput


@dataclass(frozen=True)
class Plan:
    """Everything that a keyed pipeline is built from.

    Attributes:
        process: the definition, with its parameters.
        splits: the splits of each input, at least one; their indices continue over all inputs.
        context: the context of the attempt.
        memory_limit: bytes that the batches of one shard may have; None to derive it from the
            worker's memory.
    """

    process: KeyedProcess[Any]
    splits: tuple[Splits, ...]
    context: AttemptContext
    memory_limit: int | None = None

    @property
    def shards(self) -> int:
        """How many shards the instance has."""
        shards = self.context.attempt.record.shards
        assert shards is not None
        return shards

    @cached_property
    def all_splits(self) -> Splits:
        """The splits of all inputs, by their index."""
        return Splits(split for splits in self.splits for split in splits)

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the shards that are committed already, and not retried."""
        return frozenset(commit.shard for commit in self.context.kept)

    @cached_property
    def row_inputs(self) -> tuple[RowInput, ...]:
        """The inputs as the definition declares them, which may compute them at each look."""
        return tuple(self.process.inputs)

    @cached_property
    def inputs(self) -> tuple[ShuffledInput, ...]:
        """The inputs as the shuffle needs them."""
        process = self.process
        date = pa.scalar(process.business_date, pa.date32())
        return tuple(
            ShuffledInput(
                rows.name,
                process.derived(rows.name, empty_rows(splits[0])).schema,
                rows.orders,
                rows.identity(process.key),
                # All rows have the same date.
                {rows.date_column: date} if rows.date_column else {},
                rows.contract,
                ROW_LOCATION,
            )
            for rows, splits in zip(self.row_inputs, self.splits, strict=True)
        )

    def input_of(self, split: int) -> int:
        """Which input a split belongs to."""
        last = -1
        for number, splits in enumerate(self.splits):
            last += len(splits)
            if split <= last:
                return number
        raise IndexError(f"there is no split {split}")


class SplitSummary(NamedTuple):
    """The totals of a split that was read.

    Attributes:
        split: the index of the split.
        input: number of the input that the split belongs to.
        totals: totals of the split's rows.
        newest: the last date of the column that the input is `dated_by`; None where there is none.
    """

    split: int
    input: int
    totals: ReadTotals
    newest: datetime.date | None = None


def row_totals(rows: RowInput, key: tuple[str, ...], table: pa.Table) -> TableTotals:
    """The totals of an input's rows, by the columns that the input declares."""
    return table_totals(table, rows.amounts, rows.currency, rows.identity(key))
