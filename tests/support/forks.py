"""Tests that fork."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def in_own_process(check: Callable[..., None], *arguments: str) -> None:
    """Carry a check out in a process that has no threads yet, so that it may fork.

    In a process of threads, a lock that another thread holds is held in the child for ever.
    """
    code = f"import sys, {check.__module__} as m; m.{check.__name__}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
