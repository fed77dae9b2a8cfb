"""Sorting rows into whole components, and finding their boundaries."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.io.arrow.shared import encoded
from ledgerbeam.io.arrow.stream import compact_array, join
from ledgerbeam.rules.arrays import array_of
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.utf8_words import sort_strings


class SortedRows(NamedTuple):
    """The sorted rows of a shard.

    Attributes:
        components: the rows, sorted by key and order.
        repeats: bool `(rows,)`, whether key and ids of a row equal those of another row.
    """

    components: Components
    repeats: npt.NDArray[np.bool_]


class _Codes(NamedTuple):
    """Unsigned integers that sort as some values do, and how many bits they need."""

    values: npt.NDArray[np.uint64]
    bits: int

    def turned(self, is_turned: bool) -> "_Codes":
        """Codes that sort in reverse if `is_turned`, else these codes."""
        if not is_turned:
            return self
        return _Codes(np.uint64((1 << self.bits) - 1) - self.values, self.bits)


def sort_components(
    table: pa.Table,
    key: Sequence[str],
    order: str | Sequence[str] | None,
    ids: Sequence[str] = (),
) -> SortedRows:
    """Sort rows by key and order, and find where each component starts.

    Strings sort by their UTF-8 bytes, which is the order of their code points; other types sort by
    value. Dictionaries in the result are sorted and have no unused values, so that equal rows give
    equal bytes, whatever batches they came in.

    Args:
        table: rows in any order and any chunks; columns of key, order and ids hold no null.
        key: the columns that identify a component.
        order: the columns that order the rows of a component; `-` in front of a name means
            descending. None keeps the rows of a component in their order.
        ids: the columns that identify a component's rows, and order rows that are equal in
            `order`; by default those of `order`.
    """
    table = tidy(table)
    if not table.num_rows:
        return SortedRows(Components(table, np.zeros(0, np.int64)), np.zeros(0, bool))
    orders = [order] if isinstance(order, str) else [*(order or ())]
    plain = [name.removeprefix("-") for name in orders]
    ids = ids or plain
    by_name = {name: _codes(table.column(name).chunk(0)) for name in {*key, *plain, *ids}}
    of_key = [by_name[name] for name in key]
    codes = [
        by_name[name.removeprefix("-")].turned(name.startswith("-"))
        for name in [*orders, *(name for name in ids if name not in plain)]
        if name.removeprefix("-") not in key
    ]
    if order is None:
        count = table.num_rows
        codes = [_Codes(np.arange(count, dtype=np.uint64), count.bit_length())]
    rows, new_key, new_row = _sort(of_key, codes)
    starts = np.flatnonzero(np.append(True, new_key))
    repeats = _beside_equal(new_row)
    if not {*ids, *key}.issuperset(plain):
        # Rows with the same ids may not be adjacent in this order.
        of_ids = [by_name[name] for name in ids if name not in key]
        by_ids, _, new_ids = _sort(of_key, of_ids)
        repeats[by_ids] = _beside_equal(new_ids)
        repeats = repeats[rows]
    return SortedRows(Components(table.take(pa.array(rows)), starts), repeats)


class _Sorted(NamedTuple):
    """An order of rows, and for each row after the first whether it differs from the one before.

    `new_key` compares the key only, and `new_row` all columns.
    """

    rows: npt.NDArray[np.int64]
    new_key: npt.NDArray[np.bool_]
    new_row: npt.NDArray[np.bool_]


def _sort(
    key: Sequence[_Codes],
    others: Sequence[_Codes],
    kind: Literal["quicksort", "stable"] = "quicksort",
) -> _Sorted:
    codes = [*key, *others]
    behind = sum(code.bits for code in others)
    if sum(code.bits for code in codes) <= 64:
        # One 64-bit key sorts several times faster than several keys in turn.
        packed = codes[0].values
        for code in codes[1:]:
            packed = (packed << np.uint64(code.bits)) | code.values
        # The sort needn't be stable: rows that are equal in all these columns are rejected as
        # repeats, and callers order rejected rows by their location.
        rows = np.argsort(packed, kind=kind)
        packed = packed[rows]
        new_row = packed[1:] != packed[:-1]
        keys = packed >> np.uint64(behind) if behind < 64 else np.zeros_like(packed)
        return _Sorted(rows, keys[1:] != keys[:-1], new_row)
    rows = np.lexsort([code.values for code in reversed(codes)])
    changes = [(values := code.values[rows])[1:] != values[:-1] for code in codes]
    new_key = np.logical_or.reduce(changes[: len(key)])
    return _Sorted(rows, new_key, np.logical_or.reduce(changes))


def _beside_equal(new_row: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Bool `(rows,)`: whether a row equals the row before or after it."""
    equal = np.zeros(len(new_row) + 1, bool)
    equal[1:] |= ~new_row
    equal[:-1] |= ~new_row
    return equal


def align(first: Components, others: Components, key: Sequence[str]) -> tuple[Components, pa.Table]:
    """Align the components of another input with those of the first one.

    Args:
        first: the components of the first input.
        others: the components of the other input, sorted by the same key.
        key: the columns that identify a component, of the same types in both.

    Returns:
        The rows of `others` with a start for each component of `first`, and the rows whose key
        `first` doesn't have.
    """
    count = len(first.starts)
    numbers = _same_keys(first, others, key)
    is_orphan = numbers < 0
    if not is_orphan.any():
        return Components(others.table, _starts(count, numbers, others)), others.table.slice(0, 0)
    sizes = others.ends() - others.starts
    rows = np.repeat(is_orphan, sizes)
    sizes_of_first = np.zeros(count, np.int64)
    sizes_of_first[numbers[~is_orphan]] = sizes[~is_orphan]
    starts = np.cumsum(sizes_of_first) - sizes_of_first
    kept = _sort_dictionaries(others.table.filter(pa.array(~rows)).combine_chunks())
    return Components(kept, starts), others.table.filter(pa.array(rows))


def side_by_side(
    inputs: Sequence[Components], key: Sequence[str]
) -> tuple[Components, list[Components]]:
    """The keys of all inputs, and the components of each input aligned with them.

    Args:
        inputs: components of each input, sorted by the same key.
        key: the columns that identify a component, of the same types in all inputs.

    Returns:
        Components of one row that has the columns of the key only, and the inputs with a start for
        each of them.
    """
    firsts = [
        components.table.select(list(key)).take(pa.array(components.starts))
        for components in inputs
    ]
    table = tidy(join(firsts))
    if not table.num_rows:
        none = np.zeros(0, np.int64)
        return Components(table, none), [Components(each.table, none) for each in inputs]
    # The inputs are sorted, and only have to be merged.
    sort = _sort([_codes(table.column(name).chunk(0)) for name in key], (), kind="stable")
    is_first = np.append(True, sort.new_key)
    numbers = np.empty(table.num_rows, np.int64)
    numbers[sort.rows] = np.cumsum(is_first) - 1
    keys = Components(table.take(pa.array(sort.rows[is_first])), np.arange(is_first.sum()))
    ends = np.cumsum([len(each.starts) for each in inputs])[:-1]
    return keys, [
        Components(each.table, _starts(len(keys.starts), of_input, each))
        for each, of_input in zip(inputs, np.split(numbers, ends), strict=True)
    ]


def _starts(count: int, numbers: npt.NDArray[np.int64], rows: Components) -> npt.NDArray[np.int64]:
    """int64 `(count,)`: where the rows of each number start, given the numbers of components."""
    sizes = np.zeros(count, np.int64)
    sizes[numbers] = rows.ends() - rows.starts
    return np.cumsum(sizes) - sizes


def tidy(table: pa.Table) -> pa.Table:
    """The same rows in one chunk, with dictionaries that are sorted and have no unused values."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = _with_common_dictionary(table.column(index))
            table = table.set_column(index, field.name, column)
    return _sort_dictionaries(table.unify_dictionaries().combine_chunks())


def _with_common_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.DictionaryArray:
    """The column in one chunk if all chunks have the very same dictionary, else unchanged.

    Arrow would look up the values of each chunk's dictionary.
    """
    dictionaries = [chunk.dictionary for chunk in column.chunks]
    places = {
        (None if each.buffers()[-1] is None else each.buffers()[-1].address, each.offset, len(each))
        for each in dictionaries
    }
    if len(dictionaries) < 2 or len(places) > 1:
        return column
    indices = pa.concat_arrays([chunk.indices for chunk in column.chunks])
    return encoded(indices, dictionaries[0])


def component_starts(table: pa.Table, key: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64 `(components,)`: the rows where the key changes, if rows of a key are adjacent."""
    rows = table.num_rows
    if not rows:
        return np.zeros(0, np.int64)
    changes = np.zeros(rows - 1, bool)
    for name in key:
        column = array_of(table.column(name))
        if pa.types.is_string(column.type) and not column.null_count:
            # Texts are compared with their neighbours faster than they are encoded.
            changes |= pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
            continue
        codes = _equality_codes(table.column(name))
        changes |= codes[1:] != codes[:-1]
    return np.flatnonzero(np.append(True, changes)).astype(np.int64)


def _equality_codes(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Numbers that are equal for equal values; nulls are equal to each other."""
    if pa.types.is_integer(column.type) and not column.null_count:
        return np.asarray(column.to_numpy())
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return np.asarray(array.indices.fill_null(-1).to_numpy())


def _same_keys(first: Components, others: Components, key: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64: for each component of `others`, the number of the same one in `first`, or -1."""
    if len(key) == 1 and pa.types.is_integer(first.table.schema.field(key[0]).type):
        # Integers are in their own order on both sides, and can be searched as they are.
        ours, theirs = (
            side.table.column(key[0]).to_numpy()[side.starts] for side in (first, others)
        )
        numbers = np.searchsorted(ours, theirs)
        is_there = numbers < len(ours)
        is_there[is_there] = ours[numbers[is_there]] == theirs[is_there]
        return np.where(is_there, numbers, -1)
    of_key = [
        [_plain(side.table.column(name).take(pa.array(side.starts))) for side in (first, others)]
        for name in key
    ]
    if all(ours.equals(theirs) for ours, theirs in of_key):
        return np.arange(len(first.starts))
    if len(key) == 1 and pa.types.is_string(of_key[0][0].type):
        ours, theirs = of_key[0]
        places = pc.index_in(theirs, value_set=ours).fill_null(-1).cast(pa.int64())
        return np.asarray(places.to_numpy())
    numbers = np.zeros(len(first.starts) + len(others.starts), np.int64)
    for columns in of_key:
        chunks = [*columns[0].chunks, *columns[1].chunks]
        codes = _equality_codes(pa.chunked_array(chunks, columns[0].type))
        _, codes = np.unique(codes, return_inverse=True)
        # Renumbered for each column, so that numbers stay below the square of the number of rows.
        _, numbers = np.unique(numbers * (len(numbers) + 1) + codes, return_inverse=True)
    of_first, of_others = numbers[: len(first.starts)], numbers[len(first.starts) :]
    places = np.full(len(numbers) + 1, -1, np.int64)
    places[of_first] = np.arange(len(of_first))
    return places[of_others]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    is_dictionary = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if is_dictionary else column


def without(components: Components, rows: npt.NDArray[np.bool_]) -> Components:
    """The components without some rows; a component that loses all its rows is removed."""
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
    if pa.types.is_decimal64(array.type):
        return _codes(array.view(pa.int64()))
    return _codes(_sort_dictionary(array.dictionary_encode()))


def _sort_dictionaries(table: pa.Table) -> pa.Table:
    for index, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type) and column.num_chunks:
            table = table.set_column(
                index, table.column_names[index], _sort_dictionary(column.chunk(0))
            )
    return table


def _sort_dictionary(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same values, with a dictionary that is sorted and has no unused values."""
    array = compact_array(array)
    type_ = array.dictionary.type
    is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_)
    by_value = sort_strings(array.dictionary) if is_text else None
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


def component_name(key: Iterable[object]) -> str:
    """A key as text: its values joined by slashes; slashes in values are written `%2F`."""
    return "/".join(str(value).replace("%", "%25").replace("/", "%2F") for value in key)


_SINGLE_NAMES = 100


class ComponentNames:
    """The names of components, made on first use, since most runs never need them.

    The first hundred that are asked for are made one by one: a heartbeat asks for a single one.
    """

    def __init__(self, components: Components, key: Sequence[str]) -> None:
        self._keys = components.table.select(list(key))
        self._starts = components.starts
        self._all: list[str] | None = None
        self._asked = 0

    def all(self) -> list[str]:
        """The name of each component, in their order."""
        if self._all is None:
            keys = self._keys.take(pa.array(self._starts))
            columns = [column.to_pylist() for column in keys.columns]
            self._all = [component_name(key) for key in zip(*columns, strict=True)]
        return self._all

    def __getitem__(self, number: int) -> str:
        self._asked += 1
        if self._all is not None or self._asked > _SINGLE_NAMES:
            return self.all()[number]
        row = self._keys.slice(int(self._starts[number]), 1)
        return component_name(column[0].as_py() for column in row.columns)
