"""The models of lines of JSON, and the schemas that are made of them.

The models of the lines of a command stand in a module `lines` beside it.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from ledgerbeam.batch.json_lines import schema_name

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
