"""Reading a split: rows that keep the contract, rows that are refused, and where each stood."""

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.io import storage
from ledgerbeam.io.contract import conform
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.inputs import Split, avro_types, damaged, read_parquet_footer
from ledgerbeam.io.text import Refusal, TextBlock, read_text

POSITION = "__position"
"""Name of the uint64 column that says where a row came from; see `pack_positions`."""

_ROW_BITS = 40
_PARQUET_BATCH_ROWS = 1 << 18
_AVRO_BATCH_ROWS = 1 << 16


class SplitRows(NamedTuple):
    """What a split holds.

    Attributes:
        table: the rows that keep the contract, with their `POSITION`.
        refusals: the rows that don't.
        line_count: lines of the split if it is text, header and blank lines included, else rows.
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
        return [raw_row(record) for record in self.table.take(rows).to_pylist()]


def read_split(split: Split) -> SplitRows:
    """Read a split whole, at most about `ROWS_A_SPLIT` rows or `BYTES_A_SPLIT` bytes of text.

    Raises:
        UserError: the file is damaged, can't be read, or changed since the input was planned.
    """
    _check_version(split)
    tables: list[pa.Table] = []
    refusals: list[Refusal] = []
    line_count = 0
    for block in _read_blocks(split):
        if block.text is not None:
            refusals += block.text.refusals
            line_count += block.text.line_count
        else:
            line_count += block.table.num_rows
        table, refused = conform(block.table, split.fields)
        table = table.append_column(POSITION, pack_positions(split.index, block.rows))
        if refused:
            rows = sorted(refused)
            for row, raw in zip(rows, block.raw(rows), strict=True):
                refusals.append(Refusal(int(block.rows[row]), raw, "; ".join(refused[row])))
            keep = np.ones(table.num_rows, bool)
            keep[rows] = False
            table = table.filter(pa.array(keep))
        tables.append(table)
    _check_version(split)
    table = pa.concat_tables(tables) if tables else empty_rows(split)
    return SplitRows(table, refusals, line_count)


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


def raw_row(record: Mapping[str, object]) -> str:
    """A row of a typed file as a JSON object; amounts and dates as text."""
    return json.dumps(record, default=str, ensure_ascii=False)


def _check_version(split: Split) -> None:
    now = storage.stat_of(split.file.uri)
    if now is None or now != split.file:
        changed = "is gone" if now is None else "has changed"
        raise UserError(
            f"{split.file.uri}: the file {changed} since the run was started: "
            "start it again when the file is complete"
        )


def _read_blocks(split: Split) -> Iterator[_Block]:
    if split.format == "parquet":
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
                yield _Block(
                    pa.Table.from_batches([batch]).select(sources),
                    np.arange(row, row + batch.num_rows, dtype=np.int64),
                    None,
                )
                row += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise damaged(split.file.uri, "Parquet", error) from error


def _read_avro(split: Split) -> Iterator[_Block]:
    types = avro_types(split.file.uri)
    sources = [field.source for field in split.fields]
    row = 0
    with storage.open_input(split.file.uri) as source:
        records = fastavro.reader(source)
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
            except (ValueError, EOFError, OSError, IndexError, KeyError) as error:
                raise damaged(split.file.uri, "Avro", error) from error
            if not count:
                return
            table = pa.table({n: pa.array(values, types[n]) for n, values in columns.items()})
            yield _Block(table, np.arange(row, row + count, dtype=np.int64), None)
            row += count
