"""Columns of tables about loans as arrays: amounts in minor units, dates, texts as codes.

In tables amounts are decimals, of as many places for all currencies as the table has; in arrays
they are int64 minor units of each row's currency.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.arrays import Dates, Integers, array_of
from ledgerbeam.rules.loans.loan import BASE_SCALE, RATE_SCALE
from ledgerbeam.rules.money import AMOUNT_DIGITS, decimals, units

AMOUNT = pa.decimal128(AMOUNT_DIGITS, 2)
"""An amount in a table, unless the table is made for currencies with more decimals."""
BASE = pa.decimal128(AMOUNT_DIGITS, AMOUNT.scale + BASE_SCALE)
"""What interest is computed on; see `Entry.interest_base`."""
PERCENT = pa.decimal128(9, RATE_SCALE)
RATE_CHANGE = pa.struct({"effective_date": pa.date32(), "rate": PERCENT, "payment": AMOUNT})

_Parsed = TypeVar("_Parsed")


def with_places(schema: pa.Schema, places: int) -> pa.Schema:
    """A schema of this module with amounts of so many decimals."""
    if places == AMOUNT.scale:
        return schema
    amount = pa.decimal128(AMOUNT_DIGITS, places)

    def of(type_: pa.DataType) -> pa.DataType:
        if type_ == RATE_CHANGE:
            return pa.struct({"effective_date": pa.date32(), "rate": PERCENT, "payment": amount})
        if pa.types.is_list(type_):
            return pa.list_(of(type_.value_type))
        if type_ == BASE:
            return pa.decimal128(AMOUNT_DIGITS, places + BASE_SCALE)
        return amount if type_ == AMOUNT else type_

    return pa.schema([field.with_type(of(field.type)) for field in schema])


def amounts_of(column: pa.ChunkedArray, places: Integers, name: str) -> Integers:
    """Decimals as minor units, int64 `(rows,)`.

    Args:
        column: of any scale, without nulls.
        places: decimals of each row's currency.
        name: of the column, for the error.

    Raises:
        ValueError: an amount has more decimals than its currency.
    """
    scale = column.type.scale
    whole = units(column, scale)
    if np.all(places == scale):
        return whole
    quotient, rest = np.divmod(whole, 10 ** np.maximum(scale - places, 0))
    if rest.any():
        at = int(np.argmax(rest != 0))
        raise ValueError(
            f"{name} {column[at].as_py()} has more than the {places[at]} decimals of its currency"
        )
    return quotient * 10 ** np.maximum(places - scale, 0)


def as_decimals(amounts: Integers, places: Integers, type_: pa.Decimal128Type) -> pa.Array:
    """The reverse of `amounts_of`.

    Args:
        amounts: in minor units, int64 `(rows,)`.
        places: decimals of each row's currency, int64 `(rows,)`.
        type_: of the column that is returned.

    Raises:
        ValueError: the type has fewer decimals than a currency.
    """
    shift = type_.scale - places
    if np.min(shift, initial=0) < 0:
        raise ValueError(
            f"amounts of {places.max()} decimals don't fit into {type_.scale}: say "
            f"--decimals={places.max()}"
        )
    return decimals(amounts * 10**shift if shift.any() else amounts, type_)


def encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A column of texts as numbers and what they stand for."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return array_of(column.unify_dictionaries())


def integers_of(column: pa.ChunkedArray) -> Integers:
    """Whole numbers as an array, without nulls."""
    return array_of(column).cast(pa.int64()).to_numpy()


def dates_of(column: pa.ChunkedArray) -> Dates:
    """Days as an array; null is not-a-time."""
    return array_of(column).to_numpy(zero_copy_only=False).astype("datetime64[D]")


def coded(
    table: pa.Table, name: str, parse: Callable[[str], _Parsed], otherwise: str | None = None
) -> tuple[Integers, list[_Parsed]]:
    """Texts of a column as numbers, every distinct one parsed once.

    Args:
        table: with the column.
        name: of the column.
        parse: what a text stands for.
        otherwise: the text that null, an empty text and a missing column stand for.

    Returns:
        int64 `(rows,)` and a list of what texts stand for. The numbers are what `parse` gives
        where that is integers, else positions in the list.

    Raises:
        ValueError: a text is null and there is no `otherwise`, or `parse` raises it.
    """
    if name not in table.column_names:
        assert otherwise is not None
        return np.zeros(table.num_rows, np.int64), [parse(otherwise)]
    column = table.column(name)
    if otherwise is not None and column.null_count:
        column = column.fill_null(otherwise)
    texts = encoded(column)
    if texts.null_count:
        raise ValueError(f"{name} is empty")
    at = texts.indices.to_numpy().astype(np.int64)
    # Texts that no row has aren't parsed: a dictionary may be shared by many tables.
    names = texts.dictionary.to_pylist()
    found = {
        number: parse(names[number] or otherwise or names[number])
        for number in np.flatnonzero(np.bincount(at, minlength=len(names))).tolist()
    }
    first = next(iter(found.values()), None)
    parsed = [] if first is None else [found.get(number, first) for number in range(len(names))]
    if isinstance(first, int):
        return np.array(parsed, np.int64)[at], parsed
    return at, parsed
