"""How often a call is tried, and why one has failed."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Self

from ledgerbeam.io.errors import LedgerbeamError
from ledgerbeam.io.secrets import redact
from ledgerbeam.transforms.concurrency.tracebacks import (
    Values,
    explanation,
    own_place,
    own_traceback,
    record_at_hand,
)

Record = Mapping[str, Any]
"""A row of results: values by column, without the columns of the key."""


class RetryMode(StrEnum):
    """Whether a component may be called again after a call that has failed or was lost."""

    AT_LEAST_ONCE = "AT_LEAST_ONCE"
    AT_MOST_ONCE = "AT_MOST_ONCE"


# Errors that a second try doesn't change: mistakes in data or code.
_NEVER = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_MAX_ERROR_LENGTH = 1_000

MAX_HOLD_SECONDS = 3600.0
"""For how long a component can keep others from beginning."""


@dataclass(frozen=True)
class Retry:
    """How often a component is tried within an attempt.

    Attributes:
        mode: `AT_LEAST_ONCE`: a component that failed or got lost is tried again.
            `AT_MOST_ONCE`: it is called once. If nobody can know how the call has ended, the
            component is `UNKNOWN`, and a person has to resolve it.
        tries: how often a component is called at most, the first time included.
        first_delay: seconds before the second try; each further delay is twice as long, and
            every delay is shortened at random by up to a half.
        longest_delay: seconds that a delay may take at most.
        never: errors after which no further try is made.
        time_limit: seconds that a call may take; one that overruns can't commit later.
    """

    mode: RetryMode = RetryMode.AT_LEAST_ONCE
    tries: int = 3
    first_delay: float = 0.5
    longest_delay: float = 30.0
    never: tuple[type[Exception], ...] = _NEVER
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"tries must be at least 1, not {self.tries}")
        if self.mode is RetryMode.AT_MOST_ONCE and self.tries != 1:
            object.__setattr__(self, "tries", 1)
        if self.time_limit is not None and self.time_limit <= 0:
            raise ValueError(f"time_limit must be more than 0 seconds, not {self.time_limit}")

    def delay(self, tries: int, random: float) -> float:
        """Seconds to wait before the next try.

        Args:
            tries: how many tries there were, at least 1.
            random: a random number from 0 up to 1.
        """
        full = min(self.first_delay * 2.0 ** (tries - 1), self.longest_delay)
        return full * (1 - random / 2)


class RetryAfter(Exception):  # noqa: N818 - said as it is raised: raise RetryAfter(30)
    """Raised by a component whose service wants to be left alone for some time.

        if answer.status_code == 429:
            raise lb.RetryAfter(float(answer.headers["Retry-After"]))

    No worker of the run begins another component before that. The component itself is then tried
    again, if it has tries left; where it may be called once only, it has failed, without effect.

    Attributes:
        seconds: for how long nothing begins.
    """

    def __init__(self, seconds: float, why: str = "") -> None:
        """Say for how long, and why.

        Args:
            seconds: more than 0; at most an hour counts.
            why: for the record.

        Raises:
            ValueError: it is not more than 0.
        """
        if not seconds > 0:
            raise ValueError(f"RetryAfter takes seconds, more than 0, not {seconds}")
        self.seconds = min(float(seconds), MAX_HOLD_SECONDS)
        super().__init__(f"after {self.seconds:g} s" + (f": {why}" if why else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return _retry_after, (self.seconds, str(self))


def _retry_after(seconds: float, message: str) -> RetryAfter:
    error = RetryAfter(seconds)
    error.args = (message,)
    return error


class Failure(NamedTuple):
    """Why a component failed in its last try, or in the one before if the last succeeded.

    Attributes:
        tries: how often the component was called.
        error: one line; see `error_line`.
        code: the code of the error if it is one of `ledgerbeam.io.errors`; else empty.
        is_unknown: whether it can't be known if the call has taken effect.
        traceback: where it was raised; see `own_traceback`.
        record: the record at hand, as text by column; None where that isn't known.
    """

    tries: int
    error: str
    code: str = ""
    is_unknown: bool = False
    traceback: str = ""
    record: Values | None = None

    @classmethod
    def of(
        cls, error: BaseException, tries: int, is_unknown: bool = False, unit: object = None
    ) -> Self:
        """The failure for an error that was raised, by the call of a unit of work."""
        code = error.code if isinstance(error, LedgerbeamError) else ""
        line, trace = error_line(error, unit), own_traceback(error)
        return cls(tries, line, code, is_unknown, trace, record_at_hand(unit, error))


def error_line(error: BaseException, unit: object = None) -> str:
    """An error as one line, with the file and line of the user's code that led to it.

    Args:
        error: that was raised.
        unit: that was executed; where an input has no row of its key, and that is why there was
            nothing at an index, the line says so.
    """
    text = redact(" ".join((explanation(error, unit) or str(error)).split()))
    return f"{type(error).__name__}: {text}"[:_MAX_ERROR_LENGTH] + own_place(error)
