"""Reading a split: rows that fulfil the contract, rejected rows, and the location of each."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.io.datasets.avro import avro_columns, avro_records, avro_type, open_avro
from ledgerbeam.io.datasets.contract import ENCODED, Contract, Rejections, conform, sources
from ledgerbeam.io.datasets.inputs import (
    BYTES_PER_SPLIT,
    ROWS_PER_SPLIT,
    Input,
    Split,
    SqlSplit,
    plan_input,
    read_parquet_footer,
)
from ledgerbeam.io.datasets.lines import damaged, max_unpacked
from ledgerbeam.io.datasets.reading import Reading
from ledgerbeam.io.datasets.text import Rejection, TextBlock, read_text, rejected_rows
from ledgerbeam.io.errors import InputChangedError, InputError, UserError
from ledgerbeam.io.storage import stores, uris

ROW_LOCATION = "__position"
"""Name of the uint64 column that says where a row was read; see `RowInput.row_locations`."""

REJECTED_PER_BATCH = 1 << 16
"""After this many rejected rows a batch ends, so that reading can end soon if they are too many."""

_ROW_BITS = 40
_PARQUET_BATCH_ROWS = ROWS_PER_SPLIT
_AVRO_BATCH_ROWS = 1 << 16


Check = Callable[[pa.Table], Rejections]
"""Finds rows that are wrong although their types fit: reasons by the row's number in a table."""


class SplitRows(NamedTuple):
    """The rows of a batch of a split.

    Attributes:
        table: the rows that fulfil the contract, with their `ROW_LOCATION`.
        rejected: the rows that don't, in their order, with the schema `REJECTED_ROWS`.
        line_count: number of lines of a batch of text, header and blank lines included; of any
            other batch, number of rows.
    """

    table: pa.Table
    rejected: pa.Table
    line_count: int

    @property
    def row_count(self) -> int:
        """Number of rows, rejected ones included."""
        return self.table.num_rows + self.rejected.num_rows

    @property
    def rejections(self) -> list[Rejection]:
        """The rejected rows one by one."""
        return [Rejection(**row) for row in self.rejected.to_pylist()]


class _Block(NamedTuple):
    """Rows as the file holds them; `rows` are their positions in the split."""

    table: pa.Table
    rows: npt.NDArray[np.int64]
    text: TextBlock | None


def read_whole(
    pattern: str, contract: Contract, reading: Reading | None = None
) -> tuple[Input, pa.Table]:
    """Read a small input in which no row may be wrong.

    Args:
        pattern: URI of a file, or a glob; see `plan_input`.
        contract: the contract of its columns.
        reading: how it is written; by default as names and headers show.

    Raises:
        UserError: it can't be read, or a row breaks the contract.
    """
    input_ = plan_input(pattern, contract, reading)
    tables = []
    next_row: Counter[str] = Counter()
    for split in input_.splits:
        uri = split.file.uri
        first_row = next_row[uri] if split.first_row is None else split.first_row
        for rows in read_split(split):
            if rows.rejected.num_rows:
                first = rows.rejections[0]
                raise InputError(
                    f"{uri}: {first.reason}, in {first.raw}: correct it",
                    file=uri,
                    row=first_row + first.row + 1,
                )
            tables.append(rows.table.drop_columns(ROW_LOCATION))
            next_row[uri] += rows.line_count
    return input_, pa.concat_tables(tables, promote_options="default")


def find_row(input_: Input, column: str, value: object) -> tuple[str, int] | None:
    """The location of a row: its file's URI, and its line (text) or row (other files) from 1.

    It reads the input up to that row, so it is meant for errors that end a run.

    Args:
        input_: the input, as planned for the read.
        column: column that identifies the row.
        value: the row's value in that column.

    Raises:
        InputChangedError: a file has changed since the input was planned.
    """
    next_row: Counter[str] = Counter()
    for split in input_.splits:
        uri = split.file.uri
        first_row = next_row[uri] if split.first_row is None else split.first_row
        for rows in read_split(split):
            at = pc.index(rows.table.column(column), value).as_py()
            if at >= 0:
                _, row = unpack_location(rows.table.column(ROW_LOCATION)[at].as_py())
                return uri, first_row + row + 1
            next_row[uri] += rows.line_count
    return None


def read_split(split: Split, check: Check = lambda _: {}) -> Iterator[SplitRows]:
    """Read a split, in batches of about `ROWS_PER_SPLIT` rows or `BYTES_PER_SPLIT` bytes of text.

    Most splits are one batch. Those that can't be cut, such as compressed text, are many. There is
    at least one, which may be empty.

    Args:
        split: a split of a planned input.
        check: called with rows in the types of the contract, null where a value breaks it; the
            rows that it finds are rejected like those that break the contract.

    Raises:
        UserError: the file is damaged, can't be read, or changed since the input was planned.
    """
    _check_version(split)
    parts = [SplitRows(empty_rows(split), rejected_rows(()), 0)]
    size = rows = rejected = 0
    for block in _read_blocks(split):
        # A block is not kept: what is wrong with its rows takes more memory than they do.
        for part in _conform(split, block, check):
            parts.append(part)
            rows += part.row_count
            rejected += part.rejected.num_rows
        size += len(block.text.records.data) if block.text is not None else 0
        if rows >= ROWS_PER_SPLIT or size >= BYTES_PER_SPLIT or rejected >= REJECTED_PER_BATCH:
            yield _joined(parts)
            del parts[1:]
            size = rows = rejected = 0
    _check_version(split)
    yield _joined(parts)


def _joined(parts: list[SplitRows]) -> SplitRows:
    rejected = [part.rejected for part in parts if part.rejected.num_rows]
    return SplitRows(
        pa.concat_tables([part.table for part in parts if part.table.num_rows] or [parts[0].table]),
        pa.concat_tables(rejected).sort_by("row") if rejected else parts[0].rejected,
        sum(part.line_count for part in parts),
    )


def _conform(split: Split, block: _Block, check: Check) -> Iterator[SplitRows]:
    """The rows of a block, and the rejected ones, in parts of at most `ROWS_PER_SPLIT` rows."""
    text = block.text
    if text is not None:
        yield SplitRows(empty_rows(split), text.rejected, text.line_count)
    for begin in range(0, block.table.num_rows, ROWS_PER_SPLIT):
        part = block.table.slice(begin, ROWS_PER_SPLIT)
        places = block.rows[begin : begin + ROWS_PER_SPLIT]
        numbers = np.arange(begin, begin + part.num_rows)
        line_count = part.num_rows if text is None else 0
        table, rejected = conform(part, split.fields)
        if split.only:
            wanted = np.flatnonzero(is_of(table, split.only, if_null=True))
            rejected = {
                at: rejected[row] for at, row in enumerate(wanted.tolist()) if row in rejected
            }
            part, table = part.take(pa.array(wanted)), table.take(pa.array(wanted))
            places, numbers = places[wanted], numbers[wanted]
        further = check(table)
        if further:
            rejected = {
                row: (*rejected.get(row, ()), *further.get(row, ()))
                for row in {*rejected, *further}
            }
        table = table.append_column(ROW_LOCATION, pack_locations(split.index, places))
        rejections: list[Rejection] = []
        if rejected:
            rows = sorted(rejected)
            keys = _keys(split, part, rows)
            raws = raw_rows(part, rows) if text is None else text.raw([*map(int, numbers[rows])])
            for row, key, raw in zip(rows, keys, raws, strict=True):
                rejections.append(Rejection(int(places[row]), raw, key + "; ".join(rejected[row])))
            keep = np.ones(table.num_rows, bool)
            keep[rows] = False
            table = table.filter(pa.array(keep))
        yield SplitRows(table, rejected_rows(rejections), line_count)


def is_of(
    table: pa.Table, only: Sequence[tuple[str, str]], *, if_null: bool = False
) -> npt.NDArray[np.bool_]:
    """Which rows have these values, bool `(rows,)`; those without a value as `if_null` says.

    Args:
        table: with columns of text or of integers.
        only: names of columns, each with the text of a value.
        if_null: whether a row without a value counts as one that has it.
    """
    found = np.ones(table.num_rows, bool)
    for name, text in only:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        value = _value_of(text, column.type)
        if value is None:
            same = np.asarray(column.is_null()) & if_null
        else:
            equal = pc.equal(column, pa.scalar(value, column.type))
            same = np.asarray(pc.fill_null(equal, if_null))
        found &= same
    return found


def _value_of(text: str, type_: pa.DataType) -> int | str | None:
    """A value of a key, given as text; None for one that no value of that type has."""
    if not pa.types.is_integer(type_):
        return text
    try:
        pa.scalar(int(text), type_)
    except (ValueError, OverflowError, pa.ArrowInvalid):
        return None
    return int(text) if str(int(text)) == text else None


def _keys(split: Split, table: pa.Table, rows: list[int]) -> list[str]:
    """The keys of rejected rows of a table, to be put before the reasons."""
    if not isinstance(split, SqlSplit):
        return [""] * len(rows)
    columns = [table.column(name).take(pa.array(rows)).to_pylist() for name in split.key]
    return [
        ", ".join(f"{name} {value}" for name, value in zip(split.key, key, strict=True)) + ": "
        for key in zip(*columns, strict=True)
    ]


def empty_rows(split: Split) -> pa.Table:
    """An empty table with the columns that `read_split` gives."""
    columns = {
        field.name: pa.array(
            [],
            pa.dictionary(pa.int32(), field.type)
            if field.column is not None and field.column.dictionary_encoded
            else field.type,
        )
        for field in split.fields
    }
    return pa.table(columns | {ROW_LOCATION: pa.array([], pa.uint64())})


def pack_locations(split: int, rows: npt.NDArray[np.int64]) -> pa.UInt64Array:
    """The split's number and the row's number in the split, in one integer per row."""
    return pa.array(rows.astype(np.uint64) | np.uint64(split << _ROW_BITS))


def unpack_location(position: int) -> tuple[int, int]:
    """The split's number and the row's number in the split."""
    return position >> _ROW_BITS, position & ((1 << _ROW_BITS) - 1)


def raw_rows(table: pa.Table, rows: list[int]) -> list[str]:
    """Rows of a typed file as JSON objects; amounts and dates as text."""
    for index, field in enumerate(table.schema):
        # Python can't represent all of Arrow's times: nanoseconds, years after 9999.
        if pa.types.is_temporal(field.type) or field.type == pa.string_view():
            table = table.set_column(index, field.name, table.column(index).cast(pa.string()))
        elif field.type == pa.binary_view():
            table = table.set_column(index, field.name, table.column(index).cast(pa.binary()))
    records = table.take(rows).to_pylist()
    return [json.dumps(record, default=str, ensure_ascii=False) for record in records]


def _check_version(split: Split) -> None:
    if isinstance(split, SqlSplit):
        return  # the snapshot that it is read in was checked
    now = stores.stat_of(split.file.uri)
    if now is None or now != split.file:
        changed = "is gone" if now is None else "has changed"
        raise InputChangedError(
            f"{split.file.uri}: the file {changed} since the run was started: "
            "start it again when the file is complete",
            file=split.file.uri,
        )


def _read_blocks(split: Split) -> Iterator[_Block]:
    if isinstance(split, SqlSplit):
        yield from _read_table(split)
    elif split.format == "parquet":
        yield from _read_parquet(split)
    elif split.format == "avro":
        yield from _read_avro(split)
    else:
        for block in read_text(split):
            yield _Block(block.table, block.lines, block)


def _read_parquet(split: Split) -> Iterator[_Block]:
    few = [
        field.source
        for field in split.fields
        if field.type == ENCODED or (field.column is not None and field.column.dictionary_encoded)
    ]
    names = sources(split.fields)
    row = 0
    with stores.open_input(split.file.uri) as source:
        file = read_parquet_footer(
            split.file.uri,
            source,
            read_dictionary=few,
            pre_buffer=not uris.is_local(split.file.uri),
        )
        try:
            for groups, skipped in _row_groups(file.metadata, split):
                row += skipped
                for batch in file.iter_batches(
                    _PARQUET_BATCH_ROWS, row_groups=groups, columns=names, use_threads=False
                ):
                    batch.validate(full=True)  # text may be invalid UTF-8
                    yield _Block(
                        pa.Table.from_batches([batch]).select(names),
                        np.arange(row, row + batch.num_rows, dtype=np.int64),
                        None,
                    )
                    row += batch.num_rows
        except (ValueError, OSError) as error:
            raise damaged(split.file.uri, "Parquet", error) from error


def _row_groups(metadata: Any, split: Split) -> Iterator[tuple[Sequence[int], int]]:
    """Row groups to read, each time with the number of rows that are skipped before them.

    Where only one key is wanted, those are left out whose statistics say that it isn't in them.
    """
    groups = range(split.start, split.end or split.start)
    if not split.only:
        yield groups, 0
        return
    source_of = {field.name: field.source for field in split.fields if field.constant is None}
    wanted = {source_of[name]: text for name, text in split.only if name in source_of}
    skipped = 0
    for number in groups:
        group = metadata.row_group(number)
        columns = map(group.column, range(group.num_columns))
        if all(
            _may_have(column.statistics, wanted[column.path_in_schema])
            for column in columns
            if column.path_in_schema in wanted
        ):
            yield [number], skipped
            skipped = 0
        else:
            skipped += group.num_rows


def _may_have(statistics: Any, text: str) -> bool:
    """Whether a row group may have a value, by the statistics of its column."""
    if statistics is None or not statistics.has_min_max or statistics.null_count != 0:
        return True
    least, most = statistics.min, statistics.max
    if isinstance(least, str) and isinstance(most, str):
        return least <= text <= most
    if type(least) is int and type(most) is int and text.lstrip("-").isdecimal():
        return least <= int(text) <= most
    return True


def _read_table(split: SqlSplit) -> Iterator[_Block]:
    # Clients of databases are imported only if a table is read.
    from ledgerbeam.io.datasets.tables import read_pages

    row = 0
    for table in read_pages(split):
        yield _Block(table, np.arange(row, row + table.num_rows, dtype=np.int64), None)
        row += table.num_rows


def _read_avro(split: Split) -> Iterator[_Block]:
    names = sources(split.fields)
    row = 0
    with stores.open_input(split.file.uri) as source:
        avro = avro_columns(split.file.uri, open_avro(split.file.uri, source))
        types = {name: avro_type(split.file.uri, name, avro[name]) for name in names}
        source.seek(0)
        limit = max_unpacked(split.file.size, None) if split.max_bytes is None else split.max_bytes
        records = avro_records(split.file.uri, source, limit)
        while True:
            columns: dict[str, list[object]] = {name: [] for name in names}
            count = 0
            try:
                for record in records:
                    for name, values in columns.items():
                        values.append(record[name])
                    count += 1
                    if count == _AVRO_BATCH_ROWS:
                        break
                table = pa.table(
                    {n: pa.array(_plain(values), types[n]) for n, values in columns.items()}
                )
            except UserError:
                raise
            except Exception as error:  # the parser raises many kinds of errors
                raise damaged(split.file.uri, "Avro", error) from error
            if not count:
                return
            yield _Block(table, np.arange(row, row + count, dtype=np.int64), None)
            row += count


def _plain(values: list[object]) -> list[object]:
    """The values; those of a Python type that Arrow doesn't know become text."""
    first = next((value for value in values if value is not None), None)
    return [value and str(value) for value in values] if isinstance(first, UUID) else values
