"""Checking a published instance against its manifest, long after the run."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from ledgerbeam.batch.keyed_process import KeyedProcess
from ledgerbeam.batch.outcomes import outcomes_of
from ledgerbeam.batch.plan import prefix_of
from ledgerbeam.batch.publish import BalanceSheet, balance
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.attempts import load_manifest
from ledgerbeam.io.contract import encode_few_values
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.published import read_file, read_part
from ledgerbeam.io.records import Control, Manifest, ShardCommit, Totals
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.components import component_starts, sort_components


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
    prefixes = [prefix_of(process, number) for number in range(len(process.inputs))]
    recorded_refused = sum(manifest.read[f"{prefix}refused"] for prefix in prefixes)
    if refused != recorded_refused:
        raise _changed(uri, f"{refused:,} refused rows instead of {recorded_refused:,}")
    for report in manifest.reports:
        read_file(uri, report)
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
    outcomes = []
    if commit.outcomes is not None:
        outcomes = outcomes_of(read_part(uri, commit.outcomes))
    by_status = Counter(outcome.status for outcome in outcomes)
    table = encode_few_values(table, process.inputs[0].contract)
    results = Components(table, component_starts(table, process.key))
    found: Totals = {
        **process.result_totals(results),
        "result_rows": table.num_rows,
        "result_components": len(results.starts),
        "failed": by_status[ComponentStatus.FAILURE],
        "unknown": by_status[ComponentStatus.UNKNOWN],
    }
    refused = sum(v for n, v in commit.totals.items() if n in _refused_rows(process))
    in_file = read_part(uri, commit.rejects).num_rows if commit.rejects is not None else 0
    for name, value in [*found.items(), ("refused rows", in_file)]:
        recorded = commit.totals.get(name, 0) if name != "refused rows" else refused
        if recorded != value:
            raise _changed(uri, f"shard {commit.shard}: {name} is {value:,}, not {recorded:,}")
    by_key = sort_components(table, process.key, None).components
    if len(by_key.starts) != len(results.starts):
        raise _changed(uri, f"shard {commit.shard} has a component twice")


def _refused_rows(process: KeyedProcess[Any]) -> set[str]:
    return {f"refused_{prefix_of(process, number)}rows" for number in range(len(process.inputs))}
