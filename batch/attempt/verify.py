"""Checking a published instance against its manifest, long after the run."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ledgerbeam.batch.attempt.kinds import kind_of
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.define.results import Results
from ledgerbeam.batch.execute.kind import Kind
from ledgerbeam.batch.execute.publish import BalanceSheet
from ledgerbeam.batch.model.outcomes import outcomes_of, retries
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.io.commit.amounts import shown
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.published import read_file, read_part
from ledgerbeam.io.commit.records import Control, Manifest, ShardCommit
from ledgerbeam.io.errors import DamagedFileError, UserError
from ledgerbeam.transforms.columnar.components import sort_components
from ledgerbeam.transforms.columnar.shard_totals import ShardTotals


def verify(
    uri: str, process: BatchProcess[Any], progress: Callable[[], None] = lambda: None
) -> list[Control]:
    """Read every file that a manifest names, and compute all totals again.

    Args:
        uri: URI of a published instance.
        process: its definition, with the parameters that the manifest holds.
        progress: called after each shard.

    Returns:
        The comparisons that were made, all of which balance.

    Raises:
        UserError: a file is missing or differs from its record, or a total differs.
    """
    manifest = load_manifest(uri)
    kind = kind_of(process)
    kind.bind(process, manifest.attempt)
    for number, commit in enumerate(manifest.shards):
        if commit.shard != number:
            raise _changed(uri, f"shard {commit.shard} stands in the place of shard {number}")
        _verify_shard(uri, commit, manifest, process, kind)
        progress()
    expected = manifest.attempt.shards
    if expected is not None and len(manifest.shards) != expected:
        raise _changed(uri, f"{len(manifest.shards)} of {expected} shards")
    for report in manifest.reports:
        read_file(uri, report)
    for file in manifest.rejects:
        if read_part(uri, file).num_rows != file.rows:
            raise _changed(uri, f"{file.name} has not {file.rows:,} rows")
    try:
        sheet = kind.balance(process, manifest)
    except KeyError as error:
        raise _changed(uri, f"{error} is missing") from error
    except ValueError as error:
        raise _changed(uri, str(error)) from error
    rows = sheet.rows if manifest.volume is None else manifest.volume.rows
    recorded = BalanceSheet(manifest.totals, manifest.counts, manifest.controls, rows)
    for name, computed, found in zip(sheet._fields, sheet, recorded, strict=True):
        if computed != found:
            raise _changed(uri, f"its {name} don't follow from its shards")
    broken = [control.name for control in sheet.controls if not control.balances]
    if broken:
        raise _changed(uri, f"{broken[0]} doesn't balance")
    return sheet.controls


def _changed(uri: str, how: str) -> UserError:
    return DamagedFileError(
        f"{uri}: the manifest was changed: {how}: restore it from a copy", uri=uri
    )


def _verify_shard(
    uri: str,
    commit: ShardCommit,
    manifest: Manifest,
    process: BatchProcess[Any],
    kind: Kind[Any],
) -> None:
    table = read_part(uri, commit.part)
    tables = {name: read_part(uri, part) for name, part in commit.tables.items()}
    if _columns(table) != manifest.columns or manifest.tables != {
        name: _columns(extra) for name, extra in tables.items()
    }:
        raise _changed(uri, f"shard {commit.shard} has other columns")
    if not set(commit.key) <= manifest.columns.keys():
        raise _changed(uri, f"shard {commit.shard} has another key")
    outcomes = []
    if commit.outcomes is not None:
        outcomes = outcomes_of(read_part(uri, commit.outcomes))
    by_status = Counter(outcome.status for outcome in outcomes)
    table = kind.as_executed(process, table)
    results = Results(table, tables).components(commit.key)
    names = process.total_names
    recorded = ShardTotals.from_json(commit.totals, names)
    computed = replace(
        recorded.with_own(process.result_totals(results), names),
        result_rows=table.num_rows,
        result_components=len(results.starts),
        failed=by_status[ComponentStatus.FAILURE],
        unknown=by_status[ComponentStatus.UNKNOWN],
        retries=retries(outcomes),
    )
    decimals = manifest.attempt.total_decimals
    was, now = recorded.to_json(names), computed.to_json(names)
    for name in was | now:
        values = now.get(name, 0), was.get(name, 0)
        if values[0] != values[1]:
            found, expected = (shown(name, value, decimals) for value in values)
            raise _changed(uri, f"shard {commit.shard}: {name} is {found}, not {expected}")
    in_file = read_part(uri, commit.rejects).num_rows if commit.rejects is not None else 0
    rejected = sum(totals.rows for totals in recorded.rejected)
    if in_file != rejected:
        raise _changed(uri, f"shard {commit.shard}: rejected rows is {in_file:,}, not {rejected:,}")
    by_key = sort_components(table, commit.key, None).components
    if len(by_key.starts) != len(results.starts):
        raise _changed(uri, f"shard {commit.shard} has a component twice")


def _columns(table: pa.Table) -> dict[str, str]:
    return {field.name: str(field.type) for field in table.schema}
