"""Delivery marking in Polars, on its streaming engine.

The fastest of the queries tried. Sorting all by component and id first beat windows that sort for
themselves (1.25 times as long, though with a quarter less memory), nets joined back to the trades
(1.8 times) and lists of each component's trades (1.15 to 8 times).
"""

import polars as pl
from job import DELIVERY_QUANTITY, Job, job

COMPONENT = ["client_code", "symbol"]


def mark(trades: pl.LazyFrame) -> pl.LazyFrame:
    """Give each trade its delivery quantity."""
    quantity, net, eligible = pl.col("quantity"), pl.col("net"), pl.col("eligible")
    is_buy = pl.col("side") == "B"
    return (
        trades.sort(*COMPONENT, "id")
        .with_columns(net=pl.when(is_buy).then(quantity).otherwise(-quantity).sum().over(COMPONENT))
        .with_columns(eligible=pl.when(is_buy == (net > 0)).then(quantity).otherwise(0))
        .with_columns(used=eligible.cum_sum().over(COMPONENT) - eligible)
        .with_columns((net.abs() - pl.col("used")).clip(0, eligible).alias(DELIVERY_QUANTITY))
        .drop("net", "eligible", "used")
    )


def run(arguments: Job) -> None:
    """Stream from files to file."""
    trades = pl.scan_parquet(arguments.trades)
    of_the_date = trades.filter(pl.col("trade_date") == arguments.trade_date)
    mark(of_the_date).sink_parquet(
        arguments.output / "part.parquet",
        compression="snappy",
        maintain_order=False,
        engine="streaming",
    )


if __name__ == "__main__":
    run(job())
