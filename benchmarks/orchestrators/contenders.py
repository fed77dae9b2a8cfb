"""What the contenders have in common: processes that are watched, and calls that ask for work.

Each is started on an empty database of the same PostgreSQL server, and takes submissions by HTTP.
Each has one piece of work to do, which writes the time at which it begins to `FOLDER/begun/NUMBER`.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

PATIENCE = 180.0
"""Seconds that are waited for anything."""


class Call(NamedTuple):
    """A call that asks for work: where it goes, and its JSON."""

    path: str
    body: Mapping[str, Any]


@dataclass
class Running:
    """A contender that has been started.

    Attributes:
        port: of its API, on this machine.
        processes: those that were started; their children count too.
        at_once: gives the call for the piece of work of a number, to be done at once.
        waiting: the same for work that is held.
        headers: of all calls.
        pause: seconds between two pieces of work, as on a machine that isn't busy.
        connections: that it takes at most.
    """

    port: int
    processes: Sequence["subprocess.Popen[Any]"]
    at_once: Callable[[int], Call]
    waiting: Callable[[int], Call]
    headers: Mapping[str, str] = field(default_factory=dict)
    pause: float = 0.0
    connections: int = 1000

    def tree(self) -> list[psutil.Process]:
        """All of its processes."""
        roots = [psutil.Process(process.pid) for process in self.processes]
        return [one for root in roots for one in (root, *root.children(recursive=True))]

    def ask(self, calls: Sequence[Call], connections: int = 1) -> float:
        """Make calls, which share some connections; gives seconds until all are accepted."""
        left = iter(calls)

        def send(_: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
            for call in left:
                answered(connection, "POST", call.path, self.headers, call.body)
            connection.close()

        started = time.perf_counter()
        with ThreadPoolExecutor(connections) as pool:
            list(pool.map(send, range(connections)))
        return time.perf_counter() - started


Start = Callable[[str, Path], AbstractContextManager[Running]]
"""Starts a contender, given `user@host:port/database` and a folder; it ends with the block."""


def answered(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
) -> Any:
    """What a call is answered by, as JSON.

    Raises:
        RuntimeError: it has failed.
    """
    given = None if body is None else json.dumps(body)
    connection.request(method, path, given, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status >= 400:
        raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]}")
    return json.loads(text or "null")


def call(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
) -> Any:
    """The same, by a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        return answered(connection, method, path, headers, body)
    finally:
        connection.close()


def until(condition: Callable[[], Any], what: str, pause: float = 0.2) -> Any:
    """Wait until something holds, and give it; calls that fail meanwhile don't hold."""
    deadline = time.monotonic() + PATIENCE
    told = ""
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            told = f": {error}"
        time.sleep(pause)
    raise RuntimeError(f"{what}: not within {PATIENCE:.0f} seconds{told}")


@contextmanager
def started(
    commands: Mapping[str, Sequence[str | Path]], environment: Mapping[str, str], folder: Path
) -> Iterator[list["subprocess.Popen[Any]"]]:
    """Processes that write logs to a folder, and end with the block."""
    processes = []
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **environment},
                        cwd=folder,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )
        yield processes
    except BaseException:
        for name in commands:
            lines = (folder / f"{name}.log").read_text(errors="replace").splitlines()
            print(*(f"{name}: {line}" for line in lines[-20:]), sep="\n", file=sys.stderr)
        raise
    finally:
        below = [
            child
            for process in processes
            if process.poll() is None
            for child in psutil.Process(process.pid).children(recursive=True)
        ]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        for child in psutil.wait_procs(below, timeout=10)[1]:
            child.kill()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
