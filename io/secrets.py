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

import base64
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from pydantic import BaseModel, BeforeValidator, GetCoreSchemaHandler, ValidationInfo
from pydantic_core import core_schema

from ledgerbeam.io.errors import SecretError

MASK = "***"

_REFERENCE = r"env:[A-Za-z_][A-Za-z0-9_]*|file:[^{}\s][^{}\n]*"
_WHOLE = re.compile(_REFERENCE)
_EMBEDDED = re.compile(rf"\$\{{({_REFERENCE})\}}")
# What SQLAlchemy takes for the password of a URL.
_PASSWORD = re.compile(r"[^:/]+://[^:/]*:([^@]*)@")
_PASSWORD_OPTION = re.compile(r"(?i)(?:password|passwd|pwd|secret|token)\s*=([^&;]*)")
# A shorter one stands in ordinary words: they couldn't be read, and would show what it is.
_SHORTEST = 4
# Of fewer characters, what a secret gives in base64 may well be a part of a word.
_SHORTEST_BASE64 = 8
# Replaces each reference while a URL is parsed: no URL contains this character.
_STAND_IN = "\0"


@dataclass(frozen=True)
class Secret:
    """A reference to a secret, as a parameter: `env:NAME` or `file:PATH`.

    When it is shown, stored or pickled, only the reference appears. A literal secret is refused,
    and the error doesn't repeat it. That error is a `UserError` even within pydantic, whose own
    error would contain the value.
    """

    reference: str

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str) or not _WHOLE.fullmatch(self.reference):
            raise SecretError("a secret is given by reference: give env:NAME or file:PATH")

    def __str__(self) -> str:
        return self.reference

    def resolve(self) -> str:
        """The secret, read again at each call and without the line break at the end of a file.

        Raises:
            SecretError: the variable or the file is missing or empty, or can't be read.
        """
        kind, _, place = self.reference.partition(":")
        value = os.environ.get(place, "") if kind == "env" else _read(place)
        if not value:
            raise SecretError(
                f"{self.reference}: {_MISSING[kind]}, on workers too", reference=self.reference
            )
        remember(value)
        return value

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """The pydantic schema: a reference is validated, and written to JSON as text."""
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
        except SecretError as error:
            raise SecretError(f"{_field(info)}{error}", reference=error.reference) from None


def is_reference(text: str) -> bool:
    """Whether a text is the reference to a secret."""
    return _WHOLE.fullmatch(text) is not None


_MISSING = {
    "env": "the variable is not set or empty: set it",
    "file": "the file is empty: write the secret into it",
}


def _read(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SecretError(
            f"file:{path}: cannot read the secret: {reason}: check the path and its permissions, "
            "on workers too",
            reference=f"file:{path}",
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _field(info: ValidationInfo) -> str:
    return f"{info.field_name}: " if info.field_name else ""


def check_url(url: object) -> str:
    """The URL of a database, as it was given, if it holds no literal password.

    The whole URL may be a reference, or its password and other parts may be references, written
    `${env:NAME}` or `${file:PATH}`.

    Raises:
        SecretError: it holds a literal password, or is neither a URL nor a reference. The message
            doesn't repeat it.
    """
    if not isinstance(url, str) or not (_WHOLE.fullmatch(url) or "://" in url):
        raise SecretError("neither a URL nor a reference: give URL, env:NAME or file:PATH")
    if _WHOLE.fullmatch(url):
        return url
    shown = _EMBEDDED.sub(_STAND_IN, url)
    if "${" in shown:
        raise SecretError("a ${…} in the URL is no reference: give ${env:NAME} or ${file:PATH}")
    if any(password.strip(_STAND_IN) for password in _passwords(shown)):
        raise SecretError(
            "the URL holds a literal password: give ${env:NAME} or ${file:PATH} in its place"
        )
    return url


def _check_parameter(url: object, info: ValidationInfo) -> str:
    try:
        return check_url(url)
    except SecretError as error:
        raise SecretError(f"{_field(info)}{error}", reference=error.reference) from None


DatabaseUrl = Annotated[str, BeforeValidator(_check_parameter)]
"""Type of a parameter that is the URL of a database: `resolve_url` takes it.

A password in it must be a reference to a secret, `${env:NAME}` or `${file:PATH}`.
"""


def resolve_url(url: str) -> str:
    """The URL with its references resolved: for connecting only, never to be shown.

    A value that is put into a URL is percent-encoded; if the whole URL is a reference, its value is
    used unchanged.

    Raises:
        SecretError: the URL is refused (see `check_url`), or a reference can't be resolved.
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


def remember_all(parameters: BaseModel) -> None:
    """Have the secrets that parameters refer to redacted, as far as this process can have them.

    An error of a worker may hold one that only the worker has resolved.
    """
    for name, field in type(parameters).model_fields.items():
        value = getattr(parameters, name)
        is_url = any(getattr(each, "func", None) is _check_parameter for each in field.metadata)
        with suppress(SecretError):
            if isinstance(value, Secret):
                value.resolve()
            elif is_url and isinstance(value, str):
                resolve_url(value)


class _Remembered:
    """The values resolved in this process, and the pattern that finds them."""

    def __init__(self) -> None:
        self.values: frozenset[str] = frozenset()
        self.pattern: re.Pattern[str] | None = None
        self.lock = threading.Lock()


_remembered = _Remembered()


def remember(value: str) -> None:
    """Have `value` redacted from now on, in any case, and in the forms that it takes elsewhere.

    Those are the forms that it has in URLs, in JSON, in `repr` and in base64, where it may stand
    in the middle of what is encoded, as in a header of HTTP.

    If a secret has several lines, as a private key has, each long line is redacted too. A secret of
    fewer than 4 characters isn't redacted.
    """
    lines = [line.strip() for line in value.splitlines()]
    parts = {line for line in lines if len(line) >= 16}
    if len(value) >= _SHORTEST:
        parts.add(value)
    if parts <= _remembered.values:
        return
    with _remembered.lock:
        values = _remembered.values | {form for part in parts for form in _forms(part)}
        longest_first = sorted(values, key=lambda form: (-len(form), form))
        _remembered.pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)
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
        *_base64_forms(value),
    }


def _base64_forms(value: str) -> Iterator[str]:
    """What of base64 follows from `value` alone, at each of the three places where it can begin."""
    data = value.encode("utf-8", "surrogatepass")
    for before in range(3):
        bits_before, bits = 8 * before, 8 * (before + len(data))
        first, last = -(-bits_before // 6), bits // 6  # characters that hold no other bits
        if last - first >= _SHORTEST_BASE64:
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                yield encode(b"\0" * before + data).decode()[first:last]


def redact(text: str) -> str:
    """`text` with each secret that was resolved in this process replaced by `***`."""
    pattern = _remembered.pattern
    return text if pattern is None else pattern.sub(MASK, text)


class RedactSecrets(logging.Filter):
    """Takes secrets out of log records: message, arguments, exception and stack.

    A record without secrets passes unchanged. A record with a secret in its exception keeps the
    traceback's text and loses `exc_info`: handlers such as Beam's would format the exception again.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record in place; no record is dropped."""
        if _remembered.pattern is None:
            return True
        try:
            message = record.getMessage()
        except Exception:
            # If message and arguments don't fit together, logging prints both as they are.
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
