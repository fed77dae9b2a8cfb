"""Command lines: a workload's parameters, and the flags that go through to Beam."""

import argparse
import difflib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from ledgerbeam.batch.process import Parameters
from ledgerbeam.batch.runner_jobs import LOCAL_RUNNERS, runner_of
from ledgerbeam.batch.settings import REGISTRY
from ledgerbeam.io.errors import UserError


class Arguments(NamedTuple):
    """A command line, taken apart.

    Attributes:
        parameters: of the workload.
        json: whether a JSON line is asked for.
        registry: URL of the database that the run is to be recorded in; None for no record.
        beam_flags: everything else, in its order.
    """

    parameters: Parameters
    json: bool
    registry: str | None
    beam_flags: list[str]


def parse_arguments(
    parameters_type: type[Parameters], name: str, description: str, arguments: Sequence[str]
) -> Arguments:
    """Take a command line apart.

    Raises:
        UserError: a flag is missing, has a value that doesn't fit, or is nobody's.
        SystemExit: help was asked for, and has been printed.
    """
    parser = _Parser(
        prog=name,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any other flag goes to Beam, for instance --runner=FlinkRunner.",
    )
    for field, info in parameters_type.model_fields.items():
        default = info.default if info.default is not PydanticUndefined else None
        shown = "required" if info.is_required() else f"default: {_text(default)}"
        text = f"{info.description} ({shown})".replace("%", "%%")
        parser.add_argument(_flag(field), dest=field, metavar=field.upper(), help=text)
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON, the last line of the output"
    )
    parser.add_argument(
        "--registry",
        metavar="URL",
        default=os.environ.get(REGISTRY) or None,
        help=f"record the run in this database (default: {REGISTRY}, or no record)",
    )
    known, beam_flags = parser.parse_known_args(list(arguments))
    values = {key: value for key, value in vars(known).items() if value is not None}
    wants_json = values.pop("json")
    registry = values.pop("registry", None)
    _check_beam_flags(parameters_type, beam_flags)
    try:
        parameters = parameters_type.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(problem_of(entry) for entry in error.errors())) from error
    return Arguments(parameters, wants_json, registry, beam_flags)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see --help")


def _check_beam_flags(parameters_type: type[Parameters], flags: Sequence[str]) -> None:
    """Find misspelt flags, which Beam would pass over in silence.

    What the local runner doesn't know is a mistake. Other runners have flags that only their own
    job server knows, so there only flags that resemble ours are refused.
    """
    ours = [_flag(field) for field in parameters_type.model_fields] + ["--json", "--registry"]
    is_local = runner_of(flags).lower() in LOCAL_RUNNERS
    for flag in _unknown_to_beam(flags) if flags else ():
        name = flag.partition("=")[0]
        similar = difflib.get_close_matches(name, ours, 1, cutoff=0.8)
        if similar:
            raise UserError(f"unknown flag {name}: did you mean {similar[0]}?")
        if is_local:
            raise UserError(f"unknown flag or value {flag}: see --help")


def _unknown_to_beam(flags: Sequence[str]) -> list[str]:
    parser = _Parser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return parser.parse_known_args(list(flags))[1]


def problem_of(entry: Any) -> str:
    """A validation error of pydantic as a line about a flag."""
    flag = _flag(str(entry["loc"][0])) if entry["loc"] else "the flags"
    if entry["type"] == "missing":
        return f"{flag} is required: see --help"
    return f"{flag}={entry['input']}: {entry['msg']}"


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _text(value: object) -> str:
    return "none" if value is None or value == "" else str(value)
