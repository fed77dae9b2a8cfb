"""Strings as 64-bit words, for kernels that process eight bytes at a time."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Words = npt.NDArray[np.uint64]

# Keeps the first n bytes of a little-endian word, by n.
_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(9)], np.uint64)


class Utf8Words(NamedTuple):
    """The UTF-8 bytes of an array of strings.

    Attributes:
        words: uint64, little-endian: for each byte of the data, the eight bytes that start there.
        starts: int64 `(strings,)`, the index of each string's first byte.
        lengths: int64 `(strings,)`, the length of each string in bytes.
    """

    words: Words
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, strings: pa.Array) -> "Utf8Words":
        """The bytes of strings without nulls."""
        array = strings.cast(pa.large_binary())
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        first, last = (int(ends[0]), int(ends[-1])) if len(ends) else (0, 0)
        padded = np.zeros(last - first + 8, np.uint8)
        if last > first:
            padded[: last - first] = np.frombuffer(data, np.uint8)[first:last]
        # One word per byte: the view overlaps itself, so that words can start at any byte.
        words = np.ndarray(last - first + 1, "<u8", padded, strides=(1,))
        return cls(words, ends[:-1] - first, np.diff(ends))

    def word(self, offset: int) -> Words:
        """uint64 `(strings,)`: the eight bytes at `offset`; zeros after a string's end."""
        left = np.clip(self.lengths - offset, 0, 8)
        places = np.minimum(self.starts + offset, len(self.words) - 1)
        return self.words[places] & _MASKS[left]

    def longer_than(self, offset: int) -> npt.NDArray[np.int64]:
        """int64: the numbers of the strings that have a byte at `offset`."""
        return np.flatnonzero(self.lengths > offset)

    def take(self, which: npt.NDArray[np.int64]) -> "Utf8Words":
        """The strings with the given numbers."""
        return Utf8Words(self.words, self.starts[which], self.lengths[which])


def sort_strings(strings: pa.Array) -> npt.NDArray[np.int64] | None:
    """The order that sorts distinct strings by their bytes, or None.

    Strings are sorted by the eight bytes after their common prefix, which is many times faster than
    comparing strings. None if two strings are equal in these bytes.
    """
    utf8_words = Utf8Words.of(strings)
    if len(strings) < 2:
        return np.arange(len(strings))
    shortest = int(utf8_words.lengths.min())
    prefix = 0
    while prefix < shortest:
        word = utf8_words.word(prefix)
        differing = np.bitwise_or.reduce(word ^ word[0])
        if differing:
            prefix += ((int(differing) & -int(differing)).bit_length() - 1) // 8
            break
        prefix += 8
    keys = utf8_words.word(min(prefix, shortest)).byteswap()
    order = np.argsort(keys)
    keys = keys[order]
    return None if (keys[1:] == keys[:-1]).any() else order
