"""The last step of every process: check failures and totals, and make the manifest."""

import datetime
from collections.abc import Sequence
from typing import Any, NamedTuple

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.define.process import BatchProcess, FailureLimit
from ledgerbeam.batch.execute.volume import check_volume
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.records import Control, FileRecord, Manifest, ShardCommit, Totals
from ledgerbeam.io.errors import TooManyFailuresError
from ledgerbeam.io.storage import uris
from ledgerbeam.transforms.publish import manifest_of


class BalanceSheet(NamedTuple):
    """Totals, counts and comparisons, computed from the input and the shards.

    Attributes:
        totals: totals over the shards, by name.
        counts: numbers of rows and components, by name.
        controls: the comparisons that must balance.
        rows: how many rows were found, as `Expect` counts them.
    """

    totals: Totals
    counts: Totals
    controls: list[Control]
    rows: int


def publish(
    process: BatchProcess[Any],
    attempt: Attempt,
    shards: list[ShardCommit],
    sheet: BalanceSheet,
    read: Totals,
    rejects: list[FileRecord],
    reports: list[FileRecord],
    newest: datetime.date | None = None,
) -> Manifest:
    """Make the manifest, unless more components failed than allowed.

    Args:
        process: the definition.
        attempt: the attempt that publishes.
        shards: the markers of all shards.
        sheet: what follows from them.
        read: totals over the input, in their stored form.
        rejects: files of rows that were rejected while the input was read.
        reports: files of the reduce step.
        newest: the last date of the input, if it is `dated_by` one.

    Raises:
        UserError: too many components failed, there are too few rows or they are too old, or
            a control doesn't balance.
    """
    _check_failed(process, attempt, sheet.counts, shards)
    volume = check_volume(process, sheet.rows, sheet.counts, newest)
    now = utc_now()
    manifest = manifest_of(
        attempt,
        shards,
        read,
        sheet.totals,
        sheet.counts,
        sheet.controls,
        now,
        rejects=rejects,
        reports=reports,
        volume=volume,
    )
    attempt.publish(manifest, now)
    return manifest


def _check_failed(
    process: BatchProcess[Any], attempt: Attempt, counts: Totals, shards: Sequence[ShardCommit]
) -> None:
    lost = counts["failed"] + counts["unknown"]
    limit = FailureLimit(process.failure_limit)
    if limit.allows(lost, counts["components"]):
        return
    files = [commit.outcomes for commit in shards if commit.outcomes is not None]
    rows = (row for file in files for row in attempt.read_rows(file, file.rows))
    first = next(row for row in rows if row["status"] != ComponentStatus.SUCCESS)
    failed = f"{counts['failed']:,} of {counts['components']:,} components failed"
    if counts["unknown"]:
        failed += f" and {counts['unknown']:,} are unknown"
    raise TooManyFailuresError(
        f"nothing published: {failed}, and {limit.text} may: first {first['component']} "
        f"({first['error']}); all are in {uris.join(attempt.instance_uri, 'attempt-*')}"
        "/outcomes-*.parquet; what succeeded is kept, the rest can be retried",
        failed=lost,
        limit=process.failure_limit,
    )
