"""Room in memory that threads take: no more than there is, in the order in which they come."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledgerbeam.transforms.concurrency.room import Room

ROOM = 10
TIMEOUT = 10.0


class Takers:
    """Threads that take room and hold it until they are let go."""

    def __init__(self) -> None:
        self.room = Room()
        self.inside: list[str] = []
        self.entered: list[str] = []
        self._doors: dict[str, threading.Event] = {}

    def come(self, name: str, size: int) -> None:
        self._doors[name] = threading.Event()
        before = len(self.room._line)
        threading.Thread(target=self._take, args=(name, size), daemon=True).start()
        wait_until(lambda: name in self.inside or len(self.room._line) > before)

    def leave(self, name: str) -> None:
        self._doors[name].set()
        wait_until(lambda: name not in self.inside)

    def _take(self, name: str, size: int) -> None:
        with self.room.take(size, ROOM):
            self.entered.append(name)
            self.inside.append(name)
            self._doors[name].wait(TIMEOUT)
            self.inside.remove(name)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_what_is_larger_than_all_is_alone_and_nobody_passes_it() -> None:
    takers = Takers()
    takers.come("a", 4)
    takers.come("b", 6)
    wait_until(lambda: len(takers.inside) == 2)
    takers.come("large", 11)
    takers.leave("b")
    takers.come("c", 1)  # there is room for it, but it came later
    takers.leave("a")
    wait_until(lambda: takers.inside == ["large"])
    takers.leave("large")
    wait_until(lambda: takers.inside == ["c"])
    takers.leave("c")
    assert sorted(takers.entered[:2]) == ["a", "b"]
    assert takers.entered[2:] == ["large", "c"]


def test_an_error_gives_room_back() -> None:
    room = Room()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), room.take(ROOM, ROOM):
            raise ZeroDivisionError


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2 * ROOM), max_size=20))
def test_there_is_never_more_than_room(sizes: Sequence[int]) -> None:
    room = Room()
    lock = threading.Lock()
    inside: list[int] = []
    seen: list[bool] = []

    def take(size: int) -> int:
        with room.take(size, ROOM):
            with lock:
                inside.append(size)
                others = sum(inside) - size
                seen.append(sum(inside) <= ROOM or not others)
            time.sleep(0)
            with lock:
                inside.remove(size)
        return size

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(take, sizes)) == list(sizes)
    assert all(seen)
