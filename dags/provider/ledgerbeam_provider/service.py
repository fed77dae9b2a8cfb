"""A ledgerbeam service, as its REST API has it: what is asked for, and what became of it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import httpx
from airflow.sdk import BaseHook

FINAL = frozenset({"SUCCESS", "FAILURE", "CANCELED", "REJECTED", "EXPIRED", "DEAD"})
"""Where requests and runs stay unless somebody moves them on."""

Answer = dict[str, Any]
"""A request (`id`, `state`, `run_id`, …) or a run (`id`, `status`, `uri`, …)."""


class ServiceError(Exception):
    """The service has refused.

    Attributes:
        code: of the error, as the service's documentation lists them; empty where there is none.
    """

    def __init__(self, message: str, code: str = "") -> None:
        """Hold the code beside the message."""
        super().__init__(message)
        self.code = code


class ServiceHook(BaseHook):
    """The way to a service, by a connection: its server, and an API key as the password."""

    conn_name_attr = "conn_id"
    default_conn_name = "ledgerbeam_default"
    conn_type = "ledgerbeam"
    hook_name = "ledgerbeam"

    def __init__(self, conn_id: str = default_conn_name) -> None:
        """Name the connection."""
        super().__init__()
        self.conn_id = conn_id

    def get_conn(self) -> httpx.Client:
        """A client, to be closed by the caller."""
        return httpx.Client(**_access(self.get_connection(self.conn_id)))

    async def aget_conn(self) -> httpx.AsyncClient:
        """The same for an event loop."""
        return httpx.AsyncClient(**_access(await self.aget_connection(self.conn_id)))

    def go(
        self,
        kind: str,
        parameters: Mapping[str, Any],
        *,
        task: tuple[str, ...],
        number: int,
        why: str,
        priority: int = 0,
    ) -> tuple[str, Answer]:
        """Have an instance run: asked for if that is new, and again where it has failed.

        The same task with the same parameters is the same request, however often it is tried. One
        that is at work, or has succeeded, is left to be what it is; from the second try on, one
        that has failed goes on from what is committed.

        Args:
            kind: name of the workload.
            parameters: of the workload.
            task: what Airflow knows the task by, over all of its tries.
            number: of the try, from 1.
            why: for the record; the same for each try.
            priority: higher ones are taken first.

        Returns:
            The path of what is to be waited for, a request or a run, and how it stands.

        Raises:
            ServiceError: the service has refused.
            httpx.HTTPError: it can't be reached; what was sent may be there, and is known again.
        """
        body = {"kind": kind, "parameters": parameters, "priority": priority, "why": why}
        told = json.dumps([task, body], sort_keys=True, default=str)
        key = f"airflow-{hashlib.sha256(told.encode()).hexdigest()}"
        with self.get_conn() as service:
            asked = _ask(service, "/v1/requests", body, key)
            if number > 1 and asked["state"] in FINAL - {"SUCCESS"}:
                key = f"{key}-{number}"
                if asked["run_id"] is None:
                    asked = _ask(service, "/v1/requests", body, key)
                else:
                    return self._retry(service, asked["run_id"], why, key)
        return f"/v1/requests/{asked['id']}", asked

    def _retry(self, service: httpx.Client, run_id: str, why: str, key: str) -> tuple[str, Answer]:
        path = f"/v1/runs/{run_id}"
        run = checked(service.get(path))
        if run["status"] in FINAL - {"SUCCESS"}:
            try:
                asked = _ask(service, f"{path}/retry", {"why": why}, key)
                return f"/v1/requests/{asked['id']}", asked
            except ServiceError as error:
                if error.code != "illegal-move":
                    raise
            # Somebody else has had it tried again meanwhile.
            run = checked(service.get(path))
        return path, run

    def cancel(self, path: str, why: str) -> None:
        """Withdraw a request, or cancel a run, unless it has ended.

        Raises:
            ServiceError: the service has refused for another reason.
        """
        with self.get_conn() as service:
            check_canceled(service.post(f"{path}/cancel", json={"why": why}))

    def uri(self, run_id: str) -> str:
        """Where a run has published."""
        with self.get_conn() as service:
            return str(checked(service.get(f"/v1/runs/{run_id}"))["uri"])


def state_of(answer: Answer) -> str:
    """Where a request or a run stands."""
    return str(answer.get("state") or answer["status"])


def checked(answer: httpx.Response) -> Answer:
    """What the service has answered.

    Raises:
        ServiceError: it has refused.
    """
    if answer.is_success:
        found: Answer = answer.json()
        return found
    try:
        problem = answer.json()
        message, code = str(problem["detail"]), str(problem.get("code", ""))
    except (ValueError, TypeError, KeyError):
        message, code = f"{answer.url} answers {answer.status_code}: is it the service?", ""
    raise ServiceError(f"ledgerbeam: {message}", code)


def check_canceled(answer: httpx.Response) -> None:
    """Let a caller go on who wanted something canceled; it may have ended before.

    Raises:
        ServiceError: the service has refused for another reason.
    """
    try:
        checked(answer)
    except ServiceError as error:
        if error.code not in ("illegal-move", "request-state"):
            raise


def _ask(service: httpx.Client, path: str, body: Mapping[str, Any], key: str) -> Answer:
    text = json.dumps(body, default=str)
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    return checked(service.post(path, content=text, headers=headers))


def _access(connection: Any) -> dict[str, Any]:
    """How a client reaches the service that a connection names."""
    server = connection.host or "localhost"
    if "://" not in server:
        server = f"{connection.schema or 'https'}://{server}"
    if connection.port:
        server = f"{server}:{connection.port}"
    key = connection.password
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Longer than the service waits for an end.
    return {"base_url": server, "headers": headers, "timeout": 60.0}
