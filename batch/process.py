"""What a workload says of itself: the definition of a keyed batch process."""

import datetime
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from ledgerbeam.io.attempts import Control, Totals
from ledgerbeam.io.contract import Contract
from ledgerbeam.rules.components import Components


class Parameters(BaseModel):
    """What every workload can be told; a workload's own parameters extend it.

    The order of the fields is their order in `--help`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: str = Field(description="where results go: a folder, gs:// or s3:// URI")
    columns: str = Field(
        default="",
        description="names of the columns in order, for CSV files without a header (id,side,_; "
        "_ leaves one out), or renames (id=trade_no,_=note)",
    )
    format: str | None = Field(
        default=None,
        pattern="^(csv|jsonl|parquet|avro)$",
        description="csv, jsonl, parquet or avro, where the files' names don't tell",
    )
    max_rejects: int = Field(
        default=0, ge=0, description="publish in spite of up to this many refused rows"
    )
    shards: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="parts of the output; by default one for about 320,000 rows",
    )
    run_number: int = Field(
        default=1, ge=1, description="2 or more runs a published instance again; needs --reason"
    )
    reason: str = Field(default="", description="why it is run again")


P = TypeVar("P", bound=Parameters)


class KeyedProcess(ABC, Generic[P]):
    """A workload over rows that are grouped by a key.

    A definition says what its input is (`contract`), what a unit of work is (`key`, `order`) and
    how units execute (`execute`). Everything else is the framework's: reading, the shuffle, the
    commit protocol, publication. Definitions are pickled to workers and hold nothing but their
    parameters.

    Attributes:
        name: of the process, as in folders and on the command line.
        parameters_type: the model of its parameters.
        input_parameter: which of them names the input files.
        key: columns that identify a component.
        order: column that orders the rows of a component; two rows of one component that share
            it are refused.
        date_column: column of the business date; rows of another date are counted and left out.
        rows_are: what a row is, in plural.
        distinct: name of a total, and the column whose distinct values it counts.
    """

    name: ClassVar[str]
    parameters_type: ClassVar[type[Parameters]]
    parameters: P
    input_parameter: ClassVar[str]
    key: ClassVar[tuple[str, ...]]
    order: ClassVar[str]
    date_column: ClassVar[str]
    rows_are: ClassVar[str]
    distinct: ClassVar[tuple[str, str]]

    def __init__(self, parameters: P) -> None:
        """Make the definition for given parameters."""
        self.parameters = parameters

    @property
    def input_pattern(self) -> str:
        """URI or glob of the input files."""
        return str(getattr(self.parameters, self.input_parameter))

    @property
    @abstractmethod
    def business_date(self) -> datetime.date:
        """The day that the run is for."""

    @property
    @abstractmethod
    def contract(self) -> Contract:
        """What the input's columns must be."""

    @abstractmethod
    def execute(self, components: Components) -> Mapping[str, pa.Array]:
        """New columns, a value for each row of the components."""

    @abstractmethod
    def row_totals(self, table: pa.Table) -> Totals:
        """Totals that rows have before and after execution alike; they add up over tables."""

    @abstractmethod
    def component_totals(self, components: Components) -> Totals:
        """Totals of executed components, new columns included; they add up over tables."""

    @abstractmethod
    def controls(self, totals: Totals) -> list[Control]:
        """The workload's own comparisons, from the component totals of all shards."""
