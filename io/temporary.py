"""One folder for all temporary files of a process and those that it starts, which nobody leaves.

It is removed at the end. A process that is killed can't do that, but the kernel releases its lock,
and whoever comes next removes the folders that nobody has locked.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ledgerbeam.io.errors import StorageError
from ledgerbeam.io.machine import host_name
from ledgerbeam.io.shared import SharedByKey

_PREFIX = "ledgerbeam-"
_LOCK = "lock"
_VARIABLE = "TMPDIR"


class _Folder:
    """A folder in which `tempfile` makes files of this process, and of those that it starts."""

    def __init__(self) -> None:
        remove_left_behind()
        self._before = tempfile.tempdir, os.environ.get(_VARIABLE)
        self.path, self._lock = _make(tempfile.gettempdir())
        tempfile.tempdir = os.environ[_VARIABLE] = self.path

    def remove(self) -> None:
        tempfile.tempdir, variable = self._before
        if variable is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = variable
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


_folders = SharedByKey(_Folder.remove)


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Have all temporary files in a folder of this process, and remove those of dead ones.

    Within the `with` block, `tempfile` makes files in it, as do processes that are started. Blocks
    that this process is in at the same time have the same folder. Its name tells host and process.

    Yields:
        Its path.

    Raises:
        StorageError: it can't be made.
    """
    try:
        folder = _folders.acquire("", _Folder)
    except OSError as error:
        parent = tempfile.gettempdir()
        raise StorageError(
            f"cannot make temporary files in {parent}: {error.strerror}: name another folder by "
            f"{_VARIABLE}",
            uri=parent,
        ) from error
    try:
        yield folder.path
    finally:
        _folders.release("")


def remove_left_behind() -> int:
    """Remove folders that this user's processes on this host have left; gives how many."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{_host()}-*-*"):
        with contextlib.suppress(OSError):  # removed just now, or no folder
            if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
                continue
            # Its process may have died before it created the lock.
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
            finally:
                os.close(lock)
    return removed


def _make(parent: str) -> tuple[str, int]:
    """A new folder, and the file descriptor of its lock, which is held."""
    while True:
        path = tempfile.mkdtemp(prefix=f"{_PREFIX}{_host()}-{os.getpid()}-", dir=parent)
        # Until the folder is locked, another process may remove it.
        try:
            lock = os.open(os.path.join(path, _LOCK), os.O_CREAT | os.O_RDWR)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(os.path.join(path, _LOCK))):
                return path, lock
        os.close(lock)


def _host() -> str:
    # Short, since names of sockets in it are bounded.
    return re.sub(r"[^\w.]", "_", host_name())[:24]
