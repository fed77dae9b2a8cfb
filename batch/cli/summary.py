"""What is printed of a run: what it would do (`--plan`), and what it has come to."""

from typing import Any

from ledgerbeam.batch.attempt.plan import RunPlan, plan_run
from ledgerbeam.batch.attempt.terminal import PlainConsole, print_pairs, print_table
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.json_lines import print_record
from ledgerbeam.io.commit.amounts import label_of, shown
from ledgerbeam.io.commit.records import Manifest


def print_plan(process: BatchProcess[Any], as_json: bool) -> None:
    """Print what a run of the process would do now, without doing it.

    Raises:
        UserError: its input can't be read, or breaks its contract.
    """
    plan = plan_run(process)
    if as_json:
        inputs = [
            {"uri": file.uri, "size": file.size, "version": file.version} for file in plan.inputs
        ]
        print_record("plan", plan._asdict() | {"inputs": inputs})
        return
    if plan.inputs:
        files = ((file.uri, f"{file.size:,}", file.version) for file in plan.inputs)
        print_table(("input", "bytes", "version"), files)
    pairs = [] if plan.rows is None else [("rows", f"about {plan.rows:,}")]
    shards = "known only at the end" if plan.shards is None else f"{plan.shards:,}"
    print_pairs([*pairs, ("shards", shards), *_earlier(plan), ("published at", plan.uri)])


def _earlier(plan: RunPlan) -> list[tuple[str, str]]:
    """What is done already, and what of it would be done again."""
    if plan.published:
        same = "from the same input and parameters: nothing would be done"
        other = "from other input or with other parameters: it would be refused"
        return [("published before", same if plan.is_same else other)]
    if plan.is_same is None:
        return []
    if not plan.is_same:
        return [
            ("done before", "nothing on this input and with these parameters: all is done anew")
        ]
    lines = [("committed before", _counted(plan.kept + plan.retried, "shard"))]
    if plan.failed:
        again = f"{_counted(plan.failed, 'failed component')} of {_counted(plan.retried, 'shard')}"
        lines.append(("done again", again))
    if plan.shards is not None:
        lines.append(("to be done", _counted(plan.shards - plan.kept - plan.retried, "shard")))
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


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
