"""Delivery marking: a day's trades in, each with its delivery quantity out.

    ledgerbeam run delivery-marking --trades='trades/*' --trade-date=2026-11-20 --output=results

The rule is in `ledgerbeam.rules.delivery`. The output holds every trade of the date with all its
input columns and `delivery_quantity`, sorted by client, symbol and id within each part.
"""

import datetime
import sys
from collections.abc import Mapping
from enum import StrEnum

import numpy as np
import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.launch import run_module
from ledgerbeam.batch.process import KeyedProcess, Parameters
from ledgerbeam.io.attempts import Control, Totals
from ledgerbeam.io.contract import Column, Contract
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.delivery import BUY, SELL, mark_deliveries, mark_each, net_quantities
from ledgerbeam.transforms.hashing import hash_column, order_independent

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


class DeliveryParameters(Parameters):
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
    input_parameter = "trades"
    key = ("client_code", "symbol")
    order = "id"
    date_column = "trade_date"
    rows_are = "trades"
    distinct = ("clients", "client_code")

    @property
    def business_date(self) -> datetime.date:
        """The trade date."""
        return self.parameters.trade_date

    @property
    def contract(self) -> Contract:
        """Trades, with ids of the type asked for."""
        is_string = self.parameters.id_type is IdType.STRING
        return TRADES.with_type("id", pa.string() if is_string else pa.int64())

    def execute(self, components: Components) -> Mapping[str, pa.Array]:
        """Mark the trades of each client and symbol."""
        is_vectorised = self.parameters.rule is Rule.VECTORISED
        mark = mark_deliveries if is_vectorised else mark_each
        return {DELIVERY_QUANTITY: mark(components)}

    def row_totals(self, table: pa.Table) -> Totals:
        """Quantity traded, and a hash of the ids that doesn't depend on their order."""
        return {
            "quantity": exact_sum(table.column("quantity")),
            "id_hash": order_independent(hash_column(table.column("id"))),
        }

    def component_totals(self, components: Components) -> Totals:
        """Quantity delivered, and the sum of the components' net quantities, signs left out."""
        nets = net_quantities(components)
        if isinstance(nets, list):
            net_total = sum(map(abs, nets))
        else:
            net_total = exact_sum(pa.chunked_array([pa.array(np.abs(nets))]))
        delivered = exact_sum(components.table.column(DELIVERY_QUANTITY))
        return {"delivery_quantity": delivered, "net_quantity": net_total}

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


def exact_sum(column: pa.ChunkedArray) -> int:
    """Sum of an int64 column without nulls, as a Python integer that can't overflow."""
    total = 0
    for chunk in column.chunks:
        values = chunk.to_numpy()
        low = (values & 0xFFFFFFFF).astype(np.uint64)
        total += (int((values >> 32).sum()) << 32) + int(low.sum())
    return total


def main(arguments: list[str] | None = None) -> int:
    """Run the workload from the command line; returns the exit status."""
    return run_module(DeliveryMarking, __doc__ or "", arguments)


if __name__ == "__main__":
    # Not from here: what is pickled to workers must live in an importable module.
    from ledgerbeam.pipelines.delivery_marking import main as importable_main

    sys.exit(importable_main())
