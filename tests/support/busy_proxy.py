"""A proxy before an object store that answers requests by errors, as a store out of breath does."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

_OWN = {"connection", "keep-alive", "transfer-encoding", "date", "server"}
"""Headers of an answer that the proxy writes itself."""


class Fault(NamedTuple):
    """What becomes of a request.

    Attributes:
        status: that is answered.
        applied: whether the store has carried it out nevertheless.
    """

    status: int
    applied: bool = False


Choose = Callable[[str, int], Fault | None]
"""Gives the fault of a request, by its method and its number, from 1; None to let it through."""


class BusyProxy:
    """A proxy whose faults are chosen request by request.

    Attributes:
        url: where it listens.
        choose: chooses the faults.
        faults: those that were answered, with the method of the request.
    """

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        assert target.hostname is not None
        self._target = (target.hostname, target.port)
        self._lock = threading.Lock()
        self._requests = 0
        self.choose: Choose = lambda method, number: None
        self.faults: list[tuple[str, Fault]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __getattr__(self, name: str) -> Callable[[], None]:
                if not name.startswith("do_"):
                    raise AttributeError(name)
                return lambda: proxy._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def next(self, method: str, *faults: Fault) -> None:
        """Answer the next requests of a method by these faults."""
        left = list(faults)
        self.choose = lambda asked, _: left.pop(0) if left and asked == method else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            self._requests += 1
            fault = self.choose(request.command, self._requests)
            if fault is not None:
                self.faults.append((request.command, fault))
        if fault is None:
            status, headers, answer = self._store_answers(request, body)
        else:
            if fault.applied:
                self._store_answers(request, body)
            status, headers, answer = fault.status, {}, b"<Error/>"
        length = headers.pop("Content-Length", str(len(answer)))
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        # What a HEAD would give has a length, too.
        request.send_header("Content-Length", length)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(answer)

    def _store_answers(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self._target, timeout=60)
        left_out = {"connection", "expect"}
        headers = {n: v for n, v in request.headers.items() if n.lower() not in left_out}
        connection.request(request.command, request.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return (
            answer.status,
            {n: v for n, v in answer.getheaders() if n.lower() not in _OWN},
            content,
        )


@contextmanager
def busy_proxy(endpoint: str) -> Iterator[BusyProxy]:
    """A `BusyProxy` before the endpoint."""
    proxy = BusyProxy(endpoint)
    try:
        yield proxy
    finally:
        proxy.close()
