"""Detects dead worker processes of the local runner, for which Beam would wait for ever.

With `--direct_running_mode=multi_processing` Beam starts each worker process from a thread of its
own. When the process ends, that thread raises an error that nothing handles, while the pipeline
keeps waiting for the worker's data.
"""

import _thread
import contextlib
import re
import signal
import threading
from collections.abc import Iterator

import psutil

from ledgerbeam.io.errors import AttemptLostError

_THREAD = "run_worker"
_ENDED = re.compile(r"Worker subprocess exited with return code (-?\d+)")
_SIGNAL = signal.SIGUSR1
_MODULE = "apache_beam.runners.worker.sdk_worker_main"


@contextlib.contextmanager
def interrupted_by_lost_workers() -> Iterator[None]:
    """Interrupt the `with` block, in the main thread, when a worker process is killed.

    In any other thread this does nothing, since Beam can't be interrupted there.

    Raises:
        AttemptLostError: a worker process was killed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    killed: list[int] = []
    before = threading.excepthook

    def handle(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.exc_value).__module__.startswith("grpc"):
            return  # from threads of Beam that were connected to a worker
        name = arguments.thread.name if arguments.thread is not None else ""
        found = _ENDED.search(str(arguments.exc_value)) if name == _THREAD else None
        if found is None:
            before(arguments)
            return
        code = int(found[1])
        number = -code if code < 0 else code - 128  # a shell in between adds 128
        if number > 0 and not killed:
            killed.append(number)
            _end_other_workers()
            _thread.interrupt_main(_SIGNAL)

    # Not SIGINT: a process that a script starts in the background ignores it.
    handler = signal.signal(_SIGNAL, signal.default_int_handler)
    threading.excepthook = handle
    try:
        yield
    except KeyboardInterrupt:
        if not killed:
            raise
        raise AttemptLostError(
            f"a worker process was killed (signal {killed[0]}, {_name(killed[0])}), maybe "
            "because memory ran out: nothing is lost: run again"
        ) from None
    finally:
        threading.excepthook = before
        signal.signal(_SIGNAL, handler)


def _end_other_workers() -> None:
    """Kill the other worker processes, since Beam waits for their ends when it shuts down."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(_MODULE in word for word in process.cmdline()):
                process.kill()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
