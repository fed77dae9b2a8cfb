"""The same kernels in a Beam pipeline that promises nothing: no contract, no totals, no commits.

What `ledgerbeam` takes beyond this is the price of the framework.
"""

import glob
import uuid
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import ledgerbeam.pipelines  # noqa: F401 - imports Beam without collecting garbage, as ours does

import apache_beam as beam  # isort: skip
import pyarrow as pa
import pyarrow.parquet as pq
from job import DELIVERY_QUANTITY, Job, job

from ledgerbeam.batch.runners.beam import make_pipeline
from ledgerbeam.io.arrow.spill import SpillDirectory, SpilledBatch, load_batch, spill
from ledgerbeam.io.arrow.stream import decode_large, join, narrow
from ledgerbeam.rules.delivery.deliver import deliver_many
from ledgerbeam.transforms.columnar.components import sort_components
from ledgerbeam.transforms.columnar.partition import split_by_shard
from ledgerbeam.transforms.concurrency.in_flight import DoInFlight

KEY = ("client_code", "symbol")
ROWS_PER_SHARD = 320_000


def read(file: str, shards: int, directory: str) -> list[tuple[int, SpilledBatch]]:
    """Cut a file's trades into pieces."""
    table = pq.read_table(file, read_dictionary=[*KEY, "side"], use_threads=False)
    table = narrow(table.drop_columns("trade_date"))
    pieces = ((s, decode_large(piece)) for s, piece in split_by_shard(table, KEY, shards))
    return spill(directory, pieces)


def execute(element: tuple[int, Iterable[SpilledBatch]], arguments: Job) -> Iterator[int]:
    """Mark a shard's trades and write them."""
    table = join([load_batch(piece) for piece in element[1]])
    for name in (*KEY, "side"):
        if not pa.types.is_dictionary(table.schema.field(name).type):
            column = table.column(name).combine_chunks().dictionary_encode()
            table = table.set_column(table.column_names.index(name), name, column)
    components = sort_components(table, KEY, "id").components
    rows = components.table
    price = rows.column_names.index("price")
    rows = rows.set_column(price, "price", rows.column("price").cast(pa.decimal128(18, 4)))
    dates = pa.repeat(pa.scalar(arguments.trade_date, pa.date32()), rows.num_rows)
    rows = rows.append_column("trade_date", dates)
    rows = rows.append_column(DELIVERY_QUANTITY, deliver_many(components))
    pq.write_table(rows, arguments.output / f"part-{uuid.uuid4().hex}.parquet")
    yield rows.num_rows


def run(arguments: Job) -> None:
    """Run the pipeline on the local runner."""
    files = sorted(glob.glob(arguments.trades))
    rows = sum(pq.read_metadata(Path(file)).num_rows for file in files)
    shards = max(1, -(-rows // ROWS_PER_SHARD))
    with SpillDirectory() as directory, make_pipeline([]) as pipeline:
        reader = partial(read, shards=shards, directory=directory.path)
        (
            pipeline
            | "Files" >> beam.Create(files)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(DoInFlight(reader, 2))
            | "GroupByShard" >> beam.GroupByKey()
            | "Execute" >> beam.ParDo(DoInFlight(partial(execute, arguments=arguments), 2))
        )


if __name__ == "__main__":
    # Not from here: what is pickled must live in an importable module.
    from bare_beam import run as importable_run

    importable_run(job())
