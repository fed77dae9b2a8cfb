"""Schema contracts: the columns that a dataset must have, their types, and rules for each row.

A contract types every column; nothing is inferred from values. Text (CSV, JSON lines) is parsed
strictly by the contract's types; columns of typed files (Parquet, Avro) are converted if no value
can change. A row that breaks the contract is rejected with its reasons and never dropped.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as attribute

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.io.datasets.values import PLAIN, ValueFormat, clean, convert, padded, shown
from ledgerbeam.io.errors import ParameterError, SchemaError

Rejections = Mapping[int, Sequence[str]]
"""Reasons why rows are rejected, by the row's number in a table."""


ENCODED = pa.dictionary(pa.int32(), pa.string())
"""The type of dictionary-encoded columns."""


@dataclass(frozen=True)
class Column:
    """A column of a contract.

    Attributes:
        name: the column's name in the workload.
        type: int64, string, decimal128 or date32.
        required: whether a dataset without this column is rejected.
        nullable: whether a row may leave it empty.
        dictionary_encoded: whether values repeat so often that the column is kept
            dictionary-encoded (strings only).
        one_of: the values allowed; empty for any (only with `dictionary_encoded`).
        minimum: the lowest value allowed (int64 and decimals).
        currency: the column that says which currency an amount is in (decimal128 only). A workload
            rejects rows whose amount has more decimals than its currency.
    """

    name: str
    type: pa.DataType
    required: bool = True
    nullable: bool = False
    dictionary_encoded: bool = False
    one_of: tuple[str, ...] = ()
    minimum: int | None = None
    currency: str = ""

    def __post_init__(self) -> None:
        if self.dictionary_encoded and self.type != pa.string():
            raise ValueError(
                f"column {self.name}: dictionary_encoded needs string, not {self.type}"
            )
        if self.one_of and not self.dictionary_encoded:
            raise ValueError(f"column {self.name}: one_of needs dictionary_encoded")
        is_number = self.type == pa.int64() or pa.types.is_decimal(self.type)
        if self.minimum is not None and not is_number:
            raise ValueError(
                f"column {self.name}: minimum needs int64 or decimals, not {self.type}"
            )
        if self.currency and not pa.types.is_decimal(self.type):
            raise ValueError(f"column {self.name}: currency needs decimal128, not {self.type}")


@dataclass(frozen=True)
class Field:
    """A column of a dataset as it will be read.

    Attributes:
        name: the column's name in the output and in rules.
        source: the column's name in the files; empty for a column that they don't have.
        type: Arrow type of the output.
        column: the contract's column; None for a column that is only carried through.
        constant: text that all rows have in a column that the files don't have.
        values: how values of the contract's columns are written as text.
        replacements: values by the texts in the file that stand for them.
    """

    name: str
    source: str
    type: pa.DataType
    column: Column | None = None
    constant: str | None = None
    values: ValueFormat = PLAIN
    replacements: Mapping[str, str] = attribute(default_factory=dict)


def sources(fields: Sequence[Field]) -> list[str]:
    """The columns that are read from the files, in the order of the fields."""
    return [field.source for field in fields if field.constant is None]


@dataclass(frozen=True)
class Contract:
    """The columns that a workload knows. Other columns of a dataset are kept as they are.

        ACCOUNTS = Contract(
            (
                Column("account", pa.string()),
                Column("balance", pa.decimal128(18, 2), currency="currency"),
                Column("currency", pa.string(), dictionary_encoded=True),
            )
        )

    Attributes:
        columns: the columns that the workload reads.
        reserved: names that the workload adds to its output and that the input must not have.
            Names that begin with `__` are reserved, too.
        keeps_dictionaries: whether other columns come dictionary-encoded where they are so in a
            file, as texts whose values repeat are in Parquet.

    Raises:
        ValueError: the `currency` of a column isn't a column of strings.
    """

    columns: tuple[Column, ...]
    reserved: tuple[str, ...] = ()
    keeps_dictionaries: bool = False

    def __post_init__(self) -> None:
        text = {column.name for column in self.columns if column.type == pa.string()}
        for column in self.columns:
            if column.currency and column.currency not in text:
                raise ValueError(
                    f"column {column.name}: its currency {column.currency} is not a column of "
                    f"strings of the contract: it has {', '.join(sorted(text))}"
                )

    def with_decimals(self, decimals: int) -> "Contract":
        """The same contract with this many decimals in amounts that have a `currency`."""
        return replace(
            self,
            columns=tuple(
                replace(column, type=pa.decimal128(column.type.precision, decimals))
                if column.currency
                else column
                for column in self.columns
            ),
        )

    def with_type(self, name: str, type_: pa.DataType) -> "Contract":
        """The same contract with another type for one column."""
        return replace(
            self,
            columns=tuple(
                replace(column, type=type_) if column.name == name else column
                for column in self.columns
            ),
        )

    def resolve(
        self,
        where: str,
        types: Mapping[str, pa.DataType | None],
        renames: Mapping[str, str],
        *,
        values: ValueFormat = PLAIN,
        replacements: Mapping[str, Mapping[str, str]] | None = None,
        constants: Mapping[str, str] | None = None,
    ) -> tuple[Field, ...]:
        """The fields of a file, in the file's order.

        Args:
            where: the file, for messages.
            types: the type of each of the file's columns; None for text, which takes the
                contract's type.
            renames: the contract's names by the names in the file; `_` leaves a column out.
            values: how values are written as text.
            replacements: values by the texts in the file that stand for them, for each column by
                the contract's name.
            constants: texts of columns that the file doesn't have, by the contract's name.

        Raises:
            UserError: a required column is missing, a name is taken twice, a type can't be
                converted without changing values, or a constant breaks the contract.
        """
        known = {column.name: column for column in self.columns}
        missing_sources = [source for source in renames if source not in types]
        if missing_sources:
            raise SchemaError(
                f"{where}: there is no column {missing_sources[0]!r} to rename: it has "
                f"{', '.join(types)}: correct --columns",
                file=where,
                column=missing_sources[0],
            )
        fields: dict[str, Field] = {}
        replacements = replacements or {}
        constants = constants or {}
        for source, type_ in types.items():
            name = renames.get(source, source)
            if name == "_":
                continue
            if name in fields:
                raise SchemaError(
                    f"{where}: two columns are called {name!r}: name them by --columns",
                    file=where,
                    column=name,
                )
            if name in constants:
                raise SchemaError(
                    f"{where}: it has a column {name!r}, which is given as a constant too: leave "
                    f"one out, by --constants or --columns=_={source}",
                    file=where,
                    column=name,
                )
            self._check_free(where, name)
            column = known.get(name)
            if column is None:
                keeps = self.keeps_dictionaries and type_ == ENCODED
                fields[name] = Field(name, source, ENCODED if keeps else _carried_type(type_))
            else:
                _check_convertible(where, column, type_)
                replaced = replacements.get(name, {})
                fields[name] = Field(
                    name, source, column.type, column, values=values, replacements=replaced
                )
        for name, constant in constants.items():
            self._check_free(where, name)
            column = known.get(name)
            type_ = pa.string() if column is None else column.type
            fields[name] = Field(name, "", type_, column, constant)
            _, rejected = conform(pa.table({"": pa.array([constant])}), [fields[name]])
            if rejected:
                raise ParameterError(
                    f"--constants={name}={constant}: {rejected[0][0]}: correct it",
                    parameter="--constants",
                    value=f"{name}={constant}",
                )
        missing = [
            column.name for column in self.columns if column.required and column.name not in fields
        ]
        if missing:
            raise SchemaError(
                f"{where}: wrong schema: no column {', '.join(missing)}: it has "
                f"{', '.join(types)}: a file without a header, or with other names, "
                "needs --columns",
                file=where,
                column=missing[0],
            )
        return tuple(fields.values())

    def _check_free(self, where: str, name: str) -> None:
        if name in self.reserved or name.startswith("__"):
            raise SchemaError(
                f"{where}: the input has a column {name!r}, which this workload writes: "
                "rename it or leave it out with --columns",
                file=where,
                column=name,
            )


def conform(table: pa.Table, fields: Sequence[Field]) -> tuple[pa.Table, Rejections]:
    """The table in the types of the contract, and the rows that break it.

    Args:
        table: columns with their names in the file; text columns are strings.
        fields: the columns to read, in the output's order.

    Returns:
        A table of the same rows with a contiguous column for each field (dictionary-encoded where
        the contract says so), holding null where a value is rejected; and the reasons by row.
    """
    rejections: dict[int, list[str]] = defaultdict(list)
    arrays = []
    for field in fields:
        if field.constant is not None:
            array = _constant(field.constant, table.num_rows)
        else:
            array = _one_chunk(table.column(field.source))
        if field.column is not None:
            array = _conform_column(array, field, field.column, rejections)
        elif array.type != field.type:
            array = array.cast(field.type)
        arrays.append(array)
    names = [field.name for field in fields]
    return pa.Table.from_arrays(arrays, names=names), rejections


def encode_dictionaries(table: pa.Table, contract: Contract) -> pa.Table:
    """The columns as rules receive them: dictionary-encoded where the contract says so."""
    for column in contract.columns:
        if column.name not in table.column_names:
            continue
        if column.dictionary_encoded and not pa.types.is_dictionary(
            table.schema.field(column.name).type
        ):
            index = table.column_names.index(column.name)
            array = _one_chunk(table.column(index))
            table = table.set_column(index, column.name, array.dictionary_encode())
    return table


def _constant(text: str, rows: int) -> pa.DictionaryArray:
    indices = pa.array(np.zeros(rows, np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([text], pa.string()))


def _conform_column(
    array: pa.Array, field: Field, column: Column, rejections: dict[int, list[str]]
) -> pa.Array:
    def refuse(rows: npt.NDArray[np.int64], reason: Callable[[int], str]) -> None:
        for row in rows.tolist():
            rejections[row].append(f"{column.name} {reason(row)}")

    if column.dictionary_encoded:
        if not isinstance(array, pa.DictionaryArray):
            array = array.cast(pa.string()).dictionary_encode()
        if array.dictionary.type != pa.string():
            array = pa.DictionaryArray.from_arrays(
                array.indices, array.dictionary.cast(pa.string())
            )
    elif isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    if _is_text(array):
        array = clean(array, field.values, field.replacements)
    missing = _missing(array)
    if not column.nullable:
        refuse(np.flatnonzero(missing), lambda _: "is missing")
    if column.one_of:
        allowed_values = pa.array(column.one_of, pa.string())
        others = pc.invert(pc.is_in(array.dictionary, allowed_values))
        wrong = _where_value(array, others.to_numpy(zero_copy_only=False), null=False) & ~missing
        allowed = ", ".join(column.one_of)
        refuse(
            np.flatnonzero(wrong), lambda row: f"{shown(array[row].as_py())} is none of {allowed}"
        )
    if column.type != pa.string():
        array = convert(array, column.type, field.values, missing, refuse)
    elif not column.dictionary_encoded:
        array = array.cast(pa.string())
    if column.type == pa.string() and not column.one_of:
        refuse(
            np.flatnonzero(_padded(array)),
            lambda row: (
                f"{shown(array[row].as_py())} has white space around it: correct it, or "
                "say --trim=true"
            ),
        )
    if column.minimum is not None and len(array) and array.null_count < len(array):
        least = column.minimum
        if pc.min(array).as_py() < least:
            low = pc.fill_null(pc.less(array, least), False).to_numpy(zero_copy_only=False)
            refuse(np.flatnonzero(low), lambda row: f"{array[row].as_py()} is below {least}")
    return array


def _is_text(array: pa.Array) -> bool:
    type_ = array.type.value_type if isinstance(array, pa.DictionaryArray) else array.type
    return type_ in (pa.string(), pa.large_string(), pa.string_view())


def _padded(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Bool `(rows,)`: whether there is white space around a text."""
    if isinstance(array, pa.DictionaryArray):
        return _where_value(array, padded(array.dictionary), null=False)
    return padded(array)


def _missing(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Bool `(rows,)`: null, or an empty string."""
    if isinstance(array, pa.DictionaryArray):
        return _where_value(array, _missing(array.dictionary), null=True)
    if array.type in (pa.string(), pa.large_string(), pa.string_view()):
        empty = pc.fill_null(pc.equal(array, pa.scalar("", array.type)), True)
        return np.asarray(empty.to_numpy(zero_copy_only=False))
    if not array.null_count:
        return np.zeros(len(array), bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def _where_value(
    array: pa.DictionaryArray, flags: npt.NDArray[np.bool_], null: bool
) -> npt.NDArray[np.bool_]:
    """Bool `(rows,)`: the flag of each row's value in the dictionary; `null` for rows with null."""
    if not array.null_count and not flags.any():
        return np.zeros(len(array), bool)
    codes = array.indices.fill_null(len(flags)).to_numpy()
    return np.append(flags, null)[codes]


def _carried_type(type_: pa.DataType | None) -> pa.DataType:
    """The type for the same values that most of Arrow's kernels support."""
    if type_ is None:
        return pa.string()
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return plain.get(type_, type_)


def _check_convertible(where: str, column: Column, type_: pa.DataType | None) -> None:
    if type_ is None:
        return
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_)
    is_text = is_text or type_ == pa.string_view()
    if pa.types.is_floating(type_):
        raise SchemaError(
            f"{where}: wrong schema: {column.name} is {type_}: floats are refused, as they can't "
            f"hold amounts exactly: write it as {column.type} or as text",
            file=where,
            column=column.name,
        )
    is_number = pa.types.is_integer(type_) or pa.types.is_decimal(type_)
    fits = type_ == column.type or (column.type != pa.string() and is_number)
    if pa.types.is_date(column.type):
        fits = pa.types.is_date(type_)
    # A column without any value has no type of its own in many files.
    if not (fits or is_text or pa.types.is_null(type_)):
        advice = ""
        if column.name == "id":
            advice = f", or say --id-type={'integer' if is_number else 'string'}"
        raise SchemaError(
            f"{where}: wrong schema: {column.name} is {type_}, and must be {column.type}: "
            f"write it as {column.type}{advice}",
            file=where,
            column=column.name,
        )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.combine_chunks()
