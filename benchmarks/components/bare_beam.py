"""The same in a Beam pipeline that promises nothing: `bare_beam.py GLOB FOLDER`."""

import glob
import sys
import uuid
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import ledgerbeam.pipelines  # noqa: F401 - imports Beam without collecting garbage, as ours does

import apache_beam as beam  # isort: skip
import pyarrow as pa
import pyarrow.parquet as pq
from net_position import net

from ledgerbeam.batch.runners.beam import make_pipeline
from ledgerbeam.io.arrow.spill import SpillDirectory, SpilledBatch, load_batch, spill
from ledgerbeam.transforms.columnar.components import sort_components
from ledgerbeam.transforms.columnar.partition import split_by_shard
from ledgerbeam.transforms.concurrency.in_flight import DoInFlight

KEY = ("id",)


def read(file: str, shards: int, directory: str) -> list[tuple[int, SpilledBatch]]:
    """Cut a file's trades into pieces."""
    columns = ["id", "side", "quantity"]
    table = pq.read_table(file, columns=columns, read_dictionary=["side"], use_threads=False)
    return spill(directory, split_by_shard(table, KEY, shards))


def execute(element: tuple[int, Iterable[SpilledBatch]], output: Path) -> Iterator[int]:
    """Call the rule for each component of a shard, and write what it gives."""
    table = pa.concat_tables(load_batch(piece) for piece in element[1])
    components = sort_components(table, KEY, "id").components
    nets = [net(c.values("side"), c.values("quantity")) for c in components.each(KEY)]
    ids = components.table.column("id").take(pa.array(components.starts))
    part = pa.table({"id": ids, "net_quantity": nets})
    pq.write_table(part, output / f"part-{uuid.uuid4().hex}.parquet")
    yield len(nets)


def run(pattern: str, output: Path) -> None:
    """Run the pipeline on the local runner."""
    files = sorted(glob.glob(pattern))
    output.mkdir(parents=True)
    shards = -(-sum(pq.read_metadata(file).num_rows for file in files) // 320_000)
    with SpillDirectory() as directory, make_pipeline([]) as pipeline:
        (
            pipeline
            | "Files" >> beam.Create(files)
            | "Spread" >> beam.Reshuffle()
            | "Read"
            >> beam.ParDo(DoInFlight(partial(read, shards=shards, directory=directory.path), 2))
            | "GroupByShard" >> beam.GroupByKey()
            | "Execute" >> beam.ParDo(DoInFlight(partial(execute, output=output), 2))
        )


if __name__ == "__main__":
    # Not from here: what is pickled must live in an importable module.
    from bare_beam import run as importable_run

    importable_run(sys.argv[1], Path(sys.argv[2]))
