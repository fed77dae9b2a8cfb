"""A batch process of as many components as rows, executed one by one: the framework at its worst.

python net_position.py --trades=GLOB --business-date=DATE --output=FOLDER --json
"""

import datetime
import sys
from collections.abc import Iterable
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.define.process import Record
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.rules.components import Component

TRADES = Contract(
    (
        Column("id", pa.int64()),
        Column("side", pa.string(), dictionary_encoded=True, one_of=("B", "S")),
        Column("quantity", pa.int64(), minimum=0),
        Column("trade_date", pa.date32()),
    )
)


def net(sides: list[str], quantities: list[int]) -> int:
    """What was bought less what was sold: what every contender calls once a component."""
    return sum(q if s == "B" else -q for s, q in zip(sides, quantities, strict=True))


class NetParameters(FileParameters):
    """Parameters of the net position."""

    trades: Annotated[
        str, RowInput(TRADES, "id", date_column="trade_date", amounts=("quantity",))
    ] = Field(description="Parquet files of trades")
    business_date: datetime.date = Field(description="the day")


class NetPosition(KeyedProcess[NetParameters]):
    """The net quantity of each trade."""

    name = "net-position"
    key = ("id",)
    results = pa.schema([("net_quantity", pa.int64())])

    def execute(self, component: Component) -> Iterable[Record]:
        """One row for one trade."""
        return [{"net_quantity": net(component.values("side"), component.values("quantity"))}]


if __name__ == "__main__":
    sys.exit(main(NetPosition))
