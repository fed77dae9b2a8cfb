"""Avro files: their columns, and the Arrow types of the columns."""

from collections.abc import Mapping
from typing import Any

import fastavro
import pyarrow as pa

from ledgerbeam.io.datasets.lines import damaged
from ledgerbeam.io.errors import SchemaError, UserError

_AVRO_TYPES: Mapping[str, pa.DataType] = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "enum": pa.string(),
}
_AVRO_LOGICAL_TYPES: Mapping[str, pa.DataType] = {
    "int-date": pa.date32(),
    "int-time-millis": pa.time32("ms"),
    "long-time-micros": pa.time64("us"),
    "long-timestamp-millis": pa.timestamp("ms", "UTC"),
    "long-timestamp-micros": pa.timestamp("us", "UTC"),
    "long-local-timestamp-millis": pa.timestamp("ms"),
    "long-local-timestamp-micros": pa.timestamp("us"),
}


def open_avro(uri: str, source: pa.NativeFile) -> fastavro.reader:
    """The records of an Avro file, after its header.

    Raises:
        InputError: it isn't Avro, or is truncated.
    """
    try:
        return fastavro.reader(source)
    except UserError:
        raise
    except Exception as error:  # the parser raises many kinds of errors
        raise damaged(uri, "Avro", error) from error


def avro_columns(uri: str, records: fastavro.reader) -> dict[str, Any]:
    """The columns of an Avro file: the Avro type by name, as in the file's schema.

    A type that is referred to by its name is replaced by its definition.

    Raises:
        SchemaError: the file's values aren't records.
    """
    schema = records.writer_schema
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise SchemaError(f"{uri}: wrong schema: Avro of {schema!r}, not of records", file=uri)
    named: dict[str, Any] = {}
    parsed: Any = fastavro.parse_schema(schema, named)

    def spelled_out(avro: Any) -> Any:
        if isinstance(avro, list):
            return [spelled_out(branch) for branch in avro]
        if isinstance(avro, dict) and isinstance(avro["type"], str):
            return named.get(avro["type"], avro)
        return named.get(avro, avro) if isinstance(avro, str) else avro

    return {field["name"]: spelled_out(field["type"]) for field in parsed["fields"]}


def avro_type(uri: str, name: str, avro: Any) -> pa.DataType:
    """The Arrow type of an Avro column.

    Raises:
        SchemaError: columns of this type can't be read.
    """
    type_ = avro
    if isinstance(type_, list):
        others = [branch for branch in type_ if branch != "null"]
        type_ = others[0] if len(others) == 1 else type_ if others else "null"
    if isinstance(type_, dict):
        beneath = type_["type"]
        logical = f"{beneath}-{type_.get('logicalType', '')}"
        is_decimal = logical in ("bytes-decimal", "fixed-decimal")
        if is_decimal and type_.get("precision", 39) <= 38:
            return pa.decimal128(type_["precision"], type_.get("scale", 0))
        if logical in _AVRO_LOGICAL_TYPES:
            return _AVRO_LOGICAL_TYPES[logical]
        # By the specification, an unknown logical type is read as its underlying type.
        if not is_decimal:
            type_ = beneath
    if isinstance(type_, str) and type_ in _AVRO_TYPES:
        return _AVRO_TYPES[type_]
    raise SchemaError(
        f"{uri}: wrong schema: {name} has the Avro type {avro}, which is not read: leave it out "
        f"with --columns=_={name}",
        file=uri,
        column=name,
        value=str(avro),
    )
