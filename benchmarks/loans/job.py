"""What the loan contenders share: their arguments, and the plain rules on rows as dictionaries."""

import datetime
import sys
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.loans.book import STATE_SCHEMA, TRANSACTION_SCHEMA
from ledgerbeam.rules.loans.entries import ENTRY_SCHEMA
from ledgerbeam.rules.loans.loan import (
    Policy,
    RateChange,
    State,
    Terms,
    Transaction,
    in_minor_units,
)
from ledgerbeam.rules.loans.tables import NUMBERS, OPENING
from ledgerbeam.rules.loans.terms_columns import TERMS_SCHEMA
from ledgerbeam.rules.remittance.remit import Investor
from ledgerbeam.rules.remittance.report_line import Holding, report_line
from ledgerbeam.rules.remittance.report_line_many import REPORT_SCHEMA
from ledgerbeam.rules.schedules.schedule import Loan, ScheduledInstalment, schedule
from ledgerbeam.rules.terms.day_count import DayCount

Row = dict[str, Any]

INSTALMENTS = pa.schema(
    [
        ("loan_id", pa.string()),
        ("number", pa.int32()),
        ("due_date", pa.date32()),
        *((name, pa.decimal128(18, 2)) for name in ScheduledInstalment._fields[2:6]),
    ]
)
SCHEMAS = {"schedules": INSTALMENTS, "report": REPORT_SCHEMA}


class Job(NamedTuple):
    """What to do.

    Attributes:
        workload: `schedules`, `report` or `close of business`.
        folder: of the portfolio.
        output: folder for the result.
        business_date: of the report.
    """

    workload: str
    folder: Path
    output: Path
    business_date: datetime.date

    @property
    def loans(self) -> str:
        """Glob of the loans."""
        return str(self.folder / self._room / "loans-*.parquet")

    @property
    def transactions(self) -> str:
        """Glob of the transactions."""
        return str(self.folder / self._room / "transactions-*.parquet")

    @property
    def _room(self) -> str:
        return {"schedules": "schedules", "report": "month"}.get(self.workload, "day")

    @property
    def schema(self) -> pa.Schema:
        """Of the result: closed loans have the columns that they came with."""
        first = min(self.folder.joinpath(self._room).glob("loans-*.parquet"))
        return SCHEMAS.get(self.workload) or pq.read_schema(first)

    def investors(self) -> dict[str, Investor]:
        """The investors by their ids."""
        # Imports Beam, which not all contenders need.
        from ledgerbeam.pipelines.investor_report import investors_of

        return investors_of(pq.read_table(self.folder / "month" / "investors.parquet"))


def job() -> Job:
    """The job that the command line asks for."""
    workload, folder, output, date = sys.argv[1:]
    Path(output).mkdir(parents=True, exist_ok=True)
    return Job(workload, Path(folder), Path(output), datetime.date.fromisoformat(date))


def instalments_of(loan: Row) -> list[Row]:
    """All instalments of a loan."""
    made = schedule(Loan(**{name: loan[name] for name in Loan._fields if name in loan}))
    return [{"loan_id": loan["loan_id"], **each._asdict()} for each in made]


def line_of(
    loan: Row, rows: Iterable[Row], investors: dict[str, Investor], date: datetime.date
) -> Row:
    """The line of a loan in the report."""
    terms = _terms(loan)
    state = _state(loan)
    holding = Holding(*(_plain(name, loan[name]) for name in Holding._fields))
    investor = investors[holding.investor_id]
    transactions = [_transaction(row) for row in rows]
    line, money, rejections = report_line(
        terms, holding, investor, state, transactions, date, Policy()
    )
    return _as_row((*line, *money, rejections))


def closed_of(loan: Row, rows: Iterable[Row], date: datetime.date) -> tuple[Row, list[Row]]:
    """A loan in its new state, and the entries made."""
    closed, entries = close(
        _terms(loan),
        State(**{name: _plain(name, loan[OPENING + name]) for name in NUMBERS}),
        _state(loan),
        [_transaction(row) for row in rows],
        date,
        Policy(),
    )
    state = {name: _decimal(name, getattr(closed, name)) for name in NUMBERS}
    booked = [
        {name: _decimal(name, value) for name, value in entry._asdict().items()}
        for entry in entries
    ]
    changes = "; ".join(
        f"{day} {Decimal(rate).scaleb(-6)} {Decimal(payment).scaleb(-2)}"
        for day, rate, payment in closed.rate_changes
    )
    return loan | state | {"rate_changes": changes or None}, [
        {"loan_id": loan["loan_id"], **entry} for entry in booked
    ]


def _terms(loan: Row) -> Terms:
    names = [name for name in Terms._fields if name in TERMS_SCHEMA.names and name in loan]
    return Terms(**{name: _plain(name, loan[name]) for name in names})


def _state(loan: Row) -> State:
    numbers = {name: _plain(name, loan[name]) for name in NUMBERS}
    return State(**numbers, rate_changes=_changes(loan["rate_changes"]))


def _changes(text: str | None) -> tuple[RateChange, ...]:
    changes = []
    for change in filter(None, (text or "").split("; ")):
        day, rate, payment = change.split()
        changes.append(
            RateChange(
                datetime.date.fromisoformat(day),
                in_minor_units(Decimal(rate), 6),
                in_minor_units(Decimal(payment), 2),
            )
        )
    return tuple(changes)


def _transaction(row: Row) -> Transaction:
    return Transaction(**{name: _plain(name, row[name]) for name in Transaction._fields})


_SCALES = {
    field.name: field.type.scale
    for schema in (STATE_SCHEMA, TERMS_SCHEMA, TRANSACTION_SCHEMA, ENTRY_SCHEMA)
    for field in schema
    if pa.types.is_decimal(field.type)
} | {"participation": 6, "scheduled_balance": 2}


def _plain(name: str, value: Any) -> Any:
    if name == "day_count":
        return DayCount(value)
    return in_minor_units(value, _SCALES[name]) if name in _SCALES and value is not None else value


def _decimal(name: str, value: Any) -> Any:
    scale = _SCALES.get(name)
    return value if scale is None else Decimal(value).scaleb(-scale)


def _as_row(values: tuple[Any, ...]) -> Row:
    return {
        field.name: Decimal(value).scaleb(-2) if pa.types.is_decimal(field.type) else value
        for field, value in zip(REPORT_SCHEMA, values, strict=True)
    }
