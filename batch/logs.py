"""Log lines of launcher and workers: all name their run and attempt, none holds a secret.

    2026-11-20T23:00:04.120Z INFO run=8f3a attempt=1 ledgerbeam.batch.launch: 64 shards

A launcher calls `configure`, a worker `configure_worker` before its first element. Set
`LEDGERBEAM_LOG=json` for JSON lines. In the log of a process with one run that is all there is to
do. A process with several runs wraps each in `correlation`, and what it hands to a pool of threads
in `bound`: such threads don't inherit the context.

Run and attempt are put onto a record when it is made (a factory of log records), and secrets taken
out of it. A filter on a logger doesn't see what its children log, and one on a handler misses
handlers that come later: Beam's workers bring their own, and so does pytest. Messages stay as they
were logged, so that whatever looks at records finds what it expects.
"""

import contextvars
import datetime
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, ParamSpec, TextIO, TypeVar

from ledgerbeam.io.errors import UserError
from ledgerbeam.io.secrets import RedactSecrets, redact

FORMAT_VARIABLE = "LEDGERBEAM_LOG"
# A plain name such as `run` would clash with other people's `extra={"run": …}`.
_ATTRIBUTE = "ledgerbeam_correlation"

P = ParamSpec("P")
R = TypeVar("R")
Format = Literal["plain", "json"]


class Correlation(NamedTuple):
    """What log lines belong to.

    Attributes:
        run: its id.
        attempt: its number from 1; None outside attempts.
    """

    run: str
    attempt: int | None = None

    def __str__(self) -> str:
        return f"run={self.run} attempt={'-' if self.attempt is None else self.attempt}"


# Threads of Beam's workers and of pools start with an empty context: they get the process's.
_of_process: Correlation | None = None
_of_context: contextvars.ContextVar[Correlation | None] = contextvars.ContextVar(
    _ATTRIBUTE, default=None
)


def current() -> Correlation | None:
    """What this thread's log lines belong to: its `correlation`, or else the process's."""
    return _of_context.get() or _of_process


@contextmanager
def correlation(run: str, attempt: int | None = None) -> Iterator[None]:
    """Log lines of this thread (or task) belong to that attempt while the `with` lasts."""
    token = _of_context.set(Correlation(run, attempt))
    try:
        yield
    finally:
        _of_context.reset(token)


def bound(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, to be called in other threads, whose log lines belong to what this one's do."""
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
    """Set up a launcher's log. Calling it again changes the set-up, and adds no second line.

    Args:
        run: id of the run that the process works for.
        attempt: number of the attempt.
        level: the lowest that is written; of Beam's own messages, warnings at the lowest.
        stream: where to; standard error by default.
        style: `plain` or `json`; by default what the variable `LEDGERBEAM_LOG` says, or plain.

    Raises:
        UserError: the variable says something else.
    """
    formatter = _formatter(style or os.environ.get(FORMAT_VARIABLE) or "plain")
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

    The runner records time, level and place of each message itself, so handlers that have no
    formatter get one that writes run, attempt and message. What goes to standard error gets that
    of a launcher.
    """
    _attach(run, attempt)
    for handler in logging.getLogger().handlers:
        if handler.formatter is None:
            handler.setFormatter(WorkerFormatter())
        elif _is_basic(handler):
            handler.setFormatter(_formatter(os.environ.get(FORMAT_VARIABLE) or "plain"))


def _is_basic(handler: logging.Handler) -> bool:
    """Whether nobody chose it: `logging` makes it itself at the first message without a handler.

    In a process that imports Beam that is a warning of Beam's.
    """
    form = handler.formatter._fmt if handler.formatter else None
    return type(handler) is logging.StreamHandler and form == logging.BASIC_FORMAT


def _attach(run: str, attempt: int | None) -> None:
    global _of_process
    _of_process = Correlation(run, attempt)
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, _RecordFactory):
        logging.setLogRecordFactory(_RecordFactory(factory))


class _Handler(logging.StreamHandler[TextIO]):
    """The launcher's own handler, told from others by its type."""


class _RecordFactory:
    """Makes records as `factory` does, with their correlation and without secrets."""

    def __init__(self, factory: Callable[..., logging.LogRecord]) -> None:
        self._factory = factory
        self._secrets = RedactSecrets()

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._factory(*args, **kwargs)
        setattr(record, _ATTRIBUTE, current())
        self._secrets.filter(record)
        return record


def correlation_of(record: logging.LogRecord) -> Correlation | None:
    """What a record belongs to, if it was made after `configure`."""
    found: Correlation | None = getattr(record, _ATTRIBUTE, None)
    return found


def _formatter(style: str) -> logging.Formatter:
    if style == "plain":
        return PlainFormatter()
    if style == "json":
        return JsonFormatter()
    raise UserError(f"{FORMAT_VARIABLE}={style}: no such format: give plain or json")


class WorkerFormatter(logging.Formatter):
    """Run, attempt and message. Each further line of a message, as of a traceback, has them too."""

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
    """A JSON object a line: time, level, run, attempt, logger, message, and any exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, without secrets."""
        found = correlation_of(record)
        line = {
            "time": _time(record),
            "level": record.levelname,
            "run": found and found.run,
            "attempt": found and found.attempt,
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


def _time(record: logging.LogRecord) -> str:
    at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
