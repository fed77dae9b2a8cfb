"""Delivery marking in pandas: grouped sums over one table in memory."""

import glob

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from job import DELIVERY_QUANTITY, Job, job, output_schema

COMPONENT = ["client_code", "symbol"]


def mark(trades: pd.DataFrame) -> pd.DataFrame:
    """Give each trade its delivery quantity."""
    trades = trades.sort_values("id", ignore_index=True)
    is_buy = trades["side"] == "B"
    components = trades.groupby(COMPONENT, sort=False, observed=True).ngroup()
    signed = trades["quantity"].where(is_buy, -trades["quantity"])
    net = signed.groupby(components).transform("sum")
    eligible = trades["quantity"].where(is_buy == (net > 0), 0)
    used = eligible.groupby(components).cumsum() - eligible
    return trades.assign(**{DELIVERY_QUANTITY: np.clip(net.abs() - used, 0, eligible)})


def run(arguments: Job) -> None:
    """Read all, mark, write one file."""
    # Arrow's types keep amounts as decimals; as objects they would take ten times the memory.
    frames = [
        pd.read_parquet(path, dtype_backend="pyarrow")
        for path in sorted(glob.glob(arguments.trades))
    ]
    trades = pd.concat(frames, ignore_index=True)
    if "trade_date" in trades:
        trades = trades[trades["trade_date"] == arguments.trade_date]
    marked = pa.Table.from_pandas(
        mark(trades), output_schema(arguments.trades), preserve_index=False
    )
    pq.write_table(marked, arguments.output / "part.parquet")


if __name__ == "__main__":
    run(job())
