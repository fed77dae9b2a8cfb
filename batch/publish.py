"""The last step: everything is there, the totals balance, the manifest is made."""

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ledgerbeam.batch.plan import Plan, SplitSummary
from ledgerbeam.batch.process import KeyedProcess
from ledgerbeam.io import storage
from ledgerbeam.io.attempts import Control, FileRecord, Manifest, ShardCommit, Totals
from ledgerbeam.io.errors import UserError

_SHARD_COUNTS = ("rows", "refused", "components")


@dataclass(frozen=True)
class Publish:
    """Checks that everything is there and balances, and makes the manifest."""

    plan: Plan

    def __call__(
        self,
        _: None,
        commits: list[ShardCommit],
        rejects: list[FileRecord],
        summaries: list[SplitSummary],
        distinct: int,
    ) -> Manifest:
        """The manifest.

        Raises:
            UserError: more rows were refused than allowed, or a control doesn't balance.
        """
        plan, attempt = self.plan, self.plan.attempt
        by_shard = {commit.shard: commit for commit in [*commits, *plan.committed]}
        if sorted(by_shard) != list(range(plan.shards)):
            raise RuntimeError(f"{len(by_shard)} of {plan.shards} shards are committed")
        if sorted(summary.split for summary in summaries) != list(range(len(plan.splits))):
            raise RuntimeError(f"{len(summaries)} summaries of {len(plan.splits)} splits")
        shards = [by_shard[shard] for shard in range(plan.shards)]
        read = sum_totals(summary.totals for summary in summaries)
        read[plan.process.distinct[0]] = distinct
        sheet = balance(plan.process, read, shards)
        reject_files = sorted(rejects, key=lambda file: file.name)
        self._check_refused(
            sheet.counts["rejected"], [*reject_files, *(c.rejects for c in shards if c.rejects)]
        )
        manifest = Manifest(
            attempt=attempt.record,
            published_at=datetime.datetime.now(datetime.UTC),
            shards=shards,
            rejects=reject_files,
            columns=attempt.columns_of(shards[0].part),
            read=read,
            totals=sheet.totals,
            counts=sheet.counts,
            controls=sheet.controls,
        )
        attempt.publish(manifest)
        return manifest

    def _check_refused(self, refused: int, files: list[FileRecord]) -> None:
        limit = self.plan.process.parameters.max_rejects
        if refused <= limit:
            return
        instance = self.plan.attempt.instance_uri
        first = self.plan.attempt.read_rows(files[0], 1)[0]
        folders = {file.name.partition("/")[0] for file in files}
        folder = folders.pop() if len(folders) == 1 else "attempt-*"
        raise UserError(
            f"nothing published: {refused:,} {'row' if refused == 1 else 'rows'} refused, and "
            f"--max-rejects is {limit:,}: first {first['file']} row {first['row']}: "
            f"{first['reason']}: all are in {storage.join(instance, folder)}/rejects-*.parquet"
        )


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


def balance(
    process: KeyedProcess[Any], read: Totals, shards: Sequence[ShardCommit]
) -> BalanceSheet:
    """Compare what went in with what came out: rows, each row total, and what the process says.

    Args:
        process: the definition.
        read: totals over the input.
        shards: the markers of all shards.
    """
    out = sum_totals(commit.totals for commit in shards)
    rejected = read["refused"] + out["refused"]
    counts = {
        "rows_in": read["rows"],
        "rows_out": out["rows"],
        "rejected": rejected,
        "other_dates": read["other_dates"],
        "components": out["components"],
        process.distinct[0]: read[process.distinct[0]],
    }
    rows_out = out["rows"] + rejected + read["other_dates"]
    name = "rows: in = out + rejected + other dates"
    controls = [Control(name=name, expected=read["rows"], actual=rows_out)]
    for total in (total for total in read if f"refused_{total}" in out):
        actual = _wrapped(total, out[total] + out[f"refused_{total}"])
        name = f"{total}: in = out + rejected"
        controls.append(Control(name=name, expected=read[total], actual=actual))
    totals = {total: value for total, value in out.items() if total not in _SHARD_COUNTS}
    return BalanceSheet(totals, counts, [*controls, *process.controls(out)])


def sum_totals(all_totals: Iterable[Totals]) -> Totals:
    """Totals added up by name; those called `…_hash` modulo 2^64."""
    sums: Counter[str] = Counter()
    for totals in all_totals:
        sums.update(totals)
    return {name: _wrapped(name, value) for name, value in sums.items()}


def _wrapped(name: str, value: int) -> int:
    """Hashes are added modulo 2^64, all other totals exactly."""
    return value % 2**64 if name.endswith("_hash") else value
