"""Delivery marking as Beam is usually written: a dictionary for each trade, grouped by key."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io.parquetio import ReadFromParquet, WriteToParquet
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from job import DELIVERY_QUANTITY, Job, job, output_schema

Trade = dict[str, Any]


def mark(component: tuple[tuple[str, str], Iterable[Trade]]) -> Iterator[Trade]:
    """Give each trade of a client and symbol its delivery quantity."""
    trades = sorted(component[1], key=lambda trade: trade["id"])
    net = sum(trade["quantity"] if trade["side"] == "B" else -trade["quantity"] for trade in trades)
    net_side = "B" if net > 0 else "S"
    left = abs(net)
    for trade in trades:
        delivery = min(trade["quantity"], left) if trade["side"] == net_side else 0
        left -= delivery
        yield {**trade, DELIVERY_QUANTITY: delivery}


def run(arguments: Job) -> None:
    """Run the pipeline on the local runner."""
    # By default Beam would first try to download another runner.
    with beam.Pipeline(FnApiRunner()) as pipeline:
        (
            pipeline
            | "Read" >> ReadFromParquet(arguments.trades)
            | "OfTheDate" >> beam.Filter(lambda trade: trade["trade_date"] == arguments.trade_date)
            | "KeyByComponent"
            >> beam.Map(lambda trade: ((trade["client_code"], trade["symbol"]), trade))
            | "GroupByComponent" >> beam.GroupByKey()
            | "Mark" >> beam.FlatMap(mark)
            | "Write"
            >> WriteToParquet(
                str(arguments.output / "part"),
                output_schema(arguments.trades),
                codec="snappy",
                file_name_suffix=".parquet",
            )
        )


if __name__ == "__main__":
    run(job())
