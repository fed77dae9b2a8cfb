"""Hashes that are the same on every machine, in every process and for every version of a library.

A component's shard must never change while a run can be restarted, so the hash function is
written out here. An integer is mixed by the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast
splittable pseudorandom number generators", 2014); of a string its length, and then each eight
bytes of its UTF-8 form in turn, as a little-endian integer, exclusive-or'ed into the mix before.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.transforms.octets import Octets

Hashes = npt.NDArray[np.uint64]

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
    hashes = hash_rows(table, key)
    # The upper half times the number of shards, halved again: a modulus without its division.
    return (((hashes >> np.uint64(32)) * np.uint64(shards)) >> np.uint64(32)).astype(np.uint16)


def hash_rows(table: pa.Table, columns: Sequence[str]) -> Hashes:
    """uint64 `(rows,)`; rows that are equal in these columns, without nulls, have equal hashes."""
    hashes = hash_column(table.column(columns[0]))
    for name in columns[1:]:
        hashes = hashes * _GOLDEN + hash_column(table.column(name))
    return hashes


def hash_column(column: pa.ChunkedArray) -> Hashes:
    """uint64 `(rows,)`; equal values have equal hashes, whatever their encoding."""
    if not column.num_chunks:
        return np.zeros(0, np.uint64)
    return np.concatenate([hash_array(chunk) for chunk in column.chunks])


def hash_array(array: pa.Array) -> Hashes:
    """uint64 `(rows,)` of an array without nulls: strings, integers, dates, decimals."""
    if isinstance(array, pa.DictionaryArray):
        # Distinct values are hashed once.
        return hash_array(array.dictionary)[array.indices.to_numpy()]
    if pa.types.is_integer(array.type):
        return mix(array.to_numpy().astype(np.uint64))
    if pa.types.is_date32(array.type):
        return hash_array(array.view(pa.int32()))
    # Decimals by their text, which is the same at every width.
    return _hash_strings(array if pa.types.is_string(array.type) else array.cast(pa.string()))


def hash_distinct(column: pa.ChunkedArray) -> Hashes:
    """uint64: hashes of the values that occur, those of dictionaries once a chunk."""
    hashes = [np.zeros(0, np.uint64)]
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            used = np.zeros(len(chunk.dictionary), bool)
            used[chunk.indices.to_numpy()] = True
            hashes.append(hash_array(chunk.dictionary)[used])
        else:
            hashes.append(hash_array(chunk))
    return np.concatenate(hashes)


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


def _hash_strings(strings: pa.Array) -> Hashes:
    octets = Octets.of(strings)
    hashes = mix(octets.lengths.astype(np.uint64))
    for offset in range(0, int(octets.lengths.max(initial=0)), 8):
        longer = octets.longer_than(offset)
        if len(longer) == len(hashes):
            hashes = mix(hashes ^ octets.word(offset))
        else:
            hashes[longer] = mix(hashes[longer] ^ octets.take(longer).word(offset))
    return hashes
