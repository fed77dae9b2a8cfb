"""Calls of a function that run concurrently inside a bundle."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from ledgerbeam.transforms.concurrency.memory import collect_garbage_rarely, keep_freed_memory


class DoInFlight(beam.DoFn):
    """Applies a function to each element, several elements at a time, in threads.

    Arrow's and NumPy's kernels release the interpreter lock, so that two calls in flight keep
    two cores busy in one process. A bundle ends when all its calls have ended; an error in one
    fails the bundle. Outputs come in the order of the elements.

    It supports only the global window, in which outputs are emitted at the bundle's end.
    """

    def __init__(self, function: Callable[..., Iterable[Any]], in_flight: int) -> None:
        """Wrap a function.

        Args:
            function: returns the outputs for an element (and side inputs). It is called from
                several threads at once, and its outputs are held until the call has ended. Its
                `setup` and `teardown`, if it has them, are called like those of a DoFn.
            in_flight: how many calls may run at a time.

        Raises:
            ValueError: `in_flight` is less than 1.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        self._function = function
        self._in_flight = in_flight

    def setup(self) -> None:
        """Start the pool of threads."""
        keep_freed_memory()
        collect_garbage_rarely()
        self._pool = ThreadPoolExecutor(self._in_flight)
        if hasattr(self._function, "setup"):
            self._function.setup()

    def start_bundle(self) -> None:
        """Start with nothing in flight, even if the bundle before failed before its end."""
        self._running: deque[Future[list[Any]]] = deque()

    def process(self, element: Any, *side_inputs: Any) -> Iterator[Any]:
        """Start the element's call, after waiting for the oldest call if the limit is reached."""
        if len(self._running) >= self._in_flight:
            yield from self._outputs_of_oldest()
        self._running.append(self._pool.submit(self._call, element, *side_inputs))

    def finish_bundle(self) -> Iterator[Any]:
        """Emit the outputs of the calls in flight."""
        while self._running:
            for output in self._outputs_of_oldest():
                if isinstance(output, TaggedOutput):
                    yield TaggedOutput(output.tag, _windowed(output.value))
                else:
                    yield _windowed(output)

    def teardown(self) -> None:
        """Stop the pool; waits for calls of a bundle that failed in a later step."""
        self._pool.shutdown(cancel_futures=True)
        if hasattr(self._function, "teardown"):
            self._function.teardown()

    def _call(self, element: Any, *side_inputs: Any) -> list[Any]:
        return list(self._function(element, *side_inputs))

    def _outputs_of_oldest(self) -> list[Any]:
        try:
            return self._running.popleft().result()
        except BaseException:
            # No call may outlive its failed bundle.
            for future in self._running:
                future.cancel()
            wait(self._running)
            raise


def _windowed(value: Any) -> WindowedValue:
    return WindowedValue(value, MIN_TIMESTAMP, (GlobalWindow(),))
