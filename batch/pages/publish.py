"""The last step of a page process: compare its totals, and make the manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ledgerbeam.batch.execute.publish import BalanceSheet, publish
from ledgerbeam.io.commit.attempts import Attempt
from ledgerbeam.io.commit.records import Control, FileRecord, Manifest, ShardCommit, Totals
from ledgerbeam.transforms.columnar.shard_totals import ShardTotals
from ledgerbeam.transforms.publish import whole

if TYPE_CHECKING:
    from ledgerbeam.batch.define.page_process import PageProcess


@dataclass(frozen=True)
class PublishPages:
    """Checks that shards are complete and totals balance, and makes the manifest.

    Attributes:
        process: the definition.
        attempt: the attempt that publishes.
        kept: markers of shards that earlier attempts have committed.
    """

    process: "PageProcess[Any]"
    attempt: Attempt
    kept: tuple[ShardCommit, ...]

    def __call__(self, _: None, commits: list[ShardCommit], reports: list[FileRecord]) -> Manifest:
        """The manifest.

        Raises:
            UserError: too many components failed, or a control doesn't balance.
        """
        shards = whole(self.attempt, [*self.kept, *commits])
        sheet = balance_pages(self.process, shards)
        return publish(
            self.process, self.attempt, shards, sheet, pages_read(self.process, shards), [], reports
        )


def balance_pages(process: "PageProcess[Any]", shards: Sequence[ShardCommit]) -> BalanceSheet:
    """Compare input and output: rows, amounts, and the process's own controls.

    Args:
        process: the definition.
        shards: the markers of all shards.
    """
    names = process.total_names
    out = _sum(process, shards)
    counts = {
        "rows_in": out.read[0].rows,
        "rows_out": out.result_rows,
        "components": out.components,
        "failed": out.failed,
        "unknown": out.unknown,
    }
    failed = " + failed" if out.failed or out.unknown else ""
    came_out = out.results[0] + out.lost[0]
    pairs = {"rows": (out.read[0].rows, came_out.rows)}
    for name, value in out.read[0].amounts.items():
        pairs[name] = value, came_out.amounts.get(name, 0)
    controls = [
        Control(name=f"{name}: in = out{failed}", expected=expected, actual=actual)
        for name, (expected, actual) in pairs.items()
    ]
    own = process.controls(out.named(names))
    return BalanceSheet(out.published(names), counts, [*controls, *own], out.read[0].rows)


def pages_read(process: "PageProcess[Any]", shards: Sequence[ShardCommit]) -> Totals:
    """Totals over the rows that a page process has read, in their stored form."""
    return process.total_names.flat(0, _sum(process, shards).read[0])


def _sum(process: "PageProcess[Any]", shards: Sequence[ShardCommit]) -> ShardTotals:
    names = process.total_names
    return ShardTotals.sum(ShardTotals.from_json(commit.totals, names) for commit in shards)
