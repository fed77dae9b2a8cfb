"""A job that a launcher has started itself, and exchanges messages with."""

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from typing import IO

from ledgerbeam.batch.launch.driver import START, AttemptMessage, AttemptRequest
from ledgerbeam.batch.launch.job import Job, JobId, JobResult
from ledgerbeam.batch.launch.spawn import start_driver
from ledgerbeam.io.errors import AttemptLostError, OutOfMemoryError
from ledgerbeam.io.machine import ProcessId
from ledgerbeam.io.memory import KernelKills

START_SECONDS = 300.0
"""How long a driver may take to read its request; on a busy machine its imports take a minute."""


class StartedJob(Job):
    """The job of an attempt, as the driver's parent sees it."""

    def __init__(
        self,
        request: AttemptRequest,
        environment: dict[str, str],
        folder: str,
        driver: "subprocess.Popen[bytes] | None" = None,
    ) -> None:
        """Start it.

        Args:
            request: what it is to do.
            environment: that it has.
            folder: that it works in, if that is there.
            driver: a process of `start_driver` that waits for a request; None to start one.
        """
        self._kernel_kills = KernelKills()
        self._process = driver or start_driver(environment, folder)
        super().__init__(JobId(ProcessId.of(self._process.pid)), request.beam_flags)
        self._end = JobResult()
        self._answer_by = time.monotonic() + START_SECONDS
        self._begun = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(_pipe(self._process.stdout), selectors.EVENT_READ)
        self._write(request.model_dump_json())

    def poll(self, seconds: float, record: Callable[[JobId], None]) -> None:
        """Receive the driver's messages, and let it start when its attempt is recorded.

        One that doesn't answer in time is stopped, and lost.
        """
        if time.monotonic() > self._answer_by:
            self._answer_by = math.inf
            self.stop(0)
            why = f"its process did not answer within {START_SECONDS:g} s of its start"
            self._end = JobResult(lost=why, code=AttemptLostError.code)
        if not self._selector.get_map():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return
        while self._selector.select(seconds):
            seconds = 0
            data = os.read(_pipe(self._process.stdout).fileno(), 1 << 16)
            if not data:
                self._selector.unregister(_pipe(self._process.stdout))
                return
            *lines, self._begun = (self._begun + data).split(b"\n")
            for line in lines:
                message = AttemptMessage(**json.loads(line))
                self._answer_by = math.inf
                if message.has_begun:
                    continue
                if message.attempt is not None:
                    self._hold(self.id._replace(name=message.job))
                    record(self.id)
                    self._write(START)
                else:
                    self._end = JobResult(message.error, message.lost, message.code or None)

    def stop(self, grace: float) -> None:
        """End it, and take its exit status, for which a process that has ended stays on."""
        super().stop(grace)
        self._process.wait()

    def result(self) -> JobResult:
        """What the driver has said of its end; where it died before, what others say of that."""
        if any(self._end):
            return self._end
        if self._process.wait() == -signal.SIGKILL and not self._was_stopped:
            told = self._kernel_kills.told("its process")
            if told:
                return JobResult(lost=told, code=OutOfMemoryError.code)
        return super().result()

    def has_published(self) -> bool:
        """Whether the driver has ended well."""
        return self._process.wait() == 0

    def detach(self) -> None:
        """Exchange no more messages; whoever has the lease is responsible for it."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _pipe(pipe).close()
        self._selector.close()

    def _write(self, line: str) -> None:
        # One that is dead is seen by other means.
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).write(line.encode() + b"\n")
            _pipe(self._process.stdin).flush()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
