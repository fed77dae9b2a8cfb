"""Printing what a run would do: `--plan`."""

from typing import Any

from ledgerbeam.batch.attempt.plan import RunPlan, plan_run
from ledgerbeam.batch.attempt.terminal import print_pairs, print_table
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.json_lines import print_record


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
