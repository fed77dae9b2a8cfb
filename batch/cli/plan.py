"""Printing what a run would do: `--plan`."""

from typing import Any

from rich.table import Table

from ledgerbeam.batch.attempt.plan import RunPlan, plan_run
from ledgerbeam.batch.attempt.terminal import PlainConsole
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
    console = PlainConsole()
    console = console if console.is_terminal else PlainConsole(width=10_000)
    if plan.inputs:
        files = Table("input", "bytes", "version", box=None, pad_edge=False)
        for file in plan.inputs:
            files.add_row(file.uri, f"{file.size:,}", file.version)
        console.print(files)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    if plan.rows is not None:
        table.add_row("rows", f"about {plan.rows:,}")
    shards = "known only at the end" if plan.shards is None else f"{plan.shards:,}"
    table.add_row("shards", shards)
    for name, text in _earlier(plan):
        table.add_row(name, text)
    table.add_row("published at", plan.uri)
    console.print(table)


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
