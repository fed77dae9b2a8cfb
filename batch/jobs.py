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
        started: seconds after the machine was; a time of day would change with the clock.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """A process of this machine."""
        return cls(socket.gethostname(), pid, _started(psutil.Process(pid)))

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
            same = _started(process) == self.started
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def was_replaced(self) -> bool:
        """Whether its number belongs to another process now."""
        try:
            return _started(psutil.Process(self.pid)) != self.started
        except psutil.NoSuchProcess:
            return False


def _started(process: psutil.Process) -> str:
    return f"{process.create_time() - psutil.boot_time():.2f}"


class LocalJob:
    """A pipeline's process, the leader of a process group of its own."""

    def __init__(self, process: ProcessId) -> None:
        """Hold a process of this machine."""
        self.process = process

    def is_alive(self) -> bool:
        """Whether it goes on."""
        return self.process.is_alive()

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
                os.killpg(self.process.pid, number)

    def _group(self) -> list[int]:
        """Processes of the group that go on. Its number isn't given anew while there are any."""
        if self.process.was_replaced():
            return []
        found = []
        for process in psutil.process_iter(["pid", "status"]):
            if process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(process.info["pid"]) == self.process.pid:
                    found.append(process.info["pid"])
        return found
