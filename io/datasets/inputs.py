"""Planning a read: which files exist, what columns they have, and how they are split.

A plan is made once, where the pipeline is built. It pins the version of each file, so that every
attempt reads the same bytes or stops.
"""

import csv
import pickle
import re
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ledgerbeam.io.arrow.parquet import repeating_texts
from ledgerbeam.io.commit.attempts import find_manifest
from ledgerbeam.io.commit.published import check_files, instance_of, published_parts
from ledgerbeam.io.datasets.avro import avro_columns, avro_type, open_avro
from ledgerbeam.io.datasets.contract import ENCODED, Contract, Field
from ledgerbeam.io.datasets.dialect import PLAIN_TEXT, Dialect
from ledgerbeam.io.datasets.lines import (
    TextFile,
    damaged,
    first_record,
    first_records,
    max_unpacked,
    offset_of_line,
    parts_in_quotes,
    unpacks_to_too_much,
)
from ledgerbeam.io.datasets.reading import Reading
from ledgerbeam.io.datasets.zipped import member_name
from ledgerbeam.io.errors import (
    InputError,
    InputNotFoundError,
    ParameterError,
    SchemaError,
    UserError,
)
from ledgerbeam.io.parsing import parse_json
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.io.storage.base import FileInfo

ROWS_PER_SPLIT = 500_000
BYTES_PER_SPLIT = 32 << 20
FORMATS = ("csv", "jsonl", "parquet", "avro")

_SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".avro": "avro",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
_JSON_RECORDS = 1_000
# Rough sizes, used only for the number of shards.
_TEXT_BYTES_PER_ROW = {"csv": 50, "jsonl": 130, "avro": 30}
_TEXT_COMPRESSION_RATIO = 4


@dataclass(frozen=True)
class Split:
    """A part of a file that one worker reads in one step.

    Attributes:
        index: its position among all splits of the input.
        file: the file, with the version that must be read.
        format: one of `FORMATS`.
        compression: `gzip`, `zstd`, `zip` or None; for text only.
        start: the first byte of text (a line that starts before it belongs to the previous split),
            or the first row group.
        end: the byte or the row group after the last one; None for the whole rest.
        first_row: number of rows of the file before this split, if known; None for text.
        header: names of a text file's columns; for CSV in their order.
        has_header: whether the file's first record holds these names.
        fields: the columns to read.
        dialect: how a text file writes rows.
        in_quotes: whether the first line that begins in the split begins in quotes, and so belongs
            to a record of the previous split.
        max_bytes: bytes that a compressed file may unpack to.
        only: columns with the text of the value that rows must have in them to be read. A row
            whose value can't be read may be one of them.
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
    dialect: Dialect = PLAIN_TEXT
    in_quotes: bool = False
    max_bytes: int | None = None
    only: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> TextFile:
        """This split as a part of a text file."""
        return TextFile(
            self.file.uri,
            self.format,
            self.compression,
            self.dialect,
            self.start,
            self.end,
            self.max_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class SqlSplit(Split):
    """A range of a table's keys that is read by one worker; `file` stands for the table.

    Attributes:
        url: the database's URL, with references to secrets in it.
        table: the table's name.
        key: columns by which the table is read in order; unique and never null.
        types: Arrow types of columns whose declared type isn't enough.
        range: range of keys, as `KeyRange.to_json` gives it.
        snapshot: snapshot of the database, so that all workers read the same rows; None if the
            database offers none.
        where: SQL: which rows of the table are read; empty for all.
    """

    url: str
    table: str
    key: tuple[str, ...]
    types: tuple[tuple[str, pa.DataType], ...]
    range: str
    snapshot: str | None = None
    where: str = ""


class Splits(tuple[Split, ...]):
    """Splits for workers. Many DoFns hold them, so they are packed once, and unpacked once."""

    @cached_property
    def _packed(self) -> bytes:
        return zlib.compress(pickle.dumps(tuple(self), pickle.HIGHEST_PROTOCOL), 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (self._packed,)

    def __repr__(self) -> str:
        return f"{len(self)} splits"  # Beam makes labels of transforms from representations


@lru_cache(maxsize=8)
def _unpacked(packed: bytes) -> Splits:
    # Beam pickles and unpickles the DoFns that hold this.
    return Splits(pickle.loads(zlib.decompress(packed)))  # noqa: S301


class TableName(NamedTuple):
    """A table as an input: `URL#TABLE`.

    Attributes:
        url: the database's URL, with references to secrets in it.
        table: the table's name.
        where: SQL: which of its rows are the input; empty for all.
    """

    url: str
    table: str
    where: str = ""

    @classmethod
    def parse(cls, text: str) -> "TableName | None":
        """The table that a parameter names; None if it names files."""
        url, _, table = text.rpartition("#")
        is_files = re.match(r"(gs|s3|file)://", url)
        is_url = re.match(r"[a-z][a-z0-9+]*://|env:|file:", url)
        return None if is_files or not is_url or not table else cls(url, table)


class Input(NamedTuple):
    """A dataset, ready to be read.

    Attributes:
        splits: the splits in the order of the files' URIs; all have the same fields, in the order
            of the first file.
        files: the files as they were when the plan was made.
        estimated_rows: exact for Parquet, a guess for other formats.
    """

    splits: Splits
    files: tuple[FileInfo, ...]
    estimated_rows: int


class _Range(NamedTuple):
    start: int
    end: int | None
    first_row: int | None = None
    in_quotes: bool = False


class _FilePlan(NamedTuple):
    fields: tuple[Field, ...]
    header: tuple[str, ...]
    ranges: list[_Range]
    rows: int


def plan_input(
    pattern: str,
    contract: Contract,
    reading: Reading | None = None,
    *,
    bytes_per_split: int = BYTES_PER_SPLIT,
    rows_per_split: int = ROWS_PER_SPLIT,
    by_hash: bool = True,
) -> Input:
    """Inspect the files that match, and divide them into splits.

    Args:
        pattern: URI of a file, or a glob; or of a published instance, for its results, with
            `#NAME` behind it for an extra table. Several are separated by commas.
        contract: what the columns must be.
        reading: how the files are written; by default as their names and headers say.
        bytes_per_split: for uncompressed text.
        rows_per_split: for Parquet, rounded up to whole row groups.
        by_hash: whether files of published instances are compared by their hashes with what was
            published; else, for who only looks at the columns, by their sizes.

    Raises:
        UserError: no file matches, a format is unknown, a file is damaged, a schema is wrong, or
            the files differ in their columns.
    """
    reading = reading or Reading()
    files = _find_files(pattern, by_hash)

    def inspect(file: FileInfo) -> _FilePlan:
        return _plan_file(file, contract, reading, bytes_per_split, rows_per_split)

    with ThreadPoolExecutor(16) as pool:
        plans = list(pool.map(inspect, files))
    if len({plan.header for plan in plans}) > 1 and all(
        _format_of(file.uri, reading.format)[0] == "jsonl" for file in files
    ):
        # A record of JSON may leave out a field, and so may all records of a file.
        header = tuple(dict.fromkeys(name for plan in plans for name in plan.header))
        plans = [
            plan._replace(
                header=header,
                fields=_resolve(file.uri, dict.fromkeys(header), header, contract, reading),
            )
            for file, plan in zip(files, plans, strict=True)
        ]
    fields = _common_fields(files, plans)
    splits: list[Split] = []
    shared: tuple[Field, ...] = ()
    for file, planned in zip(files, plans, strict=True):
        by_name = {field.name: field for field in planned.fields}
        ordered = tuple(replace(by_name[field.name], type=field.type) for field in fields)
        # Files that agree, as most do, share one object, which is packed once.
        shared = shared if ordered == shared else ordered
        kind, compression = _format_of(file.uri, reading.format)
        for start, end, first_row, in_quotes in planned.ranges:
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
                    has_header=not reading.columns.header,
                    fields=shared,
                    dialect=reading.dialect,
                    in_quotes=in_quotes,
                    max_bytes=max_unpacked(file.size, reading.max_decompressed),
                )
            )
    return Input(Splits(splits), tuple(files), sum(planned.rows for planned in plans))


def _common_fields(files: Sequence[FileInfo], plans: Sequence[_FilePlan]) -> tuple[Field, ...]:
    """The fields of the first file; columns without values there have the other files' types."""
    types: dict[str, pa.DataType] = {}
    for planned in plans:
        for field in planned.fields:
            known = types.get(field.name, pa.null())
            types[field.name] = _common_type(known, field.type) or known
    first = {field.name for field in plans[0].fields}
    for file, planned in zip(files, plans, strict=True):
        own = {field.name: field.type for field in planned.fields}
        differing = own.keys() ^ first
        differing |= {
            name
            for name in own.keys() & first
            if _common_type(types[name], own[name]) != types[name]
        }
        if differing:
            raise SchemaError(
                f"{file.uri}: wrong schema: its columns differ from those of {files[0].uri} "
                f"in {', '.join(sorted(differing))}: give files of one schema",
                file=file.uri,
                column=min(differing),
            )
    return tuple(replace(field, type=types[field.name]) for field in plans[0].fields)


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """A type that holds all values of two; None if there is none.

    Writers choose the type of a column by its values: none at all, few or large integers.
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_signed_integer(one) and pa.types.is_signed_integer(other):
        return max(one, other, key=lambda type_: int(type_.bit_width))
    if ENCODED in (one, other):
        # Of one file the values of a column repeat, and of another they don't.
        return _common_type(*(pa.string() if type_ == ENCODED else type_ for type_ in (one, other)))
    texts = (pa.string(), pa.large_string())
    return pa.large_string() if one in texts and other in texts else None


def _find_files(pattern: str, by_hash: bool) -> list[FileInfo]:
    files: dict[str, FileInfo] = {}
    # If a file has exactly this name, it is meant, even if the name looks like a pattern.
    parts = [pattern] if "," in pattern and _exactly(pattern) else pattern.split(",")
    for part in parts:
        found = (
            _exactly(part) or _published_files(part, by_hash) or stores.find(uris.absolute(part))
        )
        if not found:
            raise InputNotFoundError(
                f"{part}: no such file: check the path or the pattern", file=part
            )
        files |= {file.uri: file for file in found}
    return [files[uri] for uri in sorted(files)]


def _exactly(name: str) -> list[FileInfo]:
    try:
        found = stores.stat_of(uris.absolute(name))
    except UserError:
        return []  # several names or a pattern, not valid as the name of one file
    return [] if found is None else [found]


def _published_files(uri: str, by_hash: bool) -> list[FileInfo]:
    """The files of a published instance, or of an extra table, `INSTANCE#TABLE`; none if it isn't.

    Raises:
        UserError: a file is gone or isn't what was published, or there is no such table.
    """
    instance, _, table = uri.partition("#")
    instance = instance_of(uris.absolute(instance))
    manifest = find_manifest(instance)
    if manifest is None:
        return []
    return check_files(instance, published_parts(instance, manifest, table or None), by_hash)


def _format_of(uri: str, format_: str | None) -> tuple[str, str | None]:
    name = uris.base_name(uri).lower()
    compression = None
    for suffix, known in _COMPRESSIONS.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), known
    kind = format_ or _kind_by(name)
    if kind is None and compression == "zip":
        kind = _kind_by(member_name(uri).lower())
    if kind is None:
        raise InputError(
            f"{uri}: its name doesn't tell its format: say --format, one of {', '.join(FORMATS)}",
            file=uri,
        )
    if compression and kind in ("parquet", "avro"):
        raise InputError(f"{uri}: {kind} is compressed inside: unpack the file", file=uri)
    return kind, compression


def _kind_by(name: str) -> str | None:
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def _plan_file(
    file: FileInfo,
    contract: Contract,
    reading: Reading,
    bytes_per_split: int,
    rows_per_split: int,
) -> _FilePlan:
    kind, compression = _format_of(file.uri, reading.format)
    columns = reading.columns
    if columns.header and kind != "csv":
        raise ParameterError(
            f"{file.uri}: --columns with names in order is for CSV without a header, not for "
            f"{kind}: rename with --columns=NAME=NAME_IN_THE_FILE",
            parameter="--columns",
        )
    if compression and not file.size:
        raise damaged(file.uri, compression, EOFError("0 bytes"))
    header: tuple[str, ...] = ()
    max_bytes = max_unpacked(file.size, reading.max_decompressed)
    ranges = [_Range(0, None)]
    types: dict[str, pa.DataType | None]
    if kind == "parquet":
        with stores.open_input(file.uri) as source:
            metadata = read_parquet_footer(file.uri, source).metadata
        groups = range(metadata.num_row_groups)
        if sum(metadata.row_group(group).total_byte_size for group in groups) > max_bytes:
            raise unpacks_to_too_much(file.uri, max_bytes)
        schema = metadata.schema.to_arrow_schema()
        _check_unique(file.uri, file.uri, schema.names)
        types = dict(zip(schema.names, schema.types, strict=True))
        try:
            types |= dict.fromkeys(repeating_texts(metadata, schema), ENCODED)
        except UnicodeDecodeError as error:  # of the name of a column
            raise damaged(file.uri, "Parquet", error) from error
        ranges = _row_group_ranges(metadata, rows_per_split)
        rows = metadata.num_rows
    elif kind == "avro":
        with stores.open_input(file.uri) as source:
            columns_of_file = avro_columns(file.uri, open_avro(file.uri, source))
        left_out = reading.renames(file.uri, tuple(columns_of_file))
        types = {
            name: None if left_out.get(name) == "_" else avro_type(file.uri, name, avro)
            for name, avro in columns_of_file.items()
        }
        rows = file.size // _TEXT_BYTES_PER_ROW[kind]
    else:
        text = TextFile(file.uri, kind, compression, reading.dialect, max_bytes=max_bytes)
        lines_of_header = 0
        if kind == "csv" and not columns.header:
            header, lines_of_header = _csv_header(text, trim=reading.values.trim)
        elif kind == "csv":
            header = columns.header
        else:
            header = _json_names(text, contract, reading)
        if kind == "csv" and reading.dialect.trailing_delimiter and header[-1]:
            header = (*header, "")
        types = dict.fromkeys(header)
        if compression is None and reading.dialect.is_bytewise:
            ranges = _byte_ranges(file, text, lines_of_header, bytes_per_split)
        rows = file.size // _TEXT_BYTES_PER_ROW[kind]
        rows *= _TEXT_COMPRESSION_RATIO if compression else 1
    fields = _resolve(file.uri, types, header, contract, reading)
    return _FilePlan(fields, header, ranges, rows)


def _resolve(
    uri: str,
    types: Mapping[str, pa.DataType | None],
    header: Sequence[str],
    contract: Contract,
    reading: Reading,
) -> tuple[Field, ...]:
    renames = reading.renames(uri, tuple(types))
    if header and not header[-1] and len(header) > 1:
        renames.setdefault("", "_")  # the empty column after a trailing delimiter
    return contract.resolve(
        uri,
        types,
        renames,
        values=reading.values,
        replacements=reading.replacements,
        constants=reading.constants,
    )


def _byte_ranges(
    file: FileInfo, text: TextFile, lines_of_header: int, bytes_per_split: int
) -> list[_Range]:
    """Ranges of a text file; the first one holds the whole header."""
    header_end = offset_of_line(text, lines_of_header) if lines_of_header > 1 else 0
    first = max(bytes_per_split, header_end)
    starts = [0, *range(first, file.size, bytes_per_split)]
    ends = [*starts[1:], file.size]
    in_quotes = parts_in_quotes(text, starts)
    return [
        _Range(start, end, in_quotes=inside)
        for start, end, inside in zip(starts, ends, in_quotes, strict=True)
    ]


def read_parquet_footer(uri: str, source: pa.NativeFile, **options: Any) -> pq.ParquetFile:
    """The open Parquet file.

    Raises:
        InputError: it isn't Parquet, or is truncated.
    """
    try:
        return pq.ParquetFile(source, **options)
    except (ValueError, OSError) as error:
        raise damaged(uri, "Parquet", error) from error


def _row_group_ranges(metadata: pq.FileMetaData, rows_per_split: int) -> list[_Range]:
    ranges: list[_Range] = []
    start = first_row = rows = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= rows_per_split or group == metadata.num_row_groups - 1:
            ranges.append(_Range(start, group + 1, first_row))
            start, first_row, rows = group + 1, first_row + rows, 0
    return ranges or [_Range(0, 0, 0)]


def _check_unique(where: str, file: str, names: Sequence[str]) -> None:
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise SchemaError(
            f"{where}: a column name comes twice: {', '.join(names)}",
            file=file,
            column=repeated[0],
        )


def _csv_header(text: TextFile, *, trim: bool) -> tuple[tuple[str, ...], int]:
    """The names of a CSV file's columns, and the number of lines up to their end."""
    record, line, lines = first_record(text)
    if not record:
        raise SchemaError(
            f"{text.uri}: wrong schema: no header line: an empty file without a header needs "
            "--columns",
            file=text.uri,
        )
    try:
        (values,) = csv_reader([record], text.dialect)
    except (csv.Error, ValueError) as error:
        raise InputError(
            f"{text.uri}, line {line}: the column names can't be read: {error}: correct the quotes",
            file=text.uri,
            row=line,
        ) from error
    names = tuple(name.strip() if trim else name for name in values)
    _check_unique(f"{text.uri}, line {line}", text.uri, names)
    return names, lines


def csv_reader(records: Sequence[str], dialect: Dialect) -> Any:
    """Python's CSV reader; it raises `csv.Error` if a record can't be read."""
    return csv.reader(
        records,
        strict=True,
        delimiter=dialect.delimiter,
        quotechar=dialect.quote or None,
        quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
    )


def _json_names(text: TextFile, contract: Contract, reading: Reading) -> tuple[str, ...]:
    """The keys of the first records; for an empty file, the columns that the contract requires."""
    first, line, _ = first_record(text, skip_blank=True)
    if not first:
        sources = {name: source for source, name in reading.columns.renames.items()}
        required = [
            column.name
            for column in contract.columns
            if column.required and column.name not in reading.constants
        ]
        return tuple(sources.get(name, name) for name in required)
    try:
        record = parse_json(first, parse_int=str)  # `int` refuses more than 4,300 digits
        for name in record if isinstance(record, dict) else ():
            name.encode()  # fails for half a surrogate pair, which is no text
    except ValueError as error:
        raise InputError(
            f"{text.uri}, line {line}: not JSON: {error}: the columns are taken from the first "
            "record: correct it",
            file=text.uri,
            row=line,
        ) from error
    if not isinstance(record, dict):
        raise InputError(
            f"{text.uri}, line {line}: not a JSON object: write one object a line",
            file=text.uri,
            row=line,
        )
    names = dict.fromkeys(record)
    for data in first_records(text, _JSON_RECORDS):
        names |= dict.fromkeys(_keys_of(data))
    return tuple(names)


def _keys_of(data: bytes) -> list[str]:
    """The keys of a record of JSON; none if it can't be read, and will be rejected."""
    try:
        record = parse_json(data.decode(), parse_int=str)
        keys = list(record) if isinstance(record, dict) else []
        "".join(keys).encode()
    except ValueError:
        return []
    return keys


def shard_count(rows: int, rows_per_shard: int) -> int:
    """Shards for an estimated number of rows; at least 1, at most 65,536."""
    return max(1, min(-(-rows // rows_per_shard), 1 << 16))
