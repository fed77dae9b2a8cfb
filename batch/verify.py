"""Checking a published instance against its manifest, long after the run."""

from collections.abc import Callable
from typing import Any

from ledgerbeam.batch.process import KeyedProcess
from ledgerbeam.batch.publish import BalanceSheet, balance
from ledgerbeam.io.attempts import Control, Manifest, ShardCommit, Totals, load_manifest
from ledgerbeam.io.contract import encode_few_values
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
    refused = sum(read_part(uri, file).num_rows for file in manifest.rejects)
    for number, commit in enumerate(manifest.shards):
        if commit.shard != number:
            raise _changed(uri, f"shard {commit.shard} stands in the place of shard {number}")
        _verify_shard(uri, commit, manifest, process)
        progress()
    if len(manifest.shards) != manifest.attempt.shards:
        raise _changed(uri, f"{len(manifest.shards)} of {manifest.attempt.shards} shards")
    if refused != manifest.read["refused"]:
        raise _changed(uri, f"{refused:,} refused rows instead of {manifest.read['refused']:,}")
    sheet = balance(process, manifest.read, manifest.shards)
    recorded = BalanceSheet(manifest.totals, manifest.counts, manifest.controls)
    for name, computed, found in zip(sheet._fields, sheet, recorded, strict=True):
        if computed != found:
            raise _changed(uri, f"its {name} don't follow from its shards")
    broken = [control.name for control in sheet.controls if not control.balances]
    if broken:
        raise _changed(uri, f"{broken[0]} doesn't balance")
    return sheet.controls


def _changed(uri: str, how: str) -> UserError:
    return UserError(f"{uri}: the manifest was changed: {how}: restore it from a copy")


def _verify_shard(
    uri: str, commit: ShardCommit, manifest: Manifest, process: KeyedProcess[Any]
) -> None:
    table = read_part(uri, commit.part)
    if {field.name: str(field.type) for field in table.schema} != manifest.columns:
        raise _changed(uri, f"shard {commit.shard} has other columns")
    rows = sort_components(encode_few_values(table, process.contract), process.key, process.order)
    found: Totals = {
        **process.row_totals(rows.components.table),
        **process.component_totals(rows.components),
        "rows": table.num_rows,
        "components": len(rows.components.starts),
        "refused": read_part(uri, commit.rejects).num_rows if commit.rejects is not None else 0,
    }
    for name, value in found.items():
        if commit.totals.get(name) != value:
            recorded = commit.totals.get(name, 0)
            raise _changed(uri, f"shard {commit.shard}: {name} is {value:,}, not {recorded:,}")
    if rows.repeats.any():
        raise _changed(uri, f"shard {commit.shard} has a row twice")
