"""The command, run as users run it."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

_LEDGERBEAM = "from ledgerbeam.batch.cli import main; raise SystemExit(main())"


@pytest.fixture
def run_ledgerbeam() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs `ledgerbeam` with a database of messages."""

    def run(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", _LEDGERBEAM, *arguments],
            env=os.environ | {"LEDGERBEAM_MESSAGES": url},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run
