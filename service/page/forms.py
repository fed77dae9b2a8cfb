"""A kind's form, made from the JSON Schema of its parameters, and what is sent by it."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ledgerbeam.io.parsing import parse_json

_INPUTS = {"date": "date", "integer": "number", "number": "text", "boolean": "checkbox"}


class Field(NamedTuple):
    """One parameter in a form.

    Attributes:
        name: of the parameter.
        input: `text`, `number`, `date`, `checkbox`, `select`, or `json` for lists and objects.
        description: for people.
        required: whether it has to be given.
        value: what it has now, as text.
        options: of a `select`.
    """

    name: str
    input: str
    description: str
    required: bool
    value: str
    options: tuple[str, ...] = ()


def fields_of(schema: Mapping[str, Any], values: Mapping[str, Any]) -> list[Field]:
    """The fields of a form; required ones come first.

    Args:
        schema: JSON Schema of the parameters, as pydantic makes it.
        values: that are filled in.
    """
    required = schema.get("required", [])
    found = []
    for name, given in schema.get("properties", {}).items():
        shape = _shape(given, schema)
        value = values.get(name, given.get("default"))
        found.append(
            Field(
                name,
                _input(shape),
                given.get("description", ""),
                name in required,
                _text(value),
                tuple(map(str, shape.get("enum", ()))),
            )
        )
    return sorted(found, key=lambda field: not field.required)


def parameters_of(schema: Mapping[str, Any], form: Mapping[str, str]) -> dict[str, Any]:
    """What a form has sent, as parameters; what is left empty isn't given.

    Numbers and dates stay text, which the definition's model reads; the router says what is wrong.
    """
    parameters: dict[str, Any] = {}
    for field in fields_of(schema, {}):
        value = form.get(field.name, "")
        if field.input == "checkbox":
            parameters[field.name] = value == "on"
        elif value and field.input == "json":
            try:
                parameters[field.name] = parse_json(value)
            except ValueError:
                parameters[field.name] = value
        elif value:
            parameters[field.name] = value
    return parameters


def _shape(given: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a property is, behind references and alternatives."""
    if "$ref" in given:
        name = given["$ref"].rpartition("/")[2]
        return _shape(schema.get("$defs", {}).get(name, {}), schema)
    for several in ("anyOf", "oneOf", "allOf"):
        kinds = [_shape(each, schema) for each in given.get(several, ())]
        plain = [kind for kind in kinds if kind.get("type") != "null"]
        if plain:
            # A decimal is a number or a text: text can be written exactly.
            return next((kind for kind in plain if kind.get("type") == "string"), plain[0])
    return given


def _input(shape: Mapping[str, Any]) -> str:
    if "enum" in shape:
        return "select"
    if shape.get("type") in ("array", "object"):
        return "json"
    return _INPUTS.get(shape.get("format", ""), _INPUTS.get(str(shape.get("type")), "text"))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else ""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
