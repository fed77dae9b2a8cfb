"""A collector of OpenTelemetry: takes spans by OTLP over HTTP, and keeps them."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Span(NamedTuple):
    """What a span says.

    Attributes:
        name: what went on.
        trace: id of its trace, in hexadecimal digits, as all ids.
        id: its own.
        parent: id of the span that it belongs to; empty where it began the trace.
        pid: of the process that sent it.
        seconds: how long it took.
        attributes: facts, without the prefix that they all have.
        error: by what it has failed; empty where it hasn't.
    """

    name: str
    trace: str
    id: str
    parent: str
    pid: int
    seconds: float
    attributes: dict[str, Any]
    error: str


class Collector:
    """The spans that have come, and where to send them: a URL without `/v1/traces`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    def spans(self, name: str = "") -> list[Span]:
        with self._lock:
            return [span for span in self._spans if name in ("", span.name)]

    def take(self, request: ExportTraceServiceRequest) -> None:
        with self._lock:
            for resource in request.resource_spans:
                pid = _facts(resource.resource.attributes)["process.pid"]
                for scope in resource.scope_spans:
                    self._spans += [_span(span, pid) for span in scope.spans]


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            assert self.path == "/v1/traces"
            assert self.headers["Content-Type"] == "application/x-protobuf"
            found.take(ExportTraceServiceRequest.FromString(data))
            body = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def _span(span: Any, pid: int) -> Span:
    facts = _facts(span.attributes)
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        pid,
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        {name.removeprefix("ledgerbeam."): value for name, value in facts.items()},
        span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else "",
    )


def _facts(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
