"""Tables of an instance as Parquet files."""

import base64

import pyarrow as pa
import pyarrow.parquet as pq

from ledgerbeam.io.arrow.parquet import repeating_texts


def to_parquet(table: pa.Table) -> pa.Buffer:
    """A table as a Parquet file: the same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    # Dictionaries are worthwhile only if values repeat. Statistics of strings would take a third of
    # the time, and let readers skip nothing: rows are spread over shards by a hash.
    few = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    numbers = [field.name for field in table.schema if pa.types.is_primitive(field.type)]
    # Readers get strings for dictionaries, and every other type unchanged: the stored Arrow schema
    # keeps durations, time zones and large types, which Parquet doesn't know.
    plain = pa.schema([(f.name, _plain_type(f.type)) for f in table.schema])
    arrow_schema = base64.b64encode(plain.serialize())
    with pq.ParquetWriter(
        sink,
        table.schema,
        use_dictionary=few,
        write_statistics=numbers,
        store_decimal_as_integer=True,
        store_schema=False,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"ARROW:schema": arrow_schema})
    return sink.getvalue()


def read_parquet(source: pa.NativeFile, keeps_dictionaries: bool = False) -> pa.Table:
    """A whole file of an instance, read in the caller's own thread.

    `pyarrow.parquet.read_table` reads in threads of Arrow. If such a thread releases a source that
    is a Python object while the interpreter ends, the process aborts (Python 3.11, pyarrow 25).

    Args:
        source: the file.
        keeps_dictionaries: whether texts whose values repeat come dictionary-encoded, with the same
            dictionary in all chunks.
    """
    file = pq.ParquetFile(source)
    if keeps_dictionaries:
        names = repeating_texts(file.metadata, file.schema_arrow)
        file = pq.ParquetFile(source, metadata=file.metadata, read_dictionary=names)
    return file.read(use_threads=False).unify_dictionaries()


def _plain_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_
