"""The same by a plain Python loop: `plain_loop.py GLOB FOLDER`."""

import glob
import sys
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from net_position import net


def main() -> None:
    """Group the trades in a dictionary, and call the rule for each group."""
    files, output = sorted(glob.glob(sys.argv[1])), Path(sys.argv[2])
    table = pa.concat_tables(
        pq.read_table(file, columns=["id", "side", "quantity"]) for file in files
    )
    sides: dict[int, list[str]] = defaultdict(list)
    quantities: dict[int, list[int]] = defaultdict(list)
    columns = (table.column(name).to_pylist() for name in ("id", "side", "quantity"))
    for id_, side, quantity in zip(*columns, strict=True):
        sides[id_].append(side)
        quantities[id_].append(quantity)
    ids = sorted(sides)
    nets = [net(sides[id_], quantities[id_]) for id_ in ids]
    output.mkdir(parents=True)
    pq.write_table(pa.table({"id": ids, "net_quantity": nets}), output / "part.parquet")


main()
