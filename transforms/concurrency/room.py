"""Room for what is in memory at the same time, shared by the threads of a process."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Lets threads take room in the order in which they come; used from several threads.

    Whoever waits for room keeps those behind from passing, so that what is large has its turn.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._taken = 0

    @contextmanager
    def take(self, size: int, room: int) -> Iterator[None]:
        """Hold room until the end of the `with` block; waits while others have too much of it.

        Args:
            size: how much is needed. What is larger than all there is gets it alone.
            room: how much there is.
        """
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                self._changed.wait_for(
                    lambda: (
                        self._line[0] is place and (not self._taken or self._taken + size <= room)
                    )
                )
                self._taken += size
            finally:
                self._line.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()
