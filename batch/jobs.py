"""A job on its runner: whether it still goes on, and how to stop it.

The local runner's job is a process: the one that runs the pipeline, with whatever it has started.
"""

import contextlib
import os
import signal
import socket
import time
from typing import NamedTuple

import psutil

_POLL_SECONDS = 0.05


class ProcessId(NamedTuple):
    """A process, told from a later one of the same number by when it was started.

    Attributes:
        host: that it runs on.
        pid: its number.
        started: seconds since 1970, as the kernel tells it.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """A process of this machine."""
        return cls(socket.gethostname(), pid, f"{psutil.Process(pid).create_time():.2f}")

    @classmethod
    def parse(cls, text: str) -> "ProcessId":
        """From the form that `str` gives."""
        host, pid, started = text.rsplit(":", 2)
        return cls(host, int(pid), started)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started}"

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, so that its fate can be known."""
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether it goes on; a process that has ended and waits for its parent doesn't."""
        try:
            process = psutil.Process(self.pid)
            same = f"{process.create_time():.2f}" == self.started
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class LocalJob:
    """A pipeline's process, the leader of a process group of its own."""

    def __init__(self, process: ProcessId) -> None:
        """Hold a process of this machine."""
        self._process = process

    def is_alive(self) -> bool:
        """Whether it goes on."""
        return self._process.is_alive()

    def stop(self, grace: float) -> None:
        """End the process and all that it has started; return when they are gone.

        Args:
            grace: seconds that it is given to end by itself.
        """
        if self.is_alive():
            self._signal(signal.SIGCONT)  # a stopped one would not hear of it
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + grace
            while self.is_alive() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        self._signal(signal.SIGKILL)
        while self._group():
            time.sleep(_POLL_SECONDS)

    def _signal(self, number: int) -> None:
        # The group outlives its leader as long as a worker process does.
        if self._group():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _group(self) -> list[int]:
        """Processes of the group that go on. Its number can't be given anew while there are any."""
        found = []
        for process in psutil.process_iter(["pid", "status", "create_time"]):
            facts = process.info
            if facts["status"] == psutil.STATUS_ZOMBIE:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(facts["pid"]) == self._process.pid:
                    started = float(self._process.started)
                    if facts["create_time"] >= started - 1:
                        found.append(facts["pid"])
        return found
