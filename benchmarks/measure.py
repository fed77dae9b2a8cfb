"""Wall time and peak memory of a command and all the processes that it starts.

Memory is what a process holds in RAM, with what it shares with its own children counted once:

- for each process alone, the kernel's own high-water mark of its resident set (`VmHWM`), which
  misses no peak between two looks;
- for a tree of several, the sum of the proportional set sizes (`Pss` in `smaps_rollup`, or the
  resident set where the kernel doesn't tell), looked at every 20 ms.

The peak is the larger of the two.
"""

import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

POLL_SECONDS = 0.02
"""Seconds between two looks at the memory."""

_FIND_CHILDREN_EVERY = 0.2
# Adding up the pages of a large process takes milliseconds, and holds up its allocations.
_MOST_TIME_SPENT_LOOKING = 0.05


class Measurement(NamedTuple):
    """What a command took.

    Attributes:
        wall_seconds: from before the start of the process to after its end.
        cpu_seconds: of all cores, of the command and the processes that it waited for. Where wall
            time is far from what it is otherwise and this is not, the machine was busy.
        peak_bytes: memory of the whole process tree.
        exit_code: negative for a signal; None where the time limit ended it.
        output: standard output.
        errors: standard error.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    exit_code: int | None
    output: str
    errors: str


def on_one_core() -> list[str]:
    """What stands in front of a command that is to run on one core."""
    return ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]


def measure(
    command: Sequence[str],
    *,
    limit_seconds: float,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    beside: Sequence[int] = (),
) -> Measurement:
    """Run a command to its end, or to the time limit, which kills all of its processes.

    Args:
        command: program and arguments.
        limit_seconds: wall time that it may take.
        env: environment variables; by default those of this process.
        folder: where it runs; by default here.
        beside: ids of processes whose memory, and that of their children, counts as well.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        cpu_before = _cpu_seconds()
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=env,
            cwd=folder,
            start_new_session=True,  # a process group of its own, which can be killed as one
        )
        peak = _PeakMemory((process.pid, *beside))
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit_seconds, stop)
        timer.start()
        try:
            # Without a timeout of its own, which Python would poll for by up to 50 ms.
            process.wait()
            wall_seconds = time.perf_counter() - start
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            timer.cancel()
            peak.stop()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Measurement(
            wall_seconds,
            _cpu_seconds() - cpu_before,
            peak.bytes,
            None if timed_out.is_set() else process.returncode,
            *texts,
        )


def server_cpu(server: psutil.Process) -> float:
    """CPU seconds of a server's processes, with those that have ended."""
    own = server.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for process in server.children():
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            # In nanoseconds; the times of psutil are ticks of 10 milliseconds.
            total += int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9
    return float(total)


class _PeakMemory:
    """Looks at process trees from a thread of its own until it is stopped."""

    def __init__(self, roots: Sequence[int]) -> None:
        self.bytes = 0
        self._roots = roots
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        pids = [*self._roots]
        searched = 0.0
        pause = 0.0
        while not self._stopped.wait(pause):
            start = time.monotonic()
            if start - searched > _FIND_CHILDREN_EVERY:
                searched = start
                pids = [pid for root in self._roots for pid in _tree(root)]
            marks = [_kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:") for pid in pids]
            now = [_proportional(pid) for pid in pids] if len(pids) > 1 else []
            self.bytes = max(self.bytes, *(1024 * mark for mark in marks), sum(now))
            spent = time.monotonic() - start
            pause = max(POLL_SECONDS, spent / _MOST_TIME_SPENT_LOOKING)


def _cpu_seconds() -> float:
    """Of all children that have ended; nothing else may be waited for in the meantime."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _tree(pid: int) -> list[int]:
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return [pid]
    return [pid, *(child.pid for child in children)]


def _proportional(pid: int) -> int:
    """Bytes; 0 for a process that is gone."""
    kilobytes = _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")
    return 1024 * (kilobytes or _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:"))


def _kilobytes(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:  # the process is gone, or is not ours to look at
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
