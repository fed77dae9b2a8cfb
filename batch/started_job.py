"""A job that a launcher has started itself: it hears what the job reports, and lets it work."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from typing import IO

from ledgerbeam.batch.attempt_process import GO, Order, Report
from ledgerbeam.batch.jobs import Job, JobId, ProcessId


class StartedJob(Job):
    """The job of an attempt, as the driver's parent sees it.

    Attributes:
        waits: whether it has recorded its attempt, and waits to be let work.
        last_words: what it has reported of its end, if it did.
    """

    def __init__(self, order: Order, environment: dict[str, str], folder: str) -> None:
        """Start it.

        Args:
            order: what it is to do.
            environment: that it has.
            folder: that it works in, if that is there.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ledgerbeam.batch.attempt_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=folder if os.path.isdir(folder) else None,
            start_new_session=True,  # a group of its own, which can be stopped as one
        )
        super().__init__(JobId(ProcessId.of(self._process.pid)), order.beam_flags)
        self.waits = False
        self.last_words = Report()
        self._begun = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(_pipe(self._process.stdout), selectors.EVENT_READ)
        self._write(order.model_dump_json())

    def hear(self, seconds: float) -> None:
        """Take in what it reports, and wait for that so long at most."""
        if not self._selector.get_map():
            time.sleep(seconds)
            return
        while self._selector.select(seconds):
            seconds = 0
            data = os.read(_pipe(self._process.stdout).fileno(), 1 << 16)
            if not data:
                self._selector.unregister(_pipe(self._process.stdout))
                return
            *lines, self._begun = (self._begun + data).split(b"\n")
            for line in lines:
                report = Report(**json.loads(line))
                if report.attempt is not None:
                    self._hold(self.id._replace(name=report.job))
                    self.waits = True
                else:
                    self.last_words = report

    def let_work(self) -> None:
        """Let it begin."""
        self.waits = False
        self._write(GO)

    def has_done_its_work(self) -> bool:
        """Whether it has ended, and says that the instance is published."""
        return self._process.wait() == 0

    def let_go(self) -> None:
        """Hear and say nothing more; whoever has the lease answers for it."""
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
