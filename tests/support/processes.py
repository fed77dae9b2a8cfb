"""Definitions for tests: they are pickled to workers, and so live in a module of their own."""

import datetime
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ledgerbeam.batch.define.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.define.process import Record, Retry, RetryMode
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.pipelines.delivery_marking import DeliveryMarking
from ledgerbeam.rules.components import Component, Components

DAY = datetime.date(2026, 11, 20)
MONEY = pa.decimal128(18, 2)


def note(path: str | Path, line: str) -> None:
    """Add a line to a file, whole even if others do the same at once."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def noted(path: str | Path) -> list[str]:
    """The lines of such a file."""
    return Path(path).read_text().splitlines() if Path(path).exists() else []


class OneClientFails(DeliveryMarking):
    """Delivery marking in which one client fails, and may."""

    failure_limit = 1

    def execute_components(self, components: Components) -> pa.Table:
        if "C8" in components.values("client_code"):
            raise ValueError("C8 has no account")
        return super().execute_components(components)


PAYMENTS = Contract(
    (
        Column("account", pa.string(), dictionary_encoded=True),
        Column("number", pa.int64()),
        Column("amount", MONEY),
    )
)


class BalanceParameters(FileParameters):
    payments: Annotated[str, RowInput(PAYMENTS, order="number", amounts=("amount",))] = Field(
        description="files of payments"
    )
    business_date: datetime.date = Field(default=DAY, description="the day")
    folder: str = Field(description="holds `faults.json`, and what is noted of calls and hooks")
    book: str = Field(default="", description="which book is balanced")


FAULTS: Mapping[str, type[Exception]] = {
    "ValueError": ValueError,
    "OSError": OSError,
    "MemoryError": MemoryError,
}


def balances(payments: Iterable[tuple[int, Decimal]]) -> list[dict[str, Any]]:
    """The account's balance after each payment that isn't nothing; plain Python, for all forms."""
    balance, rows = Decimal("0.00"), []
    for number, amount in payments:
        balance += amount
        if amount:
            rows.append({"number": number, "balance": balance, "sign": "+" if amount > 0 else "-"})
    return rows


class _Balances(KeyedProcess[BalanceParameters]):
    """What the balance of each account was after each of its payments."""

    identity = ("book",)
    key = ("account",)
    distinct = ("accounts", "account")
    retry = Retry(first_delay=0.001)

    def fault_of(self, accounts: Sequence[str]) -> None:
        """Raise what `faults.json` says of one of the accounts."""
        folder = Path(self.parameters.folder)
        note(folder / "calls", " ".join(accounts))
        path = folder / "faults.json"
        faults: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        for account in accounts:
            if faults.get(account) in FAULTS:
                raise FAULTS[faults[account]](f"{account} is bad")

    def before(self) -> None:
        self._hook("before")

    def after(self, manifest: Manifest) -> None:
        self._hook(f"after {manifest.attempt.number}")

    def cleanup(self) -> None:
        self._hook("cleanup")

    def _hook(self, name: str) -> None:
        folder = Path(self.parameters.folder)
        note(folder / "hooks", name)
        if (folder / f"no-{name.partition(' ')[0]}").exists():
            raise OSError(f"{name} is not possible")


class Balances(_Balances):
    """By a function of many accounts."""

    name = "balances"

    def execute_components(self, components: Components) -> pa.Table:
        values = components.values("account")
        firsts = components.starts.tolist()
        self.fault_of([values[first] for first in firsts])
        numbers, amounts = components.values("number"), components.values("amount")
        rows = []
        for start, end in components.bounds():
            rows += balances(zip(numbers[start:end], amounts[start:end], strict=True))
        is_something = pc.not_equal(components.column("amount"), pa.scalar(Decimal(0), MONEY))
        table = components.table.filter(is_something).select(["account", "number"])
        for name, type_ in (("balance", MONEY), ("sign", pa.string())):
            column = pa.array([row[name] for row in rows], type_)
            # In the order of appearance, as a function may well do it.
            table = table.append_column(
                name, column.dictionary_encode() if name == "sign" else column
            )
        return table


class EachBalance(_Balances):
    """Account by account."""

    name = "balances"
    results = pa.schema(
        [("number", pa.int64()), ("balance", MONEY), pa.field("sign", pa.string(), nullable=False)]
    )

    def execute(self, component: Component) -> Iterator[Record]:
        (account,) = component.key
        self.fault_of([account])
        pairs = zip(component.values("number"), component.values("amount"), strict=True)
        for row in balances(pairs):
            match self.surprise(account):
                case "float":
                    yield {**row, "balance": float(row["balance"]) + 0.001}
                case "none":
                    yield {**row, "sign": None}
                case "column":
                    yield {**row, "surprise": 1}
                case _:
                    yield row

    def surprise(self, account: str) -> str:
        path = Path(self.parameters.folder, "faults.json")
        faults: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return faults.get(account, "")


class OneBalanceMayFail(Balances):
    failure_limit = 1


class AnyBalanceMayFail(Balances):
    failure_limit = "100%"


class AnyEachBalanceMayFail(EachBalance):
    failure_limit = "100%"


class AFifthMayFail(EachBalance):
    failure_limit = "20%"


class BalanceOnce(EachBalance):
    """Each account is called once only."""

    retry = Retry(RetryMode.AT_MOST_ONCE)
    failure_limit = "100%"


LOANS = Contract(
    (
        Column("branch", pa.int64()),
        Column("loan", pa.string()),
        Column("tranche", pa.int64()),
        Column("principal", MONEY),
        Column("currency", pa.string(), dictionary_encoded=True),
    )
)
TRANSACTIONS = Contract(
    (
        Column("number", pa.int64()),
        Column("branch", pa.int64()),
        Column("loan", pa.string(), dictionary_encoded=True),
        Column("booked_on", pa.date32(), required=False),
        Column("amount", MONEY),
        Column("currency", pa.string(), dictionary_encoded=True),
    )
)


class LoanParameters(FileParameters):
    loans: Annotated[
        str, RowInput(LOANS, "tranche", amounts=("principal",), currency="currency")
    ] = Field(description="files of loans")
    transactions: Annotated[
        str,
        RowInput(
            TRANSACTIONS,
            "number",
            date_column="booked_on",
            amounts=("amount",),
            currency="currency",
            ids=("number",),
        ),
    ] = Field(description="files of transactions")
    transactions_columns: str = Field(default="", description="as `columns`")
    business_date: datetime.date = Field(default=DAY, description="the day")


class Totals(beam.PTransform):
    """A report of the results' total, and one of their number."""

    def expand(self, results: beam.PCollection) -> beam.PCollection:
        total = (
            results
            | "Add" >> beam.Map(_outstanding)
            | "Total" >> beam.CombineGlobally(sum)
            | "TotalFile" >> beam.Map(_file, "total.txt")
        )
        rows = (
            results
            | "Count" >> beam.Map(_row_count)
            | "Rows" >> beam.CombineGlobally(sum)
            | "RowsFile" >> beam.Map(_file, "rows.txt")
        )
        return (total, rows) | "Reports" >> beam.Flatten()


def _outstanding(results: pa.Table) -> Decimal:
    return sum(results.column("outstanding").to_pylist(), Decimal("0.00"))


def _row_count(results: pa.Table) -> int:
    rows: int = results.num_rows
    return rows


def _file(value: int | Decimal, name: str) -> tuple[str, bytes]:
    return name, f"{value}\n".encode()


class Outstanding(KeyedProcess[LoanParameters]):
    """What is outstanding of each loan: its tranches, less what was paid."""

    name = "outstanding"
    key = ("branch", "loan")
    results = pa.schema([("outstanding", MONEY), ("paid", pa.int64())])

    def execute(self, component: Component) -> Iterable[Record]:
        paid = component.related("transactions").values("amount")
        outstanding = sum(component.values("principal")) - sum(paid)
        return [{"outstanding": outstanding, "paid": len(paid)}]

    def finish(self) -> beam.PTransform:
        return Totals()


AWKWARD_AMOUNTS = ("components", "failed", "unknown", "big_rows", "refused_amount", "result_rows")
AWKWARD = Contract(
    (
        Column("account", pa.string()),
        Column("id", pa.int64()),
        *(Column(name, MONEY) for name in AWKWARD_AMOUNTS),
    )
)


class AwkwardParameters(FileParameters):
    business_date: datetime.date
    first: Annotated[str, RowInput(AWKWARD, order="id", amounts=AWKWARD_AMOUNTS)]


class Awkward(KeyedProcess[AwkwardParameters]):
    """Passes rows on whose amounts are called as the framework's own totals are."""

    name = "awkward"
    key = ("account",)

    def execute_components(self, components: Components) -> pa.Table:
        return components.table
