"""Files of an instance are read as they were written, with dictionaries or without."""

import pyarrow as pa
import pyarrow.parquet as pq

from ledgerbeam.io.commit.parquet import read_parquet, to_parquet


def test_texts_that_repeat_keep_one_dictionary_for_all_row_groups() -> None:
    repeating = [f"client {row * row // 7 % 20 + row // 1_000}" for row in range(6_000)]
    table = pa.table(
        {
            "client": pa.array(repeating).dictionary_encode(),
            "id": [f"R{row:08d}" for row in range(6_000)],
            "number": range(6_000),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=1_000, use_dictionary=["client"], store_schema=False)
    for data in (sink.getvalue(), to_parquet(table)):
        kept, plain = (read_parquet(pa.BufferReader(data), keeps) for keeps in (True, False))
        assert plain.schema.types == [pa.string(), pa.string(), pa.int64()]
        assert kept.schema.types == [
            pa.dictionary(pa.int32(), pa.string()),
            *plain.schema.types[1:],
        ]
        assert kept.cast(plain.schema).equals(plain)
        first, *others = (chunk.dictionary for chunk in kept.column("client").chunks)
        assert all(other.equals(first) for other in others)
        assert plain.column("client").to_pylist() == repeating
