"""Random numbers that depend only on a seed, a purpose and a number."""

import functools

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]


class Draws:
    """Random numbers for a purpose and for numbered items, such as the price of trade 17.

    They don't depend on what else is drawn, so any part can be made without the others.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, purpose: str, numbers: Integers) -> npt.NDArray[np.float64]:
        """Floats from 0 to below 1, one for each of the numbers."""
        bits = mixed(numbers.astype(np.uint64) + self.salt(purpose))
        return np.asarray((bits >> np.uint64(11)) * 2.0**-53, np.float64)

    def integers(self, purpose: str, below: int, numbers: Integers) -> Integers:
        """Integers from 0 to below `below`, which is under 2³², one for each of the numbers."""
        bits = mixed(numbers.astype(np.uint64) + self.salt(purpose))
        return ((bits >> np.uint64(32)) * np.uint64(below) >> np.uint64(32)).astype(np.int64)

    def choice(
        self, purpose: str, cumulative: npt.NDArray[np.float64], numbers: Integers
    ) -> Integers:
        """Indices into a distribution given by cumulative shares, one for each of the numbers."""
        drawn = np.searchsorted(cumulative, self.uniform(purpose, numbers), side="right")
        return np.minimum(drawn, len(cumulative) - 1)

    def salt(self, purpose: str) -> np.uint64:
        """The number that makes the draws for a purpose differ from those for others."""
        sequence = np.random.SeedSequence([self.seed, *purpose.encode()])
        return sequence.generate_state(1, np.uint64)[0]


def mixed(bits: Bits) -> Bits:
    """Turn consecutive numbers into ones that look independent, as SplitMix64 does."""
    bits = bits * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@functools.cache
def zipf_mandelbrot(ranks: int, offset: float = 50.0) -> npt.NDArray[np.float64]:
    """Cumulative shares `(ranks,)` of weights 1 / (rank + offset).

    An offset of 50 keeps the first rank of 500 near 0.8%, and that of 100,000 below 0.3%.
    """
    weights = 1.0 / (np.arange(1, ranks + 1) + offset)
    return np.cumsum(weights) / weights.sum()
