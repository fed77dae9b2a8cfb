"""Lines of JSON on standard output: each names its schema, which `ledgerbeam schema` prints.

The models of the lines of a command stand in a module `lines` beside it.
"""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from ledgerbeam.io.commit.amounts import decimal_text

VERSIONS: Mapping[str, int] = {}
"""Of the schemas that have changed since their first version."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Line(BaseModel):
    """Base of the model of a line; it has no other fields than those that are declared."""

    model_config = ConfigDict(extra="forbid")


class Money(Line):
    """An amount; `currency` is null where the total names none."""

    amount: str
    currency: str | None
    scale: int


TotalsJson = dict[str, int | Money]
"""Totals by name, as `ledgerbeam.io.commit.amounts.totals_json` gives them."""


def line_of(kind: type[Any], **more: Any) -> type[Line]:
    """The model of a line that has the fields of a model or a named tuple, and more of its own."""
    if issubclass(kind, BaseModel):
        fields: dict[str, Any] = {
            name: (info.annotation, ...)
            for name, info in kind.model_fields.items()
            if not info.exclude
        }
    else:
        fields = {name: (annotation, ...) for name, annotation in kind.__annotations__.items()}
    fields |= {name: (annotation, ...) for name, annotation in more.items()}
    return create_model(kind.__name__, __base__=Line, __doc__=kind.__doc__, **fields)


def schema_name(kind: str) -> str:
    """The value of `schema` in lines of one kind, such as `ledgerbeam/run/1`."""
    return f"ledgerbeam/{kind}/{VERSIONS.get(kind, 1)}"


def json_schema(kind: str, model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of the lines of one kind."""
    schema = model.model_json_schema(mode="serialization")
    name = schema_name(kind)
    return schema | {
        "$schema": DIALECT,
        "$id": name,
        "title": kind,
        "properties": {"schema": {"const": name}, **schema.get("properties", {})},
        "required": ["schema", *schema.get("required", ())],
    }


def print_record(kind: str, record: Mapping[str, Any]) -> None:
    """Print one record as a line of JSON.

    Args:
        kind: of the record, which says what its schema is.
        record: its fields, as the model of the kind has them.
    """
    line = {"schema": schema_name(kind), **record}
    print(json.dumps(line, default=text_of), flush=True)


def text_of(value: Any) -> str:
    """A value that JSON has no form for, as text: an amount with all its digits."""
    return decimal_text(value) if isinstance(value, Decimal) else str(value)
