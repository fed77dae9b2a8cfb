"""Text for people, as it is: what data holds is never taken for an instruction to the terminal.

Keys, reasons, errors and paths come from files and from other people's code. A control character in
one of them would move the cursor, color what follows, or begin a line of its own; characters that
have no width or that turn the direction of writing make two keys look alike. All of them are shown
escaped.
"""

import sys
from collections.abc import Iterable
from typing import TextIO


def plain_text(value: object) -> str:
    r"""`value` as text in which every character is seen: others as in Python, such as `\x1b`.

    A backslash stays as it is, so that paths and patterns can be copied; `--json` tells it apart.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def print_line(line: object, file: TextIO | None = None) -> None:
    """Print one line for people, on standard output by default."""
    print_fields([line], file)


def print_fields(fields: Iterable[object], file: TextIO | None = None) -> None:
    """Print one line of fields with tabs between them, on standard output by default.

    A tab in a field is escaped, as other control characters are.
    """
    stream = sys.stdout if file is None else file
    encoding = stream.encoding or "utf-8"
    # A terminal that isn't UTF-8 shows the rest escaped, too.
    line = "\t".join(map(plain_text, fields)).encode(encoding, "backslashreplace")
    print(line.decode(encoding), file=stream, flush=True)
