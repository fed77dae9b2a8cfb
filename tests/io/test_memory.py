"""How much memory a process may take, as the kernel tells it in each of its ways."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.control_groups import control_group, join

from ledgerbeam.io.memory import kernel_kills, memory_limit

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 1 << 20


class Machine:
    """What the kernel shows, in folders of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        self.proc.mkdir()

    def tell(self, cgroup: str, *mounts: str) -> None:
        (self.proc / "cgroup").write_text(f"{cgroup}\n")
        (self.proc / "mountinfo").write_text("".join(f"{mount}\n" for mount in mounts))

    def write(self, file: str, text: str) -> None:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def mount(self, kind: str, options: str = "rw", root: str = "/") -> str:
        return f"36 31 0:33 {root} {self.folder}/{kind} rw,relatime - {kind} {kind} {options}"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


class TestControlGroups:
    def test_version_2(self, machine: Machine) -> None:
        machine.tell("0::/pod/box", machine.mount("cgroup2"))
        machine.write("cgroup2/pod/box/memory.max", "max")
        machine.write("cgroup2/pod/memory.max", str(700 * MIB))
        machine.write("cgroup2/pod/box/memory.events", "low 0\nhigh 2\nmax 9\noom 4\noom_kill 3")
        limit = memory_limit(machine.proc)
        group = machine.folder / "cgroup2/pod"
        assert str(limit) == f"700 MiB (memory.max of the control group {group})"
        assert kernel_kills(machine.proc) == 3

    def test_version_1(self, machine: Machine) -> None:
        machine.tell(
            "5:cpu:/elsewhere\n4:memory:/pod/box\n0::/",
            machine.mount("cgroup2"),
            machine.mount("cgroup", "rw,memory"),
        )
        machine.write("cgroup/pod/box/memory.limit_in_bytes", str(500 * MIB))
        machine.write("cgroup/pod/memory.limit_in_bytes", "9223372036854771712")
        machine.write("cgroup/elsewhere/memory.limit_in_bytes", str(MIB))
        machine.write("cgroup/pod/box/memory.oom_control", "under_oom 0\noom_kill 7")
        assert memory_limit(machine.proc).size == 500 * MIB
        assert kernel_kills(machine.proc) == 7

    @pytest.mark.parametrize("path", ["/docker/1234", "/", "/../../other", "/not/mounted/here"])
    def test_within_a_container(self, machine: Machine, path: str) -> None:
        """Its own group is mounted as the root, by whatever name it is called outside."""
        machine.tell(f"0::{path}", machine.mount("cgroup2", root="/docker/1234"))
        machine.write("cgroup2/memory.max", str(300 * MIB))
        assert memory_limit(machine.proc).size == 300 * MIB

    def test_none(self, machine: Machine) -> None:
        """As on systems that have none, and where none limits memory."""
        for _ in range(2):
            assert memory_limit(machine.proc) == (PHYSICAL, "the machine's memory", 0)
            assert kernel_kills(machine.proc) is None
            machine.tell("0::/", machine.mount("cgroup2"))

    def test_the_kernels_own(self) -> None:
        """In a group of this machine, or where none can be made, in that of the test."""
        code = (
            "from ledgerbeam.io.memory import *; limit = memory_limit(); "
            "print(limit.size, kernel_kills())"
        )
        with control_group(300 * MIB) as group:
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
                preexec_fn=lambda: join(group),
            )
        size, kills = done.stdout.split()
        assert int(size) == (300 * MIB if group else memory_limit().size)
        assert kills == ("0" if group else str(kernel_kills()))


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_resources(name: str) -> None:
    code = (
        "import resource, sys; from ledgerbeam.io.memory import memory_limit; "
        f"resource.setrlimit(resource.{name}, (1 << 30, 1 << 30)); print(*memory_limit())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, source, taken = done.stdout.split()
    assert (int(size), source) == (1 << 30, name)
    # What the interpreter has taken before it has done anything.
    assert MIB < int(taken) < 1 << 30
