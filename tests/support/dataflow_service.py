"""A service that answers as Dataflow's does, for jobs that a test moves from state to state.

It follows the public discovery document of version v1b3, as far as jobs are created, listed, got
and asked to end, and their messages and metrics are read. Nothing of a job is carried out.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PROJECT = "a-bank"
REGION = "europe-west3"
PATH = f"/v1b3/projects/{PROJECT}/locations/{REGION}/jobs"
_ENDED = ("JOB_STATE_DONE", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")


class DataflowService:
    """Jobs by their names, in the order in which they were created.

    Attributes:
        url: where it listens.
        jobs: as the API has them.
        messages: of each job, by its id.
        confirms: whether what is asked to end does so; until then it is on its way.
        requests: methods and paths of all that was asked.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.messages: dict[str, list[dict[str, str]]] = {}
        self.confirms = True
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        # The client takes plain HTTP for this name only.
        self.url = f"http://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def move(self, name: str, state: str, *messages: str) -> None:
        """Bring a job into a state, and say so."""
        job = self.jobs[name]
        self.messages[job["id"]] = [
            {"messageText": text, "messageImportance": "JOB_MESSAGE_ERROR"} for text in messages
        ]
        job["currentState"] = f"JOB_STATE_{state}"

    def state(self, name: str) -> str:
        return str(self.jobs[name]["currentState"]).removeprefix("JOB_STATE_")

    def answer(self, method: str, url: str, body: bytes) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.requests.append(f"{method} {parts.path}")
        if not parts.path.startswith(PATH):
            return _error(404, "NOT_FOUND", parts.path)
        if parts.path == PATH:
            return self._create(json.loads(body)) if method == "POST" else self._list(query)
        id_, _, part = parts.path.removeprefix(f"{PATH}/").partition("/")
        job = next((job for job in self.jobs.values() if job["id"] == id_), None)
        if job is None:
            return _error(404, "NOT_FOUND", id_)
        if part == "messages":
            return 200, {"jobMessages": self.messages.get(id_, [])}
        if part == "metrics":
            return 200, {"metrics": []}
        if method == "PUT":
            return self._update(job, json.loads(body))
        if self.confirms and job["currentState"] == "JOB_STATE_CANCELLING":
            job["currentState"] = "JOB_STATE_CANCELLED"
        return 200, job

    def _create(self, job: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = job["name"]
        known = self.jobs.get(name)
        if known is not None and known["currentState"] not in _ENDED:
            return _error(409, "ALREADY_EXISTS", f"{name}: there is an active job of this name")
        given = {"projectId": PROJECT, "location": REGION, "currentState": "JOB_STATE_RUNNING"}
        self.jobs[name] = {**job, **given, "id": f"2026-11-20_{len(self.jobs) + 1}"}
        return 200, self.jobs[name]

    def _list(self, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if self.confirms:
            for job in self.jobs.values():
                if job["currentState"] == "JOB_STATE_CANCELLING":
                    job["currentState"] = "JOB_STATE_CANCELLED"
        wanted = [
            {key: job[key] for key in ("id", "name", "currentState", "projectId", "location")}
            for job in self.jobs.values()
            if query.get("name") in (None, job["name"])
        ]
        return 200, {"jobs": wanted} if wanted else {}

    def _update(self, job: dict[str, Any], wish: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if job["currentState"] in _ENDED:
            return _error(400, "FAILED_PRECONDITION", f"{job['id']} has ended")
        assert wish == {"requestedState": "JOB_STATE_CANCELLED"}
        job |= {"requestedState": "JOB_STATE_CANCELLED", "currentState": "JOB_STATE_CANCELLING"}
        return 200, job


def _error(code: int, status: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"error": {"code": code, "message": message, "status": status}}


def _handler(service: DataflowService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, answer = service.answer(self.command, self.path, body)
            encoded = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def dataflow_service() -> Iterator[DataflowService]:
    service = DataflowService()
    try:
        yield service
    finally:
        service.close()
