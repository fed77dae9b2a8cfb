"""Runs of ledgerbeam by its command line, from an environment that needn't have it.

Nothing here imports Airflow or ledgerbeam: the two have environments of their own. The command is
`ledgerbeam`, or what `LEDGERBEAM_COMMAND` names, and finds its registry as it always does.
"""

import asyncio
import datetime
import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

COMMAND = "LEDGERBEAM_COMMAND"
"""Environment variable: the path of the command `ledgerbeam`."""

FINAL = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
"""Statuses that a run leaves by a person's or a program's wish only."""

Run = dict[str, Any]
"""A run as `ledgerbeam get --json` prints it: `id`, `name`, `status`, `error`, `code`, `uri`, …"""


class CommandError(Exception):
    """`ledgerbeam` has refused, or a run has failed.

    Attributes:
        code: of the error, as `docs/errors.md` lists them; empty where there is none.
    """

    def __init__(self, message: str, code: str = "") -> None:
        """Hold the code beside the message."""
        super().__init__(message)
        self.code = code


def submit_command(
    workload: str, parameters: Mapping[str, Any], beam_flags: Mapping[str, Any] | None = None
) -> list[str]:
    """The command that records a run and starts it.

    Args:
        workload: its name.
        parameters: of the workload, by their names in Python; None leaves one out.
        beam_flags: for Beam, likewise.
    """
    given = {**parameters, **(beam_flags or {})}
    flags = [
        f"--{name.replace('_', '-') if name in parameters else name}={value}"
        for name, value in given.items()
        if value is not None
    ]
    return _command("submit", workload, *flags)


def go(
    workload: str,
    parameters: Mapping[str, Any],
    why: str,
    beam_flags: Mapping[str, Any] | None = None,
) -> Run:
    """Have a workload's instance run: submitted if it is new, retried where it has failed.

    An instance that is being executed, or has succeeded, is left to be what it is. One that has
    failed, or was canceled, goes on from what is committed.

    Args:
        workload: its name.
        parameters: of the workload.
        why: for the record.
        beam_flags: for Beam.

    Raises:
        CommandError: the command has refused.
    """
    run = _run(submit_command(workload, parameters, beam_flags))
    if run["status"] in {"FAILURE", "CANCELED"}:
        run = _run(_command("retry", run["id"], f"--why={why}"))
    return run


def cancel(run: str, why: str) -> None:
    """Ask for a run to be stopped, and wait until it is.

    Args:
        run: its id or name.
        why: for the record.

    Raises:
        CommandError: the command has refused: the run has ended already.
    """
    _run(_command("cancel", run, f"--why={why}"))
    subprocess.run(_command("wait", run), capture_output=True, check=False)


async def cancel_soon(run: str, why: str) -> None:
    """Ask for a run to be stopped, without blocking an event loop; don't wait for it."""
    await _printed(_command("cancel", run, f"--why={why}"))


async def look(run: str) -> Run | None:
    """How a run stands, without blocking an event loop; None where there is no such run yet.

    Raises:
        CommandError: the command has refused for another reason.
    """
    try:
        found: Run = json.loads(await _printed(_command("get", run)))
    except CommandError as error:
        if error.code == "run-not-found":
            return None
        raise
    return found


def expire() -> list[Run]:
    """Delete results that are due; the runs whose results they were."""
    return _lines(_command("expire"))


def is_business_day(calendar: str, day: datetime.date) -> bool:
    """Whether a day is a business day of a calendar, such as `XNSE`.

    Raises:
        CommandError: there is no such calendar, or it doesn't know the year.
    """
    flags = [f"--from={day}", f"--to={day}", f"--calendar={calendar}"]
    return bool(_lines(_command("days", *flags)))


def reconcile() -> list[dict[str, str]]:
    """Bring every run to the truth; `run`, `name` and `action` of each of which there was need."""
    return _lines(_command("reconcile"))


def check(run: Run) -> str:
    """The URI of what a run that has ended has published.

    Raises:
        CommandError: it has published nothing.
    """
    if run["status"] != "SUCCESS":
        error = run.get("error") or "see `ledgerbeam audit`"
        message = f"{run['name']} {run['id']} is {run['status']}: {error}"
        raise CommandError(message, run.get("code") or "")
    return str(run["uri"])


def _command(verb: str, *arguments: str) -> list[str]:
    return [os.environ.get(COMMAND, "ledgerbeam"), verb, *arguments, "--json"]


def _run(command: list[str]) -> Run:
    return _lines(command)[-1]


def _lines(command: list[str]) -> list[dict[str, Any]]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _refusal(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


async def _printed(command: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise _refusal(errors.decode())
    return output.decode()


def _refusal(printed: str) -> CommandError:
    """The error that the last line on standard error holds as JSON, or as text after a crash."""
    line = (printed.strip().splitlines() or ["it has failed without a word"])[-1]
    try:
        error = json.loads(line)["error"]
        return CommandError(f"ledgerbeam: {error['message']}", error["code"])
    except (ValueError, TypeError, KeyError):
        return CommandError(line)
