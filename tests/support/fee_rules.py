"""A process with two rules, in its two forms; workers import it."""

import datetime
import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field
from tests.support.processes import DAY, MONEY

from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.define.process import Record, Retry
from ledgerbeam.io.commit.records import Totals
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.rules.components import Component, Components
from ledgerbeam.rules.rollout import Rollout
from ledgerbeam.transforms.columnar.totals import sums_by_currency

LATE = Contract(
    (
        Column("client", pa.string()),
        Column("loan", pa.string()),
        Column("number", pa.int64()),
        Column("overdue", MONEY),
    )
)
CLIENTS = 300


class FeeParameters(FileParameters):
    late: Annotated[str, RowInput(LATE, order="number", amounts=("overdue",))] = Field(
        description="files of late payments"
    )
    business_date: datetime.date = Field(default=DAY, description="the day")
    folder: str = Field(default="", description="where `faults.json` says whose call fails")


class _Fees(KeyedProcess[FeeParameters]):
    key = ("client", "loan")
    results: ClassVar[pa.Schema | None] = pa.schema([("number", pa.int64()), ("fee", MONEY)])
    retry = Retry(tries=1)
    failure_limit = 100
    rollout = Rollout(
        stages=("list", "1%", "30%", "100%"), customers=("C7",), salt="fees", failures=2
    )

    def fault_of(self, clients: Sequence[str]) -> None:
        path = Path(self.parameters.folder, "faults.json")
        faults = json.loads(path.read_text()) if self.parameters.folder and path.exists() else []
        if set(faults) & set(clients):
            raise ValueError("no fee for them")

    def result_totals(self, results: Components) -> Totals:
        return sums_by_currency(results.table, "fee", "")


class FeesEach(_Fees):
    """By functions of one component."""

    name = "fees-each"

    def flat(self, component: Component) -> Iterator[Record]:
        for number in component.values("number"):
            yield {"number": number, "fee": Decimal("15.00")}

    def by_amount(self, component: Component) -> Iterator[Record]:
        self.fault_of([component.key[0]])
        for number, overdue in zip(
            component.values("number"), component.values("overdue"), strict=True
        ):
            yield {"number": number, "fee": overdue / 20}

    rules = {1: flat, 2: by_amount}  # noqa: RUF012 - as users write it


class FeesTable(_Fees):
    """By functions of many."""

    name = "fees-table"
    results = None

    def flat(self, components: Components) -> pa.Table:
        count = components.table.num_rows
        return self._with(components, pa.array([Decimal("15.00")] * count, MONEY))

    def by_amount(self, components: Components) -> pa.Table:
        self.fault_of(components.values("client"))
        return self._with(
            components, pc.divide(components.column("overdue"), pa.scalar(Decimal(20))).cast(MONEY)
        )

    def _with(self, components: Components, fees: Any) -> pa.Table:
        rows = components.table.select(["client", "loan", "number"])
        return rows.append_column("fee", fees)

    rules = {1: flat, 2: by_amount}  # noqa: RUF012 - as users write it


def late_rows(clients: int = CLIENTS) -> list[dict[str, Any]]:
    """Two loans for each client, one of two payments."""
    return [
        {"client": f"C{n}", "loan": loan, "number": number, "overdue": Decimal(20 * (n + 1))}
        for n in range(clients)
        for loan, number in (("A", 1), ("A", 2), ("B", 1))
    ]


def write_late(folder: Path, clients: int = CLIENTS) -> str:
    """Write `late_rows` to a file in a folder; gives its path."""
    schema = pa.schema([(column.name, column.type) for column in LATE.columns])
    table = pa.Table.from_pylist(late_rows(clients), schema)
    pq.write_table(table, folder / "late.parquet")
    return str(folder / "late.parquet")


def fees(kind: Any, late: str, day: int = 20) -> Any:
    """A definition whose results and faults are beside its input."""
    folder = str(Path(late).parent)
    values = {
        "late": late,
        "output": f"{folder}/output",
        "folder": folder,
        "business_date": f"2026-11-{day}",
        "shards": 3,
    }
    return kind(FeeParameters.model_validate(values))
