"""Definitions over rows of files that are grouped by a key."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.process import BatchProcess, P, Parameters, Record, RetryMode, is_overridden
from ledgerbeam.batch.results import Results
from ledgerbeam.io.contract import Contract
from ledgerbeam.io.inputs import TableName
from ledgerbeam.io.records import Totals
from ledgerbeam.io.secrets import check_url
from ledgerbeam.rules.components import Component, Components


class FileParameters(Parameters):
    """Parameters of workloads that read files."""

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
    shuffle: Literal["auto", "group", "spill"] = Field(
        default="auto",
        description="how rows get to their shard: through the runner's group-by-key (group), or by "
        "files in the driver's temporary folder, which all workers must share (spill); auto is "
        "spill on the local runner, else group",
    )


@dataclass(frozen=True)
class RowInput:
    """Files of rows that have the columns of the key.

    Attributes:
        name: of the parameter that names the files; also what the rows are, in plural.
        contract: what the columns must be.
        order: column that orders the rows of a component; two rows of one component that share
            it are refused.
        date_column: column of the business date; rows of another date are counted and left out.
        amounts: columns (int64 or decimal) that are added up, for control totals.
        currency: column by which amounts are added up; empty for one currency.
        ids: columns that identify a row, hashed for control totals; by default key and order.
        positions: whether `execute_components` is given the column `POSITION` of
            `ledgerbeam.io.readers` with the rows, which says where each stood. Results that have
            it, null where there is nothing to say, are published with `file` and `row` in its
            place: the file's URI, and the line (text) or row (else) in it, from 1.
    """

    name: str
    contract: Contract
    order: str
    date_column: str = ""
    amounts: tuple[str, ...] = ()
    currency: str = ""
    ids: tuple[str, ...] = field(default=())
    positions: bool = False


@dataclass(frozen=True)
class Lookup:
    """Files of a table that every component may need, and that is small enough for each worker.

    It is read whole by the launcher before anything runs, is pinned like the inputs, and travels
    with the definition. A row that breaks the contract ends the run.

    Attributes:
        name: of the parameter that names the files.
        contract: what the columns must be.
        key: the column that tells its rows apart.
    """

    name: str
    contract: Contract
    key: str


class KeyedProcess(BatchProcess[P]):
    """A workload over rows that are grouped by a key.

    A definition gives `key` and `inputs`, and one of two ways to execute: `execute`, called once
    a component, or `execute_components`, called with a table of many whole components. The first
    input says which components there are; rows of further inputs are given along with them, and
    are refused where the first input doesn't have their key.

    Attributes:
        key: columns that identify a component; strings or integers.
        distinct: name of a count, and the column of the first input whose distinct values it is.
        tables: names of further tables that `execute_components` gives beside its results.
        rows_a_shard: rows of input that one shard is for; fewer where a row gives many results.
        lookups: small tables that components need besides their rows.
        lookup_tables: the lookups by name, where components execute.
    """

    key: ClassVar[tuple[str, ...]]
    tables: ClassVar[tuple[str, ...]] = ()
    distinct: ClassVar[tuple[str, str] | None] = None
    rows_a_shard: ClassVar[int] = 320_000
    lookups: ClassVar[tuple[Lookup, ...]] = ()
    lookup_tables: Mapping[str, pa.Table] = MappingProxyType({})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check that there is one way to execute."""
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "name"):
            return
        each, tables = cls.executes_each(), is_overridden(cls, KeyedProcess, "execute_components")
        if each == tables:
            raise TypeError(
                f"{cls.__name__} has {'both' if each else 'neither'} execute and "
                "execute_components: write one of them"
            )
        if each and cls.results is None:
            raise TypeError(
                f"{cls.__name__}: results is missing: give the columns that execute returns as a "
                "pyarrow.schema"
            )
        if each and cls.tables:
            raise TypeError(
                f"{cls.__name__}: execute gives rows of one table, and tables names "
                f"{', '.join(cls.tables)}: write execute_components"
            )
        if tables and cls.retry.mode is RetryMode.AT_MOST_ONCE:
            raise TypeError(
                f"{cls.__name__}: execute_components can't be AT_MOST_ONCE: where it fails it is "
                "called again with fewer components: write execute"
            )
        if tables and cls.retry.time_limit is not None:
            raise TypeError(
                f"{cls.__name__}: a time_limit is one for each component: write execute"
            )

    def __init__(self, parameters: P) -> None:
        """Make the definition for given parameters.

        Raises:
            TypeError: an input lacks a column that it is to have, or a parameter of its name.
            UserError: the URL of a table holds a literal password.
        """
        super().__init__(parameters)
        inputs = self.inputs
        for rows in inputs:
            self._check_input(rows, inputs[0])

    def _check_input(self, rows: RowInput, first: RowInput) -> None:
        where = f"{type(self).__name__}, input {rows.name}"
        if rows.name not in type(self.parameters).model_fields:
            raise TypeError(
                f"{where}: {type(self.parameters).__name__} has no field of that name: add it, to "
                "name the files"
            )
        table = TableName.parse(str(getattr(self.parameters, rows.name)))
        if table is not None:
            check_url(table.url)
        columns = {column.name: column for column in rows.contract.columns if column.required}
        currency = (rows.currency,) if rows.currency else ()
        for name in (*self.key, rows.order, *rows.ids, *currency):
            if name not in columns or columns[name].nullable:
                raise TypeError(
                    f"{where}: {name} must be a column of the contract, required and never empty: "
                    "rows are told apart by it"
                )
        for name in rows.amounts:
            type_ = columns[name].type if name in columns else None
            if type_ is None or not (pa.types.is_int64(type_) or pa.types.is_decimal(type_)):
                raise TypeError(
                    f"{where}: the amount {name} must be a required column of int64 or decimals, "
                    f"not of {type_}"
                )
        for column in first.contract.columns:
            if column.name in self.key and column.type != columns[column.name].type:
                raise TypeError(
                    f"{where}: {column.name} is {columns[column.name].type}, and {column.type} in "
                    f"{first.name}: a key has the same type in all inputs"
                )

    @classmethod
    def executes_each(cls) -> bool:
        """Whether components execute one by one."""
        return is_overridden(cls, KeyedProcess, "execute")

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The inputs; the first one says which components there are."""
        raise NotImplementedError(f"{type(self).__name__}: inputs is missing")

    @property
    def rows_are(self) -> str:
        """Rows of the first input, in plural."""
        return self.inputs[0].name.replace("_", " ")

    def refusals(self, name: str, rows: pa.Table) -> Mapping[int, str]:
        """Rows that no contract can tell are wrong.

        Args:
            name: of the input.
            rows: of one shard, all that the contract lets pass.

        Returns:
            Why rows are refused, by their number in the table. Each must be judged by itself, as
            which others are in the shard is nobody's decision.
        """
        return {}

    def executed_totals(self, executed: Components, results: Components) -> Totals:
        """Totals that it takes both sides for: what was executed, and what it gave.

        They are there for `controls`. `result_totals` are better where the results are enough:
        whoever verifies published results computes those again.

        Args:
            executed: the components that succeeded.
            results: of these, with a start for each, as some may have given none.
        """
        return {}

    def execute(self, component: Component) -> Iterable[Record]:
        """Execute one component.

        Returns:
            Rows of results, with the columns of `results`. The key is added to each.
        """
        raise NotImplementedError

    def execute_components(self, components: Components) -> pa.Table | Results:
        """Execute many components in one call; for those who want all the speed.

        A call that fails is repeated with fewer components until those that fail are found.

        Returns:
            The results, with the columns of the key, rows of a component together and components
            in their order; where `tables` names further ones, together with these.
        """
        raise NotImplementedError

    def results_of_failed(
        self, components: Components, errors: Sequence[str]
    ) -> pa.Table | Results | None:
        """Results that stand for components that failed, such as what they were before.

        They are published with the rest where the run is, and are replaced when the components
        succeed in a later attempt.

        Args:
            components: that failed.
            errors: of each, one line.

        Returns:
            Results like those of `execute_components`; None for nothing.
        """
        return None
