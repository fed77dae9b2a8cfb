"""Batches of a shuffle on local disk.

On a distributed runner the batches of a table go through GroupByKey. The local runner would hold
them all in memory, so there they are written to local disk, and only their file positions go
through GroupByKey.
"""

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias

import pyarrow as pa

from ledgerbeam.io.arrow.stream import read_stream, write_stream
from ledgerbeam.io.errors import StorageError, UserError

_PREFIX = "ledgerbeam-spill-"
_LOCK = "lock"
_BUFFER_BYTES = 1 << 18


class SpilledBatch(NamedTuple):
    """Where a batch is on local disk: an Arrow IPC stream, `length` bytes from `offset`."""

    path: str
    offset: int
    length: int


Batch: TypeAlias = pa.Table | SpilledBatch
"""Rows of one shard that come from one split."""


def spill(
    directory: str, batches: Iterable[tuple[int, pa.Table]]
) -> list[tuple[int, SpilledBatch]]:
    """Write batches to one new file in the directory, and return where each is.

    Raises:
        StorageError: the disk is full or can't be written.
    """
    path = os.path.join(directory, f"{uuid.uuid4().hex}.arrows")
    spilled = []
    try:
        # Buffered, because a stream is written in many small parts.
        with pa.output_stream(path, buffer_size=_BUFFER_BYTES) as sink:
            for shard, table in batches:
                offset = sink.tell()
                write_stream(sink, table)
                spilled.append((shard, SpilledBatch(path, offset, sink.tell() - offset)))
    except OSError as error:
        raise _spill_error(directory, error) from error
    return spilled


def load_batch(batch: Batch) -> pa.Table:
    """The batch's rows."""
    if isinstance(batch, pa.Table):
        return batch
    with pa.OSFile(batch.path, "rb") as source:
        source.seek(batch.offset)
        return read_stream(source.read_buffer(batch.length))


def batch_bytes(batch: Batch) -> int:
    """Approximate memory that the batch takes, in bytes."""
    return batch.nbytes if isinstance(batch, pa.Table) else batch.length


class SpillDirectory:
    """A folder for spilled batches that doesn't outlive its run.

    It is removed at the end of the `with`. A process that is killed can't do that, but the kernel
    releases its lock, and the next process that makes a spill directory removes unlocked ones.
    """

    def __init__(self, parent: str | None = None) -> None:
        """Choose the parent folder; by default the one for temporary files (`TMPDIR`)."""
        self._parent = parent or tempfile.gettempdir()

    def __enter__(self) -> Self:
        try:
            self._sweep()
            self.path, self._lock = self._make()
        except OSError as error:
            raise _spill_error(self._parent, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def _make(self) -> tuple[str, int]:
        """A new folder, and the file descriptor of its lock, which is held."""
        while True:
            path = tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent)
            # Until the folder is locked, another process's sweep may remove it.
            try:
                lock = os.open(os.path.join(path, _LOCK), os.O_CREAT | os.O_RDWR)
            except FileNotFoundError:
                continue
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), os.stat(os.path.join(path, _LOCK))):
                    return path, lock
            os.close(lock)

    def _sweep(self) -> None:
        """Remove this user's folders whose processes are gone."""
        for folder in Path(self._parent).glob(f"{_PREFIX}*"):
            try:
                if folder.lstat().st_uid != os.getuid():
                    continue
                # Its process may have died before it created the lock.
                lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
            except OSError:
                continue  # removed just now
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                pass  # in use
            finally:
                os.close(lock)


def _spill_error(directory: str, error: OSError) -> UserError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    space = "free some space, or " if is_full else ""
    return StorageError(
        f"cannot spill to {directory}: {reason}: {space}name another folder by TMPDIR",
        uri=directory,
    )
