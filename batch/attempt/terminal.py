"""Progress and tables on a terminal."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from ledgerbeam.batch.plain_text import plain_text


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


def progress_bars() -> Progress:
    """Progress bars on standard error; disabled if that is not a terminal."""
    return Progress(
        TextColumn("{task.description:>9}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=PlainConsole(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
