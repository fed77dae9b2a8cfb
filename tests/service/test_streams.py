"""Streams of events: many who follow a run cost the database as much as one."""

import asyncio
import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.service.test_request_database import NOON
from tests.support.racers import play, submitted

from ledgerbeam.batch.clock import utc_now
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io.errors import RunNotFoundError
from ledgerbeam.service.access import streams as module
from ledgerbeam.service.access.streams import Streams
from ledgerbeam.service.errors import ServiceUnavailableError


@pytest.fixture
def runs(registry_url: str, tmp_path: Path) -> Iterator[Runs]:
    with Runs(Settings(registry_url, tmp_path, 30)) as runs:
        yield runs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)


async def never() -> bool:
    return False


async def told(streams: Streams, run: RunRecord, after: int = 0) -> str:
    return "".join([text async for text in streams.follow(run, after, never)])


def statements(runs: Runs) -> list[str]:
    """The statements that runs have the database execute from now on."""
    executed: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        executed.append(statement)

    with runs.registry.database.reading() as connection:
        sa.event.listen(connection.engine, "before_cursor_execute", note)
    return executed


def test_all_who_follow_a_run_share_its_looks(
    runs: Runs, registry: Registry, tmp_path: Path
) -> None:
    run = play(registry, submitted(registry, uri=str(tmp_path / "run")).id, "start")
    executed = statements(runs)

    async def follow(followers: int) -> tuple[int, str]:
        streams = Streams(runs, lambda: NOON)
        turns = iter([False] * 5 + [True])

        async def has_seen_enough() -> bool:
            return next(turns)

        executed.clear()
        first = streams.follow(run, 0, has_seen_enough)
        others = [asyncio.create_task(told(streams, run)) for _ in range(followers)]
        heard = "".join([text async for text in first])
        count = len(executed)
        for other in others:
            other.cancel()
        return count, heard

    alone, heard = asyncio.run(follow(0))
    together, heard_by_one_of_many = asyncio.run(follow(50))
    assert alone > 0
    assert together == alone
    assert heard == heard_by_one_of_many


def test_each_is_told_what_it_has_not_heard_and_of_the_end(
    runs: Runs, registry: Registry, tmp_path: Path
) -> None:
    run = play(registry, submitted(registry, uri=str(tmp_path / "run")).id, "start")
    first = registry.events(run.id)[0].sequence

    async def follow() -> list[str]:
        streams = Streams(runs, utc_now)
        follower = streams.follow(run, 0, never)
        begin = await anext(follower)
        late = asyncio.create_task(told(streams, run, after=first))
        await asyncio.to_thread(play, registry, run.id, "fail")
        rest = "".join([text async for text in follower])
        again = await told(streams, run)  # looked at anew
        return [begin + rest, await late, again]

    whole, late, again = asyncio.run(follow())
    numbers = [f"id: {event.sequence}\n" for event in registry.events(run.id)]
    for text, known in ((whole, numbers), (late, numbers[1:]), (again, numbers)):
        assert [f"{line}\n" for line in text.splitlines() if line.startswith("id: ")] == known
        assert text.endswith("event: end\ndata: FAILURE\n\n")
        assert text.count("event: end") == 1


def test_a_run_that_nobody_follows_any_more_is_looked_at_no_more(
    runs: Runs, registry: Registry, tmp_path: Path
) -> None:
    run = play(registry, submitted(registry, uri=str(tmp_path / "run")).id, "start")
    executed = statements(runs)

    async def follow() -> None:
        streams = Streams(runs, utc_now)
        follower = streams.follow(run, 0, never)
        await anext(follower)
        (watch,) = streams._watches.values()
        await follower.aclose()
        assert watch.task is not None
        await asyncio.wait_for(watch.task, 10)
        executed.clear()
        await anext(streams.follow(run, 0, never))
        assert executed

    asyncio.run(follow())


def test_who_follows_hears_of_an_error_and_may_follow_again(
    runs: Runs, registry: Registry, tmp_path: Path
) -> None:
    run = play(registry, submitted(registry, uri=str(tmp_path / "run")).id, "start")
    lost = run.model_copy(update={"id": "lost"})

    async def follow() -> None:
        streams = Streams(runs, utc_now)
        tasks = [asyncio.create_task(told(streams, lost)) for _ in range(3)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in done] == [RunNotFoundError] * 3
        with pytest.raises(RunNotFoundError):
            await told(streams, lost)
        assert await anext(streams.follow(run, 0, never))

    asyncio.run(follow())


def test_who_comes_later_is_told_how_the_run_stands_now(
    runs: Runs, registry: Registry, tmp_path: Path
) -> None:
    run = play(registry, submitted(registry, uri=str(tmp_path / "run")).id, "start")
    clock = [NOON]

    async def follow() -> tuple[str, str]:
        streams = Streams(runs, lambda: clock[0])
        first = streams.follow(run, 0, never)
        before = await anext(first)
        clock[0] = NOON + datetime.timedelta(hours=5)
        (watch,) = streams._watches.values()
        await watch.next.wait()
        await watch.next.wait()  # the first of the two may have begun before
        return before, await anext(streams.follow(run, 0, never))

    before, later = asyncio.run(follow())
    assert f'"at":"{NOON:%Y-%m-%dT%H:%M:%SZ}"' in before
    assert f'"at":"{clock[0]:%Y-%m-%dT%H:%M:%SZ}"' in later


def test_nobody_waits_for_a_look_that_was_given_up(
    runs: Runs, registry: Registry, tmp_path: Path
) -> None:
    run = play(registry, submitted(registry, uri=str(tmp_path / "run")).id, "start")

    async def follow() -> None:
        streams = Streams(runs, utc_now)
        follower = streams.follow(run, 0, never)
        await anext(follower)
        (watch,) = streams._watches.values()
        assert watch.task is not None
        watch.task.cancel()
        with pytest.raises(ServiceUnavailableError):
            async for _ in follower:
                pass

    asyncio.run(asyncio.wait_for(follow(), 10))
