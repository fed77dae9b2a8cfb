"""What those who follow runs are told: one look a second at a run, however many follow it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.concurrency import run_in_threadpool

from ledgerbeam.batch.clock import Clock
from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.service.errors import ServiceUnavailableError

if TYPE_CHECKING:
    from ledgerbeam.batch.observe.progress import ProgressReader

_LOOK_SECONDS = 1.0
_COMMENT_SECONDS = 15.0


class _Look(NamedTuple):
    """A run at one moment, as server-sent events.

    Attributes:
        events: all events of the run so far, with their numbers.
        seen: what is told of its progress, without what changes from look to look.
        changes: how often that has changed; who has been told of it needn't be again.
        progress: all of its progress at this moment, as text.
        end: how it has ended; empty where it goes on.
    """

    events: Sequence[tuple[int, str]]
    seen: dict[str, Any]
    changes: int
    progress: str
    end: str


class _Watch:
    """A run that somebody follows.

    Attributes:
        followers: how many do.
        look: the last look at it; None before the first.
        error: why there will be no other; None where there will.
        next: set with the look, or the error, that comes next.
        task: looks.
    """

    def __init__(self) -> None:
        self.followers = 0
        self.look: _Look | None = None
        self.error: Exception | None = None
        self.next = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def tell(self) -> None:
        """Wake all followers."""
        told, self.next = self.next, asyncio.Event()
        told.set()


class Streams:
    """The streams of events of one front end; all belong to one event loop."""

    def __init__(self, runs: Runs, now: Clock) -> None:
        """Make streams that nobody follows yet.

        Args:
            runs: the registry's runs.
            now: the present time in UTC.
        """
        self._runs = runs
        self._now = now
        self._watches: dict[str, _Watch] = {}

    async def follow(
        self, run: RunRecord, after: int, is_gone: Callable[[], Awaitable[bool]]
    ) -> AsyncGenerator[str, None]:
        """A run's events as they come, as server-sent events, until it has ended.

        Args:
            run: the run.
            after: number of the last event that is known already; 0 for none.
            is_gone: whether nobody listens any more.

        Raises:
            UserError: the registry or the storage can't be read.
        """
        watch = self._watches.get(run.id)
        if watch is None:
            watch = self._watches[run.id] = _Watch()
            watch.task = asyncio.create_task(self._keep_looking(run, watch))
        watch.followers += 1
        try:
            spoken_at, shown = time.monotonic(), -1
            while not await is_gone():
                following, look = watch.next, watch.look
                if watch.error is not None:
                    raise watch.error
                if look is not None:
                    said = "".join(text for number, text in look.events if number > after)
                    after = max(after, look.events[-1][0])
                    if look.changes != shown:
                        shown = look.changes
                        said += look.progress
                    if look.end:
                        yield said + look.end
                        return
                    if said or time.monotonic() - spoken_at > _COMMENT_SECONDS:
                        spoken_at = time.monotonic()
                        yield said or ": at work\n\n"
                await following.wait()
        finally:
            watch.followers -= 1

    async def _keep_looking(self, run: RunRecord, watch: _Watch) -> None:
        """Look at a run until it has ended, or nobody follows it any more."""
        from ledgerbeam.batch.observe.progress import ProgressReader

        # It reads a marker of a shard once.
        reader = ProgressReader(run.uri)
        try:
            while watch.followers:
                watch.look = await run_in_threadpool(self._look, run.id, reader, watch.look)
                watch.tell()
                if watch.look.end:
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        except Exception as error:
            watch.error = error
        except asyncio.CancelledError:
            watch.error = ServiceUnavailableError("the front end is ending: ask again")
            raise
        finally:
            # Who comes now has it looked at anew.
            del self._watches[run.id]
            watch.tell()

    def _look(self, run_id: str, reader: "ProgressReader", before: _Look | None) -> _Look:
        # The run is read first: what has come by then is among the events.
        run = self._runs.registry.get(run_id)
        known = [] if before is None else list(before.events)
        for event in self._runs.registry.events(run_id)[len(known) :]:
            text = f"id: {event.sequence}\nevent: event\ndata: {event.model_dump_json()}\n\n"
            known.append((event.sequence, text))
        progress = reader.read(self._now(), run.live_attempt is not None)
        seen = progress.model_dump(mode="json", exclude={"at", "estimated_end", "rate"})
        told = f"event: progress\ndata: {progress.model_dump_json()}\n\n"
        changes = 0
        if before is not None:
            changes = before.changes + (before.seen != seen)
        end = f"event: end\ndata: {run.status}\n\n" if run.status.is_final else ""
        return _Look(known, seen, changes, told, end)
