"""What a workload says of itself: the definition of a batch process.

A definition answers three questions: which inputs it needs (`parameters_type`), what a unit of
work is and where it comes from (a key over rows of files, or pages), and how a unit executes.
The rest has a default that serves most. Definitions are pickled to workers and hold nothing but
their parameters.
"""

import datetime
import hashlib
import math
import re
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any, ClassVar, Generic, TypeVar

import apache_beam as beam
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from ledgerbeam.batch.sla import Sla
from ledgerbeam.io.records import Control, Manifest, Totals
from ledgerbeam.rules.components import Components


class Parameters(BaseModel):
    """What every workload can be told; a workload's own parameters extend it.

    The order of the fields is their order in `--help`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str = Field(description="where results go: a folder, gs:// or s3:// URI")
    run_number: int = Field(
        default=1, ge=1, description="2 or more runs a published instance again; needs --reason"
    )
    reason: str = Field(default="", description="why it is run again")


P = TypeVar("P", bound=Parameters)

Record = Mapping[str, Any]
"""A row of results: values by column, without the columns of the key."""


class RetryMode(StrEnum):
    """What a failed or lost call means."""

    AT_LEAST_ONCE = "AT_LEAST_ONCE"
    AT_MOST_ONCE = "AT_MOST_ONCE"


# What a second try doesn't change: mistakes in data or code.
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


@dataclass(frozen=True)
class Retry:
    """How often a component is tried within an attempt.

    Attributes:
        mode: `AT_LEAST_ONCE`: a component that failed or got lost is tried again.
            `AT_MOST_ONCE`: it is called once; where nobody can know how that ended it is
            `UNKNOWN`, for a person to look at.
        tries: at most so many, the first included.
        first_delay: seconds before the second try; each further delay is twice as long, and
            every delay is shortened at random by up to a half.
        longest_delay: seconds.
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
        """Seconds to wait after a number of tries.

        Args:
            tries: that were made.
            random: from 0 up to 1.
        """
        full = min(self.first_delay * 2.0 ** (tries - 1), self.longest_delay)
        return full * (1 - random / 2)


class FailureLimit:
    """How many components may fail before a run does: a count, or a share such as `0.5%`."""

    def __init__(self, limit: int | str) -> None:
        """Take a count or a share.

        Raises:
            ValueError: it is neither.
        """
        self.text = f"{limit:,}" if isinstance(limit, int) else limit
        self._count = limit if isinstance(limit, int) else None
        share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(limit))
        self._share = Fraction(share[1]) / 100 if share else None
        if (self._count is None) == (self._share is None) or (self._count or 0) < 0:
            raise ValueError(f"failure_limit must be a count or a share like '0.5%', not {limit!r}")

    def allows(self, failed: int, components: int) -> bool:
        """Whether a run may publish with so many failures."""
        return failed <= self.most(components)

    def most(self, components: int) -> int:
        """How many of so many components may fail."""
        if self._count is not None:
            return self._count
        return math.floor(components * (self._share or 0))


class BatchProcess(ABC, Generic[P]):
    """A workload composed of many units of work; see `KeyedProcess` and `PageProcess`.

    Attributes:
        name: of the process, as in folders and on the command line.
        parameters_type: the model of its parameters.
        date_parameter: the parameter that is the business date.
        identity: parameters that identify an instance, besides the business date.
        results: columns of the results, where units execute one by one; without those of the key.
        retry: how often a component is tried.
        failure_limit: how many components may fail (a count, or a share such as `"0.5%"`) before
            nothing is published.
        failure_event: type of the event that lists components that failed in a run that has
            published all the same.
        parallelism: calls in flight over the whole run; None for two, in the workers' own threads.
        results_expire_after: how long results are kept; None for ever.
        sla: when a run must have started and finished.
        attempt_deadline: how long one attempt may take before it is ended.
        lost_attempts: how many attempts of a run may get lost (with their machine, or by a kill)
            before it fails; after each but the last another one is begun.
    """

    name: ClassVar[str]
    parameters_type: ClassVar[type[Parameters]]
    parameters: P
    date_parameter: ClassVar[str] = "business_date"
    identity: ClassVar[tuple[str, ...]] = ()
    results: ClassVar[pa.Schema | None] = None
    retry: ClassVar[Retry] = Retry()
    failure_limit: int | str = 0
    failure_event: ClassVar[str] = "components_failed"
    parallelism: ClassVar[int | None] = None
    results_expire_after: ClassVar[datetime.timedelta | None] = None
    sla: ClassVar[Sla | None] = None
    attempt_deadline: ClassVar[datetime.timedelta] = datetime.timedelta(hours=24)
    lost_attempts: ClassVar[int] = 3

    def __init__(self, parameters: P) -> None:
        """Make the definition for given parameters."""
        self.parameters = parameters

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what can be checked before anything runs."""
        super().__init_subclass__(**kwargs)
        FailureLimit(cls.failure_limit)
        parameters = getattr(cls, "parameters_type", None)
        if parameters is not None:
            missing = [
                name
                for name in (cls.date_parameter, *cls.identity)
                if name not in parameters.model_fields
            ]
            if missing:
                raise TypeError(
                    f"{cls.__name__}: {parameters.__name__} has no field {missing[0]!r}, which "
                    "identifies an instance: add it, or set date_parameter and identity"
                )

    @property
    def rows_are(self) -> str:
        """What is worked on, in plural, for people."""
        return "rows"

    @property
    def results_are(self) -> str:
        """What comes out, in plural, for people."""
        return f"{self.rows_are} out"

    @property
    def business_date(self) -> datetime.date:
        """The day that the run is for."""
        date: datetime.date = getattr(self.parameters, self.date_parameter)
        return date

    @property
    def instance(self) -> str:
        """The instance's folder: its name, and the number of its run behind the first."""
        number = self.parameters.run_number
        return self.instance_name + (f"-run-{number}" if number > 1 else "")

    @property
    def instance_name(self) -> str:
        """The instance's name: business date and identity."""
        parts = [self.business_date.isoformat()]
        for name in self.identity:
            value = str(getattr(self.parameters, name))
            plain = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-.")[:60]
            if plain != value:
                plain += f"-{hashlib.sha256(value.encode()).hexdigest()[:8]}"
            parts.append(f"{name.replace('_', '-')}-{plain}")
        return "-".join(parts)

    def before(self) -> None:
        """Called in the launcher before its input is looked at; an error ends the attempt there."""

    def after(self, manifest: Manifest) -> None:
        """Called in the launcher after publication, unless it died in between."""

    def cleanup(self) -> None:
        """Called in the launcher once an attempt has ended, by success, failure or cancel."""

    def finish(self) -> beam.PTransform | None:
        """The reduce step, over all results.

        A transform from a `PCollection` of `pa.Table` (results of one shard each, in no order) to
        one of (file name, bytes), or to a tuple of such: reports that are published with the rest.
        None for no such step.
        """
        return None

    def result_totals(self, results: Components) -> Totals:
        """Totals of executed components' results; they add up over calls.

        Rows of further tables are in `results.related`, by the table's name. A total of the same
        name as one of the rows that came in must balance with it.
        """
        return {}

    def controls(self, totals: Totals) -> list[Control]:
        """The workload's own comparisons, from the totals of all shards."""
        return []


def is_overridden(cls: type, base: type, method: str) -> bool:
    """Whether a definition has a method of its own."""
    return getattr(cls, method) is not getattr(base, method)
