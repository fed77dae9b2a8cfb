"""Calls in flight over what is still being fetched."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from ledgerbeam.transforms.calls import DaemonPool

T = TypeVar("T")
R = TypeVar("R")

_LOOK_EVERY = 1.0  # second, so that a bound that was raised takes effect


def call_ahead(
    items: Iterable[T],
    call: Callable[[T], R],
    *,
    weigh: Callable[[T], int],
    bound: Callable[[], int],
    window: int,
    pool: DaemonPool,
) -> Iterator[R]:
    """Call a function with each item, several at a time, while further items are fetched.

    Items are taken by the caller's thread. An error of a call, or of the items, is raised when no
    call is in flight any more.

    Args:
        items: what to call with.
        call: the function.
        weigh: how much an item counts.
        bound: items are taken only as long as those in flight weigh less, or are fewer than two.
            Asked again and again.
        window: how many items may be taken before the first of them whose call hasn't ended.
        pool: threads to call in.

    Yields:
        What the calls give, in the order of the items.
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
                    wait([order[0]], _LOOK_EVERY)
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
    """What the calls in flight weigh together."""

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
        """Wait a while for less than the bound to be in flight, or for a failure."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._weight < bound or self._count < 2 or self.failed, _LOOK_EVERY
            )
