"""A helper: a process that executes shards for the process that runs an attempt locally.

It is a fresh interpreter, not a fork, and talks to nobody but the process that has started it, over
one socket. It ends when that closes: at once if it is in the midst of a shard, which then has no
marker. Messages are tuples that begin with their kind:

    to the helper    load, task · shard, number, arguments · set, limits · hold, seconds · cancel
    from the helper  ready · unready, why · done, result · failed, error, traceback · log, record ·
                     out, text · err, text · snapshot, what is executed · hold, seconds
"""

import ledgerbeam.batch.import_beam  # noqa: F401, I001 - in front of all that imports Beam

import contextlib
import io
import logging
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol, TextIO, cast

from apache_beam.internal import pickler

from ledgerbeam.batch import logs
from ledgerbeam.batch.execute.executions import Executions, ShardControl, Snapshot
from ledgerbeam.io.errors import BugError
from ledgerbeam.transforms.concurrency.memory import collect_garbage_rarely, keep_freed_memory
from ledgerbeam.transforms.concurrency.throttle import Limits, Ramp, Throttle

SNAPSHOT_SECONDS = 1.0
"""How often a helper tells what it executes."""


class Task(Protocol):
    """What is done with shards, in any process: pickled to helpers."""

    def begin(self) -> None:
        """Called once in a helper, before the first shard."""

    def __call__(self, control: ShardControl, shard: int, *arguments: Any) -> Any:
        """Execute a shard."""


class HelperControl(Executions):
    """Admits what the process that has started this helper lets it do.

    Attributes:
        throttle: admits components; closed until the first limits have come.
    """

    def __init__(self, hold: Callable[[float], None]) -> None:
        """Make a control.

        Args:
            hold: has no other process of the run begin anything for so many seconds.
        """
        super().__init__()
        self.throttle = Throttle()
        self.throttle.set(Limits(paused=True))
        self._hold = hold

    def own_threads(self) -> int:
        """One."""
        return 1

    def slice_size(self, count: int) -> int:
        """How many of `count` components to execute in one call, to keep a rate evenly."""
        rate = self.throttle.limits.rate
        if isinstance(rate, Ramp):
            rate = rate.from_rate
        return count if rate is None else max(int(rate), 1)

    def hold(self, seconds: float) -> None:
        """Have no process of the run begin anything for so long."""
        self.throttle.hold(seconds)
        self._hold(seconds)


class _Helper:
    """This process, as a helper."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._control = HelperControl(lambda seconds: self.send("hold", seconds))
        self._shards: queue.SimpleQueue[tuple[int, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._is_executing = False
        self._is_over = threading.Event()

    def send(self, *message: object) -> None:
        """Send a message; where nobody hears it any more, the thread that receives ends all."""
        self._send(pickle.dumps(message))

    def _send(self, data: bytes) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._connection.send_bytes(data)

    def work(self, task: Task) -> None:
        """Execute shards until there are no more."""
        for work in (self._receive, self._tell):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()
        self.send("ready")
        while (shard := self._shards.get()) is not None:
            self._execute(task, *shard)
        self._is_over.set()

    def _execute(self, task: Task, shard: int, arguments: tuple[Any, ...]) -> None:
        try:
            answer = pickle.dumps(("done", task(self._control, shard, *arguments)))
        except BaseException as error:
            answer = _failed(error)
        self._is_executing = False
        self._send(answer)

    def _receive(self) -> None:
        throttle = self._control.throttle
        while True:
            try:
                kind, *rest = self._connection.recv()
            except (EOFError, OSError):
                if self._is_executing:
                    os._exit(1)
                self._shards.put(None)
                return
            if kind == "shard":
                self._is_executing = True
                self._shards.put((rest[0], rest[1]))
            else:
                getattr(throttle, kind)(*rest)

    def _tell(self) -> None:
        told = Snapshot()
        while not self._is_over.wait(SNAPSHOT_SECONDS):
            snapshot = self._control.snapshot()
            if snapshot != told:
                told = snapshot
                self.send("snapshot", told)


def _failed(error: BaseException) -> bytes:
    """The message for an error; for one that can't be sent, a `BugError` of the same text."""
    text = "".join(traceback.format_exception(error))
    error.__traceback__ = None
    try:
        message = pickle.dumps(("failed", error, text))
        pickle.loads(message)  # noqa: S301 - made here
    except Exception:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        message = pickle.dumps(("failed", BugError(line), text))
    return message


class _Forwarded(io.TextIOBase):
    """A text stream whose text is written by the process that has started this one."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._write(text)
        return len(text)


class _ForwardedRecords(logging.Handler):
    """Has log records handled by the process that has started this one."""

    def __init__(self, send: Callable[..., None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.exc_info:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            fields = record.__dict__ | {"msg": record.getMessage(), "args": None, "exc_info": None}
            own = {name: value for name, value in fields.items() if _is_plain(value)}
            self._send("log", own)
        except Exception:
            self.handleError(record)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | tuple)


@contextlib.contextmanager
def _forwarded(send: Callable[..., None], levels: Mapping[str, int]) -> Iterator[None]:
    """What is logged or printed inside of the `with` block is sent."""
    root = logging.getLogger()
    root.handlers[:] = [_ForwardedRecords(send)]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    sys.stdout = cast("TextIO", _Forwarded(lambda text: send("out", text)))
    sys.stderr = cast("TextIO", _Forwarded(lambda text: send("err", text)))
    with logs.redacted_output(stdout_is_log=True):
        yield


def main(descriptor: int) -> None:
    """Load the task that comes first, and execute the shards that follow."""
    # Ctrl-C goes to all processes of a terminal. This one ends when the other one does.
    stopping = (signal.SIGINT, signal.SIGTERM)
    for number in stopping:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
    keep_freed_memory()
    collect_garbage_rarely()
    connection = Connection(descriptor)
    # A process that is forked here must not hold the socket open.
    os.register_at_fork(after_in_child=connection.close)
    helper = _Helper(connection)
    with contextlib.suppress(EOFError, OSError):
        _, pickled, levels = helper._connection.recv()
        with _forwarded(helper.send, levels):
            try:
                task = pickler.loads(pickled)
                task.begin()
            except BaseException as error:
                helper.send("unready", " ".join(f"{type(error).__name__}: {error}".split()))
                return
            helper.work(task)


def levels_of_loggers() -> dict[str, int]:
    """The levels that loggers of this process have been given, by name; that of the root is ``."""
    named = logging.root.manager.loggerDict
    found: Iterable[tuple[str, Any]] = [("", logging.getLogger()), *named.items()]
    return {name: it.level for name, it in found if isinstance(it, logging.Logger) and it.level}
