"""Inspecting the source of a page process, and preparing how its pipeline is built."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import apache_beam as beam

from ledgerbeam.batch.define.page_process import PageProcess, SqlPages
from ledgerbeam.batch.execute.prepared import AttemptContext, Partitioning, Prepared
from ledgerbeam.batch.pages.pipeline import PagedBatch, PagePlan
from ledgerbeam.io.secrets import resolve_url
from ledgerbeam.io.sql.ranges import ByCount, plan_ranges
from ledgerbeam.io.sql.reader import exported_snapshot


def prepare_pages(process: PageProcess[Any]) -> Prepared:
    """Inspect the source of a page process's pages."""
    source = process.source
    fingerprinted: list[Any] = [process.key]
    url = ""
    if isinstance(source, SqlPages):
        url = source.source.url
        fingerprinted += [repr(source.source), repr(source.split), source.page_rows, source.amounts]
    else:
        fingerprinted.append(source.start)

    def partition() -> Partitioning:
        if not isinstance(source, SqlPages) or isinstance(source.split, ByCount):
            return Partitioning(None, {})
        ranges = plan_ranges(replace(source.source, url=resolve_url(url)), source.split)
        return Partitioning(len(ranges), {"ranges": [range_.to_json() for range_ in ranges]})

    def build(context: AttemptContext, stack: ExitStack) -> beam.PTransform:
        snapshot = None
        if url:
            snapshot = stack.enter_context(exported_snapshot(resolve_url(url)))
        return PagedBatch(PagePlan(process, context, snapshot))

    return Prepared(
        files=[],
        fingerprinted=fingerprinted,
        excluded=frozenset({"max_connections"}),
        partition=partition,
        build=build,
    )
