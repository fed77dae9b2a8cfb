"""Assembling a shard's batches into components to execute and rejected rows."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.define.process import is_overridden
from ledgerbeam.batch.keyed.plan import Plan, row_totals
from ledgerbeam.io.arrow.spill import Batch, batch_bytes, load_batch
from ledgerbeam.io.datasets.readers import ROW_LOCATION
from ledgerbeam.io.errors import ShardTooLargeError
from ledgerbeam.io.memory import PROGRAM_BYTES, MemoryLimit, memory_limit
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.components import component_name
from ledgerbeam.transforms.columnar.totals import NO_ROWS, TableTotals
from ledgerbeam.transforms.shuffle import Assembled, RejectedRowsOfShard, assemble

_TIMES = 5
"""How many times its bytes a shard takes while it is sorted, executed and written."""

_MAX_BYTES = 2**31 - 1
"""The most text that one Arrow array can hold, and so the most bytes of a shard."""


def assemble_shard(plan: Plan, shard: int, batches: Sequence[tuple[int, Batch]]) -> Assembled:
    """The shard's components without rejected rows, and the rejected rows.

    Args:
        plan: the plan of the attempt.
        shard: the number of the shard.
        batches: the shard's batches, each with the number of its input.

    Raises:
        ShardTooLargeError: the shard is larger than the memory limit.
        MemoryError: there was less memory than that.
    """
    process = plan.process
    size = bytes_of(batches)
    memory = memory_limit()
    limit = plan.memory_limit or min(bytes_in_flight(memory), _MAX_BYTES)
    if size > limit:
        raise ShardTooLargeError(
            f"shard {shard} of {plan.shards} has {size >> 20} MiB, and {limit >> 20} MiB fit into "
            f"memory, of which there are {memory}: {_advice(plan, batches, size, limit)}",
            shard=shard,
            size=size,
            limit=limit,
        )
    judges = {}
    if is_overridden(type(process), KeyedProcess, "rejections"):
        judges = {n: partial(process.rejections, i.name) for n, i in enumerate(process.inputs)}
    try:
        first, rejected = assemble(batches, plan.inputs, process.key, judges, process.is_outer)
    except MemoryError as error:
        what = str(error) or "no more is given"
        raise MemoryError(
            f"shard {shard} of {plan.shards}, which has {size >> 20} MiB: {what}"
        ) from error
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
        totals[rows.input] += row_totals(plan.row_inputs[rows.input], plan.process.key, rows.rows)
    return tuple(totals)


def _as_asked(components: Components, with_locations: bool) -> Components:
    if with_locations:
        return components
    return components._replace(table=components.table.drop_columns(ROW_LOCATION))


def bytes_of(batches: Sequence[tuple[int, Batch]]) -> int:
    """Bytes of a shard's batches, each of which comes with the number of its input."""
    return sum(batch_bytes(batch) for _, batch in batches)


def bytes_in_flight(memory: MemoryLimit) -> int:
    """Bytes that the batches of all shards may have that a process executes at the same time."""
    free = memory.size - (memory.taken or PROGRAM_BYTES)
    return max(free // _TIMES, 0)


def _advice(plan: Plan, batches: Sequence[tuple[int, Batch]], size: int, limit: int) -> str:
    """What helps: more shards, or more memory where one component is too large by itself."""
    component, rows, of_all = _largest_component(plan, batches)
    own = size * rows // max(of_all, 1)
    if own <= limit:
        shards = math.ceil(plan.shards * size / max(limit, 1)) + 1
        return f"give more --shards, such as {shards}, or more memory"
    alone = (
        f"its component {component} alone has {rows} rows and about {own >> 20} MiB, so that more "
        "--shards don't help: "
    )
    if own > _MAX_BYTES:
        return (
            f"{alone}no component may have more than {_MAX_BYTES >> 20} MiB: add a column to the "
            "key, or leave columns out that aren't needed"
        )
    needed = PROGRAM_BYTES + _TIMES * own
    return f"{alone}give it {(needed >> 20) + 1} MiB of memory"


def _largest_component(plan: Plan, batches: Sequence[tuple[int, Batch]]) -> tuple[str, int, int]:
    """The component that is the largest of most batches, rows of it, and of the whole shard.

    Of many components of about the same size it counts too few rows, which changes no advice.
    """
    of_all, found = 0, Counter[str]()
    for _, batch in batches:
        keys = load_batch(batch).select(plan.process.key)
        of_all += keys.num_rows
        for index, column in enumerate(keys.columns):
            if pa.types.is_dictionary(column.type):
                plain = column.cast(column.type.value_type)
                keys = keys.set_column(index, keys.column_names[index], plain)
        counts = keys.group_by(keys.column_names).aggregate([([], "count_all")])
        for row in counts.sort_by([("count_all", "descending")]).slice(0, 1).to_pylist():
            rows = row.pop("count_all")
            found[component_name(tuple(row.values()))] += rows
    [(component, rows)] = found.most_common(1) or [("", 0)]
    return component, rows, of_all
