"""Schema contracts: which columns a dataset must have, their types, and what a row must fulfil.

A contract types every column; nothing is inferred from values. Text (CSV, JSON lines) is parsed
strictly by the contract's types, columns of typed files (Parquet, Avro) are converted where no
value can change. A row that breaks the contract is refused with its reasons and never dropped.
"""

import datetime
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.io.errors import UserError

Refusals = Mapping[int, Sequence[str]]
"""Reasons why rows are refused, by row of a table."""

# Rounds any decimal128 exactly; the default context has 28 digits.
_WIDE = Context(prec=76)
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Column:
    """A column of a contract.

    Attributes:
        name: as the workload calls it.
        type: int64, string, decimal128 or date32.
        required: whether a dataset without this column is refused.
        nullable: whether a row may leave it empty.
        few_values: whether values repeat so often that the column is kept dictionary-encoded
            (strings only).
        one_of: the values allowed; empty for any (only with `few_values`).
        minimum: the least value allowed (int64 only).
    """

    name: str
    type: pa.DataType
    required: bool = True
    nullable: bool = False
    few_values: bool = False
    one_of: tuple[str, ...] = ()
    minimum: int | None = None

    def __post_init__(self) -> None:
        if self.few_values and self.type != pa.string():
            raise ValueError(f"column {self.name}: few_values needs string, not {self.type}")
        if self.one_of and not self.few_values:
            raise ValueError(f"column {self.name}: one_of needs few_values")
        if self.minimum is not None and self.type != pa.int64():
            raise ValueError(f"column {self.name}: minimum needs int64, not {self.type}")


@dataclass(frozen=True)
class Field:
    """A column of a dataset as it will be read.

    Attributes:
        name: in the output and in rules.
        source: in the files.
        type: what the output holds.
        column: the contract's word on it; None for a column that is only carried through.
    """

    name: str
    source: str
    type: pa.DataType
    column: Column | None = None


@dataclass(frozen=True)
class Contract:
    """The columns that a workload knows. Further columns of a dataset are carried through.

    Attributes:
        columns: what the workload reads.
        reserved: names that the workload adds to its output, and that the input may not have.
            Names that begin with `__` are reserved too, for columns that go with the rows.
    """

    columns: tuple[Column, ...]
    reserved: tuple[str, ...] = ()

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
        self, where: str, types: Mapping[str, pa.DataType | None], renames: Mapping[str, str]
    ) -> tuple[Field, ...]:
        """The fields of a file, in the file's order.

        Args:
            where: the file, for messages.
            types: the type of each of the file's columns; None for text, which takes the
                contract's type.
            renames: contract name by name in the file; `_` leaves a column out.

        Raises:
            UserError: a required column is missing, a name is taken twice, or a type can't be
                converted without changing values.
        """
        known = {column.name: column for column in self.columns}
        missing_sources = [source for source in renames if source not in types]
        if missing_sources:
            raise UserError(
                f"{where}: there is no column {missing_sources[0]!r} to rename: it has "
                f"{', '.join(types)}: correct --columns"
            )
        fields: dict[str, Field] = {}
        for source, type_ in types.items():
            name = renames.get(source, source)
            if name == "_":
                continue
            if name in fields:
                raise UserError(f"{where}: two columns are called {name!r}: name them by --columns")
            if name in self.reserved or name.startswith("__"):
                raise UserError(
                    f"{where}: the input has a column {name!r}, which this workload writes: "
                    "rename it or leave it out with --columns"
                )
            column = known.get(name)
            if column is None:
                fields[name] = Field(name, source, _carried_type(type_))
            else:
                _check_convertible(where, column, type_)
                fields[name] = Field(name, source, column.type, column)
        missing = [
            column.name for column in self.columns if column.required and column.name not in fields
        ]
        if missing:
            raise UserError(
                f"{where}: wrong schema: no column {', '.join(missing)}: it has "
                f"{', '.join(types)}: a file without a header, or with other names, "
                "needs --columns"
            )
        return tuple(fields.values())


def conform(table: pa.Table, fields: Sequence[Field]) -> tuple[pa.Table, Refusals]:
    """The table in the types of the contract, and the rows that break it.

    Args:
        table: columns by their names in the file; text columns are strings.
        fields: the columns to take, in the output's order.

    Returns:
        A table of the same rows with a contiguous column for each field (dictionary-encoded where
        the contract says `few_values`), holding null where a value is refused; and the reasons by
        row.
    """
    refusals: dict[int, list[str]] = defaultdict(list)
    arrays = []
    for field in fields:
        array = _one_chunk(table.column(field.source))
        if field.column is not None:
            array = _conform_column(array, field.column, refusals)
        elif array.type != field.type:
            array = array.cast(field.type)
        arrays.append(array)
    names = [field.name for field in fields]
    return pa.Table.from_arrays(arrays, names=names), refusals


def encode_few_values(table: pa.Table, contract: Contract) -> pa.Table:
    """The columns as rules get them: dictionary-encoded where the contract says `few_values`."""
    for column in contract.columns:
        if column.name not in table.column_names:
            continue
        if column.few_values and not pa.types.is_dictionary(table.schema.field(column.name).type):
            index = table.column_names.index(column.name)
            array = _one_chunk(table.column(index))
            table = table.set_column(index, column.name, array.dictionary_encode())
    return table


def _conform_column(array: pa.Array, column: Column, refusals: dict[int, list[str]]) -> pa.Array:
    def refuse(rows: npt.NDArray[np.int64], reason: Callable[[int], str]) -> None:
        for row in rows.tolist():
            refusals[row].append(f"{column.name} {reason(row)}")

    if column.few_values:
        if not isinstance(array, pa.DictionaryArray):
            array = array.cast(pa.string()).dictionary_encode()
        if array.dictionary.type != pa.string():
            array = pa.DictionaryArray.from_arrays(
                array.indices, array.dictionary.cast(pa.string())
            )
    elif isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    missing = _missing(array)
    if not column.nullable:
        refuse(np.flatnonzero(missing), lambda _: "is missing")
    if column.one_of:
        allowed_values = pa.array(column.one_of, pa.string())
        others = pc.invert(pc.is_in(array.dictionary, allowed_values))
        wrong = _where_value(array, others.to_numpy(zero_copy_only=False), null=False) & ~missing
        allowed = ", ".join(column.one_of)
        refuse(
            np.flatnonzero(wrong), lambda row: f"{_shown(array[row].as_py())} is none of {allowed}"
        )
    if column.type != pa.string():
        array = _convert(array, column, missing, refuse)
    elif not column.few_values:
        array = array.cast(pa.string())
    if column.minimum is not None and len(array) and array.null_count < len(array):
        least = column.minimum
        if pc.min(array).as_py() < least:
            low = pc.fill_null(pc.less(array, least), False).to_numpy(zero_copy_only=False)
            refuse(np.flatnonzero(low), lambda row: f"{array[row].as_py()} is below {least}")
    return array


def _convert(
    array: pa.Array,
    column: Column,
    missing: npt.NDArray[np.bool_],
    refuse: Callable[[npt.NDArray[np.int64], Callable[[int], str]], None],
) -> pa.Array:
    """`array` in the column's type; a value that doesn't fit is refused and becomes null."""
    if array.type == column.type:
        return array
    if array.type in (pa.string(), pa.large_string(), pa.string_view()):
        array = array.cast(pa.string())
        if missing.any():
            array = pc.if_else(pa.array(missing), None, array)
        plain = pc.match_substring_regex(array, _plain_text(column.type))
        convertible = pc.all(plain, min_count=0).as_py()
    else:
        convertible = True
    if convertible:
        try:
            return array.cast(column.type)
        except pa.ArrowInvalid:
            pass  # some value doesn't fit: find out which
    values: list[object] = []
    for row, value in enumerate(array.to_pylist()):
        try:
            values.append(None if value is None else _parse(_text(value), column.type))
        except ValueError as error:
            values.append(None)
            refuse(np.array([row]), lambda _, reason=error: str(reason))  # type: ignore[misc]
    return pa.array(values, column.type)


def _plain_text(type_: pa.DataType) -> str:
    """What text must look like for Arrow's own cast to be trusted with it."""
    if pa.types.is_decimal(type_):
        whole = rf"^-?[0-9]{{1,{max(type_.precision - type_.scale, 1)}}}"
        return rf"{whole}(\.[0-9]{{1,{type_.scale}}})?$" if type_.scale else f"{whole}$"
    # Arrow has a year 0000, Python has not.
    return r"^[12][0-9]{3}-[0-9]{2}-[0-9]{2}$" if pa.types.is_date(type_) else r"^-?[0-9]{1,18}$"


def _text(value: object) -> str:
    # `str` gives a small decimal an exponent: 0E-8.
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


def _parse(text: str, type_: pa.DataType) -> int | Decimal | datetime.date:
    """The value of `text`; `ValueError` says what is wrong with it."""
    if pa.types.is_date(type_):
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            try:
                return datetime.date.fromisoformat(text)
            except ValueError:
                pass
        raise ValueError(f"{_shown(text)} is not a date (YYYY-MM-DD)")
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text):
        raise ValueError(f"{_shown(text)} is not a number")
    value = Decimal(text)
    if pa.types.is_decimal(type_):
        if value.copy_abs() >= 10 ** (type_.precision - type_.scale):
            raise ValueError(f"{_shown(text)} is too large for {type_}")
        rounded = value.quantize(Decimal((0, (1,), -type_.scale)), context=_WIDE)
        if value != rounded:
            raise ValueError(f"{_shown(text)} has more than {type_.scale} decimals")
        return rounded
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{_shown(text)} is too large for a 64-bit integer")
    if value != int(value):
        raise ValueError(f"{_shown(text)} is not a whole number")
    return int(value)


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
    """Bool `(rows,)`: the flag of each row's value in the dictionary; `null` for null rows."""
    if not array.null_count and not flags.any():
        return np.zeros(len(array), bool)
    codes = array.indices.fill_null(len(flags)).to_numpy()
    return np.append(flags, null)[codes]


def _carried_type(type_: pa.DataType | None) -> pa.DataType:
    """The type that Arrow's kernels know best for the same values."""
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
        raise UserError(
            f"{where}: wrong schema: {column.name} is {type_}: floats are refused, as they can't "
            f"hold amounts exactly: write it as {column.type} or as text"
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
        raise UserError(
            f"{where}: wrong schema: {column.name} is {type_}, and must be {column.type}: "
            f"write it as {column.type}{advice}"
        )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.combine_chunks()
