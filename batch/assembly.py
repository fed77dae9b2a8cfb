"""From a shard's pieces to its components: joined, sorted, inputs put together by key."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ledgerbeam.batch.execution import IN_FLIGHT
from ledgerbeam.batch.keyed_process import KeyedProcess
from ledgerbeam.batch.plan import Plan, row_totals
from ledgerbeam.batch.process import is_overridden
from ledgerbeam.io.arrow_stream import join
from ledgerbeam.io.contract import encode_few_values
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.inputs import Split
from ledgerbeam.io.readers import POSITION, empty_rows
from ledgerbeam.io.records import Totals
from ledgerbeam.io.spill import Piece, load_piece, piece_bytes
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.components import align, sort_components, without
from ledgerbeam.transforms.totals import add_totals


class RefusedInShard(NamedTuple):
    """Rows that can only be found wrong when all rows of their key are together.

    Attributes:
        number: of their input.
        rows: with their `POSITION`.
        is_orphan: whether the first input lacks their key.
        reasons: what the workload says of each row. Rows that have neither this nor that share
            key and order.
    """

    number: int
    rows: pa.Table
    is_orphan: bool = False
    reasons: tuple[str, ...] = ()


class Assembled(NamedTuple):
    """A shard, ready to be executed.

    Attributes:
        components: without the rows that are refused.
        refusals: these rows.
    """

    components: Components
    refusals: list[RefusedInShard]

    def refused_totals(self, process: KeyedProcess[Any]) -> Totals:
        """Row totals of what is refused, each name with `refused_` in front."""
        refused = add_totals(
            row_totals(process, refusal.number, refusal.rows) for refusal in self.refusals
        )
        return {f"refused_{name}": value for name, value in refused.items()}


def assemble(plan: Plan, shard: int, pieces: Sequence[tuple[int, Piece]]) -> Assembled:
    """The shard's components.

    Args:
        plan: of the run.
        shard: its number.
        pieces: each with the number of its input.

    Raises:
        UserError: the shard is larger than the memory limit.
    """
    process = plan.process
    size = sum(piece_bytes(piece) for _, piece in pieces)
    limit = plan.memory_limit or _memory_a_shard()
    if size > limit:
        raise UserError(
            f"shard {shard} of {plan.shards} has {size >> 20} MiB, and "
            f"{limit >> 20} MiB fit into memory: give more --shards, or "
            "workers with more memory where a single component is that large"
        )
    refusals: list[RefusedInShard] = []
    sorted_inputs = []
    for number, splits in enumerate(plan.splits):
        of_input = [load_piece(piece) for n, piece in pieces if n == number]
        tables = [table for table in of_input if table.num_rows]
        table = join(tables) if tables else empty_rows(splits[0])
        of_contract = encode_few_values(table, process.inputs[number].contract)
        rows = sort_components(of_contract, process.key, process.inputs[number].order)
        components = rows.components._replace(
            table=_all_columns(process, number, splits[0], rows.components.table)
        )
        if rows.repeats.any():
            repeated = components.table.filter(pa.array(rows.repeats)).sort_by(POSITION)
            refusals.append(RefusedInShard(number, repeated))
            components = without(components, rows.repeats)
        if is_overridden(type(process), KeyedProcess, "refusals"):
            wrong = process.refusals(
                process.inputs[number].name, _without_position(components).table
            )
            if wrong:
                refusals.append(_refused_by_workload(number, components.table, wrong))
                is_wrong = np.zeros(components.table.num_rows, bool)
                is_wrong[list(wrong)] = True
                components = without(components, is_wrong)
        sorted_inputs.append(components)
    first, *others = sorted_inputs
    related: dict[str, Components] = {}
    for number, components in enumerate(others, 1):
        aligned, orphans = align(first, components, process.key)
        if orphans.num_rows:
            rows_of_none = orphans.sort_by(POSITION)
            refusals.append(RefusedInShard(number, rows_of_none, is_orphan=True))
        related[process.inputs[number].name] = _as_asked(process, number, aligned)
    return Assembled(_as_asked(process, 0, first)._replace(related=related), refusals)


def _refused_by_workload(number: int, table: pa.Table, wrong: Mapping[int, str]) -> RefusedInShard:
    position = table.column(POSITION).to_pylist()
    at = sorted(wrong, key=lambda row: position[row])
    return RefusedInShard(number, table.take(at), reasons=tuple(wrong[row] for row in at))


def _as_asked(process: KeyedProcess[Any], number: int, components: Components) -> Components:
    return components if process.inputs[number].positions else _without_position(components)


def _without_position(components: Components) -> Components:
    return components._replace(table=components.table.drop_columns(POSITION))


def _all_columns(
    process: KeyedProcess[Any], number: int, split: Split, table: pa.Table
) -> pa.Table:
    """The columns that were left out or made narrow on the way here, as they were."""
    for index, field in enumerate(split.fields):
        if field.name not in table.column_names:
            date = pa.scalar(process.business_date, pa.date32())
            table = table.add_column(index, field.name, pa.repeat(date, table.num_rows))
        elif pa.types.is_decimal(field.type):
            column = table.column(index).cast(field.type)
            table = table.set_column(index, field.name, column)
    return table


def _memory_a_shard() -> int:
    """Bytes that a shard's pieces may have: sorting and writing take about five times as much.

    At most 2 GiB in any case, which is as much text as one Arrow array can hold.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical // (5 * IN_FLIGHT), 2**31 - 1)
