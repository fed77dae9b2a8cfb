"""Worker processes of the local runner that die: Beam waits for them for ever, so this doesn't.

Beam starts each with `--direct_running_mode=multi_processing` from a thread of its own. That one
learns of the process's end and raises an error that nobody hears, while the pipeline goes on
waiting for what the worker was to send.
"""

import _thread
import contextlib
import re
import signal
import threading
from collections.abc import Iterator

import psutil

from ledgerbeam.io.attempts import LostError

_THREAD = "run_worker"
_ENDED = re.compile(r"Worker subprocess exited with return code (-?\d+)")
_SIGNAL = signal.SIGUSR1
_MODULE = "apache_beam.runners.worker.sdk_worker_main"


@contextlib.contextmanager
def interrupted_by_lost_workers() -> Iterator[None]:
    """Interrupt what is done inside, in the main thread, once a worker process is killed.

    In another thread nothing can interrupt Beam, and nothing is done.

    Raises:
        LostError: it was.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    killed: list[int] = []
    before = threading.excepthook

    def heard(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.exc_value).__module__.startswith("grpc"):
            return  # of Beam's threads, which were connected to a worker
        name = arguments.thread.name if arguments.thread is not None else ""
        found = _ENDED.search(str(arguments.exc_value)) if name == _THREAD else None
        if found is None:
            before(arguments)
            return
        code = int(found[1])
        number = -code if code < 0 else code - 128  # a shell between tells it in its own way
        if number > 0 and not killed:
            killed.append(number)
            _end_other_workers()
            _thread.interrupt_main(_SIGNAL)

    # Not by SIGINT: what a script starts in the background ignores that, and would wait for ever.
    handler = signal.signal(_SIGNAL, signal.default_int_handler)
    threading.excepthook = heard
    try:
        yield
    except KeyboardInterrupt:
        if not killed:
            raise
        raise LostError(
            f"a worker process was killed (signal {killed[0]}, {_name(killed[0])}), maybe for "
            "want of memory: nothing is lost: run again"
        ) from None
    finally:
        threading.excepthook = before
        signal.signal(_SIGNAL, handler)


def _end_other_workers() -> None:
    """Beam's threads wait for their ends when it winds up."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(_MODULE in word for word in process.cmdline()):
                process.kill()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
