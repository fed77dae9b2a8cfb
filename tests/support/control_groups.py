"""Control groups of the kernel, where this machine lets tests make them."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

_ROOTS = {
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
    Path("/sys/fs/cgroup"): "memory.max",
}


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Path | None]:
    """A group whose processes may take so many bytes; None where none can be made."""
    for root, name in _ROOTS.items():
        group = root / f"ledgerbeam-{uuid.uuid4().hex}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / name).exists():
                (group / name).write_text(str(limit))
                yield group
                return
        finally:
            group.rmdir()
    yield None


def join(group: Path | None) -> None:
    """Have this process, and those that it starts, belong to the group."""
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
