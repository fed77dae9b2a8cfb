"""Errors in parameters, worded for the command line."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from ledgerbeam.io.errors import ParameterError

_WORDS = {
    "bool_parsing": "give true or false",
    "decimal_parsing": "give a number",
    "float_parsing": "give a number",
    "int_from_float": "give a whole number",
    "int_parsing": "give a whole number",
    "string_pattern_mismatch": "it isn't of the form that --help gives",
}
"""In place of what pydantic says, by its type of error."""


def parameter_error(error: ValidationError, names: Iterable[str] = ()) -> ParameterError:
    """One error for all parameters that pydantic rejects.

    Its message lists every problem; its attributes name the first parameter and its value.

    Args:
        error: of pydantic.
        names: of the parameters that there are.
    """
    entries = error.errors()
    first = entries[0]
    return ParameterError(
        "; ".join(_problem_of(entry, names) for entry in entries),
        parameter=flag_of(str(first["loc"][0])) if first["loc"] else None,
        value=first["input"] if first["loc"] and first["type"] != "missing" else None,
    )


def _problem_of(entry: Any, names: Iterable[str]) -> str:
    """One of pydantic's validation errors as a line about a flag."""
    flag = flag_of(str(entry["loc"][0])) if entry["loc"] else "the flags"
    if entry["type"] == "missing":
        return f"{flag} is required: see --help"
    if entry["type"] == "extra_forbidden":
        similar = difflib.get_close_matches(flag, map(flag_of, names), 1, 0.8)
        advice = f"did you mean {similar[0]}?" if similar else "see --help"
        return f"no parameter {flag}: {advice}"
    return f"{flag}={entry['input']}: {_WORDS.get(entry['type'], entry['msg'])}"


def flag_of(field: str) -> str:
    """The flag of a parameter: `--trade-date` for `trade_date`."""
    return "--" + field.replace("_", "-")
