"""Planning a read: which files there are, what columns they have, and how they are split.

A plan is made once, where the pipeline is built. It pins the version of each file, so that every
attempt reads the same bytes or stops.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq

from ledgerbeam.io import storage
from ledgerbeam.io.attempts import find_manifest
from ledgerbeam.io.contract import Contract, Field
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.published import instance_of, published_parts
from ledgerbeam.io.storage import FileInfo

ROWS_A_SPLIT = 500_000
BYTES_A_SPLIT = 32 << 20
LONGEST_LINE = 64 << 20
FORMATS = ("csv", "jsonl", "parquet", "avro")

_SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".avro": "avro",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# Rough sizes, used for nothing but the number of shards.
_TEXT_BYTES_A_ROW = {"csv": 50, "jsonl": 130, "avro": 30}
_TEXT_COMPRESSION_RATIO = 4


@dataclass(frozen=True)
class Split:
    """A part of a file that is read by one worker, in one go.

    Attributes:
        index: position among all splits of the input.
        file: the file, with the version that must be read.
        format: one of `FORMATS`.
        compression: `gzip`, `zstd` or None; for text only.
        start: the first byte of text (a line that starts in front of it belongs to the split
            before), or the first row group.
        end: the byte or the row group behind the last; None for the whole rest.
        first_row: rows of the file in front of this split, where that is known; None for text.
        header: names of a text file's columns; of CSV in their order.
        has_header: whether the file's first line holds these names.
        fields: the columns to read.
    """

    index: int
    file: FileInfo
    format: str
    compression: str | None
    start: int
    end: int | None
    first_row: int | None
    header: tuple[str, ...]
    has_header: bool
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class SqlSplit(Split):
    """A range of a table's keys that is read by one worker; `file` stands for the table.

    Attributes:
        url: of the database, with references to secrets in it.
        table: its name.
        key: columns by which it is read in order; unique and never null.
        types: of the database's columns that are read, where what it declares isn't enough.
        range: of keys, as `KeyRange.to_json` gives it.
        snapshot: of the database, for all to read the same; None where it offers none.
    """

    url: str
    table: str
    key: tuple[str, ...]
    types: tuple[tuple[str, pa.DataType], ...]
    range: str
    snapshot: str | None = None


class TableName(NamedTuple):
    """A table as an input: `URL#TABLE`."""

    url: str
    table: str

    @classmethod
    def parse(cls, text: str) -> "TableName | None":
        """The table that a parameter names; None where it names files."""
        url, _, table = text.rpartition("#")
        is_files = re.match(r"(gs|s3|file)://", url)
        is_url = re.match(r"[a-z][a-z0-9+]*://|env:|file:", url)
        return None if is_files or not is_url or not table else cls(url, table)


class Input(NamedTuple):
    """A dataset, ready to be read.

    Attributes:
        splits: in the order of the files' URIs; all have the same fields in the same order, that
            of the first file.
        files: as they were when the plan was made.
        estimated_rows: exact for Parquet, a guess for other formats.
    """

    splits: tuple[Split, ...]
    files: tuple[FileInfo, ...]
    estimated_rows: int


class ColumnNames(NamedTuple):
    """What `--columns` says.

    Attributes:
        header: names in order, for CSV files without a header; empty for files with one.
        renames: name of the workload by name in the file.
    """

    header: tuple[str, ...] = ()
    renames: Mapping[str, str] = {}

    @classmethod
    def parse(cls, text: str) -> "ColumnNames":
        """Parse `a,b,_` (no header, `_` is left out) or `a=A,_=B` (renames).

        Raises:
            UserError: the two forms are mixed, or a name comes twice.
        """
        if not text:
            return cls()
        entries = [entry.strip() for entry in text.split(",")]
        pairs = [entry.partition("=") for entry in entries]
        names = [name for name, _, _ in pairs if name != "_"]
        if not all(name for name, _, _ in pairs) or len(set(names)) < len(names):
            raise UserError(f"--columns={text}: an empty name, or one that comes twice")
        if not any(sign for _, sign, _ in pairs):
            # No entry begins with a space, so these names are free.
            sources = [f" {n}" if name == "_" else name for n, name in enumerate(entries)]
            return cls(tuple(sources), {s: "_" for s in sources if s not in entries})
        if not all(sign for _, sign, _ in pairs):
            raise UserError(
                f"--columns={text}: either all names in order (a,b,_) for files without a "
                "header, or renames (a=A,b=B), not both"
            )
        renames = {source: name for name, _, source in pairs}
        if len(renames) < len(pairs):
            raise UserError(f"--columns={text}: a column of the file is named twice")
        return cls((), renames)


class _FilePlan(NamedTuple):
    fields: tuple[Field, ...]
    header: tuple[str, ...]
    ranges: list[tuple[int, int | None, int | None]]  # start, end, first row
    rows: int


def plan_input(
    pattern: str,
    contract: Contract,
    *,
    columns: ColumnNames | None = None,
    format: str | None = None,  # noqa: A002 - the flag's own name
    bytes_a_split: int = BYTES_A_SPLIT,
    rows_a_split: int = ROWS_A_SPLIT,
) -> Input:
    """Look at the files that match and cut them into splits.

    Args:
        pattern: URI of a file, or a glob; or of a published instance, for its results, with
            `#NAME` behind it for a further table. Several are separated by commas.
        contract: what the columns must be.
        columns: names for files without a header, and renames.
        format: one of `FORMATS`, where file names don't tell.
        bytes_a_split: for uncompressed text.
        rows_a_split: for Parquet, rounded up to whole row groups.

    Raises:
        UserError: no file, an unknown format, a damaged file, a wrong schema, or files that
            differ in their columns.
    """
    columns = columns or ColumnNames()
    files = _find_files(pattern)

    def plan(file: FileInfo) -> _FilePlan:
        return _plan_file(file, contract, columns, format, bytes_a_split, rows_a_split)

    with ThreadPoolExecutor(16) as pool:
        plans = list(pool.map(plan, files))
    fields = plans[0].fields
    expected = {(field.name, field.type) for field in fields}
    splits: list[Split] = []
    for file, planned in zip(files, plans, strict=True):
        differing = expected ^ {(field.name, field.type) for field in planned.fields}
        if differing:
            names = ", ".join(sorted({name for name, _ in differing}))
            raise UserError(
                f"{file.uri}: wrong schema: its columns differ from those of {files[0].uri} "
                f"in {names}: give files of one schema"
            )
        by_name = {field.name: field for field in planned.fields}
        ordered = tuple(by_name[field.name] for field in fields)
        kind, compression = _format_of(file.uri, format)
        for start, end, first_row in planned.ranges:
            splits.append(
                Split(
                    index=len(splits),
                    file=file,
                    format=kind,
                    compression=compression,
                    start=start,
                    end=end,
                    first_row=first_row,
                    header=planned.header,
                    has_header=not columns.header,
                    fields=ordered,
                )
            )
    return Input(tuple(splits), tuple(files), sum(planned.rows for planned in plans))


def _find_files(pattern: str) -> list[FileInfo]:
    files: dict[str, FileInfo] = {}
    for part in pattern.split(","):
        found = _published_files(part) or storage.find(storage.absolute(part))
        if not found:
            raise UserError(f"{part}: no such file: check the path or the pattern")
        files |= {file.uri: file for file in found}
    return [files[uri] for uri in sorted(files)]


def _published_files(uri: str) -> list[FileInfo]:
    """The files of a published instance, or of a further table, `INSTANCE#TABLE`; none if it isn't.

    Raises:
        UserError: a file is gone, or there is no such table.
    """
    instance, _, table = uri.partition("#")
    instance = instance_of(storage.absolute(instance))
    manifest = find_manifest(instance)
    if manifest is None:
        return []
    files = []
    for part in published_parts(instance, manifest, table or None):
        found = storage.stat_of(storage.join(instance, part.name))
        if found is None or found.size != part.size:
            raise UserError(
                f"{storage.join(instance, part.name)}: gone, or not what was published: restore it "
                "from a copy"
            )
        files.append(found)
    return files


def _format_of(uri: str, format_: str | None) -> tuple[str, str | None]:
    name = storage.base_name(uri).lower()
    compression = None
    for suffix, known in _COMPRESSIONS.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), known
    by_name = next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)
    kind = format_ or by_name
    if kind is None:
        raise UserError(
            f"{uri}: its name doesn't tell its format: say --format, one of {', '.join(FORMATS)}"
        )
    if compression and kind in ("parquet", "avro"):
        raise UserError(f"{uri}: {kind} is compressed inside: unpack the file")
    return kind, compression


def _plan_file(
    file: FileInfo,
    contract: Contract,
    columns: ColumnNames,
    format_: str | None,
    bytes_a_split: int,
    rows_a_split: int,
) -> _FilePlan:
    kind, compression = _format_of(file.uri, format_)
    if columns.header and kind != "csv":
        raise UserError(
            f"{file.uri}: --columns with names in order is for CSV without a header, not for "
            f"{kind}: rename with --columns=NAME=NAME_IN_THE_FILE"
        )
    if compression and not file.size:
        raise damaged(file.uri, compression, EOFError("0 bytes"))
    header: tuple[str, ...] = ()
    ranges: list[tuple[int, int | None, int | None]] = [(0, None, None)]
    types: dict[str, pa.DataType | None]
    if kind == "parquet":
        with storage.open_input(file.uri) as source:
            metadata = read_parquet_footer(file.uri, source).metadata
        schema = metadata.schema.to_arrow_schema()
        _check_unique(file.uri, schema.names)
        types = dict(zip(schema.names, schema.types, strict=True))
        ranges = _row_group_ranges(metadata, rows_a_split)
        rows = metadata.num_rows
    elif kind == "avro":
        with storage.open_input(file.uri) as source:
            columns_of_file = avro_columns(file.uri, open_avro(file.uri, source))
        types = {
            name: None if columns.renames.get(name) == "_" else avro_type(file.uri, name, avro)
            for name, avro in columns_of_file.items()
        }
        rows = file.size // _TEXT_BYTES_A_ROW[kind]
    else:
        if kind == "csv":
            header = columns.header or _csv_header(file, compression)
            types = dict.fromkeys(header)
        else:
            types = _json_types(file, compression, contract, columns.renames)
            header = tuple(types)
        if compression is None:
            ranges = [
                (start, min(start + bytes_a_split, file.size), None)
                for start in range(0, max(file.size, 1), bytes_a_split)
            ]
        rows = file.size // _TEXT_BYTES_A_ROW[kind]
        rows *= _TEXT_COMPRESSION_RATIO if compression else 1
    fields = contract.resolve(file.uri, types, columns.renames)
    return _FilePlan(fields, header, ranges, rows)


def read_parquet_footer(uri: str, source: pa.NativeFile, **options: Any) -> pq.ParquetFile:
    """The open Parquet file.

    Raises:
        UserError: it isn't Parquet, or is truncated.
    """
    try:
        return pq.ParquetFile(source, **options)
    except (ValueError, OSError) as error:
        raise damaged(uri, "Parquet", error) from error


def damaged(uri: str, format_: str, error: Exception) -> UserError:
    """The error for a file that can't be read to its end."""
    return UserError(
        f"{uri}: damaged or truncated {format_} file: {error}: get the file again from its source"
    )


def _row_group_ranges(
    metadata: pq.FileMetaData, rows_a_split: int
) -> list[tuple[int, int | None, int | None]]:
    ranges: list[tuple[int, int | None, int | None]] = []
    start = first_row = rows = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= rows_a_split or group == metadata.num_row_groups - 1:
            ranges.append((start, group + 1, first_row))
            start, first_row, rows = group + 1, first_row + rows, 0
    return ranges or [(0, 0, 0)]


def open_text(uri: str, compression: str | None) -> pa.NativeFile:
    """The text of a file, decompressed as it is read."""
    source = storage.open_input(uri)
    return pa.CompressedInputStream(source, compression) if compression else source


def line_too_long(uri: str, format_: str) -> UserError:
    """The error for a line of more than `LONGEST_LINE` bytes."""
    return UserError(
        f"{uri}: a line is longer than {LONGEST_LINE >> 20} MiB: is it really {format_}?"
    )


def _check_unique(where: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise UserError(f"{where}: a column name comes twice: {', '.join(names)}")


def _first_line(file: FileInfo, format_: str, compression: str | None) -> str:
    data = b""
    try:
        with open_text(file.uri, compression) as text:
            while b"\n" not in data and (block := text.read(len(data) + (64 << 10))):
                data += block
                if len(data) > LONGEST_LINE:
                    raise line_too_long(file.uri, format_)
    except OSError as error:
        raise damaged(file.uri, compression or "text", error) from error
    line = data.partition(b"\n")[0].removeprefix(b"\xef\xbb\xbf").rstrip(b"\r")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file.uri}, line 1: not UTF-8: {error.reason}: convert it") from error


def _csv_header(file: FileInfo, compression: str | None) -> tuple[str, ...]:
    line = _first_line(file, "csv", compression)
    if not line:
        raise UserError(
            f"{file.uri}: wrong schema: no header line: an empty file without a header needs "
            "--columns"
        )
    try:
        names = tuple(next(csv.reader([line], strict=True)))
    except csv.Error as error:
        raise UserError(
            f"{file.uri}, line 1: the column names can't be read: {error}: correct the quotes"
        ) from error
    _check_unique(f"{file.uri}, line 1", names)
    return names


def _json_types(
    file: FileInfo, compression: str | None, contract: Contract, renames: Mapping[str, str]
) -> dict[str, pa.DataType | None]:
    """The keys of the first record; of an empty file, the columns that the contract requires."""
    line = _first_line(file, "jsonl", compression)
    if not line.strip():
        sources = {name: source for source, name in renames.items()}
        required = [column.name for column in contract.columns if column.required]
        return dict.fromkeys(sources.get(name, name) for name in required)
    try:
        record = json.loads(line)
        for name in record if isinstance(record, dict) else ():
            name.encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file.uri}, line 1: not JSON: {error}: the columns are taken from the first line: "
            "correct it"
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{file.uri}, line 1: not a JSON object: write one object a line")
    return dict.fromkeys(record)


_AVRO_TYPES: Mapping[str, pa.DataType] = {
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
    "date": pa.date32(),
    "time-millis": pa.time32("ms"),
    "time-micros": pa.time64("us"),
    "timestamp-millis": pa.timestamp("ms", "UTC"),
    "timestamp-micros": pa.timestamp("us", "UTC"),
    "local-timestamp-millis": pa.timestamp("ms"),
    "local-timestamp-micros": pa.timestamp("us"),
}


def open_avro(uri: str, source: pa.NativeFile) -> fastavro.reader:
    """The records of an Avro file, behind its header.

    Raises:
        UserError: it isn't Avro, or is truncated.
    """
    try:
        return fastavro.reader(source)
    except UserError:
        raise
    except Exception as error:  # whatever the parser stumbles over first
        raise damaged(uri, "Avro", error) from error


def avro_columns(uri: str, records: fastavro.reader) -> dict[str, Any]:
    """The columns of an Avro file: name and type, as its schema has them.

    Raises:
        UserError: it holds something else than records.
    """
    schema = records.writer_schema
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise UserError(f"{uri}: wrong schema: Avro of {schema!r}, not of records")
    return {field["name"]: field["type"] for field in schema["fields"]}


def avro_type(uri: str, name: str, avro: Any) -> pa.DataType:
    """The Arrow type of an Avro column.

    Raises:
        UserError: columns of this type aren't read.
    """
    type_ = avro
    if isinstance(type_, list):
        others = [branch for branch in type_ if branch != "null"]
        type_ = others[0] if len(others) == 1 else type_
    if isinstance(type_, dict):
        logical = type_.get("logicalType", "")
        if logical == "decimal" and type_.get("precision", 39) <= 38:
            return pa.decimal128(type_["precision"], type_.get("scale", 0))
        if logical in _AVRO_LOGICAL_TYPES:
            return _AVRO_LOGICAL_TYPES[logical]
        if not logical:
            type_ = type_["type"]
    if isinstance(type_, str) and type_ in _AVRO_TYPES:
        return _AVRO_TYPES[type_]
    raise UserError(
        f"{uri}: wrong schema: {name} has the Avro type {avro}, which is not read: leave it out "
        f"with --columns=_={name}"
    )


def shard_count(rows: int, rows_a_shard: int) -> int:
    """Shards for an estimated number of rows; at least 1, at most 65,536."""
    return max(1, min(-(-rows // rows_a_shard), 1 << 16))
