"""Rows that user code gives for a component, checked, and made a table."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import pyarrow as pa

from ledgerbeam.io.errors import DefinitionError
from ledgerbeam.transforms.concurrency.retry import Record

DOES_NOT_FIT = (pa.ArrowException, TypeError, ValueError, OverflowError)


GivenRows: TypeAlias = Iterable[Record] | pa.Table
"""Rows that user code gives: records, or a table with the columns of the results."""

CheckedRows: TypeAlias = Sequence[Record] | pa.Table


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


def checked_table(table: pa.Table, results: pa.Schema) -> pa.Table:
    """The table that a component has given, with its columns in the order of the results.

    Raises:
        TypeError: it has other columns, or a column of another type.
        ValueError: a column has nulls, and isn't nullable.
    """
    if sorted(table.column_names) != sorted(results.names):
        raise TypeError(
            f"execute gave a table with the columns {', '.join(table.column_names)}, and results "
            f"has {', '.join(results.names)}"
        )
    for column in results:
        given = table.column(column.name)
        if given.type != column.type:
            raise TypeError(f"{column.name} is {given.type}, not {column.type}: cast it")
        if given.null_count and not column.nullable:
            raise _null(column)
    return table.select(results.names).cast(results)


def rows_table(rows: CheckedRows, results: pa.Schema) -> pa.Table:
    """Checked rows of results as a table.

    Raises:
        pa.ArrowException, TypeError, ValueError, OverflowError: a value doesn't fit its column.
    """
    if isinstance(rows, pa.Table):
        return rows
    return _table([[row[name] for row in rows] for name in results.names], results)


class UnitRows:
    """The rows that units give, until they are a table.

    They are kept by column: millions of rows that live as long as their shard cost time.
    """

    def __init__(self, units: int, results: pa.Schema) -> None:
        """Begin without rows.

        Args:
            units: how many units there are.
            results: the columns.
        """
        self._results = results
        self._names = frozenset(results.names)
        self._counts = [0] * units
        self._columns: list[list[Any]] = [[] for _ in results]
        self._add = [(c.append, n) for c, n in zip(self._columns, results.names, strict=True)]
        self._apart: dict[int, CheckedRows] = {}

    def add(self, number: int, rows: GivenRows) -> None:
        """Take the rows of a unit; units come in the order of their numbers, in one thread.

        Raises:
            DefinitionError, TypeError, ValueError: they are no rows of these columns.
        """
        if isinstance(rows, pa.Table):
            self.put(number, self.checked(rows))
            return
        records = checked_rows(rows, self._names)
        for record in records:
            for add, name in self._add:
                add(record[name])
        self._counts[number] = len(records)

    def checked(self, rows: GivenRows) -> CheckedRows:
        """The rows of a unit, checked as by `add`."""
        if isinstance(rows, pa.Table):
            return checked_table(rows, self._results)
        return checked_rows(rows, self._names)

    def put(self, number: int, rows: CheckedRows) -> None:
        """Take the checked rows of a unit in any order, in any thread."""
        self._apart[number] = rows

    def counts(self) -> list[int]:
        """The number of rows of each unit."""
        counts = [*self._counts]
        for number, rows in self._apart.items():
            counts[number] = len(rows)
        return counts

    def table(self) -> pa.Table:
        """All rows, in the order of the units.

        Raises:
            pa.ArrowException, TypeError, ValueError, OverflowError: a value doesn't fit its column.
        """
        tables = [rows for _, rows in sorted(self._apart.items()) if isinstance(rows, pa.Table)]
        if tables and len(tables) == len(self._apart) and not any(self._counts):
            return pa.concat_tables(tables)
        self._in_order()
        return _table(self._columns, self._results)

    def drop_misfits(self) -> Iterator[tuple[int, Exception]]:
        """Drop the rows of each unit whose values don't fit; yields its number, and the error."""
        self._in_order()
        kept: list[list[Any]] = [[] for _ in self._columns]
        start = 0
        for number, count in enumerate(self._counts):
            own = [column[start : start + count] for column in self._columns]
            start += count
            try:
                _table(own, self._results)
            except DOES_NOT_FIT as error:
                self._counts[number] = 0
                yield number, error
                continue
            for column, values in zip(kept, own, strict=True):
                column += values
        self._columns = kept

    def _in_order(self) -> None:
        """Put the rows that came in any order between the others."""
        if not self._apart:
            return
        firsts = [0, *accumulate(self._counts)]
        numbers = sorted(self._apart)
        for place, name in enumerate(self._results.names):
            own, merged, start = self._columns[place], [], 0
            for number in numbers:
                merged += own[start : firsts[number]]
                rows = self._apart[number]
                merged += (
                    rows.column(name).to_pylist()
                    if isinstance(rows, pa.Table)
                    else [record[name] for record in rows]
                )
                start = firsts[number]
            self._columns[place] = [*merged, *own[start:]]
        for number in numbers:
            self._counts[number] = len(self._apart[number])
        self._apart = {}


def _table(columns: Sequence[list[Any]], results: pa.Schema) -> pa.Table:
    arrays = []
    for column, values in zip(results, columns, strict=True):
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
            raise _null(column)
        arrays.append(array)
    return pa.table(arrays, schema=results)


def _null(column: pa.Field) -> ValueError:
    return ValueError(f"{column.name} is None, and the column isn't nullable")


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
