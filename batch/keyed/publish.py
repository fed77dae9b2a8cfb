"""The last step of a keyed process: check that all is complete, and make the manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ledgerbeam.batch.define.keyed_process import KeyedProcess
from ledgerbeam.batch.execute.publish import BalanceSheet, publish
from ledgerbeam.batch.keyed.notes import Notes
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.records import Control, FileRecord, Manifest, ShardCommit, Totals
from ledgerbeam.io.errors import TooManyRejectionsError
from ledgerbeam.io.storage import uris
from ledgerbeam.transforms.columnar.shard_totals import (
    ReadTotals,
    ShardTotals,
    read_from_json,
    read_to_json,
)
from ledgerbeam.transforms.publish import whole


@dataclass(frozen=True)
class Publish:
    """Checks that shards are complete and totals balance, and makes the manifest.

    Attributes:
        process: the definition.
        attempt: the attempt that publishes.
        kept: markers of shards that earlier attempts have committed.
        splits: the number of splits.
    """

    process: KeyedProcess[Any]
    attempt: Attempt
    kept: tuple[ShardCommit, ...]
    splits: int

    def __call__(
        self,
        notes: Notes,
        commits: list[ShardCommit],
        reports: list[FileRecord],
    ) -> Manifest:
        """The manifest.

        Raises:
            UserError: too many rows were rejected or components failed, there are too few rows or
                they are too old, or a control doesn't balance.
        """
        summaries = notes.summaries
        if sorted(summary.split for summary in summaries) != list(range(self.splits)):
            raise RuntimeError(f"{len(summaries)} summaries of {self.splits} splits")
        shards = whole(self.attempt, [*commits, *self.kept])
        by_input = [ReadTotals()] * len(self.process.inputs)
        for summary in summaries:
            by_input[summary.input] = by_input[summary.input].add(summary.totals)
        read = read_to_json(by_input, self.process.total_names)
        if self.process.distinct is not None:
            read[self.process.distinct[0]] = notes.distinct
        sheet = balance(self.process, read, shards)
        reject_files = sorted(notes.rejects, key=lambda file: file.name)
        self._check_rejected(
            sheet.counts["rejected"], [*reject_files, *(c.rejects for c in shards if c.rejects)]
        )
        dates = [summary.newest for summary in summaries if summary.newest is not None]
        newest = max(dates, default=None)
        return publish(
            self.process, self.attempt, shards, sheet, read, reject_files, reports, newest
        )

    def _check_rejected(self, rejected: int, files: list[FileRecord]) -> None:
        limit = getattr(self.process.parameters, "max_rejects", 0)
        if rejected <= limit:
            return
        instance = self.attempt.instance_uri
        first = self.attempt.read_rows(files[0], 1)[0]
        folders = {file.name.partition("/")[0] for file in files}
        folder = folders.pop() if len(folders) == 1 else "attempt-*"
        raise TooManyRejectionsError(
            f"nothing published: {rejected:,} {'row' if rejected == 1 else 'rows'} rejected, and "
            f"--max-rejects is {limit:,}: first {first['file']} row {first['row']} "
            f"({first['reason']}); all are in {uris.join(instance, folder)}/rejects-*.parquet",
            rejected=rejected,
            limit=limit,
        )


def balance(
    process: KeyedProcess[Any], read: Totals, shards: Sequence[ShardCommit]
) -> BalanceSheet:
    """Compare input and output: rows, amounts, ids, and the process's own controls.

    Args:
        process: the definition.
        read: totals over the input, in their stored form.
        shards: the markers of all shards.
    """
    names = process.total_names
    out = ShardTotals.sum(ShardTotals.from_json(commit.totals, names) for commit in shards)
    inputs = read_from_json(read, names)
    counts = {
        "rows_in": inputs[0].rows.rows,
        **{f"{names.prefix(n)}in": of_input.rows.rows for n, of_input in enumerate(inputs) if n},
        "rows_out": out.result_rows,
        "rejected": sum(i.rejected for i in inputs) + sum(t.rows for t in out.rejected),
        "other_dates": sum(of_input.other_dates for of_input in inputs),
        "components": out.components,
        "failed": out.failed,
        "unknown": out.unknown,
    }
    if process.distinct is not None:
        counts[process.distinct[0]] = read[process.distinct[0]]
    failed = " + failed" if out.failed or out.unknown else ""
    controls = []
    for number, of_input in enumerate(inputs):
        prefix = names.prefix(number)
        went_in = of_input.rows
        came_out = out.results[number] + out.lost[number] + out.rejected[number]
        left_out = of_input.rejected + of_input.other_dates
        controls.append(
            Control(
                name=f"{prefix}rows: in = out + rejected + other dates{failed}",
                expected=went_in.rows,
                actual=came_out.rows + left_out,
            )
        )
        # A currency may occur only in rows of components that failed.
        amounts = [
            name
            for column in process.inputs[number].amounts
            for name in sorted({*went_in.amounts, *came_out.amounts})
            if names.column_of(number, name) == column
        ]
        pairs = {n: (went_in.amounts.get(n, 0), came_out.amounts.get(n, 0)) for n in amounts}
        pairs["id_hash"] = went_in.id_hash, came_out.id_hash
        controls += [
            Control(
                name=f"{prefix}{name}: in = out + rejected{failed}",
                expected=expected,
                actual=actual,
            )
            for name, (expected, actual) in pairs.items()
        ]
    own = process.controls(out.named(names))
    found = [came.rows + lost.rows for came, lost in zip(out.results, out.lost, strict=True)]
    rows = sum(found) if process.is_outer else found[0]
    return BalanceSheet(out.published(names), counts, [*controls, *own], rows)
