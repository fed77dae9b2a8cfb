"""Helpers of a local attempt: processes that execute shards beside this one, on the other cores.

Plain Python holds the interpreter's lock, so that shards in threads don't run side by side. Where a
definition is executed so, and its input is large enough, the other cores get a process each:

    with Helpers(task, count=1, room=…).open() as key:
        …                                   # in the step that executes shards:
        helpers = helpers_of(key)
        commit = helpers.execute(worker_control, shard, size, arguments)

Each helper is a fresh interpreter: nothing is forked, so it doesn't matter which threads this
process has. It gets a shard as places in spill files, commits the shard itself, and answers with
its marker. This process executes shards, too, from the beginning, while helpers still import.
"""

import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from apache_beam.internal import pickler

from ledgerbeam.batch import interrupts
from ledgerbeam.batch.execute.executions import Snapshot
from ledgerbeam.batch.execute.helper import Task, levels_of_loggers
from ledgerbeam.batch.execute.worker_control import IN_FLIGHT, Slot, WorkerControl
from ledgerbeam.io.errors import AttemptLostError, OutOfMemoryError
from ledgerbeam.io.memory import KernelKills
from ledgerbeam.transforms.concurrency.throttle import Limits

START_SECONDS = 1.0
"""How long a shard waits before helpers are started that weren't from the beginning."""

BUSY = 0.8
"""How much of a core this process then must have kept busy: components that wait need no core."""

_EXIT_SECONDS = 2.0
_POLL_SECONDS = 1.0
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from ledgerbeam.batch.execute.helper import main; main(int(sys.argv[1]))"
)
_log = logging.getLogger(__name__)
_open: dict[str, "Helpers"] = {}


def helpers_of(key: str) -> "Helpers | None":
    """The helpers that this process has opened under a key; None in any other process."""
    return _open.get(key)


class _RemoteError(Exception):
    """The traceback of an error in a helper, as the cause of that error here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Helper:
    """A helper process, as this process sees it; a throttle for `WorkerControl`."""

    def __init__(self, helpers: "Helpers") -> None:
        self._socket, other = socket.socketpair()
        # A helper never sees these signals, not even before it can ignore them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _PROGRAM,
                    str(other.fileno()),
                    json.dumps([*map(str, sys.path)]),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            other.close()
        self.slot = Slot(self, lambda: self._snapshot)
        self.control: WorkerControl | None = None
        self._helpers = helpers
        self._connection = Connection(os.dup(self._socket.fileno()))
        self._sending = threading.Lock()
        self._answering = threading.Lock()
        self._lost: AttemptLostError | None = None
        self._snapshot = Snapshot()
        self._answer: Future[Any] = Future()
        threading.Thread(target=self._receive, name="helper", daemon=True).start()

    def execute(self, control: WorkerControl, shard: int, arguments: tuple[Any, ...]) -> Any:
        """Have a shard executed, and wait for the result."""
        with self._answering:
            if self._lost is not None:
                raise self._lost
            self._answer = Future()
        self.control, self._snapshot = control, Snapshot()
        with control.sharing(self.slot):
            self.send("shard", shard, arguments)
            return self._answer.result()

    def set(self, limits: Limits) -> None:
        self.send("set", limits)

    def hold(self, seconds: float) -> None:
        self.send("hold", seconds)

    def cancel(self) -> None:
        self.send("cancel")

    def send(self, *message: object) -> None:
        """Send a message; that nobody hears it is found by the thread that receives."""
        data = pickle.dumps(message)
        with self._sending, contextlib.suppress(OSError):
            self._connection.send_bytes(data)

    def close(self) -> None:
        """Let the process end, which it does at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _receive(self) -> None:
        try:
            # Processes that it has forked may hold the socket open when it is gone.
            while self._connection.poll(_POLL_SECONDS) or self.process.poll() is None:
                if self._connection.poll():
                    kind, *rest = self._connection.recv()
                    getattr(self, f"_on_{kind}")(*rest)
        except (EOFError, OSError):
            pass
        except Exception:
            _log.exception("what a process that executes shards has sent can't be read")
            self.process.kill()
        self._connection.close()
        self._socket.close()
        self._helpers.ended(self)

    def lose(self, error: AttemptLostError) -> None:
        """What it executes has no result."""
        with self._answering:
            self._lost = error
            if not self._answer.done():
                self._answer.set_exception(error)

    def _on_ready(self) -> None:
        self._helpers.ready(self)

    def _on_unready(self, why: str) -> None:
        self._helpers.forget(self)
        _log.warning("shards are executed by one process less, which can't be told what: %s", why)

    def _on_done(self, result: Any) -> None:
        self._answer.set_result(result)

    def _on_failed(self, error: BaseException, text: str) -> None:
        error.__cause__ = error.__cause__ or _RemoteError(text)
        self._answer.set_exception(error)

    def _on_log(self, fields: dict[str, Any]) -> None:
        record = logging.makeLogRecord(fields)
        logging.getLogger(record.name).handle(record)

    def _on_out(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(text)

    def _on_err(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def _on_hold(self, seconds: float) -> None:
        if self.control is not None:
            self.control.hold(seconds)


class Helpers:
    """The helpers of one attempt, and the slot of this process beside them."""

    def __init__(self, task: Task, count: int, room: int, at_once: bool) -> None:
        """Describe them; none is started yet.

        Args:
            task: what is done with a shard.
            count: how many helpers there are to be.
            room: bytes that the shards in flight may have together; one alone may have more.
            at_once: whether they are started when these are opened; else when a shard has waited.
        """
        self.in_flight = count + IN_FLIGHT
        self._task = task
        self._count = count
        self._room = room
        self._at_once = at_once
        self._changed = threading.Condition()
        self._started: list[_Helper] = []
        self._idle: list[_Helper] = []
        self._own = 0
        self._ready = 0
        self._in_flight: list[int] = []
        self._has_started = False
        self._is_closed = False
        self._lost: AttemptLostError | None = None
        self._kernel_kills = KernelKills()

    @contextlib.contextmanager
    def open(self) -> Iterator[str]:
        """Have them in this process until the end of the `with` block, under the key it gives."""
        key = uuid.uuid4().hex
        _open[key] = self
        interrupts.end_before_exit(self.kill)
        try:
            if self._at_once:
                self._start()
            yield key
        finally:
            del _open[key]
            self.close()
            for helper in self._started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    helper.process.wait(_EXIT_SECONDS)
            self.kill()
            for helper in self._started:
                helper.process.wait()

    def execute(
        self, control: WorkerControl, shard: int, size: int, arguments: tuple[Any, ...]
    ) -> Any:
        """Execute a shard in a helper that is idle, or else in this process.

        Args:
            control: the control of this process.
            shard: its number.
            size: bytes that it has.
            arguments: what the task needs besides.

        Raises:
            AttemptLostError: a helper has ended; an `OutOfMemoryError` if the kernel has ended it.
            Exception: what the task raises, with its traceback in the helper as its cause.
        """
        helper = self._wait_for_slot(size)
        try:
            if helper is not None:
                return helper.execute(control, shard, arguments)
            with control.sharing(control.own_slot):
                return self._task(control, shard, *arguments)
        finally:
            with self._changed:
                self._in_flight.remove(size)
                if helper is None:
                    self._own -= 1
                else:
                    self._idle.append(helper)
                self._changed.notify_all()

    def close(self) -> None:
        """Let helpers end that have nothing to do."""
        with self._changed:
            self._is_closed = True
            self._lost = self._lost or AttemptLostError("the attempt has ended")
            self._changed.notify_all()
        for helper in self._started:
            helper.close()

    def kill(self) -> None:
        """End helpers that are still there."""
        for helper in self._started:
            helper.process.kill()

    def ready(self, helper: _Helper) -> None:
        """A helper has loaded the task."""
        with self._changed:
            self._ready += 1
            self._idle.append(helper)
            self._changed.notify_all()

    def forget(self, helper: _Helper) -> None:
        """A helper can't load the task, and ends by itself."""
        with self._changed:
            self._started.remove(helper)

    def ended(self, helper: _Helper) -> None:
        """A helper has ended: a loss, unless it was to."""
        try:
            code = helper.process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:  # it has closed the socket itself
            helper.process.kill()
            code = helper.process.wait()
        with self._changed:
            if helper not in self._started:
                return
            lost = self._lost = self._lost or self._loss(code)
            self._changed.notify_all()
        helper.lose(lost)
        if not self._is_closed:
            # A shard without a result is a lost attempt: what others execute is of no use.
            self.kill()

    def _loss(self, code: int) -> AttemptLostError:
        killed = self._kernel_kills.told("a process that executes shards") if code == -9 else ""
        if killed:
            return OutOfMemoryError(killed)
        how = f"ended by itself (exit status {code})"
        if code < 0:
            how = f"was killed (signal {-code}, {signal.Signals(-code).name})"
        return AttemptLostError(
            f"a process that executes shards {how}, before its work was done: nothing is lost: "
            "run again"
        )

    def _start(self) -> None:
        self._has_started = True
        pickled = pickler.dumps(self._task)
        levels = levels_of_loggers()
        for _ in range(self._count):
            try:
                helper = _Helper(self)
            except OSError as error:
                _log.warning("shards are executed by one process less: %s", error)
                return
            self._started.append(helper)
            # It is read once Beam is imported there, and this process has other things to do.
            load = ("load", pickled, levels)
            threading.Thread(target=helper.send, args=load, name="load", daemon=True).start()

    def _wait_for_slot(self, size: int) -> _Helper | None:
        with self._changed:
            while self._lost is None:
                has_room = not self._in_flight or sum(self._in_flight) + size <= self._room
                if has_room and self._idle:
                    self._in_flight.append(size)
                    return self._idle.pop()
                # Without helpers this process works as it does where there are to be none.
                if has_room and self._own < max(IN_FLIGHT - self._ready, 1):
                    self._in_flight.append(size)
                    self._own += 1
                    return None
                since, worked = time.monotonic(), time.process_time()
                if not self._changed.wait(START_SECONDS) and has_room and not self._has_started:
                    worked = time.process_time() - worked
                    if worked >= BUSY * (time.monotonic() - since):
                        self._start()
            raise self._lost
