"""Errors on standard error: a line for people, or a line of JSON for programs."""

import json
import sys
from typing import Any

from ledgerbeam.batch.json_lines import schema_name
from ledgerbeam.batch.plain_text import print_line
from ledgerbeam.io.errors import UserError


def print_error(program: str, error: UserError, as_json: bool) -> None:
    """Print an error as one line on standard error, without the secrets in it.

    Args:
        program: the name of the program, which begins the line for people.
        error: the error that has ended the program.
        as_json: whether to print a line of JSON instead, with its schema, and the error's code,
            message, and attributes that are set.
    """
    from ledgerbeam.io.secrets import redact

    line = json.dumps(error_json(error), default=str) if as_json else f"{program}: {error}"
    print_line(redact(line), sys.stderr)


def error_json(error: UserError) -> dict[str, Any]:
    """An error as a dictionary for `json.dumps` with `default=str`."""
    of_error = {"code": error.code, "message": str(error), **error.attributes}
    return {"schema": schema_name("error"), "error": of_error}
