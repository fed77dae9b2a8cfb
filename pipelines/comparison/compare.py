r"""Compare two datasets row by row: what a new version of a workload changes, and by how much.

    ledgerbeam compare results/delivery-marking/2026-11-20 new/delivery-marking/2026-11-20 \
        --keys=trade_no --business-date=2026-11-20 --output=comparisons

The output has a row for each key that either side has, with what was found; the extra table
`differences` has a row for each column that differs, with both values. Beside it are a page for
people, and the same as JSON.
"""

import datetime
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.define.keyed_process import KeyedProcess, Lookup, RowInput
from ledgerbeam.batch.define.process import Parameters
from ledgerbeam.batch.define.results import Results
from ledgerbeam.batch.model.exits import Exit
from ledgerbeam.io.commit.records import Manifest, Totals
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.pipelines.comparison.files import (
    CHANGE,
    DIFFERING,
    STATUS,
    Layout,
    WriteComparison,
    changes,
    counts,
)
from ledgerbeam.pipelines.comparison.known import EVERYTHING, KnownDifference
from ledgerbeam.pipelines.comparison.noise import read_noise, unknown_rows
from ledgerbeam.rules.arrays import Flags, Integers
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms.columnar.differences import (
    RowStatus,
    Sides,
    as_text,
    change_scale,
    names_of_columns,
)

DIFFERENCES = "differences"

KNOWN = Contract(
    (
        Column("column", pa.string()),
        Column("customer", pa.string()),
        Column("owner", pa.string()),
        Column("reason", pa.string()),
        Column("expires", pa.date32()),
    )
)
"""Differences that are expected. `column` is `*` for rows that one side lacks, `customer` is `*`
for all; after the day in `expires` the difference is no longer known."""

_NO_COLUMNS = Contract(())
_KEY_TYPES: tuple[tuple[Any, pa.DataType], ...] = (
    (pa.types.is_integer, pa.int64()),
    (pa.types.is_string, pa.string()),
    (pa.types.is_large_string, pa.string()),
    (pa.types.is_date32, pa.date32()),
)


class CompareParameters(Parameters):
    """Parameters of a comparison."""

    before: Annotated[str, RowInput(_NO_COLUMNS, order=())] = Field(
        description="URI of a published instance, with #TABLE behind it for an extra table, or a "
        "glob of Parquet, Avro, CSV or JSON lines"
    )
    after: Annotated[str, RowInput(_NO_COLUMNS, order=())] = Field(
        description="what is compared with it, likewise"
    )
    keys: str = Field(description="columns that identify a row on both sides, separated by commas")
    customer: str = Field(
        default="", description="column by which differences are grouped; else the first key"
    )
    amounts: str = Field(
        default="", description="columns of money whose differences are added up, by commas"
    )
    currency: str = Field(default="", description="column of the currency of these amounts")
    ignore: str = Field(default="", description="columns that are not compared, by commas")
    known: Annotated[str, Lookup(KNOWN, key=("column", "customer"))] = Field(
        default="",
        description="file of known differences, with the columns column, customer, owner, reason, "
        "expires; * stands for a missing row, or for all customers",
    )
    baseline: str = Field(
        default="",
        description="URI of a comparison of the first side with its own repetition: what differs "
        "there is noise",
    )
    business_date: datetime.date = Field(
        description="the day of the comparison; known differences that expired before it count"
    )
    max_rejects: int = Field(
        default=0, ge=0, description="publish in spite of up to this many rejected rows"
    )
    shards: int | None = Field(default=None, ge=1, le=65_536, description="parts of the output")
    shuffle: str = Field(default="auto", pattern="^(auto|group|spill)$", description="as in runs")


class Columns(NamedTuple):
    """The columns of both sides.

    Attributes:
        before: types of the first side's columns, by name.
        after: types of the second side's columns.
    """

    before: Mapping[str, pa.DataType]
    after: Mapping[str, pa.DataType]


class Compare(KeyedProcess[CompareParameters]):
    """The definition of a comparison."""

    name = "compare"
    identity = ("before", "after")
    tables = (DIFFERENCES,)
    is_outer = True
    keeps_dictionaries = True

    def __init__(self, parameters: CompareParameters) -> None:
        """Inspect the columns of both sides.

        Raises:
            UserError: a side can't be read, or a parameter names a column that it lacks.
        """
        self.parameters = parameters
        self.columns = Columns(_columns_of(parameters.before), _columns_of(parameters.after))
        self._check_names()
        self.noise = read_noise(parameters.baseline, parameters.before)
        super().__init__(parameters)

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row."""
        return _names(self.parameters.keys)

    @property
    def customer(self) -> str:
        """The column by which differences are grouped."""
        return self.parameters.customer or self.key[0]

    @property
    def amounts(self) -> tuple[str, ...]:
        """The columns of money."""
        return _names(self.parameters.amounts)

    @cached_property
    def compared(self) -> tuple[str, ...]:
        """The columns that are compared, in the order of the first side."""
        left_out = {*self.key, *_names(self.parameters.ignore)}
        return tuple(
            name
            for name in self.columns.before
            if name in self.columns.after and name not in left_out
        )

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """Both sides, with the types that the key has in the first one."""
        contract = Contract(
            tuple(Column(name, _key_type(name, self.columns.before[name])) for name in self.key),
            keeps_dictionaries=True,
        )
        return tuple(
            replace(rows, contract=contract, order=self.key, ids=self.key)
            for rows in super().inputs
        )

    @property
    def results_label(self) -> str:
        """What the rows of the results are called."""
        return "keys compared"

    @property
    def total_decimals(self) -> Mapping[str, int]:
        """Sums of amounts without a currency have the decimals of their column."""
        if self.parameters.currency:
            return {}
        return {
            f"{kind}_{name}": self._scale(name)
            for name in self.amounts
            for kind in ("net", "gross")
        }

    def _scale(self, name: str) -> int:
        return change_scale(self.columns.before[name], self.columns.after[name])

    def execute_components(self, components: Components) -> Results:
        """What was found for each key, and each difference."""
        sides = Sides.of(components.related["before"], components.related["after"])
        keys = {name: components.table.column(name) for name in self.key}
        customers = as_text(sides.values(self.customer))
        differing = {name: sides.differing(name) for name in self.compared}
        is_known = {name: self._is_known(name, customers) for name in (*self.compared, EVERYTHING)}
        status = _statuses(sides, differing, is_known)
        columns: dict[str, Any] = dict(keys)
        for name in (self.customer, *_names(self.parameters.currency)):
            if name not in columns:
                columns[name] = as_text(sides.values(name))
        columns[STATUS] = _encoded(status)
        columns[DIFFERING] = names_of_columns(differing, len(status))
        is_moved = self._has_other_currency(sides)
        for name in self.amounts:
            change = sides.change(name)
            # Amounts of two currencies have no difference.
            columns[name + CHANGE] = (
                pc.if_else(pa.array(is_moved), None, change) if is_moved.any() else change
            )
        found = {name: np.flatnonzero(flags) for name, flags in differing.items() if flags.any()}
        return Results(pa.table(columns), {DIFFERENCES: _differences(sides, keys, found, is_known)})

    def _has_other_currency(self, sides: Sides) -> Flags:
        """Bool `(keys,)`: whether a row's amounts are in another currency on the second side."""
        if not self.parameters.currency:
            return np.zeros(len(sides.before), bool)
        return sides.differing(self.parameters.currency)

    def _is_known(self, column: str, customers: pa.Array) -> Flags:
        """Bool `(keys,)`: whether a difference in a column would be a known one."""
        return _is_listed(self._known_customers.get(column, frozenset()), customers)

    @cached_property
    def _known_customers(self) -> Mapping[str, frozenset[str]]:
        """The customers whose differences in a column are known, by column."""
        found: dict[str, set[str]] = {}
        table = self.lookup_tables.get("known")
        for row in [] if table is None else table.to_pylist():
            if row["expires"] >= self.business_date:
                found.setdefault(row["column"], set()).add(row["customer"])
        return {column: frozenset(customers) for column, customers in found.items()}

    def _known_differences(self) -> tuple[KnownDifference, ...]:
        """All that are listed, those that have expired too."""
        table = self.lookup_tables.get("known")
        rows = [] if table is None else table.to_pylist()
        known = (
            KnownDifference(**row, is_in_force=row["expires"] >= self.business_date) for row in rows
        )
        return tuple(sorted(known))

    def result_totals(self, results: Components) -> Totals:
        """How many keys have each status, differences by column, and sums of money."""
        table = results.table
        found = dict.fromkeys(RowStatus, 0) | counts(table.column(STATUS))
        totals = {f"keys_{status}": count for status, count in found.items()}
        of_columns = counts(results.related[DIFFERENCES].table.column("column"))
        totals |= {f"changed_{name}": count for name, count in sorted(of_columns.items())}
        return totals | changes(table, self.amounts, self.parameters.currency)

    def exit_status(self, manifest: Manifest) -> int:
        """`Exit.DIFFERENT` if there are differences that nobody knows of, or noise."""
        differs = unknown_rows(manifest) or (self.noise is not None and self.noise.rows)
        return Exit.DIFFERENT if differs else Exit.OK

    def finish(self) -> WriteComparison:
        """A page for people, and the same as JSON."""
        return WriteComparison(
            Layout(
                title=(self.parameters.before, self.parameters.after),
                business_date=self.business_date,
                key=self.key,
                customer=self.customer,
                currency=self.parameters.currency,
                decimals={name: self._scale(name) for name in self.amounts},
                noise=self.noise,
                known=self._known_differences(),
                one_sided={
                    side: tuple(name for name in columns if name not in others)
                    for side, columns, others in (
                        ("before", self.columns.before, self.columns.after),
                        ("after", self.columns.after, self.columns.before),
                    )
                },
            )
        )

    def _check_names(self) -> None:
        parameters = self.parameters
        if not self.key:
            raise ParameterError("--keys: name the columns that identify a row", parameter="--keys")
        taken = {STATUS, DIFFERING} & {*self.key, self.customer, parameters.currency}
        if taken:
            raise ParameterError(
                f"{min(taken)} is a column of the comparison itself: rename it on both sides",
                parameter="--keys",
                value=min(taken),
            )
        named = {
            "keys": self.key,
            "amounts": self.amounts,
            "customer": _names(parameters.customer),
            "currency": _names(parameters.currency),
        }
        for flag, names in named.items():
            for side, columns in self.columns._asdict().items():
                missing = [name for name in names if name not in columns]
                if missing:
                    raise ParameterError(
                        f"--{flag}: {getattr(parameters, side)} has no column {missing[0]}: it has "
                        f"{', '.join(columns)}",
                        parameter=f"--{flag}",
                        value=missing[0],
                    )
        for name in self.key:
            before, after = (_key_type(name, columns[name]) for columns in self.columns)
            if before != after:
                raise ParameterError(
                    f"--keys: {name} is {before} on one side and {after} on the other: give both "
                    "one type",
                    parameter="--keys",
                    value=name,
                )
        for name in self.amounts:
            for columns in self.columns:
                type_ = columns[name]
                if not (pa.types.is_decimal(type_) or pa.types.is_integer(type_)):
                    raise ParameterError(
                        f"--amounts: {name} is {type_}: an amount is a decimal or an integer",
                        parameter="--amounts",
                        value=name,
                    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _columns_of(pattern: str) -> dict[str, pa.DataType]:
    """The columns of a dataset with their types, as they are read."""
    # Before anything is read of them, an attempt compares the files by their hashes.
    fields = plan_input(pattern, _NO_COLUMNS, by_hash=False).splits[0].fields
    return {
        field.name: getattr(field.type, "value_type", field.type)
        if pa.types.is_dictionary(field.type)
        else field.type
        for field in fields
    }


def _key_type(name: str, type_: pa.DataType) -> pa.DataType:
    for is_kind, key_type in _KEY_TYPES:
        if is_kind(type_):
            return key_type
    raise ParameterError(
        f"--keys: {name} is {type_}: keys are integers, texts or dates",
        parameter="--keys",
        value=name,
    )


def _is_listed(known: frozenset[str], customers: pa.Array) -> Flags:
    if EVERYTHING in known:
        return np.ones(len(customers), bool)
    if not known:
        return np.zeros(len(customers), bool)
    listed = pc.is_in(customers, pa.array(sorted(known), pa.string()))
    return np.asarray(listed.to_numpy(zero_copy_only=False), bool)


def _statuses(
    sides: Sides, differing: Mapping[str, Flags], is_known: Mapping[str, Flags]
) -> npt.NDArray[np.int8]:
    """int8 `(keys,)`: the position of each key's status in `RowStatus`."""
    order = list(RowStatus)
    status = np.full(len(sides.before), order.index(RowStatus.SAME), np.int8)
    any_differs, any_unknown = np.zeros(len(status), bool), np.zeros(len(status), bool)
    for name, flags in differing.items():
        any_differs |= flags
        any_unknown |= flags & ~is_known[name]
    status[any_differs] = order.index(RowStatus.KNOWN)
    status[any_unknown] = order.index(RowStatus.CHANGED)
    for numbers, one_sided in (
        (sides.after, RowStatus.ONLY_BEFORE),
        (sides.before, RowStatus.ONLY_AFTER),
    ):
        is_alone = numbers < 0
        status[is_alone] = order.index(one_sided)
        status[is_alone & is_known[EVERYTHING]] = order.index(RowStatus.KNOWN)
    return status


def _encoded(status: npt.NDArray[np.int8]) -> pa.DictionaryArray:
    names = pa.array([str(status) for status in RowStatus], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(status.astype(np.int32)), names)


def _differences(
    sides: Sides,
    keys: Mapping[str, pa.ChunkedArray],
    found: Mapping[str, Integers],
    is_known: Mapping[str, Flags],
) -> pa.Table:
    """A row for each differing value, by key and then in the order of the columns."""
    schema = pa.schema(
        [(name, column.type) for name, column in keys.items()]
        + [
            ("column", pa.string()),
            ("before", pa.string()),
            ("after", pa.string()),
            ("known", pa.bool_()),
        ]
    )
    tables = []
    for name, at in found.items():
        before = sides.before_rows.column(name).take(pa.array(sides.before[at]))
        after = sides.after_rows.column(name).take(pa.array(sides.after[at]))
        columns: dict[str, Any] = {key: column.take(pa.array(at)) for key, column in keys.items()}
        columns["column"] = pa.array([name] * len(at), pa.string())
        columns["before"], columns["after"] = as_text(before), as_text(after)
        columns["known"] = pa.array(is_known[name][at])
        tables.append(pa.table(columns, schema=schema))
    if not tables:
        return schema.empty_table()
    order = np.argsort(np.concatenate([*found.values()]), kind="stable")
    return pa.concat_tables(tables).combine_chunks().take(pa.array(order))


if __name__ == "__main__":
    sys.exit(main(Compare))
