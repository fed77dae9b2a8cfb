"""Translating failures of engines' jobs into errors of this package."""

import re
from collections.abc import Iterator

from ledgerbeam.io.errors import AttemptLostError, BugError, UserError

_TRACEBACK = "Traceback (most recent call last)"


def error_of(failure: str) -> UserError:
    """The error for a failed job of an engine.

    Args:
        failure: the reason in the engine's words.

    Returns:
        The `UserError` that a worker raised; a `BugError` for any other exception of a worker; an
        `AttemptLostError` if the engine itself has failed, so that another attempt may succeed.
    """
    raised = user_error_in(failure)
    if raised is not None:
        return raised
    if _TRACEBACK in failure:
        lines = failure.replace("\\n", "\n").rpartition(_TRACEBACK)[2].splitlines()
        last = next((line for line in lines[1:] if line and not line.startswith(" ")), "")
        return BugError(f"a worker failed by a bug: {without_step(last)}: see its log")
    return AttemptLostError(f"the runner's job failed: {failure.strip().splitlines()[0]}")


def user_error_in(text: str) -> UserError | None:
    """The `UserError` that a worker raised, from a text with its class and its message.

    Runners pass on only the text, so the error has no attributes. None if there is no such error.
    """
    classes = {kind.__name__: kind for kind in _classes(UserError)}
    found = re.findall(rf"\b({'|'.join(classes)}): (.*)", text.replace("\\n", "\n"))
    if not found:
        return None
    name, message = found[-1]
    # The constructor of a workload's own class may take other arguments than a message.
    error = classes[name].__new__(classes[name])
    Exception.__init__(error, without_step(message))
    return error


def memory_refused(error: BaseException) -> str | None:
    """What couldn't be allocated, in a line; None if an error isn't for want of memory.

    The error of a worker process has come as a text.
    """
    if isinstance(error, MemoryError):
        lines = [str(error)]
    else:
        lines = re.findall(r"^(?:[\w.]*\.)?\w*MemoryError\b:? ?(.*)", str(error), re.MULTILINE)
    if not lines:
        return None
    return " ".join(without_step(lines[-1]).split()) or "no more is given"


def _classes(kind: type[UserError]) -> Iterator[type[UserError]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from _classes(derived)


def without_step(message: str) -> str:
    """A worker's message without Beam's note of the step that raised it."""
    return re.sub(r" \[while running '[^']*'\]", "", message)
