"""Logs of launchers and workers: each line has its run and attempt, and no secrets.

    2026-11-20T23:00:04.120Z INFO run=8f3a attempt=1 ledgerbeam.batch.attempt.run: 64 shards

What a component's own code logs while it is called has its key, too: `attempt=1 component=A3`.

A launcher calls `configure`, and a worker calls `configure_worker` before its first element. Set
`LEDGERBEAM_LOG=json` for JSON lines. A process that works for one run needs nothing else. A process
with several runs wraps the work for each in `correlation`, and wraps functions that it passes to a
pool of threads in `bound`, since such threads don't inherit the context.

A factory of log records adds run and attempt to each record when it is made, and removes secrets
from it. Filters can't do that: one on a logger doesn't see what its children log, and one on a
handler misses handlers that are added later, as by Beam's workers and by pytest. Apart from
secrets, messages stay as they were logged, so that code that reads records finds what it expects.
"""

import contextvars
import datetime
import functools
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal, NamedTuple, ParamSpec, TextIO, TypeVar, cast

from ledgerbeam.batch.plain_text import plain_text
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.secrets import RedactSecrets, redact

FORMAT_VARIABLE = "LEDGERBEAM_LOG"
_WORKER = "apache_beam.runners.worker.sdk_worker_main"
"""The program that all runners start as a worker."""

# A plain name such as `run` would clash with other people's `extra={"run": …}`.
_ATTRIBUTE = "ledgerbeam_correlation"

P = ParamSpec("P")
R = TypeVar("R")
Format = Literal["plain", "json"]


class Correlation(NamedTuple):
    """The run and the attempt that log lines belong to.

    Attributes:
        run: the id of the run.
        attempt: the number of the attempt, from 1; None outside attempts.
        component: the key of the component that is being executed; None where none is.
    """

    run: str
    attempt: int | None = None
    component: str | None = None

    def __str__(self) -> str:
        component = "" if self.component is None else f" component={plain_text(self.component)}"
        return f"run={self.run} attempt={'-' if self.attempt is None else self.attempt}{component}"


# Threads of Beam's workers and of pools start with an empty context, so they use this value.
_of_process: Correlation | None = None
_of_context: contextvars.ContextVar[Correlation | None] = contextvars.ContextVar(
    _ATTRIBUTE, default=None
)
_component: contextvars.ContextVar[Callable[[], str | None] | None] = contextvars.ContextVar(
    "ledgerbeam_component", default=None
)


def current() -> Correlation | None:
    """The correlation of this thread's log lines: its own, or else that of the process."""
    found = _of_context.get() or _of_process
    component = _component.get()
    if found is None or component is None:
        return found
    return found._replace(component=component())


@contextmanager
def correlation(run: str, attempt: int | None = None) -> Iterator[None]:
    """Log lines of this thread or task belong to that attempt inside the `with` block."""
    token = _of_context.set(Correlation(run, attempt))
    try:
        yield
    finally:
        _of_context.reset(token)


@contextmanager
def executing(component: Callable[[], str | None]) -> Iterator[None]:
    """Log lines of this thread have a component's key inside the `with` block.

    Args:
        component: gives the key at that moment; None where no component is being executed.
    """
    token = _component.set(component)
    try:
        yield
    finally:
        _component.reset(token)


def bound(function: Callable[P, R]) -> Callable[P, R]:
    """`function` for calls in other threads, where it logs with this thread's correlation."""
    bound_to = current()

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _of_context.set(bound_to)
        try:
            return function(*args, **kwargs)
        finally:
            _of_context.reset(token)

    return call


def configure(
    run: str,
    attempt: int | None = None,
    *,
    level: int = logging.INFO,
    stream: TextIO | None = None,
    style: Format | None = None,
) -> None:
    """Set up a launcher's log. A second call changes the settings, and doesn't double the lines.

    Args:
        run: id of the run that the process works for.
        attempt: number of the attempt.
        level: the lowest level that is written; for Beam's own messages, at least warnings.
        stream: the stream to write to; by default standard error.
        style: `plain` or `json`; by default the value of the variable `LEDGERBEAM_LOG`, or plain.

    Raises:
        ParameterError: the style is neither.
    """
    formatter = _FORMATTERS[style or configured_style()]()
    _attach(run, attempt)
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Handler) or _is_basic(handler):
            root.removeHandler(handler)
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("apache_beam").setLevel(max(level, logging.WARNING))


def configure_worker(run: str, attempt: int | None = None) -> None:
    """Set up the log of a worker process, whose handlers are the runner's. May be called often.

    The runner itself records time, level and place of each message, so handlers without a formatter
    get one that writes run, attempt and message. Handlers that write to standard error get the
    formatter of a launcher.
    """
    _attach(run, attempt)
    _redact_worker()
    for handler in logging.getLogger().handlers:
        if handler.formatter is None:
            handler.setFormatter(WorkerFormatter())
        elif _is_basic(handler):
            handler.setFormatter(_FORMATTERS[configured_style()]())


def _is_basic(handler: logging.Handler) -> bool:
    """Whether `logging` itself made the handler, at the first message without a handler.

    In a process that imports Beam, that message is a warning of Beam's.
    """
    form = handler.formatter._fmt if handler.formatter else None
    return type(handler) is logging.StreamHandler and form == logging.BASIC_FORMAT


def _attach(run: str, attempt: int | None) -> None:
    global _of_process
    _of_process = Correlation(run, attempt)
    _redact_records()


def _redact_records() -> None:
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, _RecordFactory):
        logging.setLogRecordFactory(_RecordFactory(factory))


class _Handler(logging.StreamHandler[TextIO]):
    """The launcher's own handler, recognized by its type."""


class _RecordFactory:
    """Makes records by another factory, adds their correlation, and removes secrets."""

    def __init__(self, factory: Callable[..., logging.LogRecord]) -> None:
        self._factory = factory
        self._secrets = RedactSecrets()

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._factory(*args, **kwargs)
        setattr(record, _ATTRIBUTE, current())
        self._secrets.filter(record)
        return record


def correlation_of(record: logging.LogRecord) -> Correlation | None:
    """The correlation of a record; None if it was made before `configure`."""
    found: Correlation | None = getattr(record, _ATTRIBUTE, None)
    return found


def configured_style() -> Format:
    """The format that the environment asks for.

    Raises:
        ParameterError: there is no such format.
    """
    style = os.environ.get(FORMAT_VARIABLE) or "plain"
    if style not in _FORMATTERS:
        raise ParameterError(
            f"{FORMAT_VARIABLE}={style}: no such format: give plain or json",
            parameter=FORMAT_VARIABLE,
            value=style,
        )
    return cast("Format", style)


class WorkerFormatter(logging.Formatter):
    """Run, attempt and message; each line of a message begins with run and attempt."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, without secrets."""
        head, *more = redact(super().format(record)).splitlines() or [""]
        label = str(correlation_of(record) or "run=- attempt=-")
        return "\n".join([self._head(record, label, head), *(f"{label} | {line}" for line in more)])

    def _head(self, record: logging.LogRecord, label: str, text: str) -> str:
        return f"{label} {text}"


class PlainFormatter(WorkerFormatter):
    """Time in UTC, level, run, attempt, logger and message."""

    def _head(self, record: logging.LogRecord, label: str, text: str) -> str:
        return f"{_time(record)} {record.levelname} {label} {record.name}: {text}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, run, attempt, logger, message, and any exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, without secrets."""
        found = correlation_of(record)
        line = {
            "time": _time(record),
            "level": record.levelname,
            "run": found and found.run,
            "attempt": found and found.attempt,
            **({"component": found.component} if found and found.component else {}),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = redact(record.exc_text)
        if record.stack_info:
            line["stack"] = redact(record.stack_info)
        return json.dumps(line, ensure_ascii=False)


_FORMATTERS: Mapping[Format, Callable[[], logging.Formatter]] = {
    "plain": PlainFormatter,
    "json": JsonFormatter,
}


class RedactedStream:
    """A text stream that takes secrets out of what is written to another one, line by line.

    A line is held back until it is whole or flushed, so that a secret that is written in pieces is
    found, too. What a log can't take, since its disk is full, is lost: no work fails for it, and no
    thread of Beam ends by it, whose answer somebody would wait for without end.
    """

    def __init__(self, stream: TextIO, is_log: bool) -> None:
        self._stream = stream
        self._is_log = is_log
        self._begun = ""
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what completes lines; hold back the rest."""
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
            if lines:
                with self._losing():
                    self._stream.write(redact("\n".join([*lines, ""])))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what was held back."""
        with self._lock:
            begun, self._begun = self._begun, ""
            with self._losing():
                if begun:
                    self._stream.write(redact(begun))
                self._stream.flush()

    def _losing(self) -> AbstractContextManager[None]:
        return suppress(OSError) if self._is_log else nullcontext()


@contextmanager
def redacted_output(stdout_is_log: bool = False) -> Iterator[None]:
    """Take secrets out of all that this process prints inside of the `with` block.

    That is what is printed and logged by any thread, warnings, and the tracebacks of threads. An
    exception that leaves the block, and is none of the user's mistakes, ends the program here: else
    its traceback would be printed by the interpreter as it is.

    Args:
        stdout_is_log: whether standard output is a log, as standard error is, and no result.
    """
    _redact_records()
    before = sys.stdout, sys.stderr
    if any(isinstance(stream, RedactedStream) for stream in before):
        yield
        return
    redacted = RedactedStream(sys.stdout, stdout_is_log), RedactedStream(sys.stderr, is_log=True)
    sys.stdout, sys.stderr = cast("tuple[TextIO, TextIO]", redacted)
    try:
        yield
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            raise
        print(end.code, file=sys.stderr)
        raise SystemExit(1) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        for stream in redacted:
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _redact_worker() -> None:
    """The same for good, in a process that is a worker and nothing else."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name == _WORKER and not isinstance(sys.stdout, RedactedStream):
        sys.stdout = cast("TextIO", RedactedStream(sys.stdout, is_log=True))
        sys.stderr = cast("TextIO", RedactedStream(sys.stderr, is_log=True))


def _time(record: logging.LogRecord) -> str:
    at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# A worker imports this with the first step that it is given, in front of anything that can fail.
_redact_worker()
