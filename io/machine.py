"""This machine: its name, and processes on it that are told apart from later ones.

Nothing here depends on the time of day, which may be set back or forward while processes run.
"""

import os
import socket
from pathlib import Path
from typing import NamedTuple

HOST = "LEDGERBEAM_HOST"
"""Names this machine, where the name of the operating system isn't its own."""


def host_name() -> str:
    """The name of this machine, which no other machine has that uses the same registry."""
    return os.environ.get(HOST) or socket.gethostname()


class ProcessId(NamedTuple):
    """A process; the time of its start distinguishes it from a later one of the same number.

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
        """A process of this machine.

        Raises:
            ProcessLookupError: there is none of that number.
        """
        found = _look_at(pid)
        if found is None:
            raise ProcessLookupError(pid)
        return cls(host_name(), pid, found.started)

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
        return self.host == host_name()

    def is_alive(self) -> bool:
        """Whether it goes on; a process that has ended and waits for its parent doesn't."""
        found = _look_at(self.pid)
        return found is not None and found.started == self.started and not found.has_ended

    def was_replaced(self) -> bool:
        """Whether its number belongs to another process now."""
        found = _look_at(self.pid)
        return found is not None and found.started != self.started


class _Seen(NamedTuple):
    """A process as the machine shows it; one that has ended may wait for its parent."""

    started: str
    has_ended: bool


def _look_at(pid: int) -> _Seen | None:
    """A process of this machine; None where there is none of that number."""
    if not os.path.exists("/proc/self/stat"):
        return _ask_psutil(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Behind the program's name, which is in parentheses and may hold anything. Ticks since the
    # machine was started depend on no clock; what psutil made of them before 7.1 did.
    state, *numbers = stat.rpartition(")")[2].split()
    return _Seen(f"{int(numbers[18]) / os.sysconf('SC_CLK_TCK'):.2f}", state in "ZX")


def _ask_psutil(pid: int) -> _Seen | None:
    import psutil

    try:
        process = psutil.Process(pid)
        started = f"{process.create_time() - psutil.boot_time():.2f}"
        return _Seen(started, process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return None


def available_cores() -> int:
    """How many cores this process may keep busy: as its affinity and its control groups allow."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    return max(min([cores, *_core_quotas()]), 1)


def _core_quotas() -> list[int]:
    """Cores that control groups allow, rounded down, from this process's group up."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers:
            continue  # version 1, where the mount must be known; there the affinity alone counts
        # In a container the mount may begin at the container's own group.
        group = Path("/sys/fs/cgroup") / path.lstrip("/")
        for folder in (group, *group.parents):
            try:
                quota, period = (folder / "cpu.max").read_text().split()
            except (OSError, ValueError):
                continue
            if quota.isdecimal():
                found.append(int(quota) // int(period))
    return found
