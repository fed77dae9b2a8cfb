"""Calls in flight while more items are being fetched."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from ledgerbeam.transforms.concurrency.calls import DaemonPool

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 1.0  # so that a raised bound takes effect soon


def call_ahead(
    items: Iterable[T],
    call: Callable[[T], R],
    *,
    weigh: Callable[[T], int],
    bound: Callable[[], int],
    window: int,
    pool: DaemonPool,
) -> Iterator[R]:
    """Call a function with each item, several at a time, while more items are fetched.

    Items are fetched in the caller's thread. An error of a call or of the items is raised when no
    call is in flight any more.

    Args:
        items: the arguments of the calls.
        call: the function to call.
        weigh: returns the weight of an item.
        bound: returns the weight in flight below which the next item is fetched; with fewer than
            two items in flight it is always fetched. Called repeatedly, since it may change.
        window: the largest number of fetched items whose results haven't been yielded.
        pool: the threads for the calls.

    Yields:
        The results of the calls, in the order of the items.
    """
    in_flight = _InFlight()
    order: deque[Future[R]] = deque()

    def run(item: T, weight: int) -> R:
        try:
            result = call(item)
        except BaseException:
            in_flight.ended(weight, failed=True)
            raise
        in_flight.ended(weight)
        return result

    try:
        for item in items:
            weight = weigh(item)
            order.append(pool.submit(run, item, in_flight.begun(weight)))
            yield from _ended(order)
            while not in_flight.wait_for_less(bound()) or len(order) >= window:
                if in_flight.failed:
                    break
                if len(order) >= window:
                    wait([order[0]], _POLL_SECONDS)
                yield from _ended(order)
            if in_flight.failed:
                break
        if in_flight.failed:
            wait(order)
            next(future for future in order if future.exception() is not None).result()
        while order:
            yield order.popleft().result()
    except BaseException:
        for future in order:
            future.cancel()
        wait([future for future in order if not future.cancelled()])
        raise


def _ended(order: "deque[Future[R]]") -> Iterator[R]:
    while order and order[0].done():
        yield order.popleft().result()


class _InFlight:
    """The total weight of the calls in flight."""

    def __init__(self) -> None:
        self.failed = False
        self._weight = 0
        self._count = 0
        self._changed = threading.Condition()

    def begun(self, weight: int) -> int:
        with self._changed:
            self._weight += weight
            self._count += 1
        return weight

    def ended(self, weight: int, failed: bool = False) -> None:
        with self._changed:
            self._weight -= weight
            self._count -= 1
            self.failed = self.failed or failed
            self._changed.notify()

    def wait_for_less(self, bound: int) -> bool:
        """Wait up to a second until less than `bound` is in flight or a call has failed."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._weight < bound or self._count < 2 or self.failed, _POLL_SECONDS
            )
