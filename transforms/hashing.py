"""Hashes that are the same on every machine, in every process and for every version of a library.

A component's shard must never change while a run can be restarted, so the hash function is
written out here: FNV-1a over a string's UTF-8 bytes, the number itself for integers, and the
finaliser of SplitMix64 to mix. FNV: Fowler, Noll, Vo, draft-eastlake-fnv; SplitMix64: Steele,
Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shard_numbers(table: pa.Table, key: Sequence[str], shards: int) -> npt.NDArray[np.uint16]:
    """The shard of each row.

    Args:
        table: with the key's columns, which hold no null.
        key: names of one or more string or integer columns.
        shards: how many there are, at most 65,536.

    Returns:
        uint16 `(rows,)`, each below `shards`.
    """
    hashes = hash_column(table.column(key[0]))
    for name in key[1:]:
        hashes = mix(hashes) + hash_column(table.column(name))
    # The upper half times the number of shards, halved again: a modulus without its division.
    return (((mix(hashes) >> np.uint64(32)) * np.uint64(shards)) >> np.uint64(32)).astype(np.uint16)


def hash_column(column: pa.ChunkedArray) -> Hashes:
    """uint64 `(rows,)`; equal values have equal hashes, whatever their encoding."""
    if not column.num_chunks:
        return np.zeros(0, np.uint64)
    return np.concatenate([hash_array(chunk) for chunk in column.chunks])


def hash_array(array: pa.Array) -> Hashes:
    """uint64 `(rows,)` of a string, integer or dictionary array without nulls."""
    if isinstance(array, pa.DictionaryArray):
        # Distinct values are hashed once.
        return hash_array(array.dictionary)[array.indices.to_numpy()]
    if pa.types.is_integer(array.type):
        return mix(array.to_numpy().astype(np.uint64))
    return mix(_fnv1a(array.cast(pa.large_binary())))


def mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of the value."""
    values = values + _GOLDEN
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def order_independent(hashes: Hashes) -> int:
    """One number for a set of hashes: their sum, modulo 2^64."""
    return int(np.add.reduce(hashes, dtype=np.uint64)) if len(hashes) else 0


def _fnv1a(array: pa.LargeBinaryArray) -> Hashes:
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    octets = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    starts, lengths = ends[:-1], np.diff(ends)
    hashes = np.full(len(array), _FNV_OFFSET)
    shortest = int(lengths.min(initial=1 << 62))
    # The i-th byte of every string that has one, all strings at a time.
    for position in range(int(lengths.max(initial=0))):
        if position < shortest:
            hashes = (hashes ^ octets[starts + position]) * _FNV_PRIME
        else:
            longer = np.flatnonzero(lengths > position)
            hashes[longer] = (hashes[longer] ^ octets[starts[longer] + position]) * _FNV_PRIME
    return hashes
