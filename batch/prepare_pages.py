"""What an attempt of a page process is made from."""

from dataclasses import replace
from typing import Any

import apache_beam as beam

from ledgerbeam.batch.page_process import PageProcess, SqlPages
from ledgerbeam.batch.paged import PagedBatch, PagePlan
from ledgerbeam.batch.prepare import Cut, Prepared, Start
from ledgerbeam.io.secrets import resolve_url
from ledgerbeam.io.sql import exported_snapshot
from ledgerbeam.io.sql_ranges import ByCount, plan_ranges


def prepare_pages(process: PageProcess[Any]) -> Prepared:
    """Look at where a page process's pages come from."""
    source = process.source
    decisive: list[Any] = [process.key]
    url = ""
    if isinstance(source, SqlPages):
        url = source.source.url
        decisive += [repr(source.source), repr(source.split), source.page_rows, source.amounts]
    else:
        decisive.append(source.start)

    def cut() -> Cut:
        if not isinstance(source, SqlPages) or isinstance(source.split, ByCount):
            return Cut(None, {})
        ranges = plan_ranges(replace(source.source, url=resolve_url(url)), source.split)
        return Cut(len(ranges), {"ranges": [range_.to_json() for range_ in ranges]})

    def build(start: Start) -> beam.PTransform:
        snapshot = None
        if url:
            snapshot = start.stack.enter_context(exported_snapshot(resolve_url(url)))
        return PagedBatch(
            PagePlan(process, start.attempt, start.committed, start.retried, snapshot)
        )

    return Prepared(
        files=[],
        decisive=decisive,
        without_effect=frozenset({"max_connections"}),
        cut=cut,
        build=build,
    )
