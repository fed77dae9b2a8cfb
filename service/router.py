"""The router: knows the kinds that are installed with it, and decides on what callers have sent.

    RECEIVED ─▶ the definition's own model of parameters ─▶ QUEUED, or REJECTED with every problem

It publishes each kind's JSON Schema, description, policy and version, from which a front end, which
knows no kinds, has its lists and its forms. Any number of routers may be at work.
"""

import inspect
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from ledgerbeam import __version__
from ledgerbeam.batch import traces
from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.define.workloads import load_workload, workload_names
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.runs.client import Runs
from ledgerbeam.batch.settings import whoami
from ledgerbeam.io.errors import (
    RegistryUnavailableError,
    SecretError,
    UserError,
    WorkloadNotFoundError,
)
from ledgerbeam.io.secrets import redact
from ledgerbeam.service.model import (
    KindRecord,
    Problem,
    RequestRecord,
    RequestState,
    Verb,
    again_of,
    schema_of,
)
from ledgerbeam.service.store.bulk import Bulks
from ledgerbeam.service.store.dispatch import Dispatch
from ledgerbeam.service.store.errands import Errands
from ledgerbeam.service.store.wake import Bell, Waiter

PUBLISH_SECONDS = 300.0
"""How often it says again which kinds it knows."""

_ADMIT_SECONDS = 0.1
"""For which requests that are right wait for others, to be admitted together."""

_TARGETS = 20
"""Of an action, before the next one has its turn, and new requests are looked at."""

_log = logging.getLogger(__name__)


class Router:
    """Decides on requests, in this process."""

    def __init__(self, runs: Runs, now: Clock = utc_now) -> None:
        """Load the definitions that are installed.

        Raises:
            DefinitionError: an entry point names none.
        """
        self._runs = runs
        self._now = now
        self._dispatch = Dispatch(runs.registry.database)
        self._bulks = Bulks(runs.registry.database)
        self._errands = Errands(runs.registry.database)
        self._who = whoami("router")
        self._kinds = {name: load_workload(name) for name in workload_names()}
        self._published_at = float("-inf")

    def run(self, stopping: threading.Event) -> None:
        """Decide on what comes, until it is to stop."""
        database = self._runs.registry.database
        bell = Bell(database)
        with Waiter(database, stopping) as waiter:
            while not stopping.is_set():
                try:
                    decided = self.step()
                except RegistryUnavailableError as error:
                    _log.warning("%s", error)
                    decided = 0
                if decided:
                    bell.ring()
                    waiter.found()
                else:
                    waiter.wait()
        bell.close()

    def step(self) -> int:
        """Decide on what is there, and go on with actions on many; gives how much that was."""
        if time.monotonic() - self._published_at > PUBLISH_SECONDS:
            self._dispatch.publish(self._records())
            self._dispatch.forget(self._now())
            self._errands.forget(self._now())
            self._published_at = time.monotonic()
        received = self._dispatch.received(list(self._kinds))
        right: list[RequestRecord] = []
        admitted_at = time.monotonic()
        for request in received:
            if self._decide(request):
                right.append(request)
            if time.monotonic() - admitted_at > _ADMIT_SECONDS:
                self._admit(right)
                right, admitted_at = [], time.monotonic()
        self._admit(right)
        return len(received) + self._act()

    def _admit(self, right: Sequence[RequestRecord]) -> None:
        if not right:
            return
        try:
            self._dispatch.admit([request.id for request in right], self._who, self._now())
        except RegistryUnavailableError:
            raise
        except Exception as error:
            if len(right) > 1:
                # One that can't be admitted is no reason to leave the others alone.
                for request in right:
                    self._admit([request])
                return
            _log.exception("request %s can't be admitted", right[0].id)
            self._reject(right[0], "bug", redact(f"{type(error).__name__}: {error}"))

    def _act(self) -> int:
        """Go on with actions on many, some targets of each at a time; gives how many."""
        reached = 0
        for action in self._bulks.at_work():
            for _ in range(_TARGETS):
                if not self._bulks.reach(action, self._now(), self._who):
                    break
                reached += 1
        return reached

    def _decide(self, request: RequestRecord) -> bool:
        """Decide on a request; gives whether it is to be admitted, else it has ended."""
        with traces.span("route", request.traceparent or "", request=request.id):
            return self._decide_on(request)

    def _decide_on(self, request: RequestRecord) -> bool:
        try:
            kind = self._kinds.get(request.kind)
            if kind is None:
                raise WorkloadNotFoundError(
                    f"no workload {request.kind}: there are {', '.join(sorted(self._kinds))}",
                    workload=request.kind,
                )
            is_new = request.verb in (Verb.SUBMIT, Verb.REPLACE) and request.run_id is None
            problems = _problems(kind, request) if is_new else []
            if problems:
                told = "; ".join(f"{p.parameter}: {p.message}" for p in problems)
                self._reject(request, "invalid-parameter", told, problems)
            elif request.verb is Verb.RESOLVE:
                self._resolve(request)
            else:
                runs = self._runs.signed_by(request.requester)
                if request.verb is Verb.REPLACE and request.run_id is None:
                    runs.begin_replacing(request.kind, request.parameters, request.why)
                elif request.verb is Verb.REPLACE:
                    record = runs.registry.get(str(request.run_id))
                    runs.to_be_approved(record, request.parameters["approval"])
                elif request.verb is Verb.RETRY:
                    record = runs.registry.get(str(request.run_id))
                    runs.check_retry(record, request.why, **again_of(request))
                return True
        except RegistryUnavailableError:
            raise
        except SecretError as error:
            # It was sent as it is, and stored before anybody could know that it is one.
            self._reject(request, error.code, str(error), hide_parameters=True)
        except UserError as error:
            self._reject(request, error.code, redact(str(error)))
        except Exception as error:
            # A definition's own code: one kind that fails is no reason to leave the others alone.
            _log.exception("request %s: its definition failed", request.id)
            self._reject(request, "bug", redact(f"{type(error).__name__}: {error}"))
        return False

    def _resolve(self, request: RequestRecord) -> None:
        given, run = request.parameters, str(request.run_id)
        runs = self._runs.signed_by(request.requester)
        if "approval" in given:
            runs.approve(run, given["approval"], request.why)
        else:
            status = ComponentStatus(given["status"])
            runs.resolve(run, given["component"], status, request.why, given.get("results"))
        self._dispatch.settle(request.id, RequestState.SUCCESS, self._who, self._now())

    def _reject(
        self,
        request: RequestRecord,
        code: str,
        told: str,
        problems: Sequence[Problem] = (),
        *,
        hide_parameters: bool = False,
    ) -> None:
        self._dispatch.settle(
            request.id,
            RequestState.REJECTED,
            self._who,
            self._now(),
            code,
            told,
            problems,
            hide_parameters=hide_parameters,
        )

    def _records(self) -> Iterator[KindRecord]:
        for name, kind in self._kinds.items():
            yield KindRecord(
                name=name,
                description=inspect.getdoc(kind) or "",
                parameters_schema=schema_of(kind.parameters_type.model_json_schema(), kind.sla),
                code_version=__version__,
                policy=kind.queue,
                approvals=kind.approvals,
                seen_at=self._now(),
            )


def _problems(kind: type[BatchProcess[Any]], request: RequestRecord) -> list[Problem]:
    """What is wrong with a request's parameters, field by field."""
    try:
        model = kind.parameters_type.model_validate(request.parameters)
    except ValidationError as error:
        return [
            Problem(parameter=".".join(map(str, entry["loc"])), message=redact(entry["msg"]))
            for entry in error.errors(include_input=False, include_url=False)
        ]
    # What can't be named can't be run: a business date that is missing, for example.
    assert kind(model).instance_name
    return []
