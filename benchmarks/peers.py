"""Other schedulers of work on PostgreSQL: programs that do the same as ledgerbeam's messages.

`make bench-messages` builds them in `.cache/peers`; their sources stand in `benchmarks/messages`.
Each reads a line, does what it says, and answers by a line of JSON.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "peers"
PROGRAMS: Mapping[str, Sequence[Path | str]] = {
    "River": [CACHE / "river"],
    "graphile-worker": ["node", CACHE / "graphile" / "peer.mjs"],
    "Procrastinate": [
        CACHE / "procrastinate" / "bin" / "python",
        HERE / "messages" / "procrastinate_peer.py",
    ],
}
SMALLER = {"Procrastinate": 20}
"""By how much less a slow one is given."""


class Peer:
    """A program that runs, with a database of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._tree = psutil.Process(process.pid)
        self._read()

    def ask(self, verb: str, count: int, number: float = 0) -> list[float]:
        """Have it do something, and wait for its answer.

        Args:
            verb: `schedule`, `work` or `late`.
            count: messages.
            number: when they are due, or every how many milliseconds one is sent.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {count} {number:.0f}\n")
        self._process.stdin.flush()
        answer: list[float] = self._read()
        return answer

    def cpu(self) -> float:
        """CPU seconds so far, of all its processes."""
        tree = [self._tree, *self._tree.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in tree)

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} has ended")
        return json.loads(line)


def built() -> list[str]:
    """The names of those that are in `.cache`."""
    if not (CACHE / "stamp").exists():
        return []
    return list(PROGRAMS)


@contextmanager
def running(name: str, url: str) -> Iterator[Peer]:
    """Start a peer on an empty database that has customers only."""
    address = sa.make_url(url).set(drivername="postgresql")
    command = [*PROGRAMS[name], address.render_as_string(hide_password=False)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Peer(process)
        finally:
            process.kill()
