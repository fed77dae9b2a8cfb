"""Reading a split: rows that keep the contract, rows that are refused, and where each stood."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.io import storage
from ledgerbeam.io.contract import Contract, conform
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.inputs import (
    BYTES_A_SPLIT,
    ROWS_A_SPLIT,
    Input,
    Split,
    SqlSplit,
    avro_columns,
    avro_type,
    damaged,
    open_avro,
    plan_input,
    read_parquet_footer,
)
from ledgerbeam.io.text import Refusal, TextBlock, read_text

POSITION = "__position"
"""Name of the uint64 column that says where a row came from; see `pack_positions`."""

_ROW_BITS = 40
_PARQUET_BATCH_ROWS = ROWS_A_SPLIT
_AVRO_BATCH_ROWS = 1 << 16


class SplitRows(NamedTuple):
    """What a batch of a split holds.

    Attributes:
        table: the rows that keep the contract, with their `POSITION`.
        refusals: the rows that don't, in their order.
        line_count: lines of the batch if it is text, header and blank lines included, else rows.
    """

    table: pa.Table
    refusals: list[Refusal]
    line_count: int

    @property
    def row_count(self) -> int:
        """Rows, refused ones included."""
        return self.table.num_rows + len(self.refusals)


class _Block(NamedTuple):
    """Rows as the file holds them; `rows` are their positions in the split."""

    table: pa.Table
    rows: npt.NDArray[np.int64]
    text: TextBlock | None

    def raw(self, rows: list[int]) -> list[str]:
        if self.text is not None:
            return self.text.raw(rows)
        return raw_rows(self.table, rows)


def read_whole(pattern: str, contract: Contract) -> tuple[Input, pa.Table]:
    """Read a small input that has to be right as a whole.

    Args:
        pattern: URI of a file, or a glob; see `plan_input`.
        contract: what its columns must be.

    Raises:
        UserError: it can't be read, or a row breaks the contract.
    """
    input_ = plan_input(pattern, contract)
    tables = []
    for split in input_.splits:
        for rows in read_split(split):
            if rows.refusals:
                first = rows.refusals[0]
                raise UserError(f"{split.file.uri}: {first.reason}, in {first.raw}: correct it")
            tables.append(rows.table.drop_columns(POSITION))
    return input_, pa.concat_tables(tables, promote_options="default")


def find_row(input_: Input, column: str, value: object) -> tuple[str, int] | None:
    """Where a row of an input stands: its file's URI, and the line (text) or row (else) from 1.

    It reads the input until there: for what is about to end a run, and for people to find.

    Args:
        input_: planned, as it was read.
        column: that tells the row.
        value: of the column.

    Raises:
        UserError: a file has changed since the input was planned.
    """
    next_row: Counter[str] = Counter()
    for split in input_.splits:
        uri = split.file.uri
        first_row = next_row[uri] if split.first_row is None else split.first_row
        for rows in read_split(split):
            at = pc.index(rows.table.column(column), value).as_py()
            if at >= 0:
                _, row = unpack_position(rows.table.column(POSITION)[at].as_py())
                return uri, first_row + row + 1
            next_row[uri] += rows.line_count
    return None


def read_split(split: Split) -> Iterator[SplitRows]:
    """Read a split, in batches of about `ROWS_A_SPLIT` rows or `BYTES_A_SPLIT` bytes of text.

    Most splits are one batch. Those that can't be cut, such as compressed text, are many. There is
    at least one, which may be empty.

    Raises:
        UserError: the file is damaged, can't be read, or changed since the input was planned.
    """
    _check_version(split)
    blocks: list[_Block] = []
    size = rows = 0
    for block in _read_blocks(split):
        blocks.append(block)
        rows += block.table.num_rows
        size += len(block.text.data) if block.text is not None else 0
        if rows >= ROWS_A_SPLIT or size >= BYTES_A_SPLIT:
            yield _conform(split, blocks)
            blocks, size, rows = [], 0, 0
    _check_version(split)
    yield _conform(split, blocks)


def _conform(split: Split, blocks: list[_Block]) -> SplitRows:
    tables = []
    refusals: list[Refusal] = []
    line_count = 0
    for block in blocks:
        if block.text is not None:
            refusals += block.text.refusals
            line_count += block.text.line_count
        else:
            line_count += block.table.num_rows
        table, refused = conform(block.table, split.fields)
        table = table.append_column(POSITION, pack_positions(split.index, block.rows))
        if refused:
            rows = sorted(refused)
            keys = _keys(split, block.table, rows)
            for row, key, raw in zip(rows, keys, block.raw(rows), strict=True):
                refusals.append(Refusal(int(block.rows[row]), raw, key + "; ".join(refused[row])))
            keep = np.ones(table.num_rows, bool)
            keep[rows] = False
            table = table.filter(pa.array(keep))
        tables.append(table)
    table = pa.concat_tables(tables) if tables else empty_rows(split)
    return SplitRows(table, sorted(refusals), line_count)


def _keys(split: Split, table: pa.Table, rows: list[int]) -> list[str]:
    """What a refused row of a table is found by, in front of the reason."""
    if not isinstance(split, SqlSplit):
        return [""] * len(rows)
    columns = [table.column(name).take(pa.array(rows)).to_pylist() for name in split.key]
    return [
        ", ".join(f"{name} {value}" for name, value in zip(split.key, key, strict=True)) + ": "
        for key in zip(*columns, strict=True)
    ]


def empty_rows(split: Split) -> pa.Table:
    """No rows, with the columns that `read_split` gives."""
    columns = {
        field.name: pa.array(
            [],
            pa.dictionary(pa.int32(), field.type)
            if field.column is not None and field.column.few_values
            else field.type,
        )
        for field in split.fields
    }
    return pa.table(columns | {POSITION: pa.array([], pa.uint64())})


def pack_positions(split: int, rows: npt.NDArray[np.int64]) -> pa.UInt64Array:
    """Split number and row of the split, in one integer a row."""
    return pa.array(rows.astype(np.uint64) | np.uint64(split << _ROW_BITS))


def unpack_position(position: int) -> tuple[int, int]:
    """Split number and row of the split."""
    return position >> _ROW_BITS, position & ((1 << _ROW_BITS) - 1)


def raw_rows(table: pa.Table, rows: list[int]) -> list[str]:
    """Rows of a typed file as JSON objects; amounts and dates as text."""
    for index, field in enumerate(table.schema):
        # Not all that Arrow holds is a time to Python: nanoseconds, years behind 9999.
        if pa.types.is_temporal(field.type) or field.type == pa.string_view():
            table = table.set_column(index, field.name, table.column(index).cast(pa.string()))
        elif field.type == pa.binary_view():
            table = table.set_column(index, field.name, table.column(index).cast(pa.binary()))
    records = table.take(rows).to_pylist()
    return [json.dumps(record, default=str, ensure_ascii=False) for record in records]


def _check_version(split: Split) -> None:
    if isinstance(split, SqlSplit):
        return  # it is read in a snapshot that was checked
    now = storage.stat_of(split.file.uri)
    if now is None or now != split.file:
        changed = "is gone" if now is None else "has changed"
        raise UserError(
            f"{split.file.uri}: the file {changed} since the run was started: "
            "start it again when the file is complete"
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
    few = [f.source for f in split.fields if f.column is not None and f.column.few_values]
    sources = [field.source for field in split.fields]
    row = 0
    with storage.open_input(split.file.uri) as source:
        file = read_parquet_footer(
            split.file.uri,
            source,
            read_dictionary=few,
            pre_buffer=not storage.is_local(split.file.uri),
        )
        groups = range(split.start, split.end or split.start)
        try:
            for batch in file.iter_batches(
                _PARQUET_BATCH_ROWS, row_groups=groups, columns=sources, use_threads=False
            ):
                batch.validate(full=True)  # text may be no UTF-8
                yield _Block(
                    pa.Table.from_batches([batch]).select(sources),
                    np.arange(row, row + batch.num_rows, dtype=np.int64),
                    None,
                )
                row += batch.num_rows
        except (ValueError, OSError) as error:
            raise damaged(split.file.uri, "Parquet", error) from error


def _read_table(split: SqlSplit) -> Iterator[_Block]:
    # Databases' clients are imported only where one is read.
    from ledgerbeam.io.sql_input import read_pages

    row = 0
    for table in read_pages(split):
        yield _Block(table, np.arange(row, row + table.num_rows, dtype=np.int64), None)
        row += table.num_rows


def _read_avro(split: Split) -> Iterator[_Block]:
    sources = [field.source for field in split.fields]
    row = 0
    with storage.open_input(split.file.uri) as source:
        records = open_avro(split.file.uri, source)
        avro = avro_columns(split.file.uri, records)
        types = {name: avro_type(split.file.uri, name, avro[name]) for name in sources}
        while True:
            columns: dict[str, list[object]] = {name: [] for name in sources}
            count = 0
            try:
                for record in records:
                    for name, values in columns.items():
                        values.append(record[name])
                    count += 1
                    if count == _AVRO_BATCH_ROWS:
                        break
                table = pa.table({n: pa.array(values, types[n]) for n, values in columns.items()})
            except UserError:
                raise
            except Exception as error:  # whatever the parser stumbles over first
                raise damaged(split.file.uri, "Avro", error) from error
            if not count:
                return
            yield _Block(table, np.arange(row, row + count, dtype=np.int64), None)
            row += count
