"""Processes that are started before there is a run, so that it needn't wait for their imports.

A launcher that was started ahead waits for the id of a run on its standard input, with the driver
of its first attempt beside it, which has imported Beam. Nothing is forked from a process that has
imported Beam: threads of gRPC and Arrow don't survive that. Where whoever started it ends, the pipe
does, and whoever waits at the other end ends too.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from ledgerbeam.batch.launch.spawn import Spawn, driver_ahead, spawn
from ledgerbeam.batch.settings import REGISTRY, Settings
from ledgerbeam.batch.traces import TRACEPARENT


class LauncherAhead:
    """A process that waits for a run to launch."""

    def __init__(self, settings: Settings) -> None:
        """Start it.

        Args:
            settings: for the launcher.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ledgerbeam.batch.launch.ahead"],
            stdin=subprocess.PIPE,
            env={**os.environ, REGISTRY: settings.registry_url},
            start_new_session=True,
        )

    def is_waiting(self) -> bool:
        """Whether it can be used: it hasn't died, and no run was given to it."""
        assert self._process.stdin is not None
        return not self._process.stdin.closed and self._process.poll() is None

    def launch(self, settings: Settings, run_id: str) -> "subprocess.Popen[bytes]":
        """Have it launch a run; or a new one, where it can't be used."""
        if not self.is_waiting():
            return spawn(settings, run_id)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{run_id} {settings.traceparent}\n".encode())
            self._process.stdin.close()
        except BrokenPipeError:
            return spawn(settings, run_id)
        return self._process

    def close(self) -> None:
        """Let it end, if it still waits."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()


@contextlib.contextmanager
def launcher_ahead(settings: Settings) -> Iterator[Spawn]:
    """A launcher that is started while it is found out what it is to launch."""
    launcher = LauncherAhead(settings)
    try:
        yield launcher.launch
    finally:
        launcher.close()


def main() -> int:
    """Wait for the id of a run, and launch it; 0 where none comes."""
    settings = Settings.from_environment()
    with driver_ahead() as driver:
        from ledgerbeam.batch.launch.launcher import launch  # while the driver imports Beam

        run_id, _, traceparent = sys.stdin.readline().strip().partition(" ")
        if not run_id:
            return 0
        os.environ[TRACEPARENT] = traceparent
        with settings.open_log(run_id) as output, open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        return launch(run_id, driver)


if __name__ == "__main__":
    from ledgerbeam.batch.launch.ahead import main as importable_main

    sys.exit(importable_main())
