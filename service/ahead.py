"""Launchers that are started before there is a run, so that a small one needn't wait for imports.

Each is a process like those of `batch/launch/spawn.py`, with the driver of its first attempt beside
it, and waits for the id of a run on its standard input. Nothing is forked from a process that has
imported Beam: threads of gRPC and Arrow don't survive that. Where the node ends, its pipe does, and
whoever waits at the other end ends too.
"""

import contextlib
import os
import subprocess
import sys
import time

from ledgerbeam.batch.launch.spawn import spawn
from ledgerbeam.batch.settings import REGISTRY, Settings
from ledgerbeam.batch.traces import TRACEPARENT

_REFILL_SECONDS = 3.0


class LaunchersAhead:
    """Some launchers that wait, and are replaced a while after they were used.

    Several threads may take from it.
    """

    def __init__(self, settings: Settings, count: int) -> None:
        """Start none yet.

        Args:
            settings: for the launchers.
            count: how many are to wait.
        """
        self._settings = settings
        self._count = count
        self._waiting: list[subprocess.Popen[bytes]] = []
        self._used_at = float("-inf")

    def fill(self) -> None:
        """Start what is missing, unless a run has just begun: that has the machine for itself."""
        self._waiting = [process for process in self._waiting if process.poll() is None]
        if time.monotonic() - self._used_at < _REFILL_SECONDS:
            return
        for _ in range(self._count - len(self._waiting)):
            process = subprocess.Popen(
                [sys.executable, "-m", "ledgerbeam.service.ahead"],
                stdin=subprocess.PIPE,
                env={**os.environ, REGISTRY: self._settings.registry_url},
                start_new_session=True,
            )
            self._waiting.append(process)

    def launch(self, settings: Settings, run_id: str) -> "subprocess.Popen[bytes]":
        """Have a run launched by one that waits, or by a new one where none does."""
        self._used_at = time.monotonic()
        with contextlib.suppress(IndexError, BrokenPipeError):
            process = self._waiting.pop()
            assert process.stdin is not None
            process.stdin.write(f"{run_id} {settings.traceparent}\n".encode())
            process.stdin.close()
            return process
        return spawn(settings, run_id)

    def close(self) -> None:
        """Let those that wait end."""
        for process in self._waiting:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._waiting:
            process.wait()


def main() -> int:
    """Wait for the id of a run, and launch it; 0 where none comes."""
    from ledgerbeam.batch.launch.driver_job import start_driver
    from ledgerbeam.batch.launch.launcher import launch

    settings = Settings.from_environment()
    driver = start_driver(settings.environment_of_workers(), ahead=True)
    run_id, _, traceparent = sys.stdin.readline().strip().partition(" ")
    if not run_id:
        driver.kill()
        driver.wait()
        return 0
    os.environ[TRACEPARENT] = traceparent
    with settings.open_log(run_id) as output, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    return launch(run_id, driver)


if __name__ == "__main__":
    from ledgerbeam.service.ahead import main as importable_main

    sys.exit(importable_main())
