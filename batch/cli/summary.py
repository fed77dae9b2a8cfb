"""The summary of a run, for people."""

from typing import Any

from ledgerbeam.batch.attempt.terminal import PlainConsole, print_pairs
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.io.commit.amounts import label_of, shown
from ledgerbeam.io.commit.records import Manifest


def print_summary(
    manifest: Manifest, process: BatchProcess[Any], published: str, seconds: float | None
) -> None:
    """Print the counts and totals of a run as a table.

    Args:
        manifest: of the instance.
        process: the definition.
        published: the folder of the instance.
        seconds: that the run took; None if the same had been published before it began.
    """
    rows_label = process.rows_label
    counts = dict(manifest.counts)
    rows = counts.pop("rows_in")
    values = [(rows_label, rows), (process.results_label, counts.pop("rows_out"))]
    # A list, since an amount may have the name of a count.
    values += [*counts.items(), *manifest.totals.items()]
    lines = [
        (label_of(name), shown(name, value, manifest.attempt.total_decimals))
        for name, value in values
        # Usually nothing is unknown, which is not worth a line.
        if not name.endswith("_hash") and (value or name != "unknown")
    ]
    if seconds is not None:
        lines += [
            ("seconds", f"{seconds:,.1f}"),
            (f"{rows_label} a second", f"{rows / seconds:,.0f}"),
        ]
    console = PlainConsole()
    if console.is_terminal:
        # Numbers are aligned at their ends, with the codes of currencies after them.
        width = max(len(text.partition(" ")[0]) for _, text in lines)
        for number, (label, text) in enumerate(lines):
            value, _, currency = text.partition(" ")
            lines[number] = label, f"{value:>{width}} {currency}".rstrip()
    print_pairs(lines)
    if console.is_terminal:
        console.print(f"published at {published}", soft_wrap=True)
    else:
        print_pairs([("published at", published)])
    if seconds is None:
        before = (
            f"{manifest.published_at:%Y-%m-%d %H:%M:%S} UTC, from the same input: nothing was done"
        )
        print_pairs([("published before", before)])
