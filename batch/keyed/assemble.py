"""Assembling a shard's batches into components to execute and rejected rows."""

import os
from collections.abc import Sequence
from functools import partial

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.process import is_overridden
from ledgerbeam.batch.execute.executor import IN_FLIGHT
from ledgerbeam.batch.keyed.plan import Plan, row_totals
from ledgerbeam.io.arrow.spill import Batch, batch_bytes
from ledgerbeam.io.datasets.readers import ROW_LOCATION
from ledgerbeam.io.errors import ShardTooLargeError
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.totals import NO_ROWS, TableTotals
from ledgerbeam.transforms.shuffle import Assembled, RejectedRowsOfShard, assemble


def assemble_shard(plan: Plan, shard: int, batches: Sequence[tuple[int, Batch]]) -> Assembled:
    """The shard's components without rejected rows, and the rejected rows.

    Args:
        plan: the plan of the attempt.
        shard: the number of the shard.
        batches: the shard's batches, each with the number of its input.

    Raises:
        ShardTooLargeError: the shard is larger than the memory limit.
    """
    process = plan.process
    size = sum(batch_bytes(batch) for _, batch in batches)
    limit = plan.memory_limit or _memory_per_shard()
    if size > limit:
        raise ShardTooLargeError(
            f"shard {shard} of {plan.shards} has {size >> 20} MiB, and "
            f"{limit >> 20} MiB fit into memory: give more --shards, or "
            "workers with more memory where a single component is that large",
            shard=shard,
            size=size,
            limit=limit,
        )
    judges = {}
    if is_overridden(type(process), KeyedProcess, "rejections"):
        judges = {n: partial(process.rejections, i.name) for n, i in enumerate(process.inputs)}
    first, rejected = assemble(batches, plan.inputs, process.key, judges, process.is_outer)
    related = {
        rows.name: _as_asked(first.related[rows.name], rows.row_locations)
        for rows in process.inputs
        if rows.name in first.related
    }
    if not process.is_outer:
        first = _as_asked(first, process.inputs[0].row_locations)
    return Assembled(first._replace(related=related), rejected)


def rejected_totals(plan: Plan, rejected: Sequence[RejectedRowsOfShard]) -> tuple[TableTotals, ...]:
    """Totals of the rejected rows, by input."""
    totals = [NO_ROWS] * len(plan.inputs)
    for rows in rejected:
        totals[rows.input] += row_totals(plan.process, rows.input, rows.rows)
    return tuple(totals)


def _as_asked(components: Components, with_locations: bool) -> Components:
    if with_locations:
        return components
    return components._replace(table=components.table.drop_columns(ROW_LOCATION))


def _memory_per_shard() -> int:
    """Bytes that a shard's batches may have: sorting and writing take about five times as much.

    The limit is never above 2 GiB, the most text that one Arrow array can hold.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical // (5 * IN_FLIGHT), 2**31 - 1)
