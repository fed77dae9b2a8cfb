"""Starting processes: a launcher for a run, whoever asks for it, and a driver for an attempt."""

import contextlib
import datetime
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ledgerbeam.batch.settings import REGISTRY, Settings
from ledgerbeam.batch.traces import TRACEPARENT
from ledgerbeam.io.errors import RegistryUnavailableError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.machine import ProcessId

if TYPE_CHECKING:
    from ledgerbeam.batch.model.run import RunRecord
    from ledgerbeam.batch.registry.registry import Registry

_LEASES_UNSEEN = 4
_LEASES_ALIVE = 20
"""For how many leases one is waited for that can't be seen from here, and one that lives."""

Spawn = Callable[[Settings, str], "subprocess.Popen[bytes]"]
"""Starts a launcher of a run."""


def spawn(settings: Settings, run_id: str) -> "subprocess.Popen[bytes]":
    """Start a launcher that outlives this process."""
    with settings.open_log(run_id) as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ledgerbeam.batch.launch.launcher", run_id],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Not on the command line, which everybody can read.
            env={
                **os.environ,
                REGISTRY: settings.registry_url,
                TRACEPARENT: settings.traceparent,
            },
            start_new_session=True,
        )


def start_launcher(
    registry: "Registry",
    settings: Settings,
    run: "RunRecord",
    now: datetime.datetime,
    spawn_it: Spawn = spawn,
) -> "subprocess.Popen[bytes] | None":
    """Start a launcher of a run, unless another one has been started and may still come.

    Args:
        registry: where the run is on record.
        settings: for the launcher.
        run: as it was read from the registry, without a launcher.
        now: the present time.
        spawn_it: starts the process.

    Returns:
        Its process; None where none was started.
    """
    if _is_on_its_way(run, now, settings.lease_seconds) or not registry.begin_launch(run, now):
        return None
    failpoint("spawn: recorded")
    process = spawn_it(settings, run.id)
    failpoint("spawn: started")
    # Where that isn't known, it has less time to come.
    with contextlib.suppress(RegistryUnavailableError):
        registry.record_launcher(run.id, now, str(ProcessId.of(process.pid)))
    return process


def start_driver(
    environment: dict[str, str], folder: str = "", *, ahead: bool = False
) -> "subprocess.Popen[bytes]":
    """Start a driver, which waits for its request.

    Args:
        environment: that it has.
        folder: that it works in, if that is there.
        ahead: whether it imports Beam meanwhile, because its request isn't known yet.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "ledgerbeam.batch.launch.driver", *(["--ahead"] if ahead else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=folder if os.path.isdir(folder) else None,
        start_new_session=True,  # a group of its own, which can be stopped as one
    )


@contextlib.contextmanager
def driver_ahead() -> Iterator["subprocess.Popen[bytes]"]:
    """A driver that imports Beam while this process does; it is ended where nobody has used it."""
    driver = start_driver(Settings.environment_of_workers(), ahead=True)
    try:
        yield driver
    finally:
        # That of an attempt has been waited for, or is somebody else's to stop.
        assert driver.stdin is not None
        if not driver.stdin.closed:
            driver.kill()
            driver.wait()


def _is_on_its_way(run: "RunRecord", now: datetime.datetime, lease_seconds: float) -> bool:
    """Whether a launcher that was started may still come: to import what it needs takes time."""
    if run.launcher_started_at is None:
        return False
    process = ProcessId.parse(run.launcher_process) if run.launcher_process else None
    leases = 1
    if process is not None and not process.is_here:
        leases = _LEASES_UNSEEN
    elif process is not None and process.is_alive():
        leases = _LEASES_ALIVE
    # One of the future was started by a clock that was wrong.
    age = abs((now - run.launcher_started_at).total_seconds())
    return age < leases * lease_seconds
