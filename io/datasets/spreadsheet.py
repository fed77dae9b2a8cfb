"""CSV files that people open in a spreadsheet, in which no cell is a formula.

A text that begins with `=`, `+`, `-`, `@`, a tab or a line end gets an apostrophe in front of it,
unless it is a number; spreadsheets show such a cell as text.
"""

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

_FORMULA = r"^[=+\-@\t\r\n]"
_NUMBER = r"^[+-]?[0-9]+(?:[.,][0-9]+)*(?:[eE][+-]?[0-9]+)?$"


def spreadsheet_csv(table: pa.Table) -> bytes:
    """A table as CSV with a header, none of whose cells is a formula."""
    columns = [_without_formulas(column) for column in table.columns]
    names = _without_formulas(pa.chunked_array([pa.array(table.column_names, pa.string())]))
    sink = io.BytesIO()
    options = pa_csv.WriteOptions(quoting_style="needed")
    pa_csv.write_csv(pa.table(columns, names=names.to_pylist()), sink, options)
    return sink.getvalue()


def _without_formulas(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    looks_so = pc.match_substring_regex(column, _FORMULA)
    is_formula = pc.and_not(looks_so, pc.match_substring_regex(column, _NUMBER))
    if not pc.any(is_formula).as_py():
        return column
    marked = pc.binary_join_element_wise(
        pa.scalar("'", column.type), column, pa.scalar("", column.type)
    )
    return pc.if_else(is_formula, marked, column)
