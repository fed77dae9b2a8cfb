"""Checking a published instance against its manifest, long after the run."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from ledgerbeam.batch.keyed_process import KeyedProcess
from ledgerbeam.batch.outcomes import outcomes_of, retries
from ledgerbeam.batch.page_process import PageProcess
from ledgerbeam.batch.plan import prefix_of
from ledgerbeam.batch.process import BatchProcess
from ledgerbeam.batch.publish import BalanceSheet, balance, balance_pages, pages_read
from ledgerbeam.batch.results import Results
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.attempts import load_manifest
from ledgerbeam.io.contract import encode_few_values
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.published import read_file, read_part
from ledgerbeam.io.records import Control, Manifest, ShardCommit, Totals
from ledgerbeam.transforms.components import sort_components


def verify(
    uri: str, process: BatchProcess[Any], progress: Callable[[], None] = lambda: None
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
    for number, commit in enumerate(manifest.shards):
        if commit.shard != number:
            raise _changed(uri, f"shard {commit.shard} stands in the place of shard {number}")
        _verify_shard(uri, commit, manifest, process)
        progress()
    expected = manifest.attempt.shards
    if expected is not None and len(manifest.shards) != expected:
        raise _changed(uri, f"{len(manifest.shards)} of {expected} shards")
    for report in manifest.reports:
        read_file(uri, report)
    if isinstance(process, KeyedProcess):
        _verify_refused(uri, manifest, process)
        sheet = balance(process, manifest.read, manifest.shards)
    else:
        assert isinstance(process, PageProcess)
        if pages_read(manifest.shards) != manifest.read:
            raise _changed(uri, "what was read doesn't follow from its shards")
        sheet = balance_pages(process, manifest.shards)
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


def _verify_refused(uri: str, manifest: Manifest, process: KeyedProcess[Any]) -> None:
    refused = sum(read_part(uri, file).num_rows for file in manifest.rejects)
    prefixes = [prefix_of(process, number) for number in range(len(process.inputs))]
    recorded_refused = sum(manifest.read[f"{prefix}refused"] for prefix in prefixes)
    if refused != recorded_refused:
        raise _changed(uri, f"{refused:,} refused rows instead of {recorded_refused:,}")


def _verify_shard(
    uri: str, commit: ShardCommit, manifest: Manifest, process: BatchProcess[Any]
) -> None:
    table = read_part(uri, commit.part)
    tables = {name: read_part(uri, part) for name, part in commit.tables.items()}
    if _columns(table) != manifest.columns or manifest.tables != {
        name: _columns(further) for name, further in tables.items()
    }:
        raise _changed(uri, f"shard {commit.shard} has other columns")
    outcomes = []
    if commit.outcomes is not None:
        outcomes = outcomes_of(read_part(uri, commit.outcomes))
    by_status = Counter(outcome.status for outcome in outcomes)
    refused_rows: set[str] = set()
    if isinstance(process, KeyedProcess):
        table = encode_few_values(table, process.inputs[0].contract)
        refused_rows = _refused_rows(process)
    results = Results(table, tables).components(commit.key)
    found: Totals = {
        **process.result_totals(results),
        "result_rows": table.num_rows,
        "result_components": len(results.starts),
        "failed": by_status[ComponentStatus.FAILURE],
        "unknown": by_status[ComponentStatus.UNKNOWN],
        "retries": retries(outcomes).get("retries", 0),
    }
    refused = sum(v for n, v in commit.totals.items() if n in refused_rows)
    in_file = read_part(uri, commit.rejects).num_rows if commit.rejects is not None else 0
    for name, value in [*found.items(), ("refused rows", in_file)]:
        recorded = commit.totals.get(name, 0) if name != "refused rows" else refused
        if recorded != value:
            raise _changed(uri, f"shard {commit.shard}: {name} is {value:,}, not {recorded:,}")
    by_key = sort_components(table, commit.key, None).components
    if len(by_key.starts) != len(results.starts):
        raise _changed(uri, f"shard {commit.shard} has a component twice")


def _columns(table: pa.Table) -> dict[str, str]:
    return {field.name: str(field.type) for field in table.schema}


def _refused_rows(process: KeyedProcess[Any]) -> set[str]:
    return {f"refused_{prefix_of(process, number)}rows" for number in range(len(process.inputs))}
