"""How page processes are prepared, and how their publications are checked."""

from typing import Any

import pyarrow as pa

from ledgerbeam.batch.define.page_process import PageProcess
from ledgerbeam.batch.execute.kind import Kind
from ledgerbeam.batch.execute.prepared import Prepared
from ledgerbeam.batch.execute.publish import BalanceSheet
from ledgerbeam.batch.pages.prepare import prepare_pages
from ledgerbeam.batch.pages.publish import balance_pages, pages_read
from ledgerbeam.io.commit.records import AttemptRecord, Manifest


class PageKind(Kind[PageProcess[Any]]):
    """See `Kind`."""

    def prepare(self, process: PageProcess[Any]) -> Prepared:
        """See `Kind.prepare`."""
        return prepare_pages(process)

    def bind(self, process: PageProcess[Any], attempt: AttemptRecord) -> None:
        """See `Kind.bind`: there is nothing to set, since parameters alone define a source."""

    def as_executed(self, process: PageProcess[Any], results: pa.Table) -> pa.Table:
        """See `Kind.as_executed`: results are published in the types of their schema."""
        return results

    def balance(self, process: PageProcess[Any], manifest: Manifest) -> BalanceSheet:
        """See `Kind.balance`."""
        if pages_read(process, manifest.shards) != manifest.read:
            raise ValueError("what was read doesn't follow from its shards")
        return balance_pages(process, manifest.shards)
