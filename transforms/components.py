"""From a shard's pieces to whole components: joined, sorted, with their boundaries."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.octets import sort_strings


class SortedRows(NamedTuple):
    """A shard, sorted.

    Attributes:
        components: the rows by key and order; among equal ones, as they came.
        repeats: bool `(rows,)`, rows whose key and order both equal a neighbour's.
    """

    components: Components
    repeats: npt.NDArray[np.bool_]


class _Codes(NamedTuple):
    """Values as unsigned integers that sort the same way, and the bits these need."""

    values: npt.NDArray[np.uint64]
    bits: int


def sort_components(table: pa.Table, key: Sequence[str], order: str) -> SortedRows:
    """Sort rows by key and order, and find where each component starts.

    Strings sort by their UTF-8 bytes, which is the order of their code points; integers as
    integers. Dictionaries come out sorted and with no value that doesn't occur, so that equal
    rows give equal bytes, whatever pieces they came in.

    Args:
        table: rows in any order and any chunks; key and order columns hold no null.
        key: the columns that identify a component.
        order: the column that orders the rows of a component.
    """
    table = _sort_dictionaries(table.unify_dictionaries().combine_chunks())
    if not table.num_rows:
        return SortedRows(Components(table, np.zeros(0, np.int64)), np.zeros(0, bool))
    codes = [_codes(table.column(name).chunk(0)) for name in (*key, order)]
    order_bits = codes[-1].bits
    if sum(code.bits for code in codes) <= 64:
        # One 64-bit key sorts several times faster than several keys in turn.
        packed = codes[0].values
        for code in codes[1:]:
            packed = (packed << np.uint64(code.bits)) | code.values
        # Equal keys may change places: rows that differ in nothing else are refused as repeats,
        # and those are put in the order of their positions by whoever names them.
        rows = np.argsort(packed)
        packed = packed[rows]
        new_row = packed[1:] != packed[:-1]
        keys = packed >> np.uint64(order_bits) if order_bits < 64 else np.zeros_like(packed)
        new_key = keys[1:] != keys[:-1]
    else:
        rows = np.lexsort([code.values for code in reversed(codes)])
        changes = [(values := code.values[rows])[1:] != values[:-1] for code in codes]
        new_key = np.logical_or.reduce(changes[:-1])
        new_row = new_key | changes[-1]
    starts = np.flatnonzero(np.append(True, new_key))
    repeats = np.zeros(len(rows), bool)
    repeats[1:] |= ~new_row
    repeats[:-1] |= ~new_row
    return SortedRows(Components(table.take(pa.array(rows)), starts), repeats)


def without(components: Components, rows: npt.NDArray[np.bool_]) -> Components:
    """The components less some rows; one that loses all its rows is gone."""
    keep = ~rows
    kept_before = np.append(0, np.cumsum(keep))
    starts = kept_before[components.starts]
    sizes = np.diff(starts, append=kept_before[-1])
    table = _sort_dictionaries(components.table.filter(pa.array(keep)).combine_chunks())
    return Components(table, starts[sizes > 0])


def _codes(array: pa.Array) -> _Codes:
    if isinstance(array, pa.DictionaryArray):
        values = array.indices.to_numpy().astype(np.uint64)  # the dictionary is sorted
        return _Codes(values, (len(array.dictionary) - 1).bit_length())
    if pa.types.is_integer(array.type):
        least = pc.min(array).as_py()
        values = array.to_numpy().astype(np.uint64) - np.uint64(least % 2**64)
        return _Codes(values, (pc.max(array).as_py() - least).bit_length())
    return _codes(_sort_dictionary(array.dictionary_encode()))


def _sort_dictionaries(table: pa.Table) -> pa.Table:
    for index, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type) and column.num_chunks:
            table = table.set_column(
                index, table.column_names[index], _sort_dictionary(column.chunk(0))
            )
    return table


def _sort_dictionary(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same values, over a dictionary that is sorted and holds nothing else."""
    by_value = sort_strings(array.dictionary)
    if by_value is None:
        if len(array.dictionary.unique()) < len(array.dictionary):
            array = array.dictionary_decode().dictionary_encode()
        by_value = pc.sort_indices(array.dictionary).to_numpy()
    size = len(array.dictionary)
    used = np.zeros(size, bool)
    used[array.indices.drop_null().to_numpy()] = True
    by_value = by_value[used[by_value]]
    renumbered = np.zeros(size, np.int32)
    renumbered[by_value] = np.arange(len(by_value), dtype=np.int32)
    indices = pa.array(renumbered).take(array.indices)
    return pa.DictionaryArray.from_arrays(indices, array.dictionary.take(pa.array(by_value)))
