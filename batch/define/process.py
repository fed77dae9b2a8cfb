"""The definition of a batch process.

A definition answers three questions: which inputs it needs (its model of parameters), what a unit
of work is and where it comes from (a key over rows of files, or pages), and how a unit executes.
The rest has a default that suits most workloads. Definitions are pickled to workers and hold
nothing but their parameters.
"""

import ledgerbeam.batch.import_beam  # noqa: F401, I001 - in front of all that imports Beam

import datetime
import hashlib
import re
from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar, get_args

import apache_beam as beam
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from ledgerbeam.batch.define.checks import check_class, guard_hooks
from ledgerbeam.batch.define.dates import with_strict_dates
from ledgerbeam.batch.define.expect import SHARE, Expect
from ledgerbeam.batch.model.approval import APPROVED
from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.batch.model.sla import Sla
from ledgerbeam.io.commit.records import Control, Manifest, Totals
from ledgerbeam.io.errors import DefinitionError, ParameterError
from ledgerbeam.io.storage import uris
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.failure_limit import FailureLimit as FailureLimit
from ledgerbeam.transforms.columnar.shard_totals import TotalNames
from ledgerbeam.transforms.concurrency.retry import Record as Record
from ledgerbeam.transforms.concurrency.retry import Retry as Retry
from ledgerbeam.transforms.concurrency.retry import RetryAfter as RetryAfter
from ledgerbeam.transforms.concurrency.retry import RetryMode as RetryMode
from ledgerbeam.transforms.concurrency.throttle import Ramp as Ramp


class Parameters(BaseModel):
    """Parameters that every workload has; a workload's own parameters extend it.

    The order of the fields is their order in `--help`. A field of `datetime.date` takes a date or
    `YYYY-MM-DD`, and nothing else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str = Field(description="where results go: a folder, gs:// or s3:// URI")
    run_number: int = Field(
        default=1, ge=1, description="2 or more runs a published instance again; needs --reason"
    )
    reason: str = Field(default="", description="why it is run again")
    min_rows: int | None = Field(
        default=None,
        ge=0,
        description="publish only if the day has at least so many rows; 0 allows an empty day; by "
        "default as many as the definition expects, which mostly is 1",
    )
    max_change: str = Field(
        default="",
        pattern=rf"^(none|{SHARE})?$",
        description="publish only if the number of rows is that close to the last day's (50%, "
        "none); by default what the definition expects",
    )
    max_age: str = Field(
        default="",
        pattern=r"^(none|[1-9]\d{0,5})?$",
        description="publish only if the newest row is at most so many days older than the "
        "business date (a number, none); by default what the definition expects",
    )

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The schema that pydantic makes of the fields, with strict dates."""
        return with_strict_dates(handler(source))


P = TypeVar("P", bound=Parameters)


class BatchProcess(ABC, Generic[P]):
    """A workload composed of many units of work; see `KeyedProcess` and `PageProcess`.

    Attributes:
        name: the process's name, in folders and on the command line.
        parameters_type: the model of its parameters, as the class's base names it:
            `KeyedProcess[InterestParameters]`.
        date_parameter: the parameter that is the business date.
        identity: parameters that identify an instance, besides the business date.
        results: columns of the results without those of the key; needed where units execute one
            by one.
        retry: how often a component is tried.
        failure_limit: how many components may fail (a count, or a share such as `"0.5%"`) before
            nothing is published.
        expect: how many rows a run must find, and how old they may be, or nothing is published:
            by default one row of any age.
        failure_event: type of the event that lists the failed components of a run that was
            published in spite of them.
        parallelism: calls in flight over the whole run; None for two per worker process, in the
            worker's own threads, or for one per core where other processes execute beside it.
        rate: components that may begin a second over the whole run, or a `Ramp` to that; None for
            no limit. What somebody has set for a run counts in its place.
        results_expire_after: how long results are kept; None to keep them for ever.
        sla: when a run must have started and finished.
        attempt_deadline: how long one attempt may take before it is ended.
        lost_attempts: how many attempts of a run may be lost (their machine failed, or they were
            killed) before the run fails; after each of them but the last, another attempt starts.
        approvals: what a second person has to approve: `"correct"` (a retry with other parameters),
            `"replace"` (a submission in the place of a run), `"resolve"`, `"bulk"` (an action of a
            service on many runs or requests at once).
        queue: how requests for runs wait for each other, where they are submitted to a service.
        keeps_dictionaries: whether the tables that `finish` gets have texts whose values repeat
            dictionary-encoded, as they are in the files, which takes a fraction of the time.
    """

    name: ClassVar[str]
    parameters_type: ClassVar[type[Parameters]]
    parameters: P
    date_parameter: ClassVar[str] = "business_date"
    identity: ClassVar[tuple[str, ...]] = ()
    results: ClassVar[pa.Schema | None] = None
    retry: ClassVar[Retry] = Retry()
    failure_limit: int | str = 0
    expect: Expect = Expect()
    failure_event: ClassVar[str] = "components_failed"
    parallelism: ClassVar[int | None] = None
    rate: ClassVar[float | Ramp | None] = None
    results_expire_after: ClassVar[datetime.timedelta | None] = None
    sla: ClassVar[Sla | None] = None
    attempt_deadline: ClassVar[datetime.timedelta] = datetime.timedelta(hours=24)
    lost_attempts: ClassVar[int] = 3
    approvals: ClassVar[tuple[str, ...]] = ()
    queue: ClassVar[QueuePolicy] = QueuePolicy()
    keeps_dictionaries: ClassVar[bool] = False

    def __init__(self, parameters: P) -> None:
        self.parameters = parameters

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what can be checked before anything runs."""
        super().__init_subclass__(**kwargs)
        check_class(cls)
        guard_hooks(cls)
        try:
            FailureLimit(cls.failure_limit)
        except ValueError as error:
            raise DefinitionError(f"{cls.__name__}: {error}") from None
        for act in cls.approvals:
            if act not in APPROVED:
                raise DefinitionError(
                    f"{cls.__name__}: nobody can approve {act!r}: name {', '.join(APPROVED)}"
                )
        name = cls.__dict__.get("name")
        if isinstance(name, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise DefinitionError(
                f"{cls.__name__}: its name {name!r} is no name of a folder: use letters, digits, "
                "points, hyphens and underscores, and begin with a letter or a digit"
            )
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, Parameters):
                    cls.parameters_type = argument
        parameters = getattr(cls, "parameters_type", None)
        if parameters is None and hasattr(cls, "name"):
            raise DefinitionError(
                f"{cls.__name__}: its parameters are missing: name their model in the base, as in "
                f"class {cls.__name__}(KeyedProcess[MyParameters])"
            )
        if parameters is not None:
            missing = [
                name
                for name in (cls.date_parameter, *cls.identity)
                if name not in parameters.model_fields
            ]
            if missing:
                raise DefinitionError(
                    f"{cls.__name__}: {parameters.__name__} has no field {missing[0]!r}, which "
                    "identifies an instance: add it, or set date_parameter and identity"
                )

    @property
    def rows_label(self) -> str:
        """A plural label for the rows of the input, for people."""
        return "rows"

    @property
    def results_label(self) -> str:
        """A plural label for the rows of the results, for people."""
        return f"{self.rows_label} out"

    @property
    def business_date(self) -> datetime.date:
        """The day that the run is for."""
        date: datetime.date = getattr(self.parameters, self.date_parameter)
        return date

    @property
    def instance(self) -> str:
        """The instance's folder: its name, followed by the run number if that is above 1."""
        number = self.parameters.run_number
        return self.instance_name + (f"-run-{number}" if number > 1 else "")

    @property
    def instance_name(self) -> str:
        """The instance's name: business date and identity, and the key where it is of one only."""
        parts = [self.business_date.isoformat()]
        for name in self.identity:
            given = getattr(self.parameters, name)
            # A default that is empty is meant so.
            default = type(self.parameters).model_fields[name].default
            if given in (None, "") and given != default:
                flag = "--" + name.replace("_", "-")
                raise ParameterError(
                    f"{flag} is empty, and identifies an instance: give it", parameter=flag
                )
            parts.append(f"{name.replace('_', '-')}-{_plain(str(given))}")
        if only := getattr(self.parameters, "only_key", ""):
            parts.append(f"only-{_plain(only)}")
        return "-".join(parts)

    @property
    def total_decimals(self) -> Mapping[str, int]:
        """Decimals of totals that are money in an unnamed currency, by the total's name.

        They are for display: a total of 98000 with 2 decimals is shown as 980.00. Totals whose name
        ends with a currency, such as `balance_USD`, need none. By default, the decimals of the
        columns of `results`.
        """
        columns = self.results or pa.schema([])
        return {c.name: c.type.scale for c in columns if pa.types.is_decimal(c.type)}

    @property
    def total_names(self) -> TotalNames:
        """The names of the totals over the input."""
        raise NotImplementedError

    def before(self) -> None:
        """Called in the launcher before the input is inspected; an error ends the attempt."""

    def after(self, manifest: Manifest) -> None:
        """Called in the launcher after publication; not called if the launcher died in between."""

    def exit_status(self, manifest: Manifest) -> int:
        """The exit status of a program that has published, for processes that are a gate: 0."""
        return 0

    def cleanup(self) -> None:
        """Called in the launcher when an attempt has ended, by success, failure or cancel."""

    def finish(self) -> beam.PTransform | None:
        """The reduce step, over all results.

        Returns:
            A transform from a `PCollection` of `pa.Table` (each with the results of one shard, in
            no order) to a `PCollection` of (file name, bytes), or to a tuple of such collections:
            reports that are published with the results. None for no reduce step.
        """
        return None

    def result_totals(self, results: Components) -> Totals:
        """Totals of the results of executed components; totals of several calls are added up.

        The name of a total of money ends with the code of its currency, as in `interest_USD`, and
        its value counts minor units; `ledgerbeam.transforms.columnar.totals.sums_by_currency`
        computes such totals.

        Rows of extra tables are in `results.related`, by the table's name. A total that has the
        name of one of the input's totals must balance with it.
        """
        return {}

    def controls(self, totals: Totals) -> list[Control]:
        """The workload's own comparisons, from the totals of all shards.

        The name of a comparison of money begins with `USD: ` or ends with `, USD`, where USD is
        the code of the currency.
        """
        return []


def _plain(value: str) -> str:
    """A value in the name of a folder."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-.")[:60]
    return plain if plain == value else f"{plain}-{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def is_overridden(cls: type, base: type, method: str) -> bool:
    """Whether the class `cls` overrides a method of `base`."""
    return getattr(cls, method) is not getattr(base, method)


def instance_uri(process: BatchProcess[Any]) -> str:
    """The folder in which an instance is published, as `read_published` takes it."""
    output = uris.absolute(process.parameters.output)
    if "/" in process.instance:
        raise DefinitionError(
            f"{process.name}: its instance {process.instance!r} is no name of a folder: derive it "
            "without slashes"
        )
    return uris.inside(output, f"{process.name}/{process.instance}")
