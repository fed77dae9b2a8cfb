"""How Arrow tables travel between workers.

Beam's own conversions refuse decimals, dates and timestamps, and pickling a slice writes the
whole buffer that it was cut from. Here a table is an Arrow IPC stream: types and dictionaries
are kept, and a slice takes only the bytes of its own rows. What goes through a runner is
compressed, since engines write, send and read each byte several times; what goes through a local
file isn't.
"""

from collections.abc import Collection, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa


class ArrowTableCoder(beam.coders.Coder):
    """Encodes a `pa.Table` as an IPC stream; not deterministic, hence not for keys.

    Tables of many rows are compressed.
    """

    def encode(self, value: pa.Table) -> bytes:
        """The stream's bytes."""
        sink = pa.BufferOutputStream()
        write_stream(sink, value, _COMPRESSED if value.num_rows >= _FEW_ROWS else None)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.Table:
        """The table; its columns are views into the bytes."""
        return read_stream(encoded)

    def estimate_size(self, value: pa.Table) -> int:
        """Bytes in memory: Beam's own estimate would encode the table once more."""
        return int(value.nbytes)

    def is_deterministic(self) -> bool:
        """False: equal tables can differ in their chunks."""
        return False

    def to_type_hint(self) -> type:
        """The type that this coder is registered for."""
        return pa.Table


# A dictionary with fewer values than a sixteenth of the rows costs less than reducing it.
_SMALL = 16
# For fewer rows, the time that each buffer takes is worth more than the bytes that it saves.
_FEW_ROWS = 1000
# Trades take a third of their bytes; higher levels take more time and save nothing more.
_COMPRESSED = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))
_MAX_TIMES = 4

beam.coders.registry.register_coder(pa.Table, ArrowTableCoder)


def write_stream(
    sink: pa.NativeFile | pa.BufferOutputStream,
    table: pa.Table,
    options: pa.ipc.IpcWriteOptions | None = None,
) -> None:
    """Append the table to the sink as a stream of its own, with only the values it uses."""
    table = compact(table)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)


def read_stream(data: bytes | pa.Buffer | pa.NativeFile) -> pa.Table:
    """The table that a stream holds."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def narrow(table: pa.Table) -> pa.Table:
    """The same values, with decimals of up to 18 digits in 8 bytes instead of 16."""
    for index, field in enumerate(table.schema):
        if pa.types.is_decimal128(field.type) and field.type.precision <= 18:
            type_ = pa.decimal64(field.type.precision, field.type.scale)
            table = table.set_column(index, field.name, table.column(index).cast(type_))
    return table


def widen(table: pa.Table) -> pa.Table:
    """The same values, with decimals in 16 bytes again."""
    for index, field in enumerate(table.schema):
        if pa.types.is_decimal64(field.type):
            type_ = pa.decimal128(field.type.precision, field.type.scale)
            table = table.set_column(index, field.name, table.column(index).cast(type_))
    return table


def decode_large(table: pa.Table, kept: Collection[str] = ()) -> pa.Table:
    """The same rows, with dictionaries reduced, and decoded if they have too many values.

    A dictionary of more values than half the rows saves nothing. One that is many times larger
    than the rows is not reduced first, as the time for that grows with its size.

    Args:
        table: the rows.
        kept: columns that stay as they are.
    """
    for index, field in enumerate(table.schema):
        if not pa.types.is_dictionary(field.type) or field.name in kept:
            continue
        column = table.column(index)
        if all(len(chunk.dictionary) <= _MAX_TIMES * len(chunk) for chunk in column.chunks):
            column = pa.chunked_array([compact_array(c) for c in column.chunks], column.type)
        if any(2 * len(chunk.dictionary) > len(chunk) for chunk in column.chunks):
            column = column.cast(field.type.value_type)
        table = table.set_column(index, field.name, column)
    return table


def compact(table: pa.Table) -> pa.Table:
    """The same rows, with dictionaries reduced to the values that occur, unless they are small.

    If a table is split into many, each part would otherwise carry the whole dictionary.
    """
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            chunks = [compact_array(chunk) for chunk in table.column(index).chunks]
            table = table.set_column(index, field.name, pa.chunked_array(chunks, field.type))
    return table


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of the same columns as one; a column is decoded unless all encode it."""
    schema = tables[0].schema
    for table in tables[1:]:
        for index, field in enumerate(table.schema):
            if field.type != schema.field(index).type:
                value_type = getattr(field.type, "value_type", field.type)
                schema = schema.set(index, pa.field(field.name, value_type))
    return pa.concat_tables(
        [table if table.schema == schema else table.cast(schema) for table in tables]
    )


def compact_array(array: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same values, with those that occur in the dictionary only, unless it is small."""
    size = len(array.dictionary)
    if size * _SMALL < len(array):
        return array
    codes = array.indices.drop_null().to_numpy()
    used = np.zeros(size, bool)
    used[codes] = True
    kept = np.flatnonzero(used)
    if len(kept) == size:
        return array
    renumbered = np.empty(size, codes.dtype)
    renumbered[kept] = np.arange(len(kept), dtype=codes.dtype)
    if array.null_count:
        indices = pa.array(renumbered).take(array.indices)
    else:
        indices = pa.array(renumbered[codes])
    values = array.dictionary.take(pa.array(kept))
    # Unchecked: the indices are valid by construction.
    return pa.DictionaryArray.from_arrays(indices, values, ordered=array.type.ordered, safe=False)
