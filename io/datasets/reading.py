"""How files are to be read: settings of a command line, and profiles that hold them.

A profile is a file of settings, in TOML, for one kind of file. `--profile=zerodha-tradebook` names
a profile in the folder `profiles` beside this module, or in a folder that the environment variable
`LEDGERBEAM_PROFILES` names; `--profile=mine/broker.toml` names that file. Settings that are given
together with a profile take precedence over the profile's.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from ledgerbeam.io.datasets.dialect import PLAIN_TEXT, Dialect
from ledgerbeam.io.datasets.values import PLAIN, ValueFormat
from ledgerbeam.io.errors import InputError, ParameterError, SchemaError
from ledgerbeam.io.parsing import parse_toml
from ledgerbeam.io.storage import stores, uris

PROFILE_FOLDERS = "LEDGERBEAM_PROFILES"
SHIPPED_PROFILES = Path(__file__).parent / "profiles"

_DIALECT = ("delimiter", "quote", "comment", "encoding", "trailing_delimiter")
_VALUES = ("date_format", "decimal", "thousands", "null", "trim")


class ColumnNames(NamedTuple):
    """The value of `--columns`.

    Attributes:
        header: names in order, for CSV files without a header; empty for files with one.
        renames: the workload's names by the names in the file.
    """

    header: tuple[str, ...] = ()
    renames: Mapping[str, str] = {}

    @classmethod
    def parse(cls, text: str) -> "ColumnNames":
        """Parse `a,b,_` (no header, `_` is left out) or `a=A,_=B` (renames).

        Raises:
            ParameterError: the two forms are mixed, or a name comes twice.
        """
        if not text:
            return cls()
        entries = [entry.strip() for entry in text.split(",")]
        pairs = [entry.partition("=") for entry in entries]
        names = [name for name, _, _ in pairs if name != "_"]
        if not all(name for name, _, _ in pairs) or len(set(names)) < len(names):
            raise ParameterError(
                f"--columns={text}: an empty name, or one that comes twice",
                parameter="--columns",
                value=text,
            )
        if not any(sign for _, sign, _ in pairs):
            return cls.in_order(entries)
        if not all(sign for _, sign, _ in pairs):
            raise ParameterError(
                f"--columns={text}: either all names in order (a,b,_) for files without a "
                "header, or renames (a=A,b=B), not both",
                parameter="--columns",
                value=text,
            )
        renames = {source: name for name, _, source in pairs}
        if len(renames) < len(pairs):
            raise ParameterError(
                f"--columns={text}: a column of the file is named twice",
                parameter="--columns",
                value=text,
            )
        return cls((), renames)

    @classmethod
    def in_order(cls, names: list[str]) -> "ColumnNames":
        """The names of a file without a header; `_` leaves a column out."""
        # No given name begins with a space, so these names are unused.
        sources = [f" {n}" if name == "_" else name for n, name in enumerate(names)]
        return cls(tuple(sources), {s: "_" for s in sources if s not in names})


_NO_NAMES = ColumnNames()


@dataclass(frozen=True)
class Reading:
    """How files of one kind are read.

    Attributes:
        columns: names for files without a header, and renames that must apply.
        format: csv, jsonl, parquet or avro, if file names don't show it.
        dialect: how text files write rows.
        values: how values are written as text.
        aliases: names that a column may have in the file, by the workload's name for it; columns
            named under `_` are left out.
        replacements: values by the texts in the file that stand for them, by column.
        constants: texts of columns that the files don't have, by column.
        profile: name of the profile that this comes from; empty for none.
        max_decompressed: MiB that a compressed file may unpack to; None for the default.
    """

    columns: ColumnNames = _NO_NAMES
    format: str | None = None
    dialect: Dialect = PLAIN_TEXT
    values: ValueFormat = PLAIN
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    replacements: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    profile: str = ""
    max_decompressed: int | None = None

    def renames(self, where: str, names: tuple[str, ...]) -> dict[str, str]:
        """The workload's names by the names in a file.

        Args:
            where: the file, for messages.
            names: names of its columns.

        Raises:
            SchemaError: two columns of the file are meant for one.
        """
        renames = dict(self.columns.renames)
        taken = set(renames.values())
        for name, aliases in self.aliases.items():
            found = [alias for alias in aliases if alias in names and alias not in renames]
            if name == "_":
                renames |= dict.fromkeys(found, name)
            elif name not in taken and found:
                if len(found) > 1:
                    raise SchemaError(
                        f"{where}: {' and '.join(found)} are both {name} to the profile: say which "
                        f"by --columns={name}={found[0]},_={found[1]}",
                        file=where,
                        column=name,
                    )
                renames[found[0]] = name
        return renames

    def to_json(self) -> dict[str, Any]:
        """All its settings that affect what is read, for comparing two readings."""
        settings = asdict(self) | {"profile": None}
        del settings["max_decompressed"]
        return settings


class Profile(BaseModel):
    """A file of settings, none of which is required.

    Attributes:
        description: a description for people.
        header: names of the columns in order, for CSV files without a header.
        columns: names that a column may have in the file, by the workload's name for it.
        values: values by the texts in the file that stand for them, by column.
        constants: texts of columns that the files don't have, by column.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    description: str = ""
    format: Literal["csv", "jsonl", "parquet", "avro"] | None = None
    delimiter: str | None = None
    quote: str | None = None
    comment: str | None = None
    encoding: str | None = None
    trailing_delimiter: bool | None = None
    date_format: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    null: list[str] | None = None
    trim: bool | None = None
    header: list[str] = []
    columns: dict[str, str | list[str]] = {}
    values: dict[str, dict[str, str]] = {}
    constants: dict[str, str] = {}


def load_profile(name: str) -> Profile:
    """The profile of a name, or in a file.

    Raises:
        ParameterError: there is none, or a setting in it is unknown or has a wrong value.
    """
    uri = _profile_uri(name)
    try:
        return Profile.model_validate(parse_toml(stores.read_bytes(uri).decode()))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"][:2])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(Profile.model_fields)
            raise ParameterError(
                f"{uri}: unknown setting {place}: it is none of {known}",
                parameter=place,
                value=problem["input"],
            ) from error
        raise ParameterError(
            f"{uri}: {place}: {problem['msg']}: correct it", parameter=place, value=problem["input"]
        ) from error
    except ValueError as error:  # of the syntax, or of the encoding
        raise InputError(f"{uri}: not TOML: {error}: correct it", file=uri) from error


def profile_names() -> list[str]:
    """Names of all profiles that are found by their names."""
    folders = [*_own_folders(), SHIPPED_PROFILES]
    return sorted({path.stem for folder in folders for path in folder.glob("*.toml")})


def reading_of(settings: Mapping[str, Any], prefix: str = "") -> Reading:
    """How an input is read, according to a workload's parameters.

    Args:
        settings: the parameters by their names; None and empty texts count as not given.
        prefix: prefix of the parameters for this input alone, such as `transactions_`: columns,
            format, profile, constants and values. All other parameters are shared by all inputs.

    Raises:
        ParameterError: a setting is invalid, or there is no such profile.
    """

    def of_input(name: str) -> Any:
        return settings.get(f"{prefix}{name}") or None

    given = {
        name: settings[name]
        for name in (*_DIALECT, *_VALUES)
        if settings.get(name) is not None and settings[name] != ""
    }
    if isinstance(given.get("null"), str):
        given["null"] = given["null"].split(",")
    columns = ColumnNames.parse(of_input("columns") or "")
    constants = _pairs("constants", of_input("constants") or "")
    replacements = _replacements(of_input("values") or "")
    name = of_input("profile")
    profile = load_profile(name) if name else Profile()
    known = profile.model_dump(exclude_none=True) | given
    known["null"] = tuple(known.get("null", ()))
    if profile.header and not columns.header:
        in_order = ColumnNames.in_order(profile.header)
        columns = ColumnNames(in_order.header, {**in_order.renames, **columns.renames})
    aliases = {
        key: (value,) if isinstance(value, str) else tuple(value)
        for key, value in profile.columns.items()
    }
    try:
        return Reading(
            columns=columns,
            format=of_input("format") or profile.format,
            dialect=Dialect(**{key: known[key] for key in _DIALECT if key in known}),
            values=ValueFormat(**{key: known[key] for key in _VALUES if key in known}),
            aliases=aliases,
            replacements={
                column: {**profile.values.get(column, {}), **replacements.get(column, {})}
                for column in (*profile.values, *replacements)
            },
            constants={**profile.constants, **constants},
            profile=name or "",
            max_decompressed=settings.get("max_decompressed"),
        )
    except ValueError as error:
        where = f"--{prefix.replace('_', '-')}profile={name}: " if name else ""
        raise ParameterError(f"{where}{error}: see --help") from error


def _pairs(flag: str, text: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in text.split(",")] if text else []
    names = [name.strip() for name, _, _ in pairs]
    if not all(sign and name for name, (_, sign, _) in zip(names, pairs, strict=True)) or len(
        set(names)
    ) < len(names):
        raise ParameterError(
            f"--{flag}={text}: write each once as COLUMN=VALUE, several separated by commas",
            parameter=f"--{flag}",
            value=text,
        )
    return {name: value for name, (_, _, value) in zip(names, pairs, strict=True)}


def _replacements(text: str) -> dict[str, dict[str, str]]:
    """The values of `side:buy=B,side:sell=S`: by column, by the texts that stand for them."""
    found: dict[str, dict[str, str]] = {}
    for entry in text.split(",") if text else []:
        place, equals, value = entry.partition("=")
        column, colon, written = place.strip().partition(":")
        if not (equals and colon and column) or written in found.get(column, {}):
            raise ParameterError(
                f"--values={text}: write each once as COLUMN:TEXT=VALUE, several separated by "
                "commas",
                parameter="--values",
                value=text,
            )
        found.setdefault(column, {})[written] = value
    return found


def _own_folders() -> list[Path]:
    folders = os.environ.get(PROFILE_FOLDERS, "").split(os.pathsep)
    return [Path(folder) for folder in folders if folder]


def _profile_uri(name: str) -> str:
    if "/" in name or name.endswith(".toml"):
        uri = uris.absolute(name if name.endswith(".toml") else f"{name}.toml")
        if stores.stat_of(uri) is None:
            raise ParameterError(
                f"--profile={name}: there is no {uri}: check the path",
                parameter="--profile",
                value=name,
            )
        return uri
    for folder in (*_own_folders(), SHIPPED_PROFILES):
        if (folder / f"{name}.toml").is_file():
            return str(folder / f"{name}.toml")
    raise ParameterError(
        f"--profile={name}: no such profile: name one of {', '.join(profile_names())}, or a file "
        "of your own",
        parameter="--profile",
        value=name,
    )
