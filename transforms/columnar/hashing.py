"""Hashes that are the same on every machine, in every process and with every library version.

A component's shard must never change while a run can be restarted, so the hash function is defined
here. The hash of an integer is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", 2014). The hash of a string starts with the hash of its length;
then each eight bytes of its UTF-8 form, as a little-endian integer, are combined with the hash so
far by exclusive or, and the result is hashed.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.transforms.columnar.utf8_words import Utf8Words

Hashes = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def shard_numbers(table: pa.Table, key: Sequence[str], shards: int) -> npt.NDArray[np.uint16]:
    """The shard of each row.

    Args:
        table: a table with the key's columns, which hold no null.
        key: names of one or more columns of strings, integers, dates or decimals.
        shards: the number of shards, at most 65,536.

    Returns:
        uint16 `(rows,)`, each below `shards`.
    """
    hashes = hash_rows(table, key)
    # Scales the upper 32 bits to the number of shards, which is faster than a modulus.
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
    # Decimals are hashed as text, which is the same for every width of decimals.
    return _hash_strings(array if pa.types.is_string(array.type) else array.cast(pa.string()))


def hash_distinct(column: pa.ChunkedArray) -> Hashes:
    """uint64: hashes of the values that occur; values of a dictionary once per chunk."""
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
    utf8_words = Utf8Words.of(strings)
    hashes = mix(utf8_words.lengths.astype(np.uint64))
    for offset in range(0, int(utf8_words.lengths.max(initial=0)), 8):
        longer = utf8_words.longer_than(offset)
        if len(longer) == len(hashes):
            hashes = mix(hashes ^ utf8_words.word(offset))
        else:
            hashes[longer] = mix(hashes[longer] ^ utf8_words.take(longer).word(offset))
    return hashes
