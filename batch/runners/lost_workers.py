"""Detects lost worker processes of the local runner, for which Beam would wait for ever.

With `--direct_running_mode=multi_processing` Beam starts each worker process from a thread of its
own. When the process ends with an error, that thread raises one that nothing handles, while the
pipeline keeps waiting for the worker's data. For a process that never connects, it waits as well.
"""

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    BeamFnControlServicer,
    SubprocessSdkWorkerHandler,
)

from ledgerbeam.batch import interrupts
from ledgerbeam.io.errors import AttemptLostError, OutOfMemoryError
from ledgerbeam.io.memory import KernelKills

START_SECONDS = 300.0
"""How long a worker process may take to connect; on a busy machine its imports take a minute."""

_THREAD = "run_worker"
_ENDED = re.compile(r"Worker subprocess exited with return code (-?\d+)")
_SIGNAL = signal.SIGUSR1
_MODULE = "apache_beam.runners.worker.sdk_worker_main"
_DEAF = b"trap '' INT TERM; exec "
_POLL_SECONDS = 0.5
_AGAIN_SECONDS = 5.0


@contextlib.contextmanager
def interrupted_by_lost_workers() -> Iterator[None]:
    """Interrupt the `with` block, in the main thread, when a worker process is lost.

    In any other thread this does nothing, since Beam can't be interrupted there.

    Raises:
        AttemptLostError: a worker process has ended before its work was done, or has never
            connected.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    workers = _Workers()
    # Not SIGINT: a process that a script starts in the background ignores it.
    handler = signal.signal(_SIGNAL, signal.default_int_handler)
    try:
        with workers.watched():
            yield
    except BaseException:
        # Whatever Beam has made of the interruption.
        if not workers.lost:
            raise
        raise workers.kind(workers.lost) from None
    finally:
        signal.signal(_SIGNAL, handler)


class _Workers:
    """Worker processes that the main thread waits for.

    Attributes:
        lost: what became of the first one that was lost; empty while all is well.
        kind: of the error for that.
    """

    def __init__(self) -> None:
        self.lost = ""
        self.kind: type[AttemptLostError] = AttemptLostError
        self._kernel_kills = KernelKills()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._started: list[tuple[Any, float]] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watch those that are started within the `with` block."""
        before, start = threading.excepthook, SubprocessSdkWorkerHandler.start_worker

        def start_worker(handler: Any) -> None:
            # Ctrl-C goes to all processes of the terminal, and each would print a traceback. They
            # end with this process.
            handler._worker_command_line = _DEAF + handler._worker_command_line
            start(handler)
            self._started.append((handler, time.monotonic()))

        interrupts.end_before_exit(_end_other_workers)
        threading.excepthook = self._hook(before)
        SubprocessSdkWorkerHandler.start_worker = start_worker
        threading.Thread(target=self._watch_starts, daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._over.set()
            threading.excepthook = before
            SubprocessSdkWorkerHandler.start_worker = start

    def _hook(
        self, before: Callable[[threading.ExceptHookArgs], Any]
    ) -> Callable[[threading.ExceptHookArgs], Any]:
        def handle(arguments: threading.ExceptHookArgs) -> None:
            if type(arguments.exc_value).__module__.startswith("grpc"):
                return  # from threads of Beam that were connected to a worker
            name = arguments.thread.name if arguments.thread is not None else ""
            found = _ENDED.search(str(arguments.exc_value)) if name == _THREAD else None
            if found is None:
                before(arguments)
            else:
                states = [
                    handler.control_conn._state
                    for handler, _ in self._started
                    if handler.worker_thread is arguments.thread
                ]
                # How one ends whose work is done is of no matter.
                if states != [BeamFnControlServicer.DONE_STATE]:
                    self._lose(_end_of(int(found[1])), self._by_kernel(int(found[1])))

        return handle

    def _watch_starts(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            for handler, since in list(self._started):
                if handler.control_conn._state != BeamFnControlServicer.UNSTARTED_STATE:
                    continue
                if not handler.worker_thread.is_alive():
                    self._lose("a worker process ended before it had connected")
                elif time.monotonic() - since > START_SECONDS:
                    self._lose(f"a worker process has not connected for {START_SECONDS:g} s")

    def _by_kernel(self, code: int) -> str:
        return (
            self._kernel_kills.told("a worker process")
            if _signal_of(code) == signal.SIGKILL
            else ""
        )

    def _lose(self, what: str, by_kernel: str = "") -> None:
        with self._lock:
            if self.lost:
                return
            self.lost = by_kernel or f"{what}: nothing is lost: run again"
            self.kind = OutOfMemoryError if by_kernel else AttemptLostError
        threading.Thread(target=self._interrupt, daemon=True).start()

    def _interrupt(self) -> None:
        patience = 0.0
        while not self._over.wait(patience):
            # Beam waits for the ends of the others when it shuts down.
            _end_other_workers()
            with self._lock:
                if not self._over.is_set():
                    # A flag alone (`interrupt_main`) would not wake the thread from a wait.
                    main = threading.main_thread().ident
                    assert main is not None
                    signal.pthread_kill(main, _SIGNAL)
            patience = _AGAIN_SECONDS


def _end_other_workers() -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(_MODULE in word for word in process.cmdline()):
                process.kill()


def _end_of(code: int) -> str:
    number = _signal_of(code)
    if number <= 0:
        return f"a worker process ended by itself (exit status {code}), before its work was done"
    why = "maybe because memory ran out"
    return f"a worker process was killed (signal {number}, {_name(number)}), {why}"


def _signal_of(code: int) -> int:
    """The signal that has ended a process, from its exit status; not positive if none has."""
    return -code if code < 0 else code - 128  # a shell in between adds 128


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
