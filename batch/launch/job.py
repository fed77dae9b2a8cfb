"""An attempt's job: whether it still goes on, and how to stop it.

It is a process, the driver, which runs the pipeline or has an engine run it; then it is the
engine's job as well, which goes on without the driver.
"""

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psutil

from ledgerbeam.batch.runners.engine import RunnerJob
from ledgerbeam.batch.runners.failures import error_of
from ledgerbeam.batch.runners.jobs import runner_job
from ledgerbeam.io.errors import AttemptLostError, RunnerUnavailableError
from ledgerbeam.io.machine import ProcessId

_POLL_SECONDS = 0.05
_log = logging.getLogger(__name__)


class JobId(NamedTuple):
    """What identifies a job.

    Attributes:
        driver: the process that runs the pipeline or has it run.
        name: of the job on its engine; empty for the local runner.
    """

    driver: ProcessId
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> "JobId":
        """From the form that `str` gives."""
        driver, _, name = text.partition(" ")
        return cls(ProcessId.parse(driver), name)

    def __str__(self) -> str:
        return f"{self.driver} {self.name}".rstrip()

    @property
    def can_be_seen(self) -> bool:
        """Whether this machine can see whether it goes on."""
        return bool(self.name) or self.driver.is_here


class JobResult(NamedTuple):
    """Why a job has ended; nothing where it has done its work, or nobody knows.

    Attributes:
        error: why it has failed; one line.
        lost: why it has ended without having failed: another attempt may do better.
        code: of the error by which it has failed or was lost, where it has one.
    """

    error: str = ""
    lost: str = ""
    code: str | None = None


class Job:
    """A job that can be seen from this machine; whoever started it may be another launcher.

    The driver is the leader of a process group of its own. One on another machine is left alone:
    it ends with its job on the engine.

    Attributes:
        id: of the job.
    """

    def __init__(self, id: JobId, beam_flags: Sequence[str]) -> None:  # noqa: A002
        """Hold a job that the flags lead to."""
        self._beam_flags = beam_flags
        self._was_stopped = False
        self._hold(id)

    def _hold(self, id: JobId) -> None:  # noqa: A002
        self.id = id
        named = runner_job(self._beam_flags, id.name) if id.name else None
        self._on_engine: RunnerJob | None = named
        self._goes_on = True
        self._ask_at = 0.0

    def is_alive(self) -> bool:
        """Whether it goes on."""
        return self._is_driven() or self._is_on_engine()

    def stop(self, grace: float) -> None:
        """End it, with all that its driver has started; return when nothing of it is left.

        Args:
            grace: seconds that the driver is given to end by itself, and with it the engine's job.
        """
        if self.id.driver.is_here:
            if self._is_driven():
                self._was_stopped = True
                self._signal(signal.SIGCONT)  # a stopped one would not notice
                self._signal(signal.SIGTERM)
                deadline = time.monotonic() + grace
                while self._is_driven() and time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
            self._signal(signal.SIGKILL)
            while self._group():
                time.sleep(_POLL_SECONDS)
        if self._on_engine is not None:
            try:
                self._on_engine.cancel()
            except RunnerUnavailableError as error:
                # Its attempt is fenced off all the same: nothing that it still does counts.
                _log.warning("job %s can't be canceled on its runner: %s", self.id.name, error)
            self._goes_on = False
            self._ask_at = math.inf

    def poll(self, seconds: float, record: Callable[[JobId], None]) -> None:
        """Receive what the job has to say; wait for it for this time at most.

        Args:
            seconds: to wait.
            record: called with the job's id once that is known, before the job does anything that
                counts; it begins when this returns.
        """
        time.sleep(seconds)

    def result(self) -> JobResult:
        """Why the job, which doesn't go on, has ended."""
        if self._on_engine is None:
            return JobResult()
        try:
            failure = self._on_engine.failure()
        except RunnerUnavailableError as error:
            _log.warning("how job %s ended isn't known: %s", self.id.name, error)
            return JobResult()
        if not failure:
            return JobResult()
        found = error_of(failure)
        if isinstance(found, AttemptLostError):
            return JobResult(lost=str(found), code=found.code)
        return JobResult(error=str(found), code=found.code)

    def has_published(self) -> bool:
        """Whether the job, which doesn't go on, says itself that the instance is published."""
        return False

    def _is_driven(self) -> bool:
        return self.id.driver.is_here and self.id.driver.is_alive()

    def _is_on_engine(self) -> bool:
        """What the engine said last; it isn't asked all the time."""
        if self._on_engine is None:
            return False
        if time.monotonic() >= self._ask_at:
            try:
                self._goes_on = self._on_engine.is_alive()
            except RunnerUnavailableError as error:
                _log.warning("whether job %s goes on isn't known: %s", self.id.name, error)
            self._ask_at = time.monotonic() + self._on_engine.poll_seconds
        return self._goes_on

    def _signal(self, number: int) -> None:
        # The group outlives its leader as long as a worker process does.
        if self._group():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.id.driver.pid, number)

    def _group(self) -> list[int]:
        """Processes of the group that go on. Its number isn't given again while there are any."""
        if self.id.driver.was_replaced():
            return []
        found = []
        for process in psutil.process_iter(["pid", "status"]):
            if process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(process.info["pid"]) == self.id.driver.pid:
                    found.append(process.info["pid"])
        return found
