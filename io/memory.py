"""Memory that a process may take: the least of what machine, control groups and limits allow."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc/self")
WHAT_HELPS = "give it more memory, more --shards, or fewer --direct_num_workers, which share it"
"""For errors that say that memory has run out."""

PROGRAM_BYTES = 300 << 20
"""What a process takes for Python, Beam and Arrow before it has read a row."""

_MIB = 1 << 20


class MemoryLimit(NamedTuple):
    """The least limit.

    Attributes:
        size: in bytes.
        source: who sets it, for people.
        taken: how much of it counts as taken already, in bytes: a limit on the address space counts
            what is only reserved, too.
    """

    size: int
    source: str
    taken: int = 0

    def __str__(self) -> str:
        return f"{self.size // _MIB} MiB ({self.source})"


def memory_limit(proc: Path = PROC) -> MemoryLimit:
    """The least limit on the memory of this process.

    Args:
        proc: the folder in which the kernel tells of it.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [MemoryLimit(physical, "the machine's memory"), *_resource_limits(proc)]
    for group in _groups(proc):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(group / name)
            if text.isdecimal():  # else there is no such file, or it says `max`
                found.append(MemoryLimit(int(text), f"{name} of the control group {group}"))
    return min(found, key=lambda limit: limit.size - limit.taken)


def kernel_kills(proc: Path = PROC) -> int | None:
    """How many processes the kernel has ended so far because memory ran out.

    It counts those of this process's control group, and where the kernel counts so (version 2), of
    all groups below it. None where that can't be known.

    Args:
        proc: the folder in which the kernel tells of this process.
    """
    for group in _groups(proc):
        for name in ("memory.events", "memory.oom_control"):
            for line in _read(group / name).splitlines():
                what, _, count = line.partition(" ")
                if what == "oom_kill" and count.isdecimal():
                    return int(count)
    return None


class KernelKills:
    """Tells processes that the kernel has ended for their memory from those that others have.

    It is made before they are started.
    """

    def __init__(self) -> None:
        self._before = kernel_kills()

    def told(self, what: str) -> str:
        """A sentence of the process that was killed, if that was the kernel; else nothing.

        Args:
            what: which process it was.
        """
        now = kernel_kills()
        if now is None or self._before is None or now <= self._before:
            return ""
        return (
            f"{what} was ended by the kernel: out of memory: there are {memory_limit()}: "
            f"{WHAT_HELPS}"
        )


def _groups(proc: Path) -> Iterator[Path]:
    """Folders of the process's control groups that limit memory, its own first, then all above."""
    mounts = [line.split() for line in _read(proc / "mountinfo").splitlines()]
    for line in _read(proc / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        kind = "cgroup" if controllers else "cgroup2"
        if controllers and "memory" not in controllers.split(","):
            continue
        for fields in mounts:
            root, place = fields[3], Path(fields[4])
            of_kind, _, options = fields[fields.index("-") + 1 :][:3]
            if of_kind != kind or (controllers and "memory" not in options.split(",")):
                continue
            # In a container the mount may begin at the container's own group.
            below = path.removeprefix(root) if root != "/" else path
            folder = place / below.lstrip("/")
            if ".." in folder.parts or not folder.is_dir():
                folder = place
            yield folder
            while folder != place:
                folder = folder.parent
                yield folder


def _resource_limits(proc: Path) -> Iterator[MemoryLimit]:
    try:
        import resource
    except ImportError:  # there are none on this system
        return
    taken = {
        name: int(size.split()[0]) << 10
        for line in _read(proc / "status").splitlines()
        for name, _, size in [line.partition(":")]
        if name in ("VmSize", "VmData")
    }
    for name, of in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            yield MemoryLimit(soft, name, taken.get(of, 0))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
