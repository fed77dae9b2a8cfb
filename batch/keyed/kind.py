"""How keyed processes are prepared, and how their publications are checked."""

from typing import Any

import pyarrow as pa

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.execute.kind import Kind
from ledgerbeam.batch.execute.prepared import Prepared
from ledgerbeam.batch.execute.publish import BalanceSheet
from ledgerbeam.batch.keyed.prepare import prepare_keyed
from ledgerbeam.batch.keyed.publish import balance
from ledgerbeam.io.commit.records import AttemptRecord, Manifest
from ledgerbeam.io.datasets.contract import encode_dictionaries
from ledgerbeam.transforms.columnar.shard_totals import read_from_json


class KeyedKind(Kind[KeyedProcess[Any]]):
    """See `Kind`."""

    def prepare(self, process: KeyedProcess[Any]) -> Prepared:
        """See `Kind.prepare`."""
        return prepare_keyed(process)

    def bind(self, process: KeyedProcess[Any], attempt: AttemptRecord) -> None:
        """See `Kind.bind`: sets which optional columns exist."""
        process.bind(attempt.plan.get("columns", ()))

    def as_executed(self, process: KeyedProcess[Any], results: pa.Table) -> pa.Table:
        """See `Kind.as_executed`: columns of the input are dictionary-encoded again."""
        return encode_dictionaries(results, process.inputs[0].contract)

    def balance(self, process: KeyedProcess[Any], manifest: Manifest) -> BalanceSheet:
        """See `Kind.balance`."""
        rejected = sum(file.rows for file in manifest.rejects)
        recorded = sum(i.rejected for i in read_from_json(manifest.read, process.total_names))
        if rejected != recorded:
            raise ValueError(f"{rejected:,} rejected rows instead of {recorded:,}")
        return balance(process, manifest.read, manifest.shards)
