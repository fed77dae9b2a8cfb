"""Spans of OpenTelemetry, where that is configured: one trace from a call to the shards of its run.

It is configured by the variables of OpenTelemetry: `OTEL_EXPORTER_OTLP_ENDPOINT` says where spans
go, by OTLP over HTTP. Without it nothing is imported, and a span costs a comparison.

What goes on is told by a `traceparent` (W3C Trace Context) from process to process: as a header, in
the request database, in `TRACEPARENT` of a process's environment. Spans hold names and numbers,
and of errors their codes; no parameters and no text.
"""

import datetime
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from ledgerbeam.io.errors import LedgerbeamError, ParameterError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

TRACEPARENT = "TRACEPARENT"
"""The variable, and in small letters the header, by which a trace goes on."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_MILLISECONDS = 2_000

Kind = Literal["INTERNAL", "SERVER"]


def are_on() -> bool:
    """Whether spans are to be sent."""
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not is_disabled and any(os.environ.get(name) for name in _ENDPOINTS)


def check() -> None:
    """Refuse what would be found out too late.

    Raises:
        ParameterError: spans are to be sent, and what sends them isn't installed.
    """
    if are_on():
        try:
            import opentelemetry.exporter.otlp.proto.http
            import opentelemetry.sdk  # noqa: F401
        except ModuleNotFoundError as error:
            name = next(name for name in _ENDPOINTS if os.environ.get(name))
            raise ParameterError(
                f"{name} is set, and OpenTelemetry isn't installed: pip install "
                "'ledgerbeam[otel]', or unset it",
                parameter=name,
            ) from error


@contextmanager
def span(
    name: str, parent: str = "", kind: Kind = "INTERNAL", **attributes: str | int | None
) -> Iterator[str]:
    """A span as long as the block.

    Args:
        name: what goes on; one of few.
        parent: the `traceparent` that it belongs to; by default the span around it, else
            `TRACEPARENT` of this process, else a new trace.
        kind: `SERVER` for what answers a call.
        attributes: facts; those that are None aren't known.

    Yields:
        Its own `traceparent`, for what it causes; `parent` where no spans are sent.
    """
    if not are_on():
        yield parent
        return
    from opentelemetry import trace

    with _tracer().start_as_current_span(
        name,
        _context(parent),
        trace.SpanKind[kind],
        _named(attributes),
        # Its text and its traceback may hold anything.
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield _traceparent(current)
        except BaseException as error:
            known = error.code if isinstance(error, LedgerbeamError) else type(error).__name__
            current.set_status(trace.StatusCode.ERROR, known)
            raise


@contextmanager
def continued(parent: str) -> Iterator[None]:
    """Whatever is begun in the block belongs to a trace that others have begun."""
    if not are_on() or not parent:
        yield
        return
    from opentelemetry import context

    token = context.attach(_context(parent) or context.Context())
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def of_process(name: str) -> Iterator[None]:
    """A span to which all threads and processes belong that begin in it; it is sent at its end."""
    if not are_on():
        yield
        return
    before = os.environ.get(TRACEPARENT)
    try:
        with span(name) as own:
            os.environ[TRACEPARENT] = own
            yield
    finally:
        if before is None:
            del os.environ[TRACEPARENT]
        else:
            os.environ[TRACEPARENT] = before
        flush()


def note(**attributes: str | int | None) -> None:
    """Add facts to the span around; those that are None aren't known."""
    if are_on():
        from opentelemetry import trace

        trace.get_current_span().set_attributes(_named(attributes))


def past(
    name: str,
    parent: str,
    begun_at: datetime.datetime,
    ended_at: datetime.datetime,
    **attributes: str | int | None,
) -> None:
    """A span of something that is over, such as waiting; times in UTC."""
    if are_on():
        begun, ended = (int(at.timestamp() * 1e9) for at in (begun_at, ended_at))
        done = _tracer().start_span(
            name, _context(parent), attributes=_named(attributes), start_time=begun
        )
        done.end(ended)


def flush() -> None:
    """Send what has ended, within two seconds: the process may be about to end."""
    if are_on():
        _provider().force_flush(_FLUSH_MILLISECONDS)


@functools.cache
def _provider() -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from ledgerbeam import __version__

    own: dict[str, str | int] = {"process.pid": os.getpid(), "service.version": __version__}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        own["service.name"] = "ledgerbeam"
    provider = TracerProvider(resource=Resource.create(own))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _tracer() -> Any:
    return _provider().get_tracer("ledgerbeam")


def _context(parent: str) -> "Context | None":
    """The context of a parent; None for that of this thread."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if not parent and trace.get_current_span().get_span_context().is_valid:
        return None
    carrier = {"traceparent": parent or os.environ.get(TRACEPARENT, "")}
    return TraceContextTextMapPropagator().extract(carrier)


def _traceparent(current: Any) -> str:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(current))
    return carrier.get("traceparent", "")


def _named(attributes: dict[str, Any]) -> dict[str, Any]:
    return {f"ledgerbeam.{name}": v for name, v in attributes.items() if v is not None}
