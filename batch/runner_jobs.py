"""Jobs of engines, which go on without the process that has submitted them.

Such a job is found again by its name, which is on record before it is submitted: the engine's own
number is known only when the submission has been answered, and whoever waits for that may die.
"""

import argparse
import enum
import hashlib
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ledgerbeam.io.attempts import Attempt, LostError
from ledgerbeam.io.errors import UserError

LOCAL_RUNNERS = ("", "directrunner", "direct", "fnapirunner", "fnapi")
"""Names of the local runner, in small letters; no name is the local runner too."""

_LONGEST_NAME = 63  # of a DNS label, which engines make of it
_TOLD = ("UserError", "FencedError", "Canceled")
_TRACEBACK = "Traceback (most recent call last)"


class RunnerUnavailableError(Exception):
    """An engine doesn't answer, or refuses to; the message says why."""


class JobState(enum.Enum):
    """What the states of engines come to."""

    GOING_ON = enum.auto()
    ENDING = enum.auto()
    """It has been asked to end."""
    ENDED = enum.auto()
    FAILED = enum.auto()


class Listed(NamedTuple):
    """A job as its engine lists it.

    Attributes:
        id: the engine's own.
        name: that it was given.
        state: that it is in.
    """

    id: str
    name: str
    state: JobState

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it goes on."""
        return self.state in (JobState.ENDED, JobState.FAILED)


class RunnerJob(ABC):
    """A job on an engine, which knows it by its name.

    All methods may raise `RunnerUnavailableError`.

    Attributes:
        poll_seconds: how long to wait before the engine is asked again.
    """

    poll_seconds: float

    def __init__(self, name: str) -> None:
        """Look for nothing yet."""
        self._name = name

    def is_alive(self) -> bool:
        """Whether the engine has such a job, and it goes on."""
        found = self._find()
        return found is not None and not found.has_ended

    def cancel(self) -> None:
        """End it; return when the engine confirms that."""
        while (found := self._find()) is not None and not found.has_ended:
            if found.state is JobState.GOING_ON:
                self._ask_to_end(found.id)
            time.sleep(self.poll_seconds)

    def failure(self) -> str:
        """Why it has failed, in the engine's words; empty where it hasn't."""
        found = self._find()
        if found is None or found.state is not JobState.FAILED:
            return ""
        return self._reason(found.id) or "the engine knows no reason"

    def _find(self) -> Listed | None:
        # One is submitted once; should a proxy have done so twice, the one that goes on counts.
        named = [job for job in self._jobs() if job.name == self._name]
        return min(named, key=lambda job: job.has_ended, default=None)

    @abstractmethod
    def _jobs(self) -> Iterable[Listed]:
        """Jobs of the engine, those of this name at least."""

    @abstractmethod
    def _ask_to_end(self, id: str) -> None:  # noqa: A002
        """Ask for a job to be ended; one that has ended in the meantime is no error."""

    @abstractmethod
    def _reason(self, id: str) -> str:  # noqa: A002
        """Why a job has failed; empty where that isn't known."""


def runner_of(beam_flags: Sequence[str]) -> str:
    """The runner that the flags name; empty where they name none."""
    return _flag("--runner", beam_flags)


def runner_job(beam_flags: Sequence[str], name: str) -> RunnerJob | None:
    """A job by its name; None where it ends with the process that has submitted it."""
    runner = runner_of(beam_flags).lower()
    if runner in ("flinkrunner", "flink"):
        from ledgerbeam.batch.flink import FlinkJob

        master = _flag("--flink_master", beam_flags)
        # By these names a cluster is started for the job, and ends with it.
        if master and master not in ("[local]", "[auto]", "[collection]"):
            return FlinkJob(master, name)
    if runner in ("dataflowrunner", "dataflow"):
        from ledgerbeam.batch.dataflow import ENDPOINT, DataflowJob

        return DataflowJob(
            _flag("--project", beam_flags),
            _flag("--region", beam_flags),
            name,
            _flag("--dataflow_endpoint", beam_flags) or ENDPOINT,
            auth="--no_auth" not in beam_flags,
        )
    return None


def name_of_job(attempt: Attempt) -> str:
    """What an attempt's job is called on an engine: no other attempt's is called so.

    It is a DNS label (RFC 1123) that begins with a letter: the process and the instance, as far as
    there is room, a digest of where the instance is, and the number of the attempt.
    """
    record = attempt.record
    digest = hashlib.sha256(attempt.instance_uri.encode()).hexdigest()[:10]
    end = f"-{digest}-{record.number}"
    label = re.sub(r"[^a-z0-9]+", "-", f"{record.process}-{record.instance}".lower())
    return label.lstrip("0123456789-")[: _LONGEST_NAME - len(end)].rstrip("-") + end


def labels_of_job(attempt: Attempt) -> list[str]:
    """Labels of an attempt's job, as `KEY=VALUE`, by which costs and jobs are found on Dataflow."""
    record = attempt.record
    values = {
        "ledgerbeam-process": record.process,
        "ledgerbeam-instance": record.instance,
        "ledgerbeam-attempt": str(record.number),
        "ledgerbeam-run": record.run,
    }
    return [
        f"{key}={re.sub('[^a-z0-9_-]', '-', value.lower())[:_LONGEST_NAME]}"
        for key, value in values.items()
        if value
    ]


def error_of(failure: str) -> UserError:
    """What the failure of an engine's job is to whoever runs a process.

    Args:
        failure: the engine's words.

    Returns:
        A `LostError` where the engine itself has failed, so that another attempt may do better.
    """
    told = told_in(failure)
    if told is not None:
        return UserError(told)
    if _TRACEBACK in failure:
        raised = failure.replace("\\n", "\n").rpartition(_TRACEBACK)[2].splitlines()
        last = next((line for line in raised[1:] if line and not line.startswith(" ")), "")
        return UserError(f"a worker failed by a defect: {without_step(last)}: see its log")
    return LostError(f"the runner's job failed: {failure.strip().splitlines()[0]}")


def told_in(text: str) -> str | None:
    """The line of a `UserError` that a worker raised: runners hand on its text alone."""
    found = re.findall(rf"(?:{'|'.join(_TOLD)}): (.*)", text.replace("\\n", "\n"))
    return without_step(found[-1]) if found else None


def without_step(message: str) -> str:
    """A worker's message without Beam's note of the step that it was in."""
    return re.sub(r" \[while running '[^']*'\]", "", message)


def _flag(name: str, beam_flags: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(name, dest="value", default="")
    return str(parser.parse_known_args(list(beam_flags))[0].value)
