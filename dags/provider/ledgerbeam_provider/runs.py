"""Tasks of Airflow: one that has a service run a workload, one that waits for a run of it.

Both wait in the triggerer, where a call that is open costs no worker's slot.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from ledgerbeam_provider.service import (
    FINAL,
    Answer,
    ServiceError,
    ServiceHook,
    check_canceled,
    checked,
    state_of,
)

POLL_SECONDS = 5.0
_KILLED = "its task was killed in Airflow"
_SHOWN = ("id", "kind", "name", "state", "status", "run_id", "uri", "code", "error", "cancel_why")


class EndTrigger(BaseTrigger):
    """Fires when a request or a run has ended."""

    def __init__(
        self, path: str, conn_id: str, name: str | None = None, cancels: bool = False
    ) -> None:
        """Wait for an end.

        Args:
            path: of the request or the run; of runs, where one is looked for by name.
            conn_id: of the connection to the service.
            name: of a run that may not be there yet.
            cancels: whether it is canceled with the task that waits for it.
        """
        super().__init__()
        self.path = path
        self.conn_id = conn_id
        self.name = name
        self.cancels = cancels

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What makes the same trigger in the triggerer."""
        given = {"path": self.path, "conn_id": self.conn_id, "name": self.name}
        return f"{__name__}.{type(self).__name__}", {**given, "cancels": self.cancels}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is an end; the event holds it, or the line by which it was refused."""
        async with await ServiceHook(self.conn_id).aget_conn() as service:
            while True:
                try:
                    found = await self._look(service)
                except ServiceError as error:
                    yield TriggerEvent({"refused": str(error)})
                    return
                except httpx.HTTPError as error:
                    # Front ends come and go; `execution_timeout` says how long that is all right.
                    self.log.warning("the service can't be reached: %s", error)
                    found = None
                if found is not None and state_of(found) in FINAL:
                    yield TriggerEvent({name: found[name] for name in _SHOWN if name in found})
                    return
                if found is None:
                    await asyncio.sleep(POLL_SECONDS)

    async def _look(self, service: httpx.AsyncClient) -> Answer | None:
        """How it stands at its end, or after half a minute; None where it can't be known yet."""
        path = self.path
        if self.name is not None:
            listed = await service.get(path, params={"name": self.name})
            if listed.status_code == 404:
                return None
            path = f"{path}/{checked(listed)['items'][0]['id']}"
        answer = await service.get(path, headers={"Prefer": "wait=30"})
        if answer.status_code in (502, 503, 504):
            self.log.warning("%s answers %d", path, answer.status_code)
            return None
        return checked(answer)

    async def on_kill(self) -> None:
        """Cancel it: the task was marked as failed, or cleared, by somebody."""
        if self.cancels:
            async with await ServiceHook(self.conn_id).aget_conn() as service:
                check_canceled(await service.post(f"{self.path}/cancel", json={"why": _KILLED}))


class RequestOperator(BaseOperator):
    """Has a service run a workload's instance, and waits for its end; gives the URI of its results.

    A task that is tried again, or cleared, is the same request as long as its parameters are the
    same: what is at work is waited for, what has failed goes on from what is committed. A task that
    is killed cancels it.
    """

    template_fields = ("workload", "parameters")

    def __init__(
        self,
        *,
        workload: str,
        parameters: Mapping[str, Any],
        priority: int = 0,
        conn_id: str = ServiceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        """Make a task.

        Args:
            workload: its name, as the service lists it among its kinds.
            parameters: of the workload, by their names in Python.
            priority: higher ones are taken first from the workload's queue.
            conn_id: of the connection to the service.
            kwargs: of every operator; `execution_timeout` is how long it waits.
        """
        super().__init__(**kwargs)
        self.workload = workload
        self.parameters = parameters
        # `priority_weight` and the like are Airflow's.
        self.priority = priority
        self.conn_id = conn_id
        self._path: str | None = None

    def execute(self, context: Any) -> str:
        """Ask for it, or for what is missing, and wait in the triggerer."""
        task = context["ti"]
        known_by = (task.dag_id, task.run_id, task.task_id, str(task.map_index))
        try:
            path, found = ServiceHook(self.conn_id).go(
                self.workload,
                self.parameters,
                task=known_by,
                number=task.try_number,
                why=f"Airflow: {task.dag_id} {task.run_id} {task.task_id}",
                priority=self.priority,
            )
        except (ServiceError, httpx.HTTPError) as error:
            raise AirflowException(str(error)) from error
        self._path = path
        self.log.info("%s is %s", path, state_of(found))
        if state_of(found) in FINAL:
            return self.execute_complete(context, found)
        self.defer(
            trigger=EndTrigger(path, self.conn_id, cancels=True),
            method_name="execute_complete",
            timeout=self.execution_timeout,
        )
        raise AssertionError("deferred")

    def execute_complete(self, context: Any, event: Answer) -> str:
        """The URI of what was published.

        Raises:
            AirflowFailException: the parameters are wrong, which no further try changes.
            AirflowException: nothing was published; the next try goes on from what is committed.
        """
        return _published(ServiceHook(self.conn_id), event)

    def on_kill(self) -> None:
        """Cancel it, if the task is killed before it waits in the triggerer."""
        if self._path is not None:
            ServiceHook(self.conn_id).cancel(self._path, _KILLED)


class RunSensor(BaseOperator):
    """Waits for a run that somebody else asks for, and fails where that does."""

    template_fields = ("run_name",)

    def __init__(
        self, *, run: str, conn_id: str = ServiceHook.default_conn_name, **kwargs: Any
    ) -> None:
        """Make a task.

        Args:
            run: `process/instance`, which may not be there yet.
            conn_id: of the connection to the service.
            kwargs: of every operator; `execution_timeout` is how long it waits.
        """
        super().__init__(**kwargs)
        self.run_name = run
        self.conn_id = conn_id

    def execute(self, context: Any) -> None:
        """Wait in the triggerer."""
        self.defer(
            trigger=EndTrigger("/v1/runs", self.conn_id, name=self.run_name),
            method_name="execute_complete",
            timeout=self.execution_timeout,
        )

    def execute_complete(self, context: Any, event: Answer) -> str:
        """The URI of what was published."""
        return _published(ServiceHook(self.conn_id), event)


def _published(service: ServiceHook, end: Answer) -> str:
    if "refused" in end:
        raise AirflowException(end["refused"])
    if state_of(end) == "SUCCESS":
        return str(end.get("uri") or service.uri(end["run_id"]))
    name = end.get("name") or f"request {end['id']} of {end['kind']}"
    told = (
        f"{name} is {state_of(end)}: {end.get('error') or end.get('cancel_why') or 'see its audit'}"
    )
    if state_of(end) == "REJECTED":
        raise AirflowFailException(told)
    raise AirflowException(told)
