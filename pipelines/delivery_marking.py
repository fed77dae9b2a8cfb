"""Delivery marking: a day's trades in, each with its delivery quantity out.

    ledgerbeam run delivery-marking --trades='trades/*' --trade-date=2026-11-20 --output=results

The rule is in `ledgerbeam.rules.delivery`. The output holds every trade of the date with all its
input columns and `delivery_quantity`, sorted by client, symbol and id within each part.
"""

import datetime
import sys
from enum import StrEnum

import numpy as np
import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.launch import run_module
from ledgerbeam.io.contract import Column, Contract
from ledgerbeam.io.records import Control, Totals
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.delivery import BUY, SELL, mark_deliveries, mark_each, net_quantities
from ledgerbeam.transforms.totals import exact_sum, id_hash

DELIVERY_QUANTITY = "delivery_quantity"

TRADES = Contract(
    (
        Column("id", pa.int64()),
        Column("client_code", pa.string(), few_values=True),
        Column("symbol", pa.string(), few_values=True),
        Column("side", pa.string(), few_values=True, one_of=(BUY, SELL)),
        Column("quantity", pa.int64(), minimum=0),
        Column("price", pa.decimal128(18, 4), required=False, nullable=True),
        Column("trade_date", pa.date32(), required=False),
    ),
    reserved=(DELIVERY_QUANTITY,),
)
"""Trades as they come in: a row a trade; `quantity` in units of the symbol."""


class IdType(StrEnum):
    """Type of the trades' ids, which is also how they sort."""

    INTEGER = "integer"
    STRING = "string"


class Rule(StrEnum):
    """Which form of the rule runs; both give the same result."""

    VECTORISED = "vectorised"
    PER_COMPONENT = "per-component"


class DeliveryParameters(FileParameters):
    """Parameters of delivery marking."""

    trades: str = Field(
        description="URI or glob of the trades: CSV, JSON lines (gzip, zstd), Parquet or Avro; "
        "several are separated by commas"
    )
    trade_date: datetime.date = Field(
        description="the day to mark; trades of other days are left out"
    )
    id_type: IdType = Field(
        default=IdType.INTEGER, description="integer or string: ids sort as such"
    )
    rule: Rule = Field(
        default=Rule.VECTORISED,
        description="vectorised or per-component: the same rule as kernels over whole tables, or "
        "as plain Python for one component at a time",
    )


class DeliveryMarking(KeyedProcess[DeliveryParameters]):
    """The definition of delivery marking."""

    name = "delivery-marking"
    parameters_type = DeliveryParameters
    date_parameter = "trade_date"
    key = ("client_code", "symbol")
    distinct = ("clients", "client_code")

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The trades, with ids of the type asked for."""
        is_string = self.parameters.id_type is IdType.STRING
        return (
            RowInput(
                "trades",
                TRADES.with_type("id", pa.string() if is_string else pa.int64()),
                order="id",
                date_column="trade_date",
                amounts=("quantity",),
                ids=("id",),
            ),
        )

    def execute_components(self, components: Components) -> pa.Table:
        """Mark the trades of each client and symbol."""
        is_vectorised = self.parameters.rule is Rule.VECTORISED
        mark = mark_deliveries if is_vectorised else mark_each
        return components.table.append_column(DELIVERY_QUANTITY, mark(components))

    def result_totals(self, results: Components) -> Totals:
        """All trades are there; what is delivered, and what is net, signs left out."""
        nets = net_quantities(results)
        if isinstance(nets, list):
            net_total = sum(map(abs, nets))
        else:
            net_total = exact_sum(pa.chunked_array([pa.array(np.abs(nets))]))
        return {
            "rows": results.table.num_rows,
            "quantity": exact_sum(results.table.column("quantity")),
            "id_hash": id_hash(results.table, ("id",)),
            "delivery_quantity": exact_sum(results.table.column(DELIVERY_QUANTITY)),
            "net_quantity": net_total,
        }

    def controls(self, totals: Totals) -> list[Control]:
        """What is delivered is what is net."""
        return [
            Control(
                name="delivery quantity = net quantity of the components",
                expected=totals["net_quantity"],
                actual=totals["delivery_quantity"],
            )
        ]


PROCESS = DeliveryMarking
"""What `ledgerbeam` runs and verifies under this module's name."""


def main(arguments: list[str] | None = None) -> int:
    """Run the workload from the command line; returns the exit status."""
    return run_module(DeliveryMarking, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
