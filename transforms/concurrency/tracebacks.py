"""What a failed call leaves for the person who has to understand it: where it was, and on what.

Of a traceback, the frames of the user's own code are kept: those of the package (or, outside of
packages, the files) that the framework has called, without those of libraries beneath it.
"""

import functools
import os
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from ledgerbeam.io.secrets import redact
from ledgerbeam.rules.components import Component, Components

Values = Mapping[str, str | None]
"""A record as text, by column."""


@runtime_checkable
class Records(Protocol):
    """A unit of work of several records: a component, a page."""

    def __len__(self) -> int: ...

    def records(self) -> Sequence[Mapping[str, Any]]:
        """The records."""

    def is_own(self, value: object) -> bool:
        """Whether a value is one of the records."""


_MAX_LENGTH = 4_000
_MAX_FRAMES = 20
_MAX_COLUMNS = 50
_MAX_VALUE_LENGTH = 200
_FRAMEWORK = tuple(
    f"ledgerbeam.{room}." for room in ("batch", "io", "transforms", "messages", "service")
)
_LIBRARIES = tuple(
    {
        os.path.join(os.path.realpath(path), "")
        for path in map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
    }
)


def own_traceback(error: BaseException) -> str:
    """The traceback of an error, cut to the user's own frames; empty where there are none.

    What has caused the error comes in front of it, as in Python's own tracebacks.
    """
    parts = []
    for each in _chain(error):
        frames = _own_frames(each)
        if frames:
            lines = traceback.StackSummary.extract(iter(frames[-_MAX_FRAMES:])).format()
            line = " ".join(f"{type(each).__name__}: {each}".split())
            parts.append("".join(lines) + line)
    text = "\n\nwhich led to:\n\n".join(reversed(parts))
    # The end says most: what was raised last.
    return redact(text if len(text) <= _MAX_LENGTH else f"…{text[-_MAX_LENGTH:]}")


def own_place(error: BaseException) -> str:
    """File and line of the last of the user's own frames, in brackets; else of the last one."""
    frames = _own_frames(error) or list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return ""
    frame, line = frames[-1]
    return f" ({os.path.basename(frame.f_code.co_filename)}:{line})"


def explanation(error: BaseException, unit: object) -> str:
    """What an error about a missing item means where an input has no row; else nothing."""
    if type(error) not in (IndexError, StopIteration) or not isinstance(unit, Component):
        return ""
    missing = unit.missing
    return f"{' and '.join(missing)} ({error or 'nothing to take'})" if missing else ""


def record_at_hand(unit: object, error: BaseException | None = None) -> Values | None:
    """The record that was being worked on when a unit failed; None where that isn't known.

    It is an item itself, or the only row of a component or page, or else the row of it that one of
    the user's functions has in a variable.
    """
    if isinstance(unit, Components):
        return _as_text(unit.table.to_pylist()[0]) if unit.table.num_rows == 1 else None
    if isinstance(unit, Mapping):
        return _as_text(unit)
    if not isinstance(unit, Records):
        return None
    if error is not None:
        for frame, _ in reversed(_own_frames(error)):
            for value in reversed(frame.f_locals.values()):
                if unit.is_own(value):
                    return _as_text(value)
    return _as_text(unit.records()[0]) if len(unit) == 1 else None


def _as_text(record: Mapping[str, object]) -> Values:
    shown = [(str(name), value) for name, value in record.items()]
    return {
        name: None if value is None else redact(str(value)[:_MAX_VALUE_LENGTH])
        for name, value in shown[:_MAX_COLUMNS]
        if not name.startswith("__")
    }


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what has caused it, and so on."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        yield each
        seen.add(id(each))
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _own_frames(error: BaseException) -> list[tuple[FrameType, int]]:
    frames = list(traceback.walk_tb(error.__traceback__))
    first = next((frame for frame, _ in frames if not _is_framework(frame)), None)
    if first is None:
        return []
    # An installed package of the user's lies among the libraries.
    package = _package(first)
    return [
        (frame, line)
        for frame, line in frames
        if not _is_framework(frame) and (_package(frame) == package or not _is_library(frame))
    ]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_framework(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name.startswith(_FRAMEWORK) or name == "ledgerbeam.rules.components"


def _is_library(frame: FrameType) -> bool:
    return _is_in_library(frame.f_code.co_filename)


@functools.cache
def _is_in_library(file: str) -> bool:
    return file.startswith("<") or os.path.realpath(file).startswith(_LIBRARIES)
