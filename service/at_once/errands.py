"""What a node answers at once, beside the runs that it answers for: components, lines of logs."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

from ledgerbeam.batch.clock import Clock
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.settings import Settings
from ledgerbeam.io.errors import RegistryUnavailableError, SecretError, UserError
from ledgerbeam.io.machine import host_name
from ledgerbeam.io.secrets import redact
from ledgerbeam.service.at_once.inline import InlineWorker, answer_of, definition_of
from ledgerbeam.service.model import (
    Errand,
    ErrandKind,
    RequestRecord,
    RequestState,
    Submission,
)
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.store.errands import APPEAR_SECONDS, Errands

_POLL_SECONDS = 0.1
_log = logging.getLogger(__name__)

Adopt = Callable[[Submission, str], RequestRecord]
"""Has the node answer for a run at once that somebody asks for; gives its request."""


class ErrandRunner:
    """Answers errands of a node, as many at a time as it has slots, beside its runs."""

    def __init__(
        self, runs: Runs, settings: Settings, node: str, slots: int, adopt: Adopt, now: Clock
    ) -> None:
        """Take none yet.

        Args:
            runs: the registry's runs.
            settings: for the processes that it starts.
            node: its name.
            slots: how many at a time.
            adopt: has the node answer for a run.
            now: the present time in UTC.
        """
        self._runs = runs
        self._settings = settings
        self._node = node
        self._slots = slots
        self._adopt = adopt
        self._now = now
        self._errands = Errands(runs.registry.database)
        self._dispatch = Dispatch(runs.registry.database)
        self._appeared_at = float("-inf")
        self._idle: list[InlineWorker] = []
        self._at_work: list[threading.Thread] = []

    def step(self, kinds: Sequence[str]) -> bool:
        """Take errands that there are slots for; gives whether anything was taken."""
        if time.monotonic() - self._appeared_at > APPEAR_SECONDS:
            self.appear(kinds)
        self._at_work = [thread for thread in self._at_work if thread.is_alive()]
        free = self._slots - len(self._at_work)
        if free <= 0:
            return False
        taken = self._errands.take(kinds, free, node=self._node, host=host_name(), now=self._now())
        for asked in taken:
            thread = threading.Thread(target=self._answer, args=[asked], daemon=True)
            self._at_work.append(thread)
            thread.start()
        return bool(taken)

    def appear(self, kinds: Sequence[str]) -> None:
        """Have callers count on the node for these kinds."""
        self._errands.appear(self._node, host_name(), kinds, self._now())
        self._appeared_at = time.monotonic()

    def leave(self) -> None:
        """Have nobody count on the node any more."""
        try:
            self._errands.leave(self._node)
        except RegistryUnavailableError as error:
            _log.warning("the node goes without having said so: %s", error)

    def close(self) -> None:
        """End the processes that wait for components; those at work end with this process."""
        while self._idle:
            self._idle.pop().close()

    def _answer(self, asked: Errand) -> None:
        found: dict[str, Any] = {}
        try:
            if asked.what is ErrandKind.LOGS:
                found["answer"] = self._lines(asked)
            elif asked.what is ErrandKind.RESTART:
                runs = self._runs.signed_by(asked.requester)
                runs.restart(asked.given["run"], asked.why, force=True)
                found["answer"] = {}
            elif asked.given["publish"]:
                found["answer"] = self._published(asked)
            else:
                found["answer"] = self._executed(asked)
        except UserError as error:
            found = {"code": error.code, "error": redact(str(error))}
            found["hide"] = isinstance(error, SecretError)
        except Exception as bug:
            _log.exception("errand %s failed by a bug", asked.id)
            found = {"code": "bug", "error": redact(f"{type(bug).__name__}: {bug}")}
        try:
            self._errands.answer(asked, node=self._node, at=self._now(), **found)
        except RegistryUnavailableError as error:
            # The caller is told at the deadline that there is no answer.
            _log.warning("errand %s can't be answered: %s", asked.id, error)

    def _executed(self, asked: Errand) -> dict[str, Any]:
        try:
            worker = self._idle.pop()
        except IndexError:  # another thread may have had the last one
            worker = InlineWorker(self._settings)
        try:
            seconds = (asked.deadline - self._now()).total_seconds()
            return worker.execute({"kind": asked.kind, **asked.given}, seconds)
        finally:
            self._idle.append(worker)

    def _published(self, asked: Errand) -> dict[str, Any]:
        """Have it recorded as a run of an instance of its own, and wait for its end."""
        process = definition_of({"kind": asked.kind, **asked.given})
        runs = self._runs.registry.instance_runs(process.name, process.instance_name)
        given = process.parameters.model_dump(mode="json")
        if runs:
            # Asked for again, it is another run, or the one that goes on.
            again = int(runs[0].status.is_final)
            given["run_number"] = runs[0].run_number + again
            given["reason"] = asked.why or f"asked for inline, errand {asked.id}"
        submission = Submission(kind=asked.kind, parameters=given, why=asked.why)
        request = self._adopt(submission, asked.requester)
        # So that the caller, who waits as long as this, has its answer in time.
        deadline = asked.deadline - timedelta(seconds=1)
        while not request.state.is_final and self._now() < deadline:
            time.sleep(_POLL_SECONDS)
            request = self._dispatch.get(request.id)
        facts: dict[str, Any] = {"state": "RUNNING"}
        if request.state.is_final and request.run_id is not None:
            uri = self._runs.registry.get(request.run_id).uri
            published = request.state is RequestState.SUCCESS
            facts = answer_of(uri, process, published=published)
        told = {"code": request.code, "error": request.error}
        return {**facts, **told, "request_id": request.id, "run_id": request.run_id}

    def _lines(self, asked: Errand) -> dict[str, Any]:
        given = asked.given
        lines = self._runs.logs(given["run"], given["component"])
        return {"lines": list(islice(lines, given["first"], given["first"] + given["limit"]))}
