"""A batch process of as many components as rows, executed one by one: the framework at its worst.

python net_position.py --trades=GLOB --business-date=DATE --output=FOLDER --json
"""

import datetime
import sys
from collections.abc import Iterable

import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.launch import run_module
from ledgerbeam.batch.process import Record
from ledgerbeam.io.contract import Column, Contract
from ledgerbeam.rules.components import Component

TRADES = Contract(
    (
        Column("id", pa.int64()),
        Column("side", pa.string(), few_values=True, one_of=("B", "S")),
        Column("quantity", pa.int64(), minimum=0),
        Column("trade_date", pa.date32()),
    )
)


def net(sides: list[str], quantities: list[int]) -> int:
    """What was bought less what was sold: what every contender calls once a component."""
    return sum(q if s == "B" else -q for s, q in zip(sides, quantities, strict=True))


class NetParameters(FileParameters):
    """Parameters of the net position."""

    trades: str = Field(description="Parquet files of trades")
    business_date: datetime.date = Field(description="the day")


class NetPosition(KeyedProcess[NetParameters]):
    """The net quantity of each trade."""

    name = "net-position"
    parameters_type = NetParameters
    key = ("id",)
    results = pa.schema([("net_quantity", pa.int64())])

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The trades."""
        return (RowInput("trades", TRADES, "id", date_column="trade_date", amounts=("quantity",)),)

    def execute(self, component: Component) -> Iterable[Record]:
        """One row for one trade."""
        return [{"net_quantity": net(component.values("side"), component.values("quantity"))}]


if __name__ == "__main__":
    # Not from here: what is pickled must live in an importable module.
    from net_position import NetPosition as Importable

    sys.exit(run_module(Importable, __doc__ or "", None))
