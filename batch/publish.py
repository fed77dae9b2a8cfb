"""The last step: everything is there, the totals balance, the manifest is made."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ledgerbeam.batch.keyed_process import KeyedProcess
from ledgerbeam.batch.plan import SplitSummary, prefix_of
from ledgerbeam.batch.process import BatchProcess, FailureLimit
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io import storage
from ledgerbeam.io.attempts import Attempt
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.records import Control, FileRecord, Manifest, ShardCommit, Totals
from ledgerbeam.transforms.totals import add_totals, wrapped

if TYPE_CHECKING:
    from ledgerbeam.batch.page_process import PageProcess

READ = "read_"
"""In front of the names of totals over what was read."""

_COUNTS = ("components", "failed", "unknown", "retries", "result_rows", "result_components")


class BalanceSheet(NamedTuple):
    """What follows from the totals of the input and of the shards.

    Attributes:
        totals: over the shards, by name.
        counts: of rows and components, by name.
        controls: the comparisons that must balance.
    """

    totals: Totals
    counts: Totals
    controls: list[Control]


@dataclass(frozen=True)
class Publish:
    """Checks that everything is there and balances, and makes the manifest of a keyed process.

    Attributes:
        process: the definition.
        attempt: that publishes.
        kept: shards that earlier attempts have committed.
        splits: how many there are.
    """

    process: KeyedProcess[Any]
    attempt: Attempt
    kept: tuple[ShardCommit, ...]
    splits: int

    def __call__(
        self,
        _: None,
        commits: list[ShardCommit],
        rejects: list[FileRecord],
        summaries: list[SplitSummary],
        distinct: list[int],
        reports: list[FileRecord],
    ) -> Manifest:
        """The manifest.

        Raises:
            UserError: more rows were refused or components failed than may, or a control doesn't
                balance.
        """
        if sorted(summary.split for summary in summaries) != list(range(self.splits)):
            raise RuntimeError(f"{len(summaries)} summaries of {self.splits} splits")
        shards = whole(self.attempt, [*commits, *self.kept])
        read = add_totals(summary.totals for summary in summaries)
        if self.process.distinct is not None:
            read[self.process.distinct[0]] = distinct[0]
        sheet = balance(self.process, read, shards)
        reject_files = sorted(rejects, key=lambda file: file.name)
        self._check_refused(
            sheet.counts["rejected"], [*reject_files, *(c.rejects for c in shards if c.rejects)]
        )
        return publish(self.process, self.attempt, shards, sheet, read, reject_files, reports)

    def _check_refused(self, refused: int, files: list[FileRecord]) -> None:
        limit = getattr(self.process.parameters, "max_rejects", 0)
        if refused <= limit:
            return
        instance = self.attempt.instance_uri
        first = self.attempt.read_rows(files[0], 1)[0]
        folders = {file.name.partition("/")[0] for file in files}
        folder = folders.pop() if len(folders) == 1 else "attempt-*"
        raise UserError(
            f"nothing published: {refused:,} {'row' if refused == 1 else 'rows'} refused, and "
            f"--max-rejects is {limit:,}: first {first['file']} row {first['row']}: "
            f"{first['reason']}: all are in {storage.join(instance, folder)}/rejects-*.parquet"
        )


@dataclass(frozen=True)
class PublishPages:
    """Checks that everything is there and balances, and makes the manifest of a page process.

    Attributes:
        process: the definition.
        attempt: that publishes.
        kept: shards that earlier attempts have committed.
    """

    process: "PageProcess[Any]"
    attempt: Attempt
    kept: tuple[ShardCommit, ...]

    def __call__(self, _: None, commits: list[ShardCommit], reports: list[FileRecord]) -> Manifest:
        """The manifest.

        Raises:
            UserError: more components failed than may, or a control doesn't balance.
        """
        shards = whole(self.attempt, [*self.kept, *commits])
        sheet = balance_pages(self.process, shards)
        return publish(self.process, self.attempt, shards, sheet, pages_read(shards), [], reports)


def whole(attempt: Attempt, commits: Sequence[ShardCommit]) -> list[ShardCommit]:
    """The markers by shard, none of which is missing."""
    by_shard = {commit.shard: commit for commit in commits}
    expected = len(by_shard) if attempt.record.shards is None else attempt.record.shards
    if sorted(by_shard) != list(range(expected)):
        raise RuntimeError(f"{len(by_shard)} of {expected} shards are committed")
    return [by_shard[shard] for shard in range(expected)]


def publish(
    process: BatchProcess[Any],
    attempt: Attempt,
    shards: list[ShardCommit],
    sheet: BalanceSheet,
    read: Totals,
    rejects: list[FileRecord],
    reports: list[FileRecord],
) -> Manifest:
    """Make the manifest, unless more components failed than may.

    Raises:
        UserError: they did, or a control doesn't balance.
    """
    _check_failed(process, attempt, sheet.counts, shards)
    now = datetime.datetime.now(datetime.UTC)
    manifest = Manifest(
        attempt=attempt.record,
        published_at=now,
        shards=shards,
        rejects=rejects,
        reports=sorted(reports, key=lambda file: file.name),
        columns=attempt.columns_of(shards[0].part) if shards else {},
        tables={n: attempt.columns_of(part) for n, part in shards[0].tables.items()}
        if shards
        else {},
        read=read,
        totals=sheet.totals,
        counts=sheet.counts,
        controls=sheet.controls,
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
    raise UserError(
        f"nothing published: {failed}, and {limit.text} may: first {first['component']}: "
        f"{first['error']}: all are in {storage.join(attempt.instance_uri, 'attempt-*')}"
        "/outcomes-*.parquet: what succeeded is kept, the rest can be retried"
    )


def balance(
    process: KeyedProcess[Any], read: Totals, shards: Sequence[ShardCommit]
) -> BalanceSheet:
    """Compare what went in with what came out: rows, each row total, and what the process says.

    Args:
        process: the definition.
        read: totals over the input.
        shards: the markers of all shards.
    """
    out = add_totals(commit.totals for commit in shards)
    prefixes = [prefix_of(process, number) for number in range(len(process.inputs))]
    rejected = sum(read[f"{p}refused"] + out.get(f"refused_{p}rows", 0) for p in prefixes)
    counts = {
        "rows_in": read["rows"],
        **{f"{p}in": read[f"{p}rows"] for p in prefixes[1:]},
        "rows_out": out["result_rows"],
        "rejected": rejected,
        "other_dates": sum(read[f"{p}other_dates"] for p in prefixes),
        "components": out["components"],
        "failed": out["failed"],
        "unknown": out["unknown"],
    }
    if process.distinct is not None:
        counts[process.distinct[0]] = read[process.distinct[0]]
    controls = []
    for prefix in prefixes:
        left_out = read[f"{prefix}refused"] + read[f"{prefix}other_dates"]
        for total in _row_totals_of(process, prefix, read, out):
            parts = (total, f"failed_{total}", f"refused_{total}")
            actual = sum(out.get(part, 0) for part in parts)
            if total == f"{prefix}rows":
                actual += left_out
            name = f"{total}: in = out + rejected"
            name += " + other dates" if total == f"{prefix}rows" else ""
            name += " + failed" if out["failed"] or out["unknown"] else ""
            expected = read.get(total, 0)
            controls.append(Control(name=name, expected=expected, actual=wrapped(total, actual)))
    totals = {
        total: value
        for total, value in out.items()
        if total not in _COUNTS and not total.endswith("rows")
    }
    return BalanceSheet(totals, counts, [*controls, *process.controls(out)])


def pages_read(shards: Sequence[ShardCommit]) -> Totals:
    """Totals over what a page process has read."""
    out = add_totals(commit.totals for commit in shards)
    return {n.removeprefix(READ): value for n, value in out.items() if n.startswith(READ)}


def balance_pages(process: "PageProcess[Any]", shards: Sequence[ShardCommit]) -> BalanceSheet:
    """Compare what was read with what came out: rows, each amount, and what the process says.

    Args:
        process: the definition.
        shards: the markers of all shards.
    """
    out = add_totals(commit.totals for commit in shards)
    read = pages_read(shards)
    counts = {
        "rows_in": read["rows"],
        "rows_out": out["result_rows"],
        **{name: out[name] for name in ("components", "failed", "unknown")},
    }
    failed = " + failed" if out["failed"] or out["unknown"] else ""
    controls = [
        Control(
            name=f"{name}: in = out{failed}",
            expected=value,
            actual=wrapped(name, out[name] + out.get(f"failed_{name}", 0)),
        )
        for name, value in read.items()
    ]
    totals = {
        name: value
        for name, value in out.items()
        if name not in _COUNTS and not name.endswith("rows") and not name.startswith(READ)
    }
    return BalanceSheet(totals, counts, [*controls, *process.controls(out)])


def _row_totals_of(process: KeyedProcess[Any], prefix: str, read: Totals, out: Totals) -> list[str]:
    """Names of an input's row totals: in the order in which they are counted, rows first."""
    rows = next(r for n, r in enumerate(process.inputs) if prefix_of(process, n) == prefix)
    stems = [f"{prefix}rows"]
    for amount in rows.amounts:
        if not rows.currency:
            stems.append(f"{prefix}{amount}")
            continue
        # A currency may occur in what was lost only.
        start = f"{prefix}{amount}_"
        found = {n.removeprefix("failed_").removeprefix("refused_") for n in [*read, *out]}
        stems += sorted(n for n in found if n.startswith(start))
    return [*stems, f"{prefix}id_hash"]
