"""What the contenders have in common: their arguments and the columns of their output.

Each is a script of its own, `python X.py INPUT_GLOB OUTPUT TRADE_DATE`, that reads Parquet files
and writes Parquet files (snappy) into the folder OUTPUT: every trade of the date once, with its
input columns and `delivery_quantity` (int64).
"""

import argparse
import datetime
import glob
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

DELIVERY_QUANTITY = "delivery_quantity"


class Job(NamedTuple):
    """Arguments of a contender.

    Attributes:
        trades: glob of the input files.
        output: an existing folder that holds nothing yet.
        trade_date: the day to mark.
    """

    trades: str
    output: Path
    trade_date: datetime.date


def job() -> Job:
    """Read the command line and make the output folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trades", metavar="INPUT_GLOB")
    parser.add_argument("output", metavar="OUTPUT", type=Path)
    parser.add_argument("trade_date", metavar="TRADE_DATE", type=datetime.date.fromisoformat)
    arguments = Job(**vars(parser.parse_args()))
    arguments.output.mkdir(parents=True)
    return arguments


def output_schema(trades: str) -> pa.Schema:
    """Give the input's columns and `delivery_quantity`."""
    columns = pq.read_schema(sorted(glob.glob(trades))[0])
    return columns.append(pa.field(DELIVERY_QUANTITY, pa.int64()))
