"""Parsing command lines: a workload's parameters, and flags that are passed on to Beam."""

import ledgerbeam.batch.import_beam  # noqa: F401, I001 - in front of all that imports Beam

import argparse
import datetime
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

from apache_beam.options.pipeline_options import PipelineOptions
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from ledgerbeam.batch.clock import Clock, utc_now
from ledgerbeam.batch.define.dates import DATE_WORDS, date_of_word
from ledgerbeam.batch.define.keyed_process import FileParameters
from ledgerbeam.batch.define.parameters import flag_of, parameter_error
from ledgerbeam.batch.define.process import BatchProcess, Parameters
from ledgerbeam.batch.environments import FILE, chosen_environment
from ledgerbeam.batch.runners.jobs import LOCAL_RUNNERS, runner_of
from ledgerbeam.batch.settings import REGISTRY
from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.parsing import parse_toml


class Arguments(NamedTuple):
    """A parsed command line.

    Attributes:
        parameters: the parameters of the workload.
        json: whether to print the result as a line of JSON.
        plan: whether to print what would be done, and do nothing.
        registry: URL of the database to record the run in; None for no record.
        beam_flags: all other flags, in their order.
    """

    parameters: Parameters
    json: bool
    plan: bool
    registry: str | None
    beam_flags: list[str]


def parse_arguments(
    process_type: type[BatchProcess[Any]],
    arguments: Sequence[str],
    now: Clock = utc_now,
    more_help: str = "",
) -> Arguments:
    """Parse a workload's command line; `--help` prints the docstring of its module.

    Args:
        process_type: the workload.
        arguments: the command line.
        now: the present time in UTC, for `today` and its like.
        more_help: lines that end what `--help` prints.

    Raises:
        ParameterError: a flag is missing or unknown, or has an invalid value; or a file of
            parameters or of environments isn't right.
        SystemExit: `--help` was given, and help has been printed.
    """
    parameters_type = process_type.parameters_type
    environment = chosen_environment()
    fields = parameters_type.model_fields
    required = [flag_of(name) for name, info in fields.items() if info.is_required()]
    parser = _Parser(
        prog=process_type.name,
        usage=f"{process_type.name} {' '.join(f'{flag}=…' for flag in required)} [other flags]",
        description=sys.modules[process_type.__module__].__doc__ or "",
        allow_abbrev=False,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"A date is YYYY-MM-DD, {', '.join(DATE_WORDS[:-1])} or {DATE_WORDS[-1]}.\n"
        f"Any other flag goes to Beam, for instance --runner=FlinkRunner.\n{more_help}",
    )
    needed = parser.add_argument_group("required flags")
    own = parser.add_argument_group(f"other flags of {process_type.name}")
    shared = parser.add_argument_group("flags of all workloads")
    for field, info in fields.items():
        text = info.description or ""
        if info.is_required():
            group = needed
        else:
            group = shared if field in FileParameters.model_fields else own
            default = info.default if info.default is not PydanticUndefined else None
            text += f" (default: {_text(default)})"
        group.add_argument(
            flag_of(field), dest=field, metavar=field.upper(), help=text.replace("%", "%%")
        )
    shared.add_argument(
        "--json", action="store_true", help="print the result as JSON, the last line of the output"
    )
    shared.add_argument(
        "--plan", action="store_true", help="print what would be done, and do nothing"
    )
    shared.add_argument(
        "--registry",
        metavar="URL",
        default=os.environ.get(REGISTRY) or environment.registry or None,
        help=f"record the run in this database (default: {REGISTRY}, {FILE}, or no record)",
    )
    shared.add_argument(
        "--params", metavar="FILE", help="TOML with parameters by name; flags win over it"
    )
    shared.add_argument("-h", "--help", action="help", help="print this, and do nothing")
    known, beam_flags = parser.parse_known_args(list(arguments))
    values = {key: value for key, value in vars(known).items() if value is not None}
    wants_json, wants_plan = values.pop("json"), values.pop("plan")
    registry = values.pop("registry", None)
    params = values.pop("params", None)
    if params is not None:
        values = read_parameters(params, parameters_type) | values
    if environment.output:
        values.setdefault("output", environment.output)
    own_flags = [*map(flag_of, fields), "--json", "--plan", "--registry", "--params"]
    beam_flags = checked_beam_flags(beam_flags, own_flags)
    _read_date_words(process_type, values, now())
    try:
        parameters = parameters_type.model_validate(values)
    except ValidationError as error:
        raise parameter_error(error) from error
    return Arguments(parameters, wants_json, wants_plan, registry, beam_flags)


def given_parameters(arguments: Sequence[str]) -> dict[str, Any]:
    """Parameters as they are given on the command line, for a workload that isn't installed here.

    Raises:
        ParameterError: something isn't a flag with its value.
    """
    given: dict[str, Any] = {}
    left = list(arguments)
    while left:
        flag, has_value, value = left.pop(0).partition("=")
        if not has_value and left:
            has_value, value = "=", left.pop(0)
        if not flag.startswith("--") or not has_value:
            raise ParameterError(f"{flag}: give --NAME=VALUE", parameter=flag)
        given[flag.removeprefix("--").replace("-", "_")] = value
    return given


def _read_date_words(
    process_type: type[BatchProcess[Any]], values: dict[str, Any], now: datetime.datetime
) -> None:
    """Replace the words for dates by dates, in the definition's time zone and calendar."""
    fields = process_type.parameters_type.model_fields
    zone = process_type.sla.zone if process_type.sla is not None else "UTC"
    calendar = fields["calendar"].default if "calendar" in fields else ""
    for name, value in values.items():
        of_field = fields[name].annotation
        if value in DATE_WORDS and datetime.date in {of_field, *get_args(of_field)}:
            try:
                values[name] = date_of_word(value, now, zone, values.get("calendar", calendar))
            except ValueError as error:
                raise ParameterError(
                    f"{flag_of(name)}={value}: {error}", parameter=flag_of(name), value=value
                ) from error


def read_parameters(path: str, parameters_type: type[Parameters]) -> dict[str, Any]:
    """The parameters in a TOML file; decimals in it are exact.

    Raises:
        ParameterError: the file can't be read, or has what is no parameter.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        given = parse_toml(text, parse_float=str)
    except OSError as error:
        problem = f"cannot read parameters: {error.strerror}"
    except ValueError as error:  # of the syntax, or of the encoding
        problem = str(error)
    else:
        values = {name.replace("-", "_"): value for name, value in given.items()}
        fields = parameters_type.model_fields
        unknown = [name for name in values if name not in fields]
        if not unknown:
            return values
        similar = difflib.get_close_matches(unknown[0], fields, 1)
        advice = f": did you mean {similar[0]}?" if similar else ": see --help"
        problem = f"no parameter {unknown[0]}{advice}"
    raise ParameterError(f"{path}: {problem}", parameter="--params", value=path)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ParameterError(f"{message}: see --help")


def checked_beam_flags(given: Sequence[str], own: Sequence[str]) -> list[str]:
    """Flags for Beam, with those of the chosen environment that aren't given.

    Beam would silently ignore misspelt flags. With the local runner, every unknown flag is a
    mistake. Other runners have flags that only their own job server knows, so with those only flags
    that resemble the command's own are rejected.

    Args:
        given: flags that aren't the command's own.
        own: the command's own flags.

    Raises:
        ParameterError: a flag is unknown.
    """
    names = {flag.partition("=")[0] for flag in given}
    of_environment = chosen_environment().flags
    flags = [*given, *(flag for flag in of_environment if flag.partition("=")[0] not in names)]
    is_local = runner_of(flags).lower() in LOCAL_RUNNERS
    for flag in _unknown_to_beam(flags) if flags else ():
        name = flag.partition("=")[0]
        similar = difflib.get_close_matches(name, own, 1, cutoff=0.8)
        if similar:
            raise ParameterError(f"unknown flag {name}: did you mean {similar[0]}?", parameter=name)
        if is_local:
            raise ParameterError(f"unknown flag or value {flag}: see --help", parameter=flag)
    return flags


def _unknown_to_beam(flags: Sequence[str]) -> list[str]:
    parser = _Parser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return parser.parse_known_args(list(flags))[1]


def _text(value: object) -> str:
    return "none" if value is None or value == "" else str(value)
