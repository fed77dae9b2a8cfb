"""Resources that threads of a process share."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.forks import in_own_process

from ledgerbeam.io.shared import SharedByKey


class Resource:
    """Something that is opened and closed."""

    def __init__(self) -> None:
        """Open it."""
        self.closed = 0

    def close(self) -> None:
        """Count how often it was closed."""
        self.closed += 1


def test_who_asks_at_the_same_time_is_given_the_same() -> None:
    shared = SharedByKey(Resource.close)
    together = threading.Barrier(8)

    def acquire(_: int) -> Resource:
        together.wait()
        return shared.acquire("a", Resource)

    with ThreadPoolExecutor(8) as pool:
        acquired = set(pool.map(acquire, range(8)))
    assert len(acquired) == 1


def test_the_last_user_closes_it_once_and_the_next_one_opens_another() -> None:
    shared = SharedByKey(Resource.close)
    first, second = (shared.acquire("a", Resource) for _ in range(2))
    shared.release("a")
    assert first is second
    assert first.closed == 0
    shared.release("a")
    assert first.closed == 1
    assert shared.acquire("a", Resource) is not first
    assert first.closed == 1


def test_other_keys_have_resources_of_their_own() -> None:
    shared = SharedByKey(Resource.close)
    first, other = shared.acquire("a", Resource), shared.acquire("b", Resource)
    shared.release("b")
    assert (first.closed, other.closed) == (0, 1)


def test_what_could_not_be_opened_is_opened_by_the_next_one() -> None:
    shared = SharedByKey(Resource.close)

    def fail() -> Resource:
        raise OSError("no connection")

    with pytest.raises(OSError, match="no connection"):
        shared.acquire("a", fail)
    with pytest.raises(KeyError):
        shared.release("a")
    resource = shared.acquire("a", Resource)
    shared.release("a")
    assert resource.closed == 1


def test_while_one_is_closed_others_are_opened() -> None:
    opened = []

    def close(resource: Resource) -> None:
        # Would wait for ever if closing kept others from opening.
        opened.append(shared.acquire("b", Resource))
        resource.close()

    shared = SharedByKey(close)
    first = shared.acquire("a", Resource)
    shared.release("a")
    assert first.closed == 1
    assert opened == [shared.acquire("b", Resource)]


def _fork_while_opening() -> None:
    shared = SharedByKey(Resource.close)
    resource = shared.acquire("a", Resource)

    def in_child() -> None:
        assert shared.acquire("a", Resource) is not resource
        assert resource.closed == 0

    child = multiprocessing.get_context("fork").Process(target=in_child)

    def fork() -> Resource:
        child.start()
        return Resource()

    shared.acquire("b", fork)
    child.join(60)
    assert child.exitcode == 0
    shared.release("a")
    assert resource.closed == 1


def test_a_forked_process_opens_its_own_even_if_its_parent_was_opening_one() -> None:
    in_own_process(_fork_while_opening)
