"""Close of business for tests: definitions for workers to import, and the same in plain Python."""

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.define.process import instance_uri
from ledgerbeam.batch.define.results import Results
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.pipelines.loan_close_of_business import CloseParameters, LoanCloseOfBusiness
from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.loans.loan import (
    AMOUNTS,
    RATE_SCALE,
    Policy,
    State,
    Terms,
    Transaction,
    TransactionKind,
    in_minor_units,
)
from ledgerbeam.rules.terms.day_count import DayCount
from ledgerbeam.synthetic.loans import LOANS, make_loans

LAST = datetime.date(2026, 3, 20)
BOARDED = datetime.date(2025, 12, 31)

Row = dict[str, Any]


class FaultyClose(LoanCloseOfBusiness):
    """Fails for the loans that a file beside its output names."""

    def execute_components(self, components: Components) -> Results:
        path = Path(self.parameters.output, "faults")
        faults = path.read_text().split() if path.exists() else []
        for loan in components.values("loan_id"):
            if loan in faults:
                raise ValueError(f"{loan} has no account")
        return super().execute_components(components)


class LosingClose(LoanCloseOfBusiness):
    """Loses an entry of a payment."""

    def execute_components(self, components: Components) -> Results:
        results = super().execute_components(components)
        found = results.tables["receipts"]
        short = found.set_column(4, "applied", pa.compute.negate(found.column("applied")))
        return results._replace(tables={**results.tables, "receipts": short})


def portfolio(count: int = 40, months: int = 3, bad_rows: int = 0) -> tuple[pa.Table, pa.Table]:
    """Loans and transactions up to `LAST`."""
    made = list(make_loans(count, business_date=LAST, months=months, bad_rows=bad_rows, seed=11))
    return (
        pa.concat_tables([tables.loans for tables in made]),
        pa.concat_tables([tables.transactions for tables in made]),
    )


def parameters_of(folder: Path, date: datetime.date = LAST, **others: Any) -> CloseParameters:
    """Parameters for the files in a folder."""
    values: dict[str, Any] = {
        "loans": str(folder / "loans.parquet"),
        "transactions": str(folder / "transactions.parquet"),
        "business_date": date,
        "output": str(folder / "results"),
    }
    return CloseParameters.model_validate(values | others)


def write_portfolio(folder: Path, loans: pa.Table, transactions: pa.Table) -> None:
    """The files that `parameters_of` names."""
    pq.write_table(loans, folder / "loans.parquet")
    pq.write_table(transactions, folder / "transactions.parquet")


def published(manifest: Manifest, table: str | None = None) -> list[Row]:
    """Rows of a published instance, by loan."""
    attempt = manifest.attempt
    uri = f"{attempt.parameters['output']}/{attempt.process}/{attempt.instance}"
    rows: list[Row] = read_published(uri, table).to_table().to_pylist()
    return sorted(rows, key=lambda row: row["loan_id"])


def close_files(folder: Path, date: datetime.date = LAST, /, **others: Any) -> Manifest:
    """Run the close of business over the files in a folder."""
    return run(LoanCloseOfBusiness(parameters_of(folder, date, **others)))


def uri_of(folder: Path, date: datetime.date = LAST, /, **others: Any) -> str:
    """Where that is published."""
    return instance_uri(LoanCloseOfBusiness(parameters_of(folder, date, **others)))


def plain_close(
    loans: pa.Table, transactions: pa.Table, date: datetime.date, policy: Policy
) -> tuple[dict[str, State], list[tuple[str, Any]]]:
    """The whole workload in plain Python: states by loan, and (loan, entry)."""
    by_loan: dict[str, list[Transaction]] = {row: [] for row in loans["loan_id"].to_pylist()}
    for row in transactions.to_pylist():
        by_loan[row.pop("loan_id")].append(_transaction(row))
    states, made = {}, []
    for row in sorted(loans.to_pylist(), key=lambda row: row["loan_id"]):
        opening = State(**{name: _whole(name, row[name]) for name in _OPENING})
        terms = Terms(
            **{name: _whole(name, row[name]) for name in _TERMS},
            day_count=DayCount(row["day_count"]),
        )
        closed = close(terms, opening, opening, by_loan[terms.loan_id], date, policy)
        states[terms.loan_id] = closed.state
        made += [(terms.loan_id, entry) for entry in closed.entries]
    return states, made


_OPENING = (
    "closed_through", "balance", "rate", "payment", "next_due", "accrued_from",
    "late_fees_through",
)  # fmt: skip
_TERMS = (
    "loan_id", "currency", "origination_date", "maturity_date", "due_day", "escrow_payment",
)  # fmt: skip
_MONEY = frozenset(LOANS.names) & {"balance", "payment", "escrow_payment"} | {*AMOUNTS}


def _transaction(row: Row) -> Transaction:
    values = {name: _whole(name, value) for name, value in row.items()}
    return Transaction(**{**values, "kind": TransactionKind(row["kind"])})


def _whole(name: str, value: Any) -> Any:
    if value is None or name not in _MONEY | {"rate"}:
        return value
    return in_minor_units(value, RATE_SCALE if name == "rate" else 2)


def states_of(rows: Iterable[Row]) -> dict[str, Row]:
    """Published loans by their ids, amounts as whole numbers."""
    money = {
        "balance", "payment", "brought", "accrued", "suspense", "fees", "escrow",
        "instalment_paid", "escrow_paid",
    }  # fmt: skip
    return {
        row["loan_id"]: {
            name: in_minor_units(value, 2)
            if name in money
            else in_minor_units(value, RATE_SCALE)
            if name == "rate"
            else value
            for name, value in row.items()
        }
        for row in rows
    }
