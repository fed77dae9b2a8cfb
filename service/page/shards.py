"""The shards of a run, as a grid of which each cell is one."""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from threading import Lock
from typing import NamedTuple

from ledgerbeam.batch.observe.progress import Progress, ProgressReader
from ledgerbeam.io.commit.records import MAX_SHARDS, ShardCommit

_READERS = 16
_CELL_PIXELS = ((100, 20), (600, 14), (3000, 8))
_SMALLEST_PIXELS = 5
_ONE_ROW = 24
_NAMED = 12
STATES: Mapping[str, str] = {
    "good": "committed",
    "bad": "committed, with failed or unknown components",
    "busy": "being executed",
    "open": "not begun, or not seen",
}
"""What a shard can be, and the same in words."""


class Strip(NamedTuple):
    """Shards in a row of the grid that are in the same state.

    Attributes:
        column: of the first.
        row: of all of them.
        length: how many they are.
        state: one of `STATES`.
        title: the same in words.
    """

    column: int
    row: int
    length: int
    state: str
    title: str


class Grid(NamedTuple):
    """The shards of a run.

    Attributes:
        columns: how many there are in a row.
        rows: how many rows there are.
        pixels: how wide and high a cell is.
        strips: the cells.
        counts: how many shards are in each state, those in none left out.
        bad: numbers of the first shards with failed or unknown components.
        is_known: whether the number of all shards is known.
    """

    columns: int
    rows: int
    pixels: int
    strips: Sequence[Strip]
    counts: Mapping[str, int]
    bad: Sequence[int]
    is_known: bool

    @property
    def text(self) -> str:
        """The grid in words."""
        return ", ".join(f"{count:,} {STATES[state]}" for state, count in self.counts.items())


class Readers:
    """What looks at runs time after time; a marker of a shard is read once."""

    def __init__(self) -> None:
        self._readers: OrderedDict[str, ProgressReader] = OrderedDict()
        self._lock = Lock()

    def of(self, run_uri: str) -> ProgressReader:
        """What looks at the run of that folder."""
        with self._lock:
            reader = self._readers.pop(run_uri, None) or ProgressReader(run_uri)
            self._readers[run_uri] = reader
            while len(self._readers) > _READERS:
                self._readers.popitem(last=False)
        return reader


def shard_grid(commits: Mapping[int, ShardCommit], progress: Progress) -> Grid | None:
    """The shards of a run; None where nothing is known of them.

    Args:
        commits: markers of its shards, by number.
        progress: says what is being executed, and how many shards there are.
    """
    states = dict.fromkeys((each.shard for each in progress.executing), "busy")
    for number, commit in commits.items():
        has_bad = commit.totals.get("failed") or commit.totals.get("unknown")
        states[number] = "bad" if has_bad else "good"
    return grid_of(states, progress.shards_total)


def grid_of(states: Mapping[int, str], total: int | None) -> Grid | None:
    """The grid of shards; None where there are none.

    Args:
        states: state by number, of those that aren't open.
        total: how many shards there are; None where that isn't known.
    """
    # What a damaged heartbeat says is no reason to draw a million of millions.
    states = {number: state for number, state in states.items() if 0 <= number < MAX_SHARDS}
    size = max([total or 0, *(number + 1 for number in states)])
    if size == 0:
        return None
    columns = size if size <= _ONE_ROW else math.ceil(math.sqrt(4 * size))
    rows = math.ceil(size / columns)
    pixels = next((px for most, px in _CELL_PIXELS if size <= most), _SMALLEST_PIXELS)
    all_states = [states.get(number, "open") for number in range(size)]
    counts = Counter(all_states)
    return Grid(
        columns,
        rows,
        pixels,
        list(_strips(all_states, columns)),
        {state: counts[state] for state in STATES if counts[state]},
        [number for number, state in enumerate(all_states) if state == "bad"][:_NAMED],
        total is not None,
    )


def _strips(states: Sequence[str], columns: int) -> Iterator[Strip]:
    for row, first in enumerate(range(0, len(states), columns)):
        column = 0
        for state, same in groupby(states[first : first + columns]):
            length = len(list(same))
            begin = first + column
            name = f"shard {begin}" if length == 1 else f"shards {begin} to {begin + length - 1}"
            yield Strip(column, row, length, state, f"{name}: {STATES[state]}")
            column += length
