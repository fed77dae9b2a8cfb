"""SIGINT and SIGTERM: the first one ends a program in order and with one line, a second at once.

Python calls handlers between two steps of the main thread, which a call of a library may hold up
for minutes, and threads that a runner has left keep a process from ending. So another thread sees
to it that the process ends in time. That loses nothing: a process may be killed at any point, and
the next attempt goes on from what is committed.
"""

import atexit
import contextlib
import enum
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

GRACE_SECONDS = 9.0
"""How long a program may take to end after a signal."""

LINGER_SECONDS = 5.0
"""How long threads may keep a process that has done what it was to do."""

_POLL_SECONDS = 0.1
_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """The process was sent SIGTERM."""


class _Phase(enum.Enum):
    BEFORE = "nothing has begun"
    BEGUN = "something is under way"
    OVER = "it has ended"


class _Program:
    """What is known of this process, by its main thread and by the one that watches it."""

    def __init__(self) -> None:
        self.phase = _Phase.BEFORE
        self.line = "interrupted, before anything was begun"
        self.received = 0
        self.status = 0
        self.end_by: float | None = None
        self.children: list[Callable[[], None]] = []
        self._is_told = False
        self._lock = threading.Lock()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def watch(self) -> None:
        """Catch signals."""
        # The number of a signal is written there at once, whatever the main thread does.
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_leave_to_parent)
        for number in _CAUGHT:
            # What a script starts in the background ignores SIGINT.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _handle)
        threading.Thread(target=self._see_to_end, name="interrupts", daemon=True).start()
        atexit.register(self._ignore)

    def _ignore(self) -> None:
        """Let signals not change the status of a program that has ended, and is being taken down.

        The interpreter would give them back their default, which is to kill.
        """
        if self.phase is _Phase.OVER:
            for number in _CAUGHT:
                signal.signal(number, signal.SIG_IGN)

    def begin(self, line: str) -> None:
        self.line, self._is_told = line, False
        self.received, self.end_by = 0, None
        self.phase = _Phase.BEGUN

    def end(self, status: int) -> None:
        self.phase, self.status = _Phase.OVER, status
        self.end_by = self.end_by or time.monotonic() + LINGER_SECONDS
        os.write(self._writer, b"\0")

    def tell(self) -> None:
        with self._lock:
            if not self._is_told:
                os.write(2, f"{self.line}\n".encode())
            self._is_told = True

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self.phase is not _Phase.OVER:
            self.tell()
            self.status = 128 + self.received
        for end in self.children:
            end()
        os._exit(self.status)

    def _see_to_end(self) -> None:
        while True:
            ready, _, _ = select.select(
                [self._reader], [], [], None if self.end_by is None else _POLL_SECONDS
            )
            for number in os.read(self._reader, 64) if ready else b"":
                if number in _CAUGHT:
                    self._receive(number)
            is_due = self.end_by is not None and time.monotonic() >= self.end_by
            # A program that goes on after `main` has returned is let go on.
            if is_due and (self.phase is _Phase.BEGUN or not threading.main_thread().is_alive()):
                self.kill()

    def _receive(self, number: int) -> None:
        is_second, self.received = bool(self.received), self.received or number
        if is_second or self.phase is _Phase.BEFORE:
            self.kill()
        if self.phase is _Phase.BEGUN:
            self.end_by = time.monotonic() + GRACE_SECONDS


_program: _Program | None = None


def catch() -> None:
    """Catch signals; as long as nothing has begun, one ends the process at once.

    In another thread than the main one this does nothing, as Python can't catch signals there.
    """
    global _program
    if _program is None and threading.current_thread() is threading.main_thread():
        _program = _Program()
        _program.watch()


def begin(line: str) -> None:
    """From now on a signal raises `KeyboardInterrupt` or `Terminated` in the main thread.

    Args:
        line: what is printed where the process ends by a signal.
    """
    catch()
    if _program is not None:
        _program.begin(line)


def tell() -> None:
    """Print the line, unless it was printed before."""
    if _program is not None:
        _program.tell()


def end(status: int) -> int:
    """The program has done what it was to do: threads don't keep its process for long.

    Args:
        status: that it exits with; given back.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if _program is not None:
        _program.end(status)
    return status


def end_before_exit(children: Callable[[], None]) -> None:
    """Have child processes ended, should this process have to be ended from its other thread."""
    if _program is not None and children not in _program.children:
        _program.children.append(children)


def status_of(interruption: KeyboardInterrupt) -> int:
    """The exit status of a program that was interrupted."""
    return 128 + (signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT)


def interruption_in(error: BaseException) -> KeyboardInterrupt | None:
    """The interruption that an error has come of; None where that is an error of its own.

    Beam wraps what is raised in a worker into errors of its own, as do other libraries.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, KeyboardInterrupt):
            return found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    if _program is not None and _program.received:
        return _raised_by(_program.received)
    return None


def _raised_by(number: int) -> KeyboardInterrupt:
    # With a message: of an exception that has none, Beam makes one of another class.
    if number == signal.SIGTERM:
        return Terminated("told to end")
    return KeyboardInterrupt("interrupted")


def _handle(number: int, frame: FrameType | None) -> None:
    assert _program is not None
    if _program.phase is _Phase.BEFORE:
        _program.received = number
        _program.kill()
    if threading.main_thread().is_alive():  # else the interpreter is about to end
        raise _raised_by(number)


def _leave_to_parent() -> None:
    """A forked process has no such thread, and is no part of what its parent is told."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)
