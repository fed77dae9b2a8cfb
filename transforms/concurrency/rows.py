"""Rows that user code gives for a component, checked, and made a table."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pyarrow as pa

from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.transforms.concurrency.retry import Record

DOES_NOT_FIT = (pa.ArrowException, TypeError, ValueError, OverflowError)


def checked_rows(records: Iterable[Record], columns: Collection[str]) -> Sequence[Record]:
    """The rows that a component has given.

    Raises:
        DefinitionError: it has given something else.
        TypeError: a row has other columns.
    """
    # This runs once per component, up to millions of times, so it must be fast.
    if type(records) is not list:
        if records is None or type(records) is dict:
            raise DefinitionError(
                f"execute returned {'nothing' if records is None else 'a single row'}: yield each "
                "row, or return a list of rows"
            )
        records = list(records)
    record: Any = None
    try:
        for record in records:
            if record.keys() != columns:
                raise TypeError(
                    f"execute gave the columns {', '.join(record)}, and results has "
                    f"{', '.join(sorted(columns))}"
                )
    except AttributeError:
        raise DefinitionError(
            f"execute gave {record!r}, which is no row: yield values by column, as a dictionary"
        ) from None
    return records


def rows_table(rows: Sequence[Record], results: pa.Schema) -> pa.Table:
    """Rows of results as a table.

    Raises:
        pa.ArrowException, TypeError, ValueError, OverflowError: a value doesn't fit its column.
    """
    arrays = []
    for column in results:
        values = [row[column.name] for row in rows]
        if pa.types.is_integer(column.type):
            # Arrow would cut off the decimals without an error.
            for kind in {*map(type, values)} - {type(None)}:
                if not hasattr(kind, "__index__"):
                    raise TypeError(f"{column.name} is {kind.__name__}, not {column.type}")
        try:
            array = pa.array(values, column.type)
        except DOES_NOT_FIT as error:
            raise _misfit(values, column, error) from error
        if array.null_count and not column.nullable:
            raise ValueError(f"{column.name} is None, and the column isn't nullable")
        arrays.append(array)
    return pa.table(arrays, schema=results)


def _misfit(values: Sequence[Any], column: pa.Field, error: Exception) -> TypeError:
    """What an array can't be made for, by the first value that doesn't fit."""
    for value in values:
        try:
            pa.array([value], column.type)
        except DOES_NOT_FIT as found:
            return TypeError(f"{column.name} is {value!r}, not {column.type}: {found}")
    return TypeError(f"{column.name}: {error}")


def ended(end: SystemExit) -> DefinitionError:
    """The error of user code that would end the program, and with it a worker."""
    return DefinitionError(
        f"sys.exit({end.code!r}) was called: raise an error in its place, which fails one component"
    )
