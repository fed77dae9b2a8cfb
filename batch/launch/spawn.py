"""Starting a launcher in a process of its own."""

import os
import subprocess
import sys

from ledgerbeam.batch.settings import REGISTRY, Settings


def spawn(settings: Settings, run_id: str) -> "subprocess.Popen[bytes]":
    """Start a launcher that outlives this process."""
    with settings.open_log(run_id) as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ledgerbeam.batch.launch.launcher", run_id],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Not on the command line, which everybody can read.
            env={**os.environ, REGISTRY: settings.registry_url},
            start_new_session=True,
        )
