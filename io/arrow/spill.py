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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Self, TypeAlias

import pyarrow as pa

from ledgerbeam.io.arrow.shared import Shared, encoded
from ledgerbeam.io.arrow.stream import read_stream, write_stream
from ledgerbeam.io.errors import StorageError, UserError

_PREFIX = "spill-"
_BUFFER_BYTES = 1 << 18


class SpilledDictionary(NamedTuple):
    """Where a shared dictionary is: in the file of the batches that use it.

    Attributes:
        column: that it belongs to.
        owner: whose dictionary it is; of one owner's, a longer one begins with a shorter one.
        values: how many there are.
        offset: where its Arrow IPC stream begins.
        length: of the stream, in bytes.
    """

    column: str
    owner: str
    values: int
    offset: int
    length: int


class SpilledBatch(NamedTuple):
    """Where a batch is on local disk.

    It is an Arrow IPC stream, `length` bytes from `offset`, which holds the numbers of values in
    place of values that are in shared dictionaries.
    """

    path: str
    offset: int
    length: int
    dictionaries: tuple[SpilledDictionary, ...] = ()


Batch: TypeAlias = pa.Table | SpilledBatch
"""Rows of one shard that come from one split."""


def spill(
    directory: str, batches: Iterable[tuple[int, pa.Table]], shared: Shared | None = None
) -> list[tuple[int, SpilledBatch]]:
    """Write batches to one new file in the directory, and return where each is.

    Args:
        directory: the folder.
        batches: tables, each with the number of its shard.
        shared: whose dictionaries some of their columns share, the same in all batches.

    Raises:
        StorageError: the disk is full or can't be written.
    """
    path = os.path.join(directory, f"{uuid.uuid4().hex}.arrows")
    spilled: list[tuple[int, SpilledBatch]] = []
    dictionaries: tuple[SpilledDictionary, ...] = ()
    columns = () if shared is None else shared.columns
    try:
        # Buffered, because a stream is written in many small parts.
        with pa.output_stream(path, buffer_size=_BUFFER_BYTES) as sink:

            def write(table: pa.Table) -> tuple[int, int]:
                offset = sink.tell()
                write_stream(sink, table)
                return offset, sink.tell() - offset

            for shard, table in batches:
                if shared is not None and not spilled:
                    dictionaries = tuple(
                        SpilledDictionary(
                            name, shared.owner, len(values), *write(pa.table({name: values}))
                        )
                        for name in columns
                        for values in (table.column(name).chunk(0).dictionary,)
                    )
                place = write(_map_columns(table, columns, lambda _, array: array.indices))
                spilled.append((shard, SpilledBatch(path, *place, dictionaries)))
    except OSError as error:
        raise _spill_error(directory, error) from error
    return spilled


def load_batch(batch: Batch) -> pa.Table:
    """The batch's rows."""
    return load_batches([batch])[0]


def load_batches(batches: Sequence[Batch]) -> list[pa.Table]:
    """The rows of each batch; those of one owner have the very same dictionaries."""
    longest: dict[tuple[str, str], tuple[SpilledDictionary, str]] = {}
    for batch in batches:
        for found in batch.dictionaries if isinstance(batch, SpilledBatch) else ():
            key = (found.owner, found.column)
            if key not in longest or longest[key][0].values < found.values:
                longest[key] = (found, batch.path)
    values = {
        key: _read(path, found.offset, found.length).column(0).combine_chunks()
        for key, (found, path) in longest.items()
    }
    return [_loaded(batch, values) for batch in batches]


def _loaded(batch: Batch, values: Mapping[tuple[str, str], pa.StringArray]) -> pa.Table:
    if isinstance(batch, pa.Table):
        return batch
    of_column = {each.column: values[each.owner, each.column] for each in batch.dictionaries}
    table = _read(batch.path, batch.offset, batch.length)
    return _map_columns(table, [*of_column], lambda name, array: encoded(array, of_column[name]))


def _read(path: str, offset: int, length: int) -> pa.Table:
    with pa.OSFile(path, "rb") as source:
        source.seek(offset)
        return read_stream(source.read_buffer(length))


def _map_columns(
    table: pa.Table, names: Sequence[str], change: Callable[[str, pa.Array], pa.Array]
) -> pa.Table:
    for name in names:
        chunks = [change(name, chunk) for chunk in table.column(name).chunks]
        table = table.set_column(table.column_names.index(name), name, pa.chunked_array(chunks))
    return table


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
