"""Pieces of a shuffle on local disk.

On a distributed runner the pieces of a table go through GroupByKey. The local runner would hold
them all in memory, so there they are written to local disk, and only their places go through
GroupByKey.
"""

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

import pyarrow as pa

from ledgerbeam.io.arrow_stream import read_stream, write_stream
from ledgerbeam.io.errors import UserError

_PREFIX = "ledgerbeam-spill-"
_LOCK = "lock"


class SpilledPiece(NamedTuple):
    """Where a piece is on local disk: an Arrow IPC stream, `length` bytes from `offset`."""

    path: str
    offset: int
    length: int


Piece: TypeAlias = pa.Table | SpilledPiece
"""Rows of one shard that come from one split."""


def spill(directory: str, pieces: Iterable[tuple[int, pa.Table]]) -> list[tuple[int, SpilledPiece]]:
    """Write pieces to one new file in the directory, and say where each is.

    Raises:
        UserError: the disk is full or can't be written.
    """
    path = os.path.join(directory, f"{uuid.uuid4().hex}.arrows")
    spilled = []
    try:
        with pa.OSFile(path, "wb") as sink:
            for shard, table in pieces:
                offset = sink.tell()
                write_stream(sink, table)
                spilled.append((shard, SpilledPiece(path, offset, sink.tell() - offset)))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = "free some space" if error.errno == errno.ENOSPC else "see the reason"
        raise UserError(
            f"cannot spill to {directory}: {reason}: {advice}, or name another folder by TMPDIR"
        ) from error
    return spilled


def load_piece(piece: Piece) -> pa.Table:
    """The piece's rows."""
    if isinstance(piece, pa.Table):
        return piece
    with pa.OSFile(piece.path, "rb") as source:
        source.seek(piece.offset)
        return read_stream(source.read_buffer(piece.length))


def piece_bytes(piece: Piece) -> int:
    """About the memory that the piece takes."""
    return piece.nbytes if isinstance(piece, pa.Table) else piece.length


class SpillDirectory:
    """A folder for spilled pieces that doesn't outlive its run.

    It is removed at the end of the `with`. A process that was killed can't do that: it leaves its
    lock to the kernel, and whoever opens the next spill directory removes what is not locked.
    """

    def __init__(self, parent: str | None = None) -> None:
        """Choose the parent folder; by default the one for temporary files (`TMPDIR`)."""
        self._parent = parent or tempfile.gettempdir()

    def __enter__(self) -> Self:
        self._sweep()
        try:
            self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent)
            self._lock = os.open(os.path.join(self.path, _LOCK), os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise UserError(
                f"cannot make a folder in {self._parent}: {error.strerror}: "
                "free some space, or name another folder by TMPDIR"
            ) from error
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def _sweep(self) -> None:
        """Remove the folders of processes that are gone."""
        for lock_path in Path(self._parent).glob(f"{_PREFIX}*/{_LOCK}"):
            try:
                lock = os.open(lock_path, os.O_RDWR)
            except OSError:
                continue  # another user's, or removed just now
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.parent, ignore_errors=True)
            except BlockingIOError:
                pass  # in use
            finally:
                os.close(lock)
