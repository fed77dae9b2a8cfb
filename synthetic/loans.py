"""A portfolio of loans and its history, made up: skewed, late, partial, reversed.

A loan and all its transactions are a function of the seed and of the loan's number, so that the
same portfolio comes out whatever the format and the number of files, and any part of it can be made
without the others.

Loans are boarded at the end of the month before the history begins, with every instalment paid
until then. Investors follow a Zipf-Mandelbrot law, the first with a fifth of all loans; each has a
few pools, of one currency and one remittance type. Of the borrowers, 40% pay once a month, 35% in
two parts and 25% in four, so that most money is first held in suspense. One instalment in forty
comes a month or more late, some never; one payment part in a hundred and fifty bounces, is
reversed and paid again; others are back-dated, curtailed, or ended by a payoff to the cent; a
twentieth of the loans change their rate once.

Bad rows are added, evenly spread; all other rows stay the same. The kinds of bad rows: a
transaction for an unknown loan, a loan of an unknown investor, a rate change in the past, a second
loan with the id of another, an amount of three decimals (in CSV; negative in Parquet), a loan in
another currency than its pool, and a transaction before the loan's origination.
"""

import datetime
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ledgerbeam.io.errors import ParameterError, UserError
from ledgerbeam.io.storage import stores, uris
from ledgerbeam.synthetic.draws import Draws, Integers, zipf_mandelbrot
from ledgerbeam.synthetic.formats import LoanFormat
from ledgerbeam.synthetic.loan_history import History, Portfolio, loan_columns, transactions

BLOCK = 4_000
"""Number of loans that are made at once."""

AMOUNT = pa.decimal128(18, 2)
PERCENT = pa.decimal128(9, 6)

LOANS = pa.schema(
    {
        "loan_id": pa.string(),
        "investor_id": pa.string(),
        "pool_id": pa.string(),
        "currency": pa.string(),
        "participation": PERCENT,
        "day_count": pa.string(),
        "origination_date": pa.date32(),
        "maturity_date": pa.date32(),
        "due_day": pa.int64(),
        "escrow_payment": AMOUNT,
        "closed_through": pa.date32(),
        "balance": AMOUNT,
        "scheduled_balance": AMOUNT,
        "rate": PERCENT,
        "payment": AMOUNT,
        "next_due": pa.date32(),
        "accrued_from": pa.date32(),
        "late_fees_through": pa.date32(),
    }
)
"""Loans as they are boarded.

`rate` is percent a year; `payment` is the principal and interest of an instalment, due on `due_day`
of each month; `participation` is the investor's percentage. The columns from `closed_through` on
are the state on that day: `balance` is the unpaid principal, `scheduled_balance` the balance down
to which the investor was paid, `next_due` the due date of the oldest unpaid instalment,
`accrued_from` the start of its interest.
"""

TRANSACTIONS = pa.schema(
    {
        "transaction_id": pa.int64(),
        "loan_id": pa.string(),
        "kind": pa.string(),
        "effective_date": pa.date32(),
        "posted_date": pa.date32(),
        "amount": AMOUNT,
        "currency": pa.string(),
        "reverses": pa.int64(),
        "rate": PERCENT,
        "payment": AMOUNT,
    }
)
"""Transactions of the loans since they were boarded.

`kind` is payment, curtailment, payoff, reversal (of the transaction that `reverses` names) or
rate_change (to `rate` and `payment`); these three columns are null otherwise. `amount` is 0 for
reversals and changes of the rate. Within each block of loans, rows are in the order of posting.
"""

INVESTORS = pa.schema(
    {
        "investor_id": pa.string(),
        "name": pa.string(),
        "remittance_type": pa.string(),
        "servicing_fee": PERCENT,
        "guaranty_fee": PERCENT,
    }
)
"""Investors: `remittance_type` is A/A, S/A or S/S; the fees are percent a year of the balance."""


class GeneratedLoans(NamedTuple):
    """What `write_loans` has written.

    Attributes:
        uris: URIs of the files.
        loans: number of rows of loans, bad ones included.
        transactions: number of rows of transactions, bad ones included.
        size: total size in bytes.
    """

    uris: list[str]
    loans: int
    transactions: int
    size: int


class Tables(NamedTuple):
    """Loans and their transactions, with the schemas `LOANS` and `TRANSACTIONS`."""

    loans: pa.Table
    transactions: pa.Table


def make_loans(
    count: int,
    *,
    business_date: datetime.date,
    months: int = 24,
    investors: int = 40,
    seed: int = 7,
    bad_rows: int = 0,
    numbers: range | None = None,
) -> Iterator[Tables]:
    """Make loans and their transactions up to the business date, block by block.

    Args:
        count: number of loans of the whole portfolio, without bad rows.
        business_date: the last day on which anything is posted.
        months: months of history, including the month of the business date.
        investors: number of investors.
        seed: another seed gives another portfolio.
        bad_rows: how many wrong rows to add, each wrong for one reason.
        numbers: numbers of the loans to make; by default all.

    Raises:
        ValueError: a number is out of its range.
    """
    for name, value, least in (
        ("count", count, 0), ("months", months, 1), ("investors", investors, 1),
        ("bad_rows", bad_rows, 0),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if bad_rows and not count:
        raise ValueError(f"bad_rows={bad_rows} need loans to go with, and count is 0")
    portfolio = Portfolio(Draws(seed), business_date, months, zipf_mandelbrot(investors, 1.5))
    wanted = range(count) if numbers is None else numbers
    return (
        _with_bad_rows(portfolio, block, count, bad_rows)
        for start in range(wanted.start, wanted.stop, BLOCK)
        if len(block := range(start, min(start + BLOCK, wanted.stop)))
    )


def investor_table(investors: int = 40) -> pa.Table:
    """The investors, with the schema `INVESTORS`: types in turn, fees as those of agencies."""
    numbers = np.arange(investors)
    return pa.table(
        [
            pa.array([f"I{number + 1:04}" for number in numbers]),
            pa.array([f"Investor {number + 1}" for number in numbers]),
            pa.array(["S/S", "A/A", "S/A"]).take(pa.array(numbers % 3)),
            decimals(np.full(investors, 250_000), PERCENT),
            decimals(np.array([200_000, 0, 187_500])[numbers % 3], PERCENT),
        ],
        schema=INVESTORS,
    )


def write_loans(
    output: str,
    count: int,
    *,
    files: int = 8,
    format: LoanFormat = "parquet",  # noqa: A002 - what it is called on command lines
    progress: Callable[[int], None] | None = None,
    investors: int = 40,
    **portfolio: Any,
) -> GeneratedLoans:
    """Write the portfolio that `make_loans` gives to files.

    Args:
        output: URI of the folder; the files are `loans-00000-of-00008.parquet`,
            `transactions-00000-of-00008.parquet` and so on, and `investors.parquet`.
        count: number of loans, without bad rows.
        files: number of files for the loans, and again for the transactions.
        format: file format; Parquet is compressed by snappy.
        progress: called with the number of loans that were written since its last call.
        investors: number of investors.
        **portfolio: other arguments of `make_loans`.

    Raises:
        UserError: the folder holds a portfolio already, or can't be written.
        ValueError: a number is out of its range.
    """
    if files < 1:
        raise ValueError(f"files={files} must be at least 1")
    for name in ("loans-*", "transactions-*", "investors.*"):
        if present := stores.find(uris.join(uris.escape(output), name)):
            raise _exists(present[0].uri)
    written = _Writer(output, format)
    for number in range(files):
        numbers = range(count * number // files, count * (number + 1) // files)
        made = make_loans(count, investors=investors, numbers=numbers, **portfolio)
        name = f"{number:05}-of-{files:05}"
        written.write_pair(name, _reporting(made, progress))
    written.write_one("investors", INVESTORS, [investor_table(investors)])
    return GeneratedLoans(written.uris, written.rows[0], written.rows[1], written.size)


class _Writer:
    """Writes files that are created once, as a whole."""

    def __init__(self, output: str, format_: LoanFormat) -> None:
        self.output, self.format = output, format_
        self.uris: list[str] = []
        self.rows = [0, 0]
        self.size = 0

    def write_pair(self, name: str, made: Iterator[Tables]) -> None:
        """Write loans and transactions at the same time, without holding either in memory."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, kind) for kind in ("loans", "transactions")]
            with (
                self._open(paths[0], LOANS) as loans,
                self._open(paths[1], TRANSACTIONS) as transactions,
            ):
                for tables in made:
                    for at, (writer, table) in enumerate(
                        zip((loans, transactions), tables, strict=True)
                    ):
                        writer.write_table(self._as_written(table))
                        self.rows[at] += table.num_rows
            for path in paths:
                self._create(f"{path.name}-{name}", path)

    def write_one(self, name: str, schema: pa.Schema, tables: list[pa.Table]) -> None:
        """Write a single file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            with self._open(path, schema) as writer:
                for table in tables:
                    writer.write_table(self._as_written(table))
            self._create(name, path)

    def _open(self, path: Path, schema: pa.Schema) -> Any:
        if self.format == "parquet":
            return pq.ParquetWriter(str(path), schema, compression="snappy")
        text = pa.schema([(name, pa.string()) for name in schema.names])
        options = pa_csv.WriteOptions(quoting_style="none")
        return pa_csv.CSVWriter(str(path), text, write_options=options)

    def _as_written(self, table: pa.Table) -> pa.Table:
        if self.format == "parquet":
            return table
        columns = {name: table.column(name).cast(pa.string()) for name in table.column_names}
        if "transaction_id" in columns:
            amount = columns["amount"]
            words = pc.binary_join_element_wise(pc.utf8_slice_codeunits(amount, 1), "5", "")
            columns["amount"] = pc.if_else(pc.starts_with(amount, "-"), words, amount)
        return pa.table(columns)

    def _create(self, name: str, path: Path) -> None:
        uri = uris.join(self.output, f"{name}.{self.format}")
        with pa.memory_map(str(path)) as file:
            if not stores.create(uri, file.read_buffer()):
                raise _exists(uri)
        self.uris.append(uri)
        self.size += path.stat().st_size


_UNKNOWN_LOAN, _UNKNOWN_INVESTOR, _LATE_RATE, _TWIN, _AMOUNT, _CURRENCY, _EARLY = range(7)


def _with_bad_rows(portfolio: Portfolio, block: range, count: int, bad_rows: int) -> Tables:
    history = transactions(portfolio, np.arange(block.start, block.stop))
    loans = _loan_table(loan_columns(history))
    rows = _transaction_table(history)
    if not bad_rows:
        return Tables(loans, rows)
    first = -(-block.start * bad_rows // count)
    bad = np.arange(first, -(-block.stop * bad_rows // count))
    # If there are more bad rows than loans, several belong to one loan.
    at = np.minimum(bad * count // bad_rows - block.start, len(block) - 1)
    kind = bad % 7
    return Tables(
        pa.concat_tables([loans, _bad_loans(loans, bad, at, kind)]),
        pa.concat_tables([rows, _bad_transactions(loans, bad, at, kind, portfolio)]),
    )


def _bad_loans(loans: pa.Table, bad: Integers, at: Integers, kind: Integers) -> pa.Table:
    is_loan = np.isin(kind, [_UNKNOWN_INVESTOR, _TWIN, _CURRENCY])
    bad, at, kind = bad[is_loan], at[is_loan], kind[is_loan]
    table = loans.take(pa.array(at))
    new_id = pa.array([f"B{number:09}" for number in bad.tolist()], pa.string())
    for name, values, mask in (
        ("loan_id", new_id, kind != _TWIN),
        ("investor_id", "I9999", kind == _UNKNOWN_INVESTOR),
        ("currency", "XTS", kind == _CURRENCY),
    ):
        column = pc.if_else(pa.array(mask), values, table.column(name))
        table = table.set_column(table.column_names.index(name), name, column)
    return table.cast(LOANS)


def _bad_transactions(
    loans: pa.Table, bad: Integers, at: Integers, kind: Integers, portfolio: Portfolio
) -> pa.Table:
    is_row = np.isin(kind, [_UNKNOWN_LOAN, _LATE_RATE, _AMOUNT, _EARLY])
    bad, at, kind = bad[is_row], at[is_row], kind[is_row]
    loans = loans.take(pa.array(at))
    is_rate = kind == _LATE_RATE
    today = np.full(len(bad), portfolio.business_date, "datetime64[D]")
    early = loans.column("origination_date").to_numpy() - np.timedelta64(10, "D")
    effective = np.where(kind == _EARLY, early, today - is_rate.astype(np.int64))
    amount = np.where(kind == _AMOUNT, -100_12, np.where(is_rate, 0, 100_00))
    unknown = pa.array([f"X{number:09}" for number in bad.tolist()], pa.string())
    nothing = pa.nulls(len(bad), pa.int64())
    return pa.table(
        [
            pa.array(10**15 + bad),
            pc.if_else(pa.array(kind == _UNKNOWN_LOAN), unknown, loans.column("loan_id")),
            pc.if_else(pa.array(is_rate), "rate_change", "payment"),
            pa.array(effective.astype("datetime64[D]")),
            pa.array(today),
            decimals(amount, AMOUNT),
            loans.column("currency"),
            nothing,
            _masked(np.where(is_rate, 5_000_000, -1), PERCENT),
            _masked(np.where(is_rate, 1_000_00, -1), AMOUNT),
        ],
        schema=TRANSACTIONS,
    )


def _loan_table(columns: dict[str, npt.NDArray[Any]]) -> pa.Table:
    names = {
        "loan_id": ("L{:09}", columns["number"] + 1),
        "investor_id": ("I{:04}", columns["investor"] + 1),
    }
    arrays = []
    for field in LOANS:
        if field.name in names:
            arrays.append(_named(*names[field.name]))
        elif field.name == "pool_id":
            pool = columns["investor"] * 100 + columns["pool"] + 101
            arrays.append(_named("P{:06}", pool))
        elif pa.types.is_string(field.type):
            arrays.append(pa.array(columns[field.name].tolist(), pa.string()))
        elif pa.types.is_decimal(field.type):
            arrays.append(decimals(columns[field.name], field.type))
        else:
            arrays.append(pa.array(columns[field.name], field.type))
    return pa.table(arrays, schema=LOANS)


def _transaction_table(history: History) -> pa.Table:
    kinds = pa.array(["payment", "curtailment", "payoff", "reversal", "rate_change"])
    return pa.table(
        [
            pa.array(history.transaction_id),
            _named("L{:09}", history.numbers + 1).take(pa.array(history.loan)),
            kinds.take(pa.array(history.kind)),
            pa.array(history.effective_date),
            pa.array(history.posted_date),
            decimals(history.amount, AMOUNT),
            pa.array(history.currency.tolist(), pa.string()).take(pa.array(history.loan)),
            pa.array(history.reverses, mask=history.reverses < 0),
            _masked(history.rate, PERCENT),
            _masked(history.payment, AMOUNT),
        ],
        schema=TRANSACTIONS,
    )


def decimals(units: Integers, type_: pa.Decimal128Type) -> pa.Array:
    """Decimals from integers in units of the type's last decimal."""
    words = np.empty((len(units), 2), np.int64)  # decimal128: low half, high half
    words[:, 0] = units
    words[:, 1] = units >> 63
    return pa.Array.from_buffers(type_, len(units), [None, pa.py_buffer(words)])


def _masked(units: Integers, type_: pa.Decimal128Type) -> pa.Array:
    """Decimals, null if the integer is negative."""
    is_null = pa.array(units < 0)
    return pc.if_else(is_null, pa.scalar(None, type_), decimals(units, type_))


def _named(pattern: str, numbers: Integers) -> pa.StringArray:
    return pa.array([pattern.format(number) for number in numbers.tolist()], pa.string())


def _reporting(made: Iterator[Tables], progress: Callable[[int], None] | None) -> Iterator[Tables]:
    for tables in made:
        yield tables
        if progress is not None:
            progress(tables.loans.num_rows)


def _exists(uri: str) -> UserError:
    return ParameterError(
        f"{uri} exists already: a portfolio is never written over: choose another folder, or "
        "delete the one in this",
        parameter="--output",
        value=uri,
    )
