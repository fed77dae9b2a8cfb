"""Tables of a database as inputs of workloads, like files: planned, pinned, read by ranges.

A table is named `URL#TABLE`, such as `postgresql+psycopg://batch:${env:PGPASSWORD}@db/bank#loans`.
The URL is kept with its references; secrets are resolved where a connection is made.

The content of a table is pinned by a hash of its rows, as a file is by its version: attempts on the
same rows share what they commit. In PostgreSQL the server computes the hash, and one snapshot shows
the same rows to all workers. Other databases offer no snapshot: a table must not be written to
while it is read.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import sqlalchemy as sa

from ledgerbeam.io.datasets.contract import Contract, Field
from ledgerbeam.io.datasets.inputs import Input, Splits, SqlSplit, TableName
from ledgerbeam.io.datasets.reading import ColumnNames
from ledgerbeam.io.errors import InputChangedError, InputNotFoundError, ParameterError, SchemaError
from ledgerbeam.io.secrets import resolve_url
from ledgerbeam.io.sql.column_types import declared_type
from ledgerbeam.io.sql.engine import connect, database_errors, open_engine, shown
from ledgerbeam.io.sql.keys import KeyRange
from ledgerbeam.io.sql.ranges import ByNumber, plan_ranges
from ledgerbeam.io.sql.reader import SqlReader
from ledgerbeam.io.sql.source import SqlTable, declared_types
from ledgerbeam.io.storage.base import FileInfo

ROWS_PER_RANGE = 200_000
_PAGE_ROWS = 20_000
_ROW = "ledgerbeam_row"
# For a NUMERIC that declares no precision. Only rows that need more decimals than the contract has
# are rejected.
_WIDE = pa.decimal128(38, 10)


def plan_table(
    name: TableName,
    contract: Contract,
    ids: Sequence[str],
    columns: ColumnNames,
    only: tuple[tuple[str, str], ...] = (),
) -> Input:
    """Inspect a table, and divide it into ranges of keys.

    Args:
        name: name of the table.
        contract: the contract of its columns.
        ids: columns that identify a row, by the contract's names; if the table has a primary key,
            that is used instead.
        columns: renames of columns.
        only: columns with the text that rows must have in them to be read; the others are neither
            counted nor pinned.

    Raises:
        UserError: the table can't be read, has a wrong schema, or its URL holds a password.
    """
    if columns.header:
        raise ParameterError(
            f"--columns with names in order is for CSV without a header, not for table "
            f"{name.table}: rename with --columns=NAME=NAME_IN_THE_TABLE",
            parameter="--columns",
        )
    url = resolve_url(name.url)
    sources = {renamed: source for source, renamed in columns.renames.items()}
    source = _describe(
        SqlTable(url, name.table, tuple(sources.get(n, n) for n in ids), where=name.where),
        contract,
        columns,
    )
    with SqlReader(source, 1) as reader:
        types = dict(zip(reader.schema.names, reader.schema.types, strict=True))
    where = f"{shown(sa.make_url(url))}#{name.table}"
    fields = contract.resolve(where, types, _known(columns, types))
    source = replace(source, only=_only(fields, only))
    rows, version = _content(source, None)
    ranges = plan_ranges(source, ByNumber(max(1, -(-rows // ROWS_PER_RANGE))))
    file = FileInfo(where, rows, version)
    splits = Splits(
        SqlSplit(
            index=index,
            file=file,
            format="sql",
            compression=None,
            start=0,
            end=None,
            first_row=None,
            header=(),
            has_header=False,
            fields=fields,
            url=name.url,
            table=name.table,
            key=source.key,
            types=tuple(source.types.items()),
            range=range_.to_json(),
            where=name.where,
        )
        for index, range_ in enumerate(ranges)
    )
    return Input(splits, (file,), rows)


def check_version(split: SqlSplit) -> None:
    """Compare a table, as the split's snapshot shows it, with its state when it was planned.

    Raises:
        InputChangedError: it differs.
    """
    if _content(_source(split), split.snapshot) != (split.file.size, split.file.version):
        raise InputChangedError(
            f"{split.file.uri}: the table has changed since the run was started: start it again "
            "when the table is complete",
            file=split.file.uri,
        )


def read_pages(split: SqlSplit) -> Iterator[pa.Table]:
    """The rows of a range, in the order of their keys.

    Raises:
        UserError: the table can't be read, or the snapshot is gone.
    """
    with SqlReader(_source(split), 1, split.snapshot) as reader:
        for page in reader.pages(KeyRange.from_json(split.range), _PAGE_ROWS):
            yield page.table


def _source(split: SqlSplit) -> SqlTable:
    names = tuple(field.source for field in split.fields)
    left = tuple(name for name in split.key if name not in names)
    url = resolve_url(split.url)
    columns = (*names, *left)
    only = _only(split.fields, split.only)
    return SqlTable(url, split.table, split.key, columns, dict(split.types), split.where, only)


def _only(
    fields: Sequence[Field], only: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str | int], ...]:
    """Columns of the table, with the value that rows must have in them."""
    by_name = {field.name: field for field in fields}
    found: list[tuple[str, str | int]] = []
    for name, text in only:
        if name not in by_name:
            continue  # it isn't read, but derived
        is_number = pa.types.is_integer(by_name[name].type) and text.lstrip("-").isdecimal()
        found.append((by_name[name].source, int(text) if is_number else text))
    return tuple(found)


def _describe(source: SqlTable, contract: Contract, columns: ColumnNames) -> SqlTable:
    """The source with its key, its columns, and the types that the database leaves open."""
    engine = open_engine(source.url)
    try:
        with connect(engine, source.name) as connection, database_errors(engine, source.name):
            try:
                declared = declared_types(connection, source)
                schema, _, table = source.table.rpartition(".")
                primary = sa.inspect(connection).get_pk_constraint(table, schema or None)
            except sa.exc.NoSuchTableError:
                where = shown(engine.url)
                raise InputNotFoundError(
                    f"{where}: there is no {source.name}: correct its name", file=source.name
                ) from None
    finally:
        engine.dispose()
    read = tuple(name for name in declared if columns.renames.get(name, name) != "_")
    key = tuple(primary["constrained_columns"]) or source.key
    missing = [name for name in key if name not in declared]
    if missing:
        raise SchemaError(
            f"{shown(sa.make_url(source.url))}#{source.table}: wrong schema: no column "
            f"{', '.join(missing)}: it has {', '.join(declared)}",
            file=source.table,
            column=missing[0],
        )
    known = {column.name: column for column in contract.columns}
    types = {}
    for name in read:
        if declared_type(declared[name]) is not None:
            continue
        column = known.get(columns.renames.get(name, name))
        is_exact = re.match(r"numeric|decimal", declared[name]) is not None
        if column is None or not is_exact:
            advice = f"leave it out with --columns=_={name}"
            if column is not None:
                advice = f"declare it as what {column.type} is called there"
            raise SchemaError(
                f"{shown(sa.make_url(source.url))}#{source.table}: wrong schema: {name} is "
                f"{declared[name] or 'of no declared type'}, which can't hold values exactly: "
                f"{advice}",
                file=source.table,
                column=name,
            )
        types[name] = _WIDE
    # Key columns are always read, even if unused: rejected rows are identified by them.
    read += tuple(name for name in key if name not in read)
    return replace(source, key=key, columns=read, types=types)


def _known(columns: ColumnNames, types: dict[str, pa.DataType]) -> dict[str, str]:
    """The renames of columns that are read, without those left out."""
    return {
        source: name for source, name in columns.renames.items() if name != "_" or source in types
    }


def _content(source: SqlTable, snapshot: str | None) -> tuple[int, str]:
    """The number of a table's rows, and a hash of them."""
    engine = open_engine(source.url)
    try:
        if engine.dialect.name != "postgresql":
            return _hash_here(source)
        engine = engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        row = sa.cast(sa.literal_column(_ROW), sa.Text)
        # A sum, because rows have no order; numeric, because 64-bit integers would overflow.
        digest = sa.func.sum(sa.cast(sa.func.hashtextextended(row, 0), sa.Numeric))
        table = source.relation().alias(_ROW)
        with connect(engine, source.name) as connection, database_errors(engine, source.name):
            if snapshot is not None:
                connection.execute(sa.text(f"SET TRANSACTION SNAPSHOT '{snapshot}'"))
            statement = sa.select(sa.func.count(), digest).select_from(table)
            statement = statement.where(source.condition)
            rows, version = connection.execute(statement).one()
            return int(rows), str(version or 0)
    finally:
        engine.dispose()


def _hash_here(source: SqlTable) -> tuple[int, str]:
    digest, rows = hashlib.sha256(), 0
    with SqlReader(source, 1) as reader:
        for page in reader.pages(KeyRange(), _PAGE_ROWS):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, page.table.schema) as writer:
                writer.write_table(page.table.combine_chunks())
            digest.update(sink.getvalue())
            rows += page.table.num_rows
    return rows, digest.hexdigest()
