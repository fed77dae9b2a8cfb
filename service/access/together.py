"""Calls of many that are made together: one transaction serves all who wait for it.

While one batch is at work, those that come wait for the next. So a caller who is alone waits for
nobody, and of many at once each pays a part of what one transaction costs.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from ledgerbeam.io.errors import UserError

_MOST = 200

_Given = TypeVar("_Given")
_Answer = TypeVar("_Answer")


class Together(Generic[_Given, _Answer]):
    """A function of many, called for one at a time by tasks of one event loop."""

    def __init__(
        self, answer_all: Callable[[Sequence[_Given]], Sequence[_Answer | UserError]]
    ) -> None:
        """Make one that has nothing to do.

        Args:
            answer_all: called in a thread; gives an answer or an error for each, in their order.
        """
        self._answer_all = answer_all
        self._waiting: list[tuple[_Given, asyncio.Future[_Answer]]] = []
        self._work: asyncio.Task[None] | None = None

    async def ask(self, given: _Given) -> _Answer:
        """The answer for one.

        Raises:
            UserError: as the function gives or raises it.
        """
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((given, answer))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer())
        return await answer

    async def _answer(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            try:
                answers = await run_in_threadpool(self._answer_all, [given for given, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # who asked is gone
                    continue
                if isinstance(answer, UserError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
