"""Jobs on engines, which continue without the process that has submitted them.

Such a job is found by its name, which is recorded before the job is submitted. The engine's own id
is known only when the submission has been answered, and the process that waits for it may die.
"""

import enum
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple


class JobState(enum.Enum):
    """The states of engines' jobs, reduced to what matters here."""

    GOING_ON = enum.auto()
    ENDING = enum.auto()
    """The job was asked to end, and hasn't ended yet."""
    ENDED = enum.auto()
    FAILED = enum.auto()


class Listed(NamedTuple):
    """A job as its engine lists it.

    Attributes:
        id: the engine's id of the job.
        name: the name that the job was submitted with.
        state: the state of the job.
    """

    id: str
    name: str
    state: JobState

    @property
    def has_ended(self) -> bool:
        """Whether no part of the job is running."""
        return self.state in (JobState.ENDED, JobState.FAILED)


class RunnerJob(ABC):
    """A job on an engine, identified by its name.

    All methods may raise `RunnerUnavailableError`.

    Attributes:
        poll_seconds: how long to wait between two questions to the engine.
    """

    poll_seconds: float

    def __init__(self, name: str) -> None:
        self._name = name

    def is_alive(self) -> bool:
        """Whether the engine has the job, and it is running."""
        found = self._find()
        return found is not None and not found.has_ended

    def cancel(self) -> None:
        """End the job; return when the engine confirms that it has ended."""
        while (found := self._find()) is not None and not found.has_ended:
            if found.state is JobState.GOING_ON:
                self._ask_to_end(found.id)
            time.sleep(self.poll_seconds)

    def failure(self) -> str:
        """Why the job has failed, in the engine's words; empty if it hasn't failed."""
        found = self._find()
        if found is None or found.state is not JobState.FAILED:
            return ""
        return self._reason(found.id) or "the engine knows no reason"

    def _find(self) -> Listed | None:
        # A job is submitted once; should a proxy have submitted it twice, the running one counts.
        named = [job for job in self._jobs() if job.name == self._name]
        return min(named, key=lambda job: job.has_ended, default=None)

    @abstractmethod
    def _jobs(self) -> Iterable[Listed]:
        """Jobs of the engine, including all with this job's name."""

    @abstractmethod
    def _ask_to_end(self, id: str) -> None:  # noqa: A002
        """Ask the engine to end a job; it is no error if the job has already ended."""

    @abstractmethod
    def _reason(self, id: str) -> str:  # noqa: A002
        """Why a job has failed; empty if that isn't known."""
