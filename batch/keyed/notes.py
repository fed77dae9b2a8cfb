"""What reading tells besides rows, collected from all splits."""

from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import apache_beam as beam

from ledgerbeam.batch.keyed.plan import SplitSummary
from ledgerbeam.io.commit.records import FileRecord
from ledgerbeam.transforms.columnar.distinct import CountDistinct
from ledgerbeam.transforms.columnar.hashing import Hashes

Note = SplitSummary | FileRecord | Hashes
"""The summary of a split, a written file of rejected rows, or hashes of values to count."""


class Notes(NamedTuple):
    """All notes of an attempt.

    Attributes:
        summaries: one of each split, in any order.
        rejects: written files of rejected rows, in any order.
        distinct: the number of distinct values that were to be counted; 0 if there were none.
    """

    summaries: list[SplitSummary]
    rejects: list[FileRecord]
    distinct: int


_Collected = tuple[list[SplitSummary], list[FileRecord], list[Hashes]]


class CollectNotes(beam.CombineFn):
    """Makes `Notes` of notes; holds each hash about once."""

    _count = CountDistinct()

    def create_accumulator(self) -> _Collected:
        """Start with nothing."""
        return [], [], self._count.create_accumulator()

    def add_input(self, accumulator: _Collected, element: Note) -> _Collected:
        """Add a note."""
        summaries, rejects, hashes = accumulator
        if isinstance(element, SplitSummary):
            summaries.append(element)
        elif isinstance(element, FileRecord):
            rejects.append(element)
        else:
            hashes = self._count.add_input(hashes, element)
        return summaries, rejects, hashes

    def merge_accumulators(self, accumulators: Iterable[_Collected]) -> _Collected:
        """Join what several workers have collected."""
        summaries, rejects, hashes = zip(*accumulators, strict=True)
        return (
            list(chain.from_iterable(summaries)),
            list(chain.from_iterable(rejects)),
            self._count.merge_accumulators(hashes),
        )

    def compact(self, accumulator: _Collected) -> _Collected:
        """Merge an accumulator's hashes before it is sent."""
        summaries, rejects, hashes = accumulator
        return summaries, rejects, self._count.compact(hashes)

    def extract_output(self, accumulator: _Collected) -> Notes:
        """All that was collected."""
        summaries, rejects, hashes = accumulator
        return Notes(summaries, rejects, self._count.extract_output(hashes))
