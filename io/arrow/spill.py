"""Batches of a shuffle on local disk.

On a distributed runner the batches of a table go through GroupByKey. The local runner would hold
them all in memory, so there they are written to local disk, and only their file positions go
through GroupByKey.
"""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from typing import NamedTuple, Self, TypeAlias

import pyarrow as pa

from ledgerbeam.io.arrow.stream import read_stream, write_stream
from ledgerbeam.io.errors import StorageError, UserError

_PREFIX = "spill-"
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
    """A folder for spilled batches, which is removed at the end of the `with`."""

    def __init__(self, parent: str | None = None) -> None:
        """Choose the parent folder; by default the one for temporary files (`TMPDIR`)."""
        self._parent = parent or tempfile.gettempdir()

    def __enter__(self) -> Self:
        try:
            self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent)
        except OSError as error:
            raise _spill_error(self._parent, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _spill_error(directory: str, error: OSError) -> UserError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    space = "free some space, or " if is_full else ""
    return StorageError(
        f"cannot spill to {directory}: {reason}: {space}name another folder by TMPDIR",
        uri=directory,
    )
