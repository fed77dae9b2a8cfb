"""Where a trial takes place: a recorded run, its processes, storage, clock and registry."""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from tests.support.outcomes import PagedPlace
from tests.support.recorded import Place, processes_of, until

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.runs.reconcile import reconcile
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.machine import HOST

CLOCK = Path(__file__).with_name("clock.c")
ROLES = {
    "launcher": "ledgerbeam.batch.launch.launcher",
    "attempt": "ledgerbeam.batch.launch.driver",
    "worker": "sdk_worker_main",
}
"""Kinds of a run's processes, by what stands in their command lines."""

_EXCHANGE = 2
_HERE = -100


def clock_library(folder: Path) -> Path | None:
    """`clock.c` as a library; None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "clock.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(CLOCK), "-ldl"], check=True
    )
    return library


class Scene:
    """A recorded run, and all that a trial can do to it.

    Attributes:
        place: where the run's files and switches are.
        stopped: processes that are stopped, with the moment (monotonic) at which they go on.
        notes: errors of the project that commands of the trial have met.
        host: name of the machine where the run is at home now; empty for this one's own.
    """

    def __init__(self, folder: Path, url: str, process: str, flags: list[str]) -> None:
        self.place = (PagedPlace if process == "raising" else Place)(folder, url, process)
        self.stopped: dict[psutil.Process, float] = {}
        self.notes: list[str] = []
        self.host = ""
        self._flags = flags
        self._clock = folder / "clock"
        self._clock.write_bytes(bytes(8))
        self._runs = self.place.runs = Runs(self.place.settings, now=self.now)
        self._threads: list[threading.Thread] = []
        self._is_away = False
        self._limited = False
        self._has_lost_one = False

    # The run

    @property
    def runs(self) -> Runs:
        return self._runs

    @property
    def state(self) -> Path:
        return self.place.settings.state

    def record(self) -> str:
        """Submit, without a launcher; gives the run's id."""
        return self._runs.record(self.place.process, self.place.parameters(), self._flags)[0].id

    def status(self) -> RunStatus | None:
        """Where the run stands; None where the registry can't say so now."""
        try:
            return self.place.run().status
        except UserError as error:
            self.notes.append(str(error))
            return None

    @property
    def progress(self) -> int:
        """How many components or pages were begun so far."""
        log = self.place.folder / "calls"
        if not log.exists():
            return 0
        lines = log.read_text().splitlines()
        return sum(not line.startswith("end ") for line in lines)

    def reconcile(self, later: timedelta = timedelta()) -> list[str]:
        """What a cron does on the machine where the run is at home now; a user's error is noted."""
        if self._has_lost_one:
            # Nothing of the lost machine is left: that it stays silent needn't be waited for.
            later += timedelta(seconds=40)
        try:
            with self.on_host():
                found = reconcile(self.place.settings, self._runs, self.now() + later)
        except UserError as error:
            self.notes.append(str(error))
            return []
        return [action.what for action in found]

    # Machines and clocks

    def now(self) -> datetime:
        """The time by the trial's clock."""
        ahead = int.from_bytes(self._clock.read_bytes(), "little", signed=True)
        return datetime.now(UTC) + timedelta(seconds=ahead)

    def step_clock(self, seconds: int) -> None:
        """Set the clock of all processes of the trial; 0 for the true time."""
        descriptor = os.open(self._clock, os.O_WRONLY)
        os.pwrite(descriptor, seconds.to_bytes(8, "little", signed=True), 0)
        os.close(descriptor)

    @contextlib.contextmanager
    def preloaded(self, library: Path | None) -> Iterator[None]:
        """Processes that are started meanwhile follow the trial's clock."""
        with pytest.MonkeyPatch.context() as patch:
            if library is not None:
                patch.setenv("LD_PRELOAD", str(library))
                patch.setenv("NEMESIS_CLOCK", str(self._clock))
            yield

    @contextlib.contextmanager
    def on_host(self) -> Iterator[None]:
        """What is started or done meanwhile is so on the machine where the run is at home now."""
        with pytest.MonkeyPatch.context() as patch:
            if self.host:
                patch.setenv(HOST, self.host)
            yield

    def lose_machine(self) -> int:
        """The machine loses its power, and another one takes its place."""
        count = self.kill_all()
        self.host = "elsewhere" if self.host != "elsewhere" else "a-third-one"
        self._has_lost_one = True
        return count

    # Processes

    def processes(self, role: str = "") -> list[psutil.Process]:
        """Processes of the trial that go on; of one kind, or of all."""
        found = processes_of(str(self.state))
        if not role:
            return found
        return sorted((p for p in found if ROLES[role] in _arguments(p)), key=lambda p: p.pid)

    def signal(self, role: str, number: int, pick: int) -> bool:
        """Send a signal to a process of a kind; False where there is none."""
        found = self.processes(role)
        if not found:
            return False
        with contextlib.suppress(psutil.Error):
            found[pick % len(found)].send_signal(number)
            return True
        return False

    def stop(self, role: str, seconds: float, pick: int) -> bool:
        """Stop a process of a kind for so long; False where there is none."""
        found = self.processes(role)
        if not found:
            return False
        process = found[pick % len(found)]
        with contextlib.suppress(psutil.Error):
            process.suspend()
            self.stopped[process] = time.monotonic() + seconds
            return True
        return False

    def let_go_on(self) -> None:
        """Continue what has been stopped for long enough, also by itself at a failpoint."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED and process not in self.stopped:
                    self.stopped[process] = time.monotonic() + 2 * self.place.settings.lease_seconds
        for process, moment in list(self.stopped.items()):
            if time.monotonic() >= moment:
                del self.stopped[process]
                with contextlib.suppress(psutil.Error):
                    process.resume()

    def kill_all(self) -> int:
        """Kill every process of the trial, as a loss of power does."""
        found = self.processes()
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return len(found)

    def kill_reconcile(self, after: float) -> bool:
        """Start `ledgerbeam reconcile`, and kill it so many seconds later."""
        code = "import sys; from ledgerbeam.batch.cli.app import main; sys.exit(main())"
        with self.on_host():
            process = subprocess.Popen(
                [sys.executable, "-c", code, "reconcile"],
                env=self.place.environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL

    # Storage and registry

    def fill_storage(self) -> bool:
        """No process of the trial can write any more, as on a full disk."""
        self._limited = True
        return bool(self._limit_files(0))

    def _limit_files(self, size: int) -> int:
        count = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))
                count += 1
        return count

    def exchange_storage(self) -> bool:
        """Put a file in the place of the output folder, or that back: nothing in it is found."""
        output, away = self.place.folder / "output", self.place.folder / "output-away"
        if not self._is_away:
            if not output.exists():
                return False
            away.touch()
        names = [os.fsencode(path) for path in (output, away)]
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE):
            raise OSError(ctypes.get_errno(), "renameat2")
        self._is_away = not self._is_away
        return True

    def hold_registry(self, seconds: float) -> None:
        """Keep others from the registry: connections are cut, or the file is locked for a while."""
        if self.place.url.startswith("postgresql"):
            engine = sa.create_engine(self.place.url, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(
                    sa.text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                    )
                )
            engine.dispose()
            until(self.status, "a new connection")
            return
        thread = threading.Thread(target=self._lock, args=[seconds])
        thread.start()
        self._threads.append(thread)

    def _lock(self, seconds: float) -> None:
        file = self.place.url.removeprefix("sqlite:///")
        connection = sqlite3.connect(file, timeout=20, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
        connection.close()

    # The end

    def heal(self) -> None:
        """Take back all that was done and can be; what is stopped goes on in its time."""
        self.step_clock(0)
        self.heal_storage()
        self.place.unset("slow")
        for thread in self._threads:
            thread.join()

    def heal_storage(self) -> None:
        """Storage can be written again, and is where it was."""
        if self._limited:
            self._limit_files(resource.RLIM_INFINITY)
            self._limited = False
        if self._is_away:
            self.exchange_storage()

    def close(self) -> None:
        """End all that is left of the trial, which is nothing where it ended well."""
        self.heal()
        self.kill_all()
        self._runs.registry.close()

    def until_quiet(self, seconds: float) -> None:
        """Wait until no process of the trial is left."""

        def is_quiet() -> bool:
            self.let_go_on()
            return not self.processes()

        until(is_quiet, "the end of all processes", seconds)


def _arguments(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
