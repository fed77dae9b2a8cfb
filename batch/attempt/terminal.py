"""Progress and tables on a terminal; where output goes elsewhere, tables as lines of fields."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ledgerbeam.batch.plain_text import plain_text, print_fields

Cell = str | Text
"""What stands in a table: text, perhaps with a style."""


class PlainConsole(Console):
    """A console that shows strings as they are, wherever they stand: in lines, cells and headers.

    Nothing in them is markup or the code of an emoji, and control characters are escaped.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text of a string; Rich calls it for each one that it is to show."""
        return super().render_str(plain_text(text), **options)


def styled(value: object, style: str) -> Text:
    """A value in a style, for a table; plain strings need no style to be put into one."""
    return Text(plain_text(value), style)


def table_of(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """A table for a terminal: a row a record, folded where the terminal is too narrow."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def grid_of(pairs: Iterable[Sequence[Any]]) -> Table:
    """Names with their values for a terminal, one pair a line."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for pair in pairs:
        grid.add_row(*pair)
    return grid


def print_table(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print records: on a terminal as a table of its width, elsewhere a line each.

    Fields of lines have tabs between them; the first line is that of the heads.
    """
    console = PlainConsole()
    if console.is_terminal:
        console.print(table_of(heads, rows))
    else:
        _print_lines([heads, *rows])


def print_pairs(pairs: Iterable[tuple[str, Cell]]) -> None:
    """Print names with their values: on a terminal below each other, elsewhere with a tab."""
    console = PlainConsole()
    if console.is_terminal:
        console.print(grid_of(pairs))
    else:
        _print_lines(pairs)


def _print_lines(rows: Iterable[Sequence[Cell]]) -> None:
    for row in rows:
        print_fields(cell.plain if isinstance(cell, Text) else cell for cell in row)


def progress_bars() -> Progress:
    """Progress bars on standard error; disabled if that is no terminal on which they can move."""
    console = PlainConsole(stderr=True)
    return Progress(
        TextColumn("{task.description:>9}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty() or console.is_dumb_terminal,
    )
