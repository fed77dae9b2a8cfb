"""What a pipeline is built from, and what its steps hand to each other."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from ledgerbeam.batch.keyed_process import KeyedProcess, RowInput
from ledgerbeam.io.attempts import Attempt
from ledgerbeam.io.inputs import Split
from ledgerbeam.io.records import ShardCommit, Totals
from ledgerbeam.io.text import Refusal
from ledgerbeam.transforms.totals import id_hash, sums_by_currency


@dataclass(frozen=True)
class Plan:
    """All that a keyed pipeline is built from.

    Attributes:
        process: the definition, with its parameters.
        splits: of each input, numbered through; at least one for each.
        attempt: where results go.
        committed: shards that earlier attempts on the same input have committed.
        retried: those of them whose failed components are tried again.
        spill_directory: where pieces are spilled; None where they go through GroupByKey.
        memory_limit: bytes that the pieces of one shard may have; None for what the worker has.
    """

    process: KeyedProcess[Any]
    splits: tuple[tuple[Split, ...], ...]
    attempt: Attempt
    committed: tuple[ShardCommit, ...]
    spill_directory: str | None
    retried: tuple[ShardCommit, ...] = ()
    memory_limit: int | None = None

    @property
    def shards(self) -> int:
        """How many shards the instance has."""
        assert self.attempt.record.shards is not None
        return self.attempt.record.shards

    @property
    def all_splits(self) -> tuple[Split, ...]:
        """The splits of all inputs, by their index."""
        return tuple(split for splits in self.splits for split in splits)

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the shards that are committed already, and not retried."""
        return frozenset(commit.shard for commit in self.kept)

    @property
    def kept(self) -> tuple[ShardCommit, ...]:
        """The markers that count as they are."""
        retried = {commit.shard for commit in self.retried}
        return tuple(commit for commit in self.committed if commit.shard not in retried)

    def input_of(self, split: int) -> int:
        """Which input a split belongs to."""
        last = -1
        for number, splits in enumerate(self.splits):
            last += len(splits)
            if split <= last:
                return number
        raise IndexError(f"there is no split {split}")


class SplitSummary(NamedTuple):
    """What reading a split gave, apart from its rows.

    Attributes:
        split: its index.
        line_count: lines or rows of the file that the split covers.
        totals: `rows`, `other_dates`, `refused`, and the row totals of the rest; of a further
            input each with its name in front.
    """

    split: int
    line_count: int
    totals: Totals


class RefusedRows(NamedTuple):
    """Rows that break the contract, of one batch of a split."""

    split: int
    batch: int
    refusals: list[Refusal]


def prefix_of(process: KeyedProcess[Any], number: int) -> str:
    """What stands in front of the names of an input's totals; nothing for the first input."""
    return f"{process.inputs[number].name}_" if number else ""


def row_totals(process: KeyedProcess[Any], number: int, table: pa.Table) -> Totals:
    """Sums and hash of an input's rows, as the input says; the same wherever its rows are."""
    rows: RowInput = process.inputs[number]
    prefix = prefix_of(process, number)
    totals: Totals = {f"{prefix}rows": table.num_rows}
    for amount in rows.amounts:
        for name, value in sums_by_currency(table, amount, rows.currency).items():
            totals[prefix + name] = value
    totals[f"{prefix}id_hash"] = id_hash(table, rows.ids or (*process.key, rows.order))
    return totals
