"""The interface for what differs between keyed and page processes, besides their definitions."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import pyarrow as pa

from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.execute.prepared import Prepared
from ledgerbeam.batch.execute.publish import BalanceSheet
from ledgerbeam.io.commit.records import AttemptRecord, Manifest

Process = TypeVar("Process", bound=BatchProcess[Any])


class Kind(ABC, Generic[Process]):
    """How processes of one kind are prepared, and how their publications are checked."""

    @abstractmethod
    def prepare(self, process: Process) -> Prepared:
        """Inspect a process's input.

        Raises:
            UserError: the input can't be read.
        """

    @abstractmethod
    def bind(self, process: Process, attempt: AttemptRecord) -> None:
        """Set on a process what an attempt has found in its input."""

    @abstractmethod
    def as_executed(self, process: Process, results: pa.Table) -> pa.Table:
        """A published part with the column types that the process returned."""

    @abstractmethod
    def balance(self, process: Process, manifest: Manifest) -> BalanceSheet:
        """Compute the totals, counts and controls of a manifest from its shards and its input.

        Raises:
            ValueError: the totals of the input don't match the shards or the rejected rows.
        """
