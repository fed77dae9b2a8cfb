"""Dictionaries that all batches of a process share while they are on local disk.

Every file has dictionaries of its own. If each batch kept what it uses of them, values would be
written, read and encoded once a batch, where there are few of them among all.
"""

import functools
import os
import threading
import uuid
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

MAX_VALUES = 1 << 17
"""Of a shared dictionary: with more of them, finding one's values there would take too long."""

ROWS_PER_VALUE = 2
"""A dictionary that is shared has at least so many rows for each value."""


class Shared(NamedTuple):
    """The columns of a table whose dictionaries are shared.

    Attributes:
        owner: whose dictionaries they are.
        columns: their names.
    """

    owner: str
    columns: tuple[str, ...]


class SharedDictionaries:
    """Dictionaries by the names of columns, which only grow: the first values never change."""

    def __init__(self) -> None:
        self.owner = uuid.uuid4().hex
        self._known: dict[str, pa.StringArray | None] = {}
        self._lock = threading.Lock()

    def encode(self, table: pa.Table) -> tuple[pa.Table, Shared]:
        """The same rows in one chunk, and the columns that have shared dictionaries now."""
        table = table.unify_dictionaries().combine_chunks()
        shared = []
        for index, field in enumerate(table.schema):
            column = table.column(index)
            if not pa.types.is_dictionary(field.type) or not column.num_chunks:
                continue
            array = self._encode(field.name, column.chunk(0))
            if array is not None:
                shared.append(field.name)
                table = table.set_column(index, field.name, array)
        return table, Shared(self.owner, tuple(shared))

    def _encode(self, name: str, array: pa.DictionaryArray) -> pa.DictionaryArray | None:
        values = array.dictionary
        if not pa.types.is_string(values.type) or len(values) * ROWS_PER_VALUE > len(array):
            return None
        with self._lock:
            known = self._known.setdefault(name, values.slice(0, 0))
            if known is None:
                return None
            places = pc.index_in(values, value_set=known)
            if places.null_count:
                missing = values.filter(places.is_null())
                new = missing.unique()
                has_others = len(known) > 0 and 2 * len(new) > len(values)
                if has_others or len(known) + len(new) > MAX_VALUES:
                    # Each file has values of its own, or there are too many: nothing is saved.
                    self._known[name] = None
                    return None
                behind = pc.add(
                    pc.index_in(missing, value_set=new), pa.scalar(len(known), pa.int32())
                )
                places = pc.replace_with_mask(places, places.is_null(), behind)
                known = self._known[name] = pa.concat_arrays([known, new])
        return encoded(places.take(array.indices), known)


def encoded(indices: pa.Int32Array, dictionary: pa.StringArray) -> pa.DictionaryArray:
    """Values by their numbers in a dictionary, without checking that it has so many."""
    return pa.DictionaryArray.from_arrays(indices, dictionary, safe=False)


def shared_dictionaries(directory: str) -> SharedDictionaries:
    """Those of this process for batches in a folder."""
    # A forked process has its own from then on: two that grow apart can't have one owner.
    return _of_process(directory, os.getpid())


@functools.lru_cache(maxsize=8)
def _of_process(_directory: str, _pid: int) -> SharedDictionaries:
    return SharedDictionaries()
