"""Cutting a table into one batch per shard, by the hash of each row's key."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from ledgerbeam.transforms.columnar.hashing import shard_numbers


def split_by_shard(
    table: pa.Table, key: Sequence[str], shards: int
) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each shard that has any, by ascending shard; rows keep their order."""
    if not table.num_rows:
        return
    table = table.unify_dictionaries().combine_chunks()
    numbers = shard_numbers(table, key, shards)
    order = np.argsort(numbers, kind="stable")  # a radix sort, as the numbers have 16 bits
    sorted_table = table.take(pa.array(order))
    ends = np.cumsum(np.bincount(numbers, minlength=shards)).tolist()
    for shard, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start < end:
            yield shard, sorted_table.slice(start, end - start)
