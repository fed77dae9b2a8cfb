"""What a pipeline is built from, and what its steps hand to each other."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from ledgerbeam.batch.process import KeyedProcess
from ledgerbeam.io.attempts import Attempt, ShardCommit, Totals
from ledgerbeam.io.inputs import Split
from ledgerbeam.io.text import Refusal


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

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the shards that are committed already."""
        return frozenset(commit.shard for commit in self.committed)


class SplitSummary(NamedTuple):
    """What reading a split gave, apart from its rows.

    Attributes:
        split: its index.
        line_count: lines or rows of the file that the split covers.
        totals: `rows`, `other_dates`, `refused`, and the row totals of the rest.
    """

    split: int
    line_count: int
    totals: Totals


class RefusedRows(NamedTuple):
    """Rows that break the contract, of one batch of a split."""

    split: int
    batch: int
    refusals: list[Refusal]
