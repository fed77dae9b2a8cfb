"""What an attempt starts from: a process's inspected input, and how its pipeline is built."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam

from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.records import ShardCommit
from ledgerbeam.io.storage.base import FileInfo


class AttemptContext(NamedTuple):
    """What a pipeline needs to know of its attempt.

    Attributes:
        attempt: the attempt, which defines where results go.
        committed: markers of shards that earlier attempts on the same input have committed.
        retried: those of `committed` whose failed components are tried again.
        chosen: names of the components that alone are tried again; None for all that failed.
        in_process: whether the runner does all of its work in this process.
        spill_directory: the folder where batches are spilled; None if they go through GroupByKey.
    """

    attempt: Attempt
    committed: tuple[ShardCommit, ...] = ()
    retried: tuple[ShardCommit, ...] = ()
    spill_directory: str | None = None
    chosen: frozenset[str] | None = None
    in_process: bool = False

    @property
    def kept(self) -> tuple[ShardCommit, ...]:
        """The markers of shards that are not executed again."""
        retried = {commit.shard for commit in self.retried}
        return tuple(commit for commit in self.committed if commit.shard not in retried)


class Partitioning(NamedTuple):
    """How the work of an instance is cut into shards.

    Attributes:
        shards: the number of shards; None if it is only known at the end of a walk.
        plan: JSON that later attempts must reuse.
    """

    shards: int | None
    plan: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A process's inspected input.

    Attributes:
        files: the files that will be read.
        fingerprinted: everything besides the parameters that affects the result, as JSON.
        excluded: names of parameters that don't affect the result.
        partition: cuts the work into shards; not called if an earlier attempt has done so.
        rows: about how many rows will be read; None where that isn't known.
        build: makes the pipeline's transform for an attempt, and puts what must stay open until
            the pipeline has ended on the stack.
    """

    files: list[FileInfo]
    fingerprinted: Any
    excluded: frozenset[str]
    partition: Callable[[], Partitioning]
    build: Callable[[AttemptContext, ExitStack], beam.PTransform]
    rows: int | None = None
