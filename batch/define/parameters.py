"""Errors in parameters, worded for the command line."""

from typing import Any

from pydantic import ValidationError

from ledgerbeam.io.errors import ParameterError


def parameter_error(error: ValidationError) -> ParameterError:
    """One error for all parameters that pydantic rejects.

    Its message lists every problem; its attributes name the first parameter and its value.
    """
    entries = error.errors()
    first = entries[0]
    return ParameterError(
        "; ".join(_problem_of(entry) for entry in entries),
        parameter=flag_of(str(first["loc"][0])) if first["loc"] else None,
        value=first["input"] if first["loc"] and first["type"] != "missing" else None,
    )


def _problem_of(entry: Any) -> str:
    """One of pydantic's validation errors as a line about a flag."""
    flag = flag_of(str(entry["loc"][0])) if entry["loc"] else "the flags"
    if entry["type"] == "missing":
        return f"{flag} is required: see --help"
    if entry["type"] == "string_pattern_mismatch":
        return f"{flag}={entry['input']}: it isn't of the form that --help gives"
    return f"{flag}={entry['input']}: {entry['msg']}"


def flag_of(field: str) -> str:
    """The flag of a parameter: `--trade-date` for `trade_date`."""
    return "--" + field.replace("_", "-")
