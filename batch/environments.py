"""Environments of a project: registry, output and flags for Beam, by name, in `ledgerbeam.toml`.

    default = "test"

    [environment.test]
    registry = "sqlite:///test.db"
    output = "results"

    [environment.production]
    registry = "postgresql+psycopg://batch:${env:REGISTRY_PASSWORD}@db/ledgerbeam"
    output = "gs://bank-results"
    flags = ["--runner=FlinkRunner", "--flink_master=flink:8081"]

The file stands in the current folder or in one above it, or `LEDGERBEAM_CONFIG` names it. Which
environment is used says `ledgerbeam --env=NAME`, or `LEDGERBEAM_ENV`, or else `default`. What a
command is given by flags or by other variables wins over it.
"""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ledgerbeam.io.errors import ParameterError, SecretError
from ledgerbeam.io.parsing import parse_toml
from ledgerbeam.io.secrets import resolve_url

CONFIG = "LEDGERBEAM_CONFIG"
NAME = "LEDGERBEAM_ENV"
FILE = "ledgerbeam.toml"

_SQLITE = "sqlite:///"


class Environment(BaseModel):
    """Where runs are recorded, where results go, and what executes them.

    Attributes:
        registry: URL of the registry's database; its password is a reference to a secret. Empty for
            that of the machine, as are the other two.
        output: where results go: a folder, gs:// or s3:// URI.
        flags: for Beam, such as `--runner=FlinkRunner`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    registry: str = ""
    output: str = ""
    flags: tuple[str, ...] = ()

    @field_validator("flags")
    @classmethod
    def _are_flags(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        for flag in flags:
            if not flag.startswith("--"):
                raise ValueError(f"{flag!r} is no flag: give --NAME=VALUE")
        return flags


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: str = ""
    environment: dict[str, Environment] = {}


def chosen_environment() -> Environment:
    """The environment that this process is to use; an empty one where none is configured.

    Relative names of files in it are taken from the folder of the configuration file.

    Raises:
        ParameterError: the file can't be read, something in it isn't right, or it has no such
            environment.
    """
    name = os.environ.get(NAME, "")
    path = _find()
    if path is None:
        if name:
            raise ParameterError(
                f"{NAME}={name}: there is no {FILE} here or in a folder above, which would say "
                "what that is",
                parameter=NAME,
                value=name,
            )
        return Environment()
    config = _read(path)
    chosen = name or config.default
    if not chosen:
        return Environment()
    if chosen not in config.environment:
        known = ", ".join(config.environment) or "none"
        raise ParameterError(
            f"{path}: no environment {chosen}: there are {known}",
            parameter=NAME if name else "default",
            value=chosen,
        )
    found = config.environment[chosen]
    registry, output = found.registry, found.output
    if registry.startswith(_SQLITE):
        registry = _SQLITE + str(path.parent / registry.removeprefix(_SQLITE))
    elif registry:
        try:
            registry = resolve_url(registry)
        except SecretError as error:
            raise ParameterError(
                f"{path}: environment {chosen}: registry: {error}", parameter="registry"
            ) from None
    if output and "://" not in output:
        output = str(path.parent / output)
    return Environment(registry=registry, output=output, flags=found.flags)


def _find() -> Path | None:
    named = os.environ.get(CONFIG)
    if named:
        return Path(named).absolute()
    here = Path.cwd()
    return next((f for folder in (here, *here.parents) if (f := folder / FILE).is_file()), None)


def _read(path: Path) -> _Config:
    try:
        return _Config.model_validate(parse_toml(path.read_text(encoding="utf-8")))
    except OSError as error:
        problem = f"cannot read it: {error.strerror}"
    except ValidationError as error:
        problem = "; ".join(
            ": ".join([*map(str, entry["loc"]), str(entry["msg"]).removeprefix("Value error, ")])
            for entry in error.errors()
        )
    except ValueError as error:  # of the syntax, or of the encoding
        problem = str(error)
    raise ParameterError(f"{path}: {problem}", parameter=CONFIG, value=str(path))
