"""Checking a published instance against its manifest, long after the run."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from ledgerbeam.batch.process import KeyedProcess
from ledgerbeam.batch.publish import COUNTS, sum_totals
from ledgerbeam.io.attempts import Control, Manifest, ShardCommit, Totals, load_manifest
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.published import read_part
from ledgerbeam.transforms.components import sort_components


def verify(
    uri: str, process: KeyedProcess[Any], progress: Callable[[], None] = lambda: None
) -> list[Control]:
    """Read every file that a manifest names, and compute all totals anew.

    Args:
        uri: of a published instance.
        process: its definition, with the parameters that the manifest holds.
        progress: called after each shard.

    Returns:
        The comparisons that were made, all of which balance.

    Raises:
        UserError: a file is gone or differs from its record, or a total differs.
    """
    manifest = load_manifest(uri)
    for file in manifest.rejects:
        read_part(uri, file)
    for commit in manifest.shards:
        _verify_shard(uri, commit, process)
        progress()
    controls = [*_recorded_totals(manifest), *manifest.controls]
    broken = [control for control in controls if not control.balances]
    if broken:
        raise UserError(
            f"{uri}: {broken[0].name}: {broken[0].expected:,} expected, "
            f"{broken[0].actual:,} found: the manifest has been changed: restore it from a copy"
        )
    return controls


def _verify_shard(uri: str, commit: ShardCommit, process: KeyedProcess[Any]) -> None:
    table = read_part(uri, commit.part)
    if commit.rejects is not None:
        read_part(uri, commit.rejects)
    rows = sort_components(_encode_keys(table, process), process.key, process.order)
    found: Totals = {
        **process.row_totals(rows.components.table),
        **process.component_totals(rows.components),
        "rows": table.num_rows,
        "components": len(rows.components.starts),
    }
    for name, value in found.items():
        if commit.totals.get(name) != value:
            raise UserError(
                f"{uri}: shard {commit.shard}: {name} is {value:,}, and its marker says "
                f"{commit.totals.get(name, 0):,}: restore the manifest from a copy"
            )
    if rows.repeats.any():
        raise UserError(f"{uri}: shard {commit.shard}: a row comes twice: restore it from a copy")


def _encode_keys(table: pa.Table, process: KeyedProcess[Any]) -> pa.Table:
    """The columns as rules get them: dictionary-encoded where the contract says so."""
    for column in process.contract.columns:
        if column.few_values:
            index = table.column_names.index(column.name)
            table = table.set_column(index, column.name, table.column(index).dictionary_encode())
    return table


def _recorded_totals(manifest: Manifest) -> list[Control]:
    """The manifest's own totals against those of its shards."""
    sums = sum_totals(commit.totals for commit in manifest.shards)
    recorded = {name: manifest.totals.get(name, 0) for name in sums if name not in COUNTS}
    recorded |= {"rows": manifest.counts["rows_out"], "components": manifest.counts["components"]}
    return [
        Control(name=f"{name}: shards = manifest", expected=sums[name], actual=value)
        for name, value in recorded.items()
    ]
