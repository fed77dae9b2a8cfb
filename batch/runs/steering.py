"""Steering runs that go on: cancel, pause, resume, limits."""

import copy
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.run import (
    RunRecord,
)
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.runs.reading import RunsReader
from ledgerbeam.io.errors import (
    IllegalMoveError,
    ParameterError,
)
from ledgerbeam.io.failpoints import failpoint

if TYPE_CHECKING:
    from ledgerbeam.io.commit.control_log import Steering


class SteeredRuns(RunsReader):
    """What can be read of runs, and done with those that go on. `Runs` has these methods too."""

    def signed_by(self, who: str) -> Self:
        """The same runs, for another person: `who` signs what is done with them."""
        other = copy.copy(self)
        other._who = who
        return other

    def cancel(self, run: str, why: str = "") -> RunRecord:
        """Ask for a run to be stopped.

        Its status is `CANCELING` until nothing of it can be committed any more, then `CANCELED`.

        Raises:
            IllegalMoveError: the run has ended.
        """
        record = self.registry.find(run)
        if not self._move(record, RunStatus.CANCELED, why, RunStatus.INITIATED):
            if record.status is not RunStatus.CANCELING:
                self._move(record, RunStatus.CANCELING, why)
            failpoint("cancel: recorded")
            self._steer(record, why, state="cancel")
        return self.registry.get(record.id)

    def pause(self, run: str, why: str = "") -> RunRecord:
        """Begin no more components; those in flight go on.

        Raises:
            IllegalMoveError: the run has ended, or is being canceled.
        """
        record = self.registry.find(run)
        if record.status is not RunStatus.PAUSED:
            self._move(record, RunStatus.PAUSED, why)
        failpoint("pause: recorded")
        self._steer(record, why, state="pause")
        return self.registry.get(record.id)

    def resume(self, run: str, why: str = "") -> RunRecord:
        """Go on after a pause.

        Raises:
            IllegalMoveError: the run isn't paused.
        """
        record = self.registry.find(run)
        if record.status is not RunStatus.PAUSED:
            raise IllegalMoveError(
                f"run {record.name} is {record.status}, not PAUSED: nothing to resume",
                run=record.id,
                from_status=record.status,
                to_status=RunStatus.EXECUTING,
            )
        self._move(record, RunStatus.EXECUTING, why, RunStatus.PAUSED)
        failpoint("resume: recorded")
        self._steer(record, why, state="run")
        return self.registry.get(record.id)

    def set_parallelism(self, run: str, parallelism: int | None, why: str = "") -> "Steering":
        """How many components or pages may be in flight over the whole run; None for the default.

        Raises:
            ParameterError: it is less than 1.
        """
        return self._tell(run, "parallelism", why, parallelism=parallelism)

    def set_rate(
        self,
        run: str,
        rate: float | None,
        ramp_from: float | None = None,
        ramp_seconds: float | None = None,
        why: str = "",
    ) -> "Steering":
        """How many components a second may be begun over the whole run.

        Args:
            run: which.
            rate: components a second; None for no limit.
            ramp_from: where a ramp up (or down) to `rate` begins, now.
            ramp_seconds: how long it takes.
            why: for the record.

        Raises:
            ParameterError: a value is out of range.
        """
        if ramp_from is None and ramp_seconds is None:
            return self._tell(run, "rate", why, rate=rate, ramp=None)
        if rate is None or ramp_from is None or ramp_seconds is None:
            raise ParameterError(
                "a ramp needs all three: where it begins, where it ends, how long", parameter="ramp"
            )
        from ledgerbeam.io.commit.control_log import Ramp

        try:
            ramp = Ramp(
                from_rate=ramp_from, to_rate=rate, seconds=ramp_seconds, started_at=self._now()
            )
        except ValidationError as error:
            problem = error.errors()[0]
            raise ParameterError(
                f"ramp: {problem['loc'][0]}: {problem['msg']}",
                parameter=str(problem["loc"][0]),
                value=problem["input"],
            ) from error
        return self._tell(run, "rate", why, ramp=ramp)

    def _move(
        self, record: RunRecord, to: RunStatus, why: str, expected: RunStatus | None = None
    ) -> bool:
        return self.registry.move(
            record.id, to, who=self._who, at=self._now(), why=why, expected=expected
        )

    def _steer(self, record: RunRecord, why: str, **changes: Any) -> "Steering":
        from ledgerbeam.io.commit import control_log

        return control_log.steer(record.uri, self._now(), self._who, why, **changes)

    def _tell(self, run: str, what: str, why: str, **changes: Any) -> "Steering":
        record = self.registry.find(run)
        if record.status.is_final:
            raise IllegalMoveError(
                f"run {record.name} is {record.status}: there is nothing to steer",
                run=record.id,
                from_status=record.status,
            )
        steering = self._steer(record, why, **changes)
        failpoint("limits: told")
        limits = steering.model_dump(mode="json", include={"parallelism", "rate", "ramp"})
        self._append(record, what, why, limits)
        return steering

    def _append(self, record: RunRecord, what: str, why: str, detail: dict[str, Any]) -> None:
        self.registry.append(
            Event(
                run=record.id,
                process=record.process,
                instance=record.instance,
                at=self._now(),
                who=self._who,
                type=what,
                why=why,
                detail=detail,
            )
        )
