"""Processes that call the registry at the same moment, or die in the middle of a call.

This module is also a program: `Racers` runs it several times, once for all tests, because to
start such a process takes a second.
"""

import contextlib
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import sqlalchemy as sa

from ledgerbeam.batch.model.run import AttemptKind, AttemptOutcome, RunDraft, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.io.errors import IllegalMoveError

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
_numbers = itertools.count(1)


def minutes(count: int) -> datetime:
    """So many after noon."""
    return NOON + timedelta(minutes=count)


@functools.cache
def _results() -> "tempfile.TemporaryDirectory[str]":
    """Where no run of another process has its output; gone when this one ends."""
    return tempfile.TemporaryDirectory(prefix="ledgerbeam-racers-")


def draft(**changes: Any) -> RunDraft:
    """A run of an instance that no other draft of this process has."""
    number, results = next(_numbers), _results().name
    facts = {
        "id": f"{number:08x}-0000-4000-8000-{os.getpid():012x}",
        "process": "delivery-marking",
        "code_version": "1.0",
        "instance": f"2026-11-20-{os.getpid()}-{number}",
        "identity": {"trade_date": "2026-11-20"},
        "business_date": NOON.date(),
        "parameters": {"trades": "trades/*.parquet", "shards": 7},
        "output": results,
        "uri": f"{results}/delivery-marking/2026-11-20-{number}",
        "submitted_by": "ada@bank",
        "submitted_at": NOON,
    }
    return RunDraft.model_validate(facts | changes)


def submitted(registry: Registry, **changes: Any) -> RunRecord:
    """A run of an instance of its own."""
    return registry.submit(draft(**changes), {"type": "object"})[0]


def start(registry: Registry, run: str, number: int = 1, **changes: Any) -> bool:
    """Start an attempt that is leased until one minute past noon."""
    facts: dict[str, Any] = {
        "launcher": "launcher-1",
        "lease_until": minutes(1),
        "deadline": minutes(60),
        "runner": "FlinkRunner",
        "who": "launcher@host",
        "at": NOON,
    }
    return registry.start_attempt(run, number, **(facts | changes)) is not None


def end(registry: Registry, run: str, number: int = 1, **changes: Any) -> bool:
    """End an attempt, and the run with it."""
    facts: dict[str, Any] = {
        "launcher": "launcher-1",
        "outcome": AttemptOutcome.SUCCESS,
        "to": RunStatus.SUCCESS,
        "who": "launcher@host",
        "at": minutes(2),
    }
    return registry.end_attempt(run, number, **(facts | changes))


def take_over(registry: Registry, run: str, launcher: str, number: int = 1) -> bool:
    """Take an attempt over when its lease has run out."""
    return registry.take_over(
        run,
        number,
        old_launcher="launcher-1",
        new_launcher=launcher,
        lease_until=minutes(10),
        who="reconcile@host",
        at=minutes(5),
    )


def play(registry: Registry, run: str, steps: str) -> RunRecord:
    """Have a run's attempts begin, end and be asked for; gives the run.

    Args:
        registry: that the run is in.
        run: its id.
        steps: of `start`, `succeed`, `fail`, `lose` (another attempt is to follow), `give-up` (lost
            once too often), `cancel`, `retry`, `restart`.
    """
    ends = {
        "succeed": (AttemptOutcome.SUCCESS, RunStatus.SUCCESS),
        "fail": (AttemptOutcome.FAILURE, RunStatus.FAILURE),
        "lose": (AttemptOutcome.LOST, None),
        "give-up": (AttemptOutcome.LOST, RunStatus.FAILURE),
    }
    for step in steps.split():
        number = len(registry.get(run).attempts)
        if step == "start":
            assert start(registry, run, number + 1)
        elif step in ends:
            outcome, to = ends[step]
            assert end(registry, run, number, outcome=outcome, to=to)
        elif step == "cancel":
            registry.move(run, RunStatus.CANCELED, who="ada@bank", at=NOON)
        else:
            kind = AttemptKind(step)
            registry.move(run, RunStatus.EXECUTING, who="ada@bank", at=NOON, next_kind=kind)
    return registry.get(run)


def submit(registry: Registry, **facts: Any) -> tuple[str, bool]:
    """Submit a draft; gives the run's id, and whether it is new."""
    run, created = registry.submit(RunDraft.model_validate(facts), {})
    return run.id, created


def wander(registry: Registry, run: str, seed: int, steps: int) -> int:
    """Ask for moves at random; gives how many were made."""
    source = random.Random(seed)
    made = 0
    for _ in range(steps):
        with contextlib.suppress(IllegalMoveError):
            to = source.choice([status for status in RunStatus if status is not RunStatus.SUCCESS])
            made += registry.move(run, to, who=f"racer {seed}", at=NOON)
    return made


CALLS: dict[str, Callable[..., Any]] = {
    "open": lambda _: True,
    "submit": submit,
    "start": start,
    "end": end,
    "take_over": take_over,
    "wander": wander,
}


class Racers:
    """Some processes, each of which waits for calls to make."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, __file__]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.communicate(timeout=60)

    def race(self, url: str, call: str, *arguments: Mapping[str, Any]) -> list[Any]:
        """Make one call in as many processes as there are arguments, all at once.

        Returns:
            What each has given, or the text of its error. A call of `open` includes to open
            the registry; before others each has done that.
        """
        racing = self._processes[: len(arguments)]
        assert len(racing) == len(arguments)
        for process, argument in zip(racing, arguments, strict=True):
            _send(process, {"url": url, "call": call, "arguments": argument, "die_after": None})
            assert _receive(process) == "ready"
        for process in racing:
            _send(process, "go")
        return [_receive(process) for process in racing]

    def die(self, url: str, call: str, argument: Mapping[str, Any], statements: int) -> bool:
        """Make a call in a process that kills itself after so many SQL statements.

        Returns:
            False where the call took no more than these, and has come to its end.
        """
        request = {"url": url, "call": call, "arguments": argument, "die_after": statements}
        _send(self._processes[0], request)
        died: bool = _receive(self._processes[0])
        return died


@contextlib.contextmanager
def after_statement(number: int, what: Callable[[], None]) -> Iterator[None]:
    """Do something after the SQL statement of that number, from 1, of any engine."""
    count = 0

    def executed(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            what()

    sa.event.listen(sa.Engine, "after_cursor_execute", executed)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", executed)


def _send(process: "subprocess.Popen[str]", message: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message, default=str) + "\n")
    process.stdin.flush()


def _receive(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def _answer(message: Any) -> None:
    print(json.dumps(message), flush=True)


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["die_after"] is None:
            _answer(_race(**request))
            continue
        child = os.fork()
        if not child:
            _die(**request)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        _answer(f"exit code {code}" if code > 0 else code < 0)


def _race(url: str, call: str, arguments: Mapping[str, Any], die_after: None) -> Any:
    try:
        registry = None if call == "open" else Registry.open(url)
        _answer("ready")
        sys.stdin.readline()
        with registry or Registry.open(url) as opened:
            return CALLS[call](opened, **arguments)
    except BaseException:
        return traceback.format_exc()


def _die(url: str, call: str, arguments: Mapping[str, Any], die_after: int) -> None:
    try:
        registry = Registry.open(url)
        with after_statement(die_after, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            CALLS[call](registry, **arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    _serve()
    sys.stdout.flush()
    os._exit(0)  # to take down the interpreter takes long
