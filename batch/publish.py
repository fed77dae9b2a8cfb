"""The last step: everything is there, the totals balance, the manifest is made."""

import datetime
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ledgerbeam.batch.plan import Hashes, Plan, SplitSummary
from ledgerbeam.io import storage
from ledgerbeam.io.attempts import Control, FileRecord, Manifest, ShardCommit, Totals
from ledgerbeam.io.errors import UserError


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
        out = sum_totals(commit.totals for commit in shards)
        refused = read["refused"] + out["refused"]
        reject_files = sorted(rejects, key=lambda file: file.name)
        self._check_refused(refused, [*reject_files, *(c.rejects for c in shards if c.rejects)])
        distinct_values = distinct([summary.distinct for summary in summaries])
        counts = {
            "rows_in": read["rows"],
            "rows_out": out["rows"],
            "rejected": refused,
            "other_dates": read["other_dates"],
            "components": out["components"],
            plan.process.distinct[0]: len(distinct_values),
        }
        manifest = Manifest(
            attempt=attempt.record,
            published_at=datetime.datetime.now(datetime.UTC),
            shards=shards,
            rejects=reject_files,
            columns=attempt.columns_of(shards[0].part),
            counts=counts,
            totals={name: value for name, value in out.items() if name not in COUNTS},
            controls=[*controls_of(read, out), *plan.process.controls(out)],
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


COUNTS = ("rows", "refused", "components")


def controls_of(read: Totals, out: Totals) -> list[Control]:
    """The comparisons that hold for every keyed process: of rows, and of each row total."""
    rows_out = out["rows"] + out["refused"] + read["refused"] + read["other_dates"]
    controls = [
        Control(
            name="rows: in = out + rejected + other dates", expected=read["rows"], actual=rows_out
        )
    ]
    for name in read:
        if f"refused_{name}" in out:
            actual = out[name] + out[f"refused_{name}"]
            if name.endswith("_hash"):
                actual %= 2**64
            controls.append(
                Control(name=f"{name}: in = out + rejected", expected=read[name], actual=actual)
            )
    return controls


def sum_totals(all_totals: Iterable[Totals]) -> Totals:
    """Totals added up by name; those called `…_hash` modulo 2^64."""
    sums: Counter[str] = Counter()
    for totals in all_totals:
        sums.update(totals)
    return {
        name: value % 2**64 if name.endswith("_hash") else value for name, value in sums.items()
    }


def distinct(arrays: Iterable[Hashes]) -> Hashes:
    """The distinct values of uint64 arrays, sorted. Sorting beats `np.unique` 50 times here."""
    values = np.sort(np.concatenate([np.zeros(0, np.uint64), *arrays]))
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values
