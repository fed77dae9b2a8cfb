"""Procrastinate beside ledgerbeam's messages: does what `peers.py` asks for by lines of its input.

`schedule COUNT DUE` defers jobs to a moment in milliseconds, `work COUNT` works them off, `late
COUNT EVERY` defers one every so many milliseconds, and gives milliseconds from due time to work.
"""

import asyncio
import datetime
import json
import sys
import time
from collections.abc import Awaitable, Callable

from procrastinate import App, JobContext, PsycopgConnector
from psycopg_pool import AsyncConnectionPool

PAYERS = 10_000
BATCH = 1_000
CONCURRENCY = 16
_UPDATE = "UPDATE customer SET handled = handled + 1 WHERE id = %s"


class Peer:
    """Jobs of one database."""

    def __init__(self, url: str) -> None:
        self.app = App(connector=PsycopgConnector(conninfo=url, max_size=CONCURRENCY + 4))
        self._pool = AsyncConnectionPool(url, open=False, max_size=CONCURRENCY)
        self._late: list[float] = []
        self._wanted = 0
        self._done = asyncio.Event()
        self._task = self.app.task(name="payment-due", pass_context=True)(self._handle)

    async def __aenter__(self) -> "Peer":
        await self.app.open_async()
        await self._pool.open()
        await self.app.schema_manager.apply_schema_async()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()
        await self.app.close_async()

    async def schedule(self, count: int, due: float) -> list[float]:
        """Defer so many jobs to a moment in milliseconds."""
        deferred = self._task.configure(
            schedule_at=datetime.datetime.fromtimestamp(due / 1e3, datetime.UTC)
        )
        for start in range(0, count, BATCH):
            last = min(start + BATCH, count)
            jobs = [{"request": n, "payer": f"P{n % PAYERS}"} for n in range(start, last)]
            await deferred.batch_defer_async(*jobs)
        return []

    async def work(self, count: int, _: float) -> list[float]:
        """Work off so many jobs."""
        return await self._working(count, lambda: asyncio.sleep(0))

    async def late(self, count: int, every: float) -> list[float]:
        """Defer a job every so many milliseconds; the milliseconds by which each is late."""

        async def send() -> None:
            for _ in range(count):
                await self.schedule(1, time.time() * 1e3 + 0.7 * every)
                await asyncio.sleep(every / 1e3)

        return await self._working(count, send)

    async def _working(self, count: int, during: Callable[[], Awaitable[None]]) -> list[float]:
        self._late, self._wanted = [], count
        self._done.clear()
        worker = asyncio.create_task(
            self.app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)
        )
        await during()
        await self._done.wait()
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return self._late

    async def _handle(self, context: JobContext, request: int, payer: str) -> None:
        due = context.job.scheduled_at
        assert due is not None
        self._late.append((time.time() - due.timestamp()) * 1e3)
        async with self._pool.connection() as connection:
            await connection.execute(_UPDATE, (payer,))
        if len(self._late) == self._wanted:
            self._done.set()


async def main() -> None:
    """Answer each line of the input by one of JSON."""
    async with Peer(sys.argv[1]) as peer:
        verbs = {"schedule": peer.schedule, "work": peer.work, "late": peer.late}
        print(json.dumps("ready"), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            verb, count, *number = line.split()
            answer = await verbs[verb](int(count), float(number[0]) if number else 0.0)
            print(json.dumps(answer if verb == "late" else []), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
