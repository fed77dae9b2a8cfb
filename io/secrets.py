"""Secrets as references: `env:NAME` or `file:PATH`, resolved where they are used.

Parameters, pipeline options, the registry and manifests are printed, stored and sent to workers, so
they hold references and never a secret itself. A worker resolves a reference when it needs the
value. Every value resolved in a process is remembered there, and taken out of its log records
(`RedactSecrets`) and of the errors that it stores (`redact`).

    class Prices(Parameters):
        api_key: Secret        # env:PRICES_API_KEY
        database: DatabaseUrl  # postgresql+psycopg://batch:${file:/run/secrets/pg}@db/prices

    key = parameters.api_key.resolve()
    engine = create_engine(resolve_url(parameters.database))
"""

import json
import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from pydantic import BeforeValidator, GetCoreSchemaHandler, ValidationInfo
from pydantic_core import core_schema

from ledgerbeam.io.errors import UserError

MASK = "***"

_REFERENCE = r"env:[A-Za-z_][A-Za-z0-9_]*|file:[^{}\s][^{}\n]*"
_WHOLE = re.compile(_REFERENCE)
_EMBEDDED = re.compile(rf"\$\{{({_REFERENCE})\}}")
# What SQLAlchemy takes for the password of a URL.
_PASSWORD = re.compile(r"[^:/]+://[^:/]*:([^@]*)@")
_PASSWORD_OPTION = re.compile(r"(?i)(?:password|passwd|pwd|secret|token)\s*=([^&;]*)")
# Stands for a reference while a URL is looked at: it is in no URL.
_STAND_IN = "\0"


@dataclass(frozen=True)
class Secret:
    """A reference to a secret, as a parameter: `env:NAME` or `file:PATH`.

    Whatever shows, stores or pickles it gets the reference. A literal is refused, and not repeated
    in the error. That error is a `UserError` even within pydantic, whose own would hold the value.
    """

    reference: str

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str) or not _WHOLE.fullmatch(self.reference):
            raise UserError("a secret is given by reference: give env:NAME or file:PATH")

    def __str__(self) -> str:
        return self.reference

    def resolve(self) -> str:
        """The secret, read anew; a line break at the end of a file is none of it.

        Raises:
            UserError: the variable or the file is missing or empty, or can't be read.
        """
        kind, _, place = self.reference.partition(":")
        value = os.environ.get(place, "") if kind == "env" else _read(place)
        if not value:
            raise UserError(f"{self.reference}: {_MISSING[kind]}, on workers too")
        remember(value)
        return value

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """What pydantic does with it: validate a reference, write it as JSON."""
        return core_schema.with_info_plain_validator_function(
            cls._validate,
            serialization=core_schema.to_string_ser_schema(),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: Any) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^({_REFERENCE})$"}

    @classmethod
    def _validate(cls, value: Any, info: ValidationInfo) -> "Secret":
        try:
            return value if isinstance(value, Secret) else cls(value)
        except UserError as error:
            raise UserError(f"{_field(info)}{error}") from None


_MISSING = {
    "env": "the variable is not set or empty: set it",
    "file": "the file is empty: write the secret into it",
}


def _read(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(
            f"file:{path}: cannot read the secret: {reason}: check the path and its permissions, "
            "on workers too"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _field(info: ValidationInfo) -> str:
    return f"{info.field_name}: " if info.field_name else ""


def check_url(url: object) -> str:
    """The URL of a database, as it was given, if it holds no literal password.

    It may be a reference as a whole, or hold references as `${env:NAME}` or `${file:PATH}` in the
    place of its password or of other parts.

    Raises:
        UserError: it holds a literal password, or is neither a URL nor a reference. The message
            doesn't repeat it.
    """
    if not isinstance(url, str) or not (_WHOLE.fullmatch(url) or "://" in url):
        raise UserError("neither a URL nor a reference: give URL, env:NAME or file:PATH")
    if _WHOLE.fullmatch(url):
        return url
    shown = _EMBEDDED.sub(_STAND_IN, url)
    if "${" in shown:
        raise UserError("a ${…} in the URL is no reference: give ${env:NAME} or ${file:PATH}")
    if any(password.strip(_STAND_IN) for password in _passwords(shown)):
        raise UserError(
            "the URL holds a literal password: give ${env:NAME} or ${file:PATH} in its place"
        )
    return url


def _check_parameter(url: object, info: ValidationInfo) -> str:
    try:
        return check_url(url)
    except UserError as error:
        raise UserError(f"{_field(info)}{error}") from None


DatabaseUrl = Annotated[str, BeforeValidator(_check_parameter)]
"""A parameter that `resolve_url` takes; see `check_url`."""


def resolve_url(url: str) -> str:
    """The URL with its references resolved, to connect with and to show nowhere.

    A value that is put into a URL is percent-encoded; a URL that is a reference as a whole is
    taken as it is.

    Raises:
        UserError: the URL is refused (see `check_url`), or a reference can't be resolved.
    """
    if _WHOLE.fullmatch(check_url(url)):
        resolved = Secret(url).resolve()
        for password in _passwords(resolved):
            remember(password)
        return resolved
    return _EMBEDDED.sub(lambda found: quote(Secret(found[1]).resolve(), safe=""), url)


def _passwords(url: str) -> list[str]:
    """The passwords in a URL: of its user, and among its options (ODBC nests its own there)."""
    found = _PASSWORD.match(url)
    options = unquote_plus(url.partition("?")[2])
    return ([unquote(found[1])] if found else []) + _PASSWORD_OPTION.findall(options)


class _Remembered:
    """The values resolved in this process, and the pattern that finds them."""

    def __init__(self) -> None:
        self.values: frozenset[str] = frozenset()
        self.pattern: re.Pattern[str] | None = None
        self.lock = threading.Lock()


_remembered = _Remembered()


def remember(value: str) -> None:
    """Have `value` redacted from now on, also as it stands in URLs, in JSON and in `repr`.

    Of a secret of several lines, such as a private key, each long line is one too.
    """
    lines = [line.strip() for line in value.splitlines()]
    parts = {value, *(line for line in lines if len(line) >= 16)} - {""}
    if parts <= _remembered.values:
        return
    with _remembered.lock:
        values = _remembered.values | {form for part in parts for form in _forms(part)}
        longest_first = sorted(values, key=lambda form: (-len(form), form))
        _remembered.pattern = re.compile("|".join(map(re.escape, longest_first)))
        _remembered.values = values


def _forms(value: str) -> set[str]:
    return {
        value,
        quote(value),
        quote(value, safe=""),
        quote(value, safe=" +"),  # SQLAlchemy's way
        quote_plus(value),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        " ".join(value.split()),  # as in the line of a UserError
    }


def redact(text: str) -> str:
    """`text` with each secret that was resolved in this process replaced by `***`."""
    pattern = _remembered.pattern
    return text if pattern is None else pattern.sub(MASK, text)


class RedactSecrets(logging.Filter):
    """Takes secrets out of log records: message, arguments, exception and stack.

    A record without any passes untouched. One with a secret in its exception keeps the traceback's
    text and loses `exc_info`: handlers such as Beam's would format the exception again.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record in place; never drops one."""
        if _remembered.pattern is None:
            return True
        try:
            message = record.getMessage()
        except Exception:
            # Logging prints such a record's parts as they are.
            record.msg, record.args = redact(f"{record.msg} {record.args!r}"), None
        else:
            if (clean := redact(message)) != message:
                record.msg, record.args = clean, None
        if isinstance(record.exc_info, tuple):
            trace = logging.Formatter().formatException(record.exc_info)
            if (clean := redact(trace)) != trace:
                record.exc_info, record.exc_text = None, clean
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return True
