"""From a shard's pieces to whole components: joined, sorted, with their boundaries."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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


def sort_components(table: pa.Table, key: Sequence[str], order: str | None) -> SortedRows:
    """Sort rows by key and order, and find where each component starts.

    Strings sort by their UTF-8 bytes, which is the order of their code points; integers as
    integers. Dictionaries come out sorted and with no value that doesn't occur, so that equal
    rows give equal bytes, whatever pieces they came in.

    Args:
        table: rows in any order and any chunks; key and order columns hold no null.
        key: the columns that identify a component.
        order: the column that orders the rows of a component; None leaves them as they come.
    """
    table = tidy(table)
    if not table.num_rows:
        return SortedRows(Components(table, np.zeros(0, np.int64)), np.zeros(0, bool))
    codes = [_codes(table.column(name).chunk(0)) for name in key]
    if order is None:
        codes.append(
            _Codes(np.arange(table.num_rows, dtype=np.uint64), table.num_rows.bit_length())
        )
    else:
        codes.append(_codes(table.column(order).chunk(0)))
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


def align(first: Components, others: Components, key: Sequence[str]) -> tuple[Components, pa.Table]:
    """Put the components of another input beside those of the first one.

    Args:
        first: says which components there are.
        others: sorted by the same key.
        key: the columns that identify a component, of the same types in both.

    Returns:
        The rows of `others` with a start for each component of `first`, and the rows whose key
        `first` doesn't have.
    """
    count = len(first.starts)
    numbers = _same_keys(first, others, key)
    sizes = np.diff(others.starts, append=others.table.num_rows)
    is_orphan = numbers < 0
    sizes_of_first = np.zeros(count, np.int64)
    sizes_of_first[numbers[~is_orphan]] = sizes[~is_orphan]
    starts = np.cumsum(sizes_of_first) - sizes_of_first
    rows = np.repeat(is_orphan, sizes)
    if not rows.any():
        return Components(others.table, starts), others.table.slice(0, 0)
    kept = _sort_dictionaries(others.table.filter(pa.array(~rows)).combine_chunks())
    return Components(kept, starts), others.table.filter(pa.array(rows))


def tidy(table: pa.Table) -> pa.Table:
    """The same rows in one chunk, dictionaries sorted and without values that don't occur."""
    return _sort_dictionaries(table.unify_dictionaries().combine_chunks())


def component_starts(table: pa.Table, key: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64 `(components,)`: where the key changes, in rows that lie together by key."""
    rows = table.num_rows
    if not rows:
        return np.zeros(0, np.int64)
    changes = np.zeros(rows - 1, bool)
    for name in key:
        codes = _equality_codes(table.column(name))
        changes |= codes[1:] != codes[:-1]
    return np.flatnonzero(np.append(True, changes)).astype(np.int64)


def _equality_codes(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Numbers that are equal where the values are; a null equals a null."""
    if pa.types.is_integer(column.type) and not column.null_count:
        return np.asarray(column.to_numpy())
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return np.asarray(array.indices.fill_null(-1).to_numpy())


def _same_keys(first: Components, others: Components, key: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64: for each component of `others` the number of that one of `first`, or -1."""
    numbers = np.zeros(len(first.starts) + len(others.starts), np.int64)
    for name in key:
        columns = [
            _plain(side.table.column(name).take(pa.array(side.starts))) for side in (first, others)
        ]
        chunks = [*columns[0].chunks, *columns[1].chunks]
        codes = _equality_codes(pa.chunked_array(chunks, columns[0].type))
        _, codes = np.unique(codes, return_inverse=True)
        # Numbered anew for each column, so that they never pass the count of rows squared.
        _, numbers = np.unique(numbers * (len(numbers) + 1) + codes, return_inverse=True)
    ours, theirs = numbers[: len(first.starts)], numbers[len(first.starts) :]
    places = np.full(len(numbers) + 1, -1, np.int64)
    places[ours] = np.arange(len(ours))
    return places[theirs]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    is_dictionary = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if is_dictionary else column


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
