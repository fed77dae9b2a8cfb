"""Avro files: their columns, the Arrow types of the columns, and their records.

The parser unpacks a block as a whole, and believes what it says of its length. So a block is looked
at before the parser gets it: a few bytes may stand for gigabytes.
"""

import bz2
import lzma
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import fastavro
import pyarrow as pa

from ledgerbeam.io.datasets.lines import damaged, unpacks_to_too_much
from ledgerbeam.io.errors import SchemaError, UserError

MAX_BLOCK_BYTES = 64 << 20
_BYTES_AT_A_TIME = 1 << 20
_SYNC_BYTES = 16

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
    problem = _endless(parsed, named, ())
    if problem:
        raise SchemaError(
            f"{uri}: wrong schema: {problem}: a few bytes of it may stand for values without end: "
            "write the file without it",
            file=uri,
        )

    def spelled_out(avro: Any) -> Any:
        if isinstance(avro, list):
            return [spelled_out(branch) for branch in avro]
        if isinstance(avro, dict) and isinstance(avro["type"], str):
            return named.get(avro["type"], avro)
        return named.get(avro, avro) if isinstance(avro, str) else avro

    return {field["name"]: spelled_out(field["type"]) for field in parsed["fields"]}


def avro_records(uri: str, source: pa.NativeFile, max_bytes: int) -> Iterator[dict[str, Any]]:
    """The records of an Avro file.

    Args:
        uri: URI of the file.
        source: the open file.
        max_bytes: bytes that its blocks may unpack to.

    Raises:
        InputError: it isn't Avro, is damaged, or unpacks to too much.
    """
    codec = open_avro(uri, source).codec
    length = source.tell()
    source.seek(0)
    header = bytes(source.read(length))
    chunk, unpacked = [header], 0
    try:
        for block, size in _blocks(uri, source, header[-_SYNC_BYTES:], codec, max_bytes):
            chunk.append(block)
            unpacked += size
            if unpacked >= _BYTES_AT_A_TIME:
                yield from fastavro.reader(BytesIO(b"".join(chunk)))
                chunk, unpacked = [header], 0
        yield from fastavro.reader(BytesIO(b"".join(chunk)))
    except UserError:
        raise
    except Exception as error:  # the parser raises many kinds of errors
        raise damaged(uri, "Avro", error) from error


def _blocks(
    uri: str, source: pa.NativeFile, sync: bytes, codec: str, max_bytes: int
) -> Iterator[tuple[bytes, int]]:
    """The blocks after the header as they are in the file, and how many bytes each unpacks to."""
    total = 0
    while True:
        head = bytes(source.read(1))
        if not head:
            return
        count, head = _number(source, head)
        size, length = _number(source, bytes(source.read(1)))
        # Avro's numbers have their sign in the lowest bit; neither of these may be below 0.
        if count & 1 or size & 1:
            raise ValueError("a block of a negative length")
        count, size = count >> 1, size >> 1
        if size > MAX_BLOCK_BYTES:
            raise ValueError(f"a block of {size:,} bytes")
        data = bytes(source.read(size + _SYNC_BYTES))
        if len(data) < size + _SYNC_BYTES or data[size:] != sync:
            raise EOFError("a block has no end")
        unpacked = _unpacked(data[:size], codec)
        total += unpacked
        if unpacked > MAX_BLOCK_BYTES:
            raise ValueError(f"a block unpacks to more than {MAX_BLOCK_BYTES >> 20} MiB")
        if codec != "null" and total > max_bytes:
            raise unpacks_to_too_much(uri, max_bytes)
        if count > unpacked:
            raise ValueError(f"a block of {count:,} records in {unpacked:,} bytes")
        yield head + length + data, unpacked


def _number(source: pa.NativeFile, read: bytes) -> tuple[int, bytes]:
    """A number of variable length whose first byte has been read, and its bytes."""
    more = read
    while more and more[-1] & 0x80 and len(read) < 10:
        more = bytes(source.read(1))
        read += more
    if not more or more[-1] & 0x80:
        raise EOFError("a block has no length")
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(read)), read


def _unpacked(data: bytes, codec: str) -> int:
    """How many bytes a block unpacks to; some more than `MAX_BLOCK_BYTES` where it is more."""
    most = MAX_BLOCK_BYTES + 1
    if codec == "deflate":
        return len(zlib.decompressobj(-15).decompress(data, most))
    if codec == "bzip2":
        return len(bz2.BZ2Decompressor().decompress(data, most))
    if codec == "xz":
        return len(lzma.LZMADecompressor().decompress(data, most))
    if codec == "snappy":
        return _number(pa.BufferReader(data[1:]), data[:1])[0]
    if codec == "zstandard":
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            return len(stream.read(most))
    return len(data)


def _endless(avro: Any, named: Mapping[str, Any], within: tuple[str, ...]) -> str:
    """A type within a type that makes values without end possible; empty if there is none."""
    if isinstance(avro, str) and avro in named:
        avro = named[avro]
    if isinstance(avro, list):
        parts = avro
    elif not isinstance(avro, dict):
        return ""
    elif avro["type"] in ("record", "error"):
        if avro["name"] in within:
            return f"the type {avro['name']} is within itself"
        within = (*within, avro["name"])
        parts = [field["type"] for field in avro["fields"]]
    elif avro["type"] == "array":
        parts = [avro["items"]]
    elif avro["type"] == "map":
        parts = [avro["values"]]
    else:
        parts = [avro["type"]] if not isinstance(avro["type"], str) else []
    for part in parts:
        problem = _endless(part, named, within)
        if problem:
            return problem
    if isinstance(avro, dict) and avro["type"] == "array" and _is_empty(avro["items"], named):
        return f"an array of {avro['items']}"
    return ""


def _is_empty(avro: Any, named: Mapping[str, Any]) -> bool:
    """Whether values of a type take no byte."""
    if isinstance(avro, str):
        return avro == "null" or (avro in named and _is_empty(named[avro], named))
    if not isinstance(avro, dict):
        return False
    if avro["type"] in ("record", "error"):
        return all(
            field["type"] != avro["name"] and _is_empty(field["type"], named)
            for field in avro["fields"]
        )
    return avro["type"] == "null" or (avro["type"] == "fixed" and not avro["size"])


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
