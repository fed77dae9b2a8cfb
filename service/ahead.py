"""Launchers of a node that wait for runs, so that a small one needn't wait for imports."""

import subprocess
import time

from ledgerbeam.batch.launch.ahead import LauncherAhead
from ledgerbeam.batch.launch.spawn import spawn
from ledgerbeam.batch.settings import Settings

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
        self._waiting: list[LauncherAhead] = []
        self._used_at = float("-inf")

    def fill(self) -> None:
        """Start what is missing, unless a run has just begun: that has the machine for itself."""
        self._waiting = [launcher for launcher in self._waiting if launcher.is_waiting()]
        if time.monotonic() - self._used_at < _REFILL_SECONDS:
            return
        for _ in range(self._count - len(self._waiting)):
            self._waiting.append(LauncherAhead(self._settings))

    def launch(self, settings: Settings, run_id: str) -> "subprocess.Popen[bytes]":
        """Have a run launched by one that waits, or by a new one where none does."""
        self._used_at = time.monotonic()
        try:
            launcher = self._waiting.pop()
        except IndexError:
            return spawn(settings, run_id)
        return launcher.launch(settings, run_id)

    def close(self) -> None:
        """Let those that wait end."""
        for launcher in self._waiting:
            launcher.close()
