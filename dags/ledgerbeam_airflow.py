"""Runs of ledgerbeam as Airflow's tasks: one that has a workload run, one that waits for a run.

Both wait in the triggerer, where a poll every few seconds takes no worker's slot.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import ledgerbeam_runs as runs
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TriggerEvent

POLL_SECONDS = 5.0


class RunTrigger(BaseTrigger):
    """Fires when a run has ended."""

    def __init__(self, run: str, poll_seconds: float = POLL_SECONDS, cancels: bool = False) -> None:
        """Wait for a run.

        Args:
            run: its id, or its name, which may not be submitted yet.
            poll_seconds: between two looks.
            cancels: whether the run is canceled with the task that waits for it.
        """
        super().__init__()
        self.run_name = run
        self.poll_seconds = poll_seconds
        self.cancels = cancels

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What makes the same trigger in the triggerer."""
        given = {"run": self.run_name, "poll_seconds": self.poll_seconds, "cancels": self.cancels}
        return f"{__name__}.{type(self).__name__}", given

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until the run has ended; the event holds it."""
        while True:
            run = await runs.look(self.run_name)
            if run is not None and run["status"] in runs.FINAL:
                shown = ("id", "name", "status", "error", "code", "uri")
                yield TriggerEvent({name: run[name] for name in shown})
                return
            await asyncio.sleep(self.poll_seconds)

    async def on_kill(self) -> None:
        """Cancel the run: the task was marked as failed, or cleared, by somebody."""
        if self.cancels:
            await runs.cancel_soon(self.run_name, "its task was killed in Airflow")


class BatchProcessOperator(BaseOperator):
    """Has a workload's instance run, and waits for its end.

    A task that is tried again, or cleared, goes on with the same instance: what is committed isn't
    redone, and an instance that has succeeded isn't run again. A task that is killed cancels it.
    """

    template_fields = ("workload", "parameters", "beam_flags")

    def __init__(
        self,
        *,
        workload: str,
        parameters: Mapping[str, Any],
        beam_flags: Mapping[str, Any] | None = None,
        poll_seconds: float = POLL_SECONDS,
        **kwargs: Any,
    ) -> None:
        """Make a task.

        Args:
            workload: its name, as `ledgerbeam workloads` prints it.
            parameters: of the workload, by their names in Python.
            beam_flags: for Beam, such as `runner`.
            poll_seconds: between two looks at the run.
            kwargs: of every operator.
        """
        super().__init__(**kwargs)
        self.workload = workload
        self.parameters = parameters
        self.beam_flags = beam_flags
        self.poll_seconds = poll_seconds
        self._run: str | None = None

    def execute(self, context: Any) -> str:
        """Submit or go on; the URI of what was published."""
        task = context["ti"]
        why = f"{task.dag_id} {task.run_id} {task.task_id}, try {task.try_number}"
        try:
            run = runs.go(self.workload, self.parameters, why, self.beam_flags)
        except runs.CommandError as error:
            raise AirflowException(str(error)) from error
        self._run = run["id"]
        self.log.info("run %s of %s is %s", run["id"], run["name"], run["status"])
        if run["status"] in runs.FINAL:
            return self.execute_complete(context, run)
        self.defer(
            trigger=RunTrigger(run["id"], self.poll_seconds, cancels=True),
            method_name="execute_complete",
        )
        raise AssertionError("deferred")

    def execute_complete(self, context: Any, event: runs.Run) -> str:
        """The URI of what was published.

        Raises:
            AirflowException: nothing was; the next try goes on from what is committed.
        """
        try:
            return runs.check(event)
        except runs.CommandError as error:
            raise AirflowException(str(error)) from error

    def on_kill(self) -> None:
        """Cancel the run, if the task is killed before it waits in the triggerer."""
        if self._run is not None:
            runs.cancel(self._run, "its task was killed in Airflow")


class BatchProcessSensor(BaseOperator):
    """Waits for a run that somebody else submits, and fails where that does."""

    template_fields = ("run_name",)

    def __init__(self, *, run: str, poll_seconds: float = POLL_SECONDS, **kwargs: Any) -> None:
        """Make a task.

        Args:
            run: its id, or `process/instance`, which may not be submitted yet.
            poll_seconds: between two looks at it.
            kwargs: of every operator; `execution_timeout` is how long it waits.
        """
        super().__init__(**kwargs)
        self.run_name = run
        self.poll_seconds = poll_seconds

    def execute(self, context: Any) -> None:
        """Wait in the triggerer."""
        self.defer(
            trigger=RunTrigger(self.run_name, self.poll_seconds),
            method_name="execute_complete",
            timeout=self.execution_timeout,
        )

    def execute_complete(self, context: Any, event: runs.Run) -> str:
        """The URI of what was published."""
        try:
            return runs.check(event)
        except runs.CommandError as error:
            raise AirflowException(str(error)) from error
