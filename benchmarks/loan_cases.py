"""What the loan benchmarks are run on: portfolios made once and kept for the next time.

A portfolio of 24 months is closed through the end of the month before the last one, and through
the day before the last one; the contenders get the loans as they stood then, and what came in
since.
"""

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ledgerbeam.pipelines.investor_report import investors_of
from ledgerbeam.rules.book import States, TermsColumns, Transactions
from ledgerbeam.rules.close_many import close_many
from ledgerbeam.rules.loan import Policy
from ledgerbeam.rules.loan_month_columns import report_lines
from ledgerbeam.rules.money import decimals
from ledgerbeam.synthetic.loans import investor_table, make_loans

BUSINESS_DATE = datetime.date(2026, 11, 30)
MONTH_BEFORE = datetime.date(2026, 10, 31)
DAY_BEFORE = BUSINESS_DATE - datetime.timedelta(1)
MONTHS = 24
INSTALMENTS = 360
_BLOCK = 4_000
_FILES = 8


class LoanCase(NamedTuple):
    """A portfolio.

    Attributes:
        loans: how many there are.
        transactions: of all months.
        folder: holds `schedules`, `month`, `day` and `lines`.
    """

    loans: int
    transactions: int
    folder: Path


def portfolio(data: Path, loans: int, progress: Callable[[int], None]) -> LoanCase:
    """Make a portfolio, unless `data` holds it already."""
    folder = data / f"loans-{loans}"
    count = folder / "transactions.txt"
    if not folder.exists():
        # A name of its own until it is complete: what was interrupted is made again.
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        transactions = _write(partial, loans, progress)
        (partial / "transactions.txt").write_text(str(transactions))
        partial.rename(folder)
    return LoanCase(loans, int(count.read_text()), folder)


def _write(folder: Path, loans: int, progress: Callable[[int], None]) -> int:
    for name in ("schedules", "month", "day", "lines"):
        (folder / name).mkdir(parents=True)
    for name in ("month", "day"):
        pq.write_table(investor_table(), folder / name / "investors.parquet")
    investors = investors_of(investor_table())
    transactions = 0
    writers: dict[str, pq.ParquetWriter] = {}

    def write(name: str, table: pa.Table) -> None:
        if name not in writers:
            writers[name] = pq.ParquetWriter(folder / name, table.schema)
        writers[name].write_table(table)

    for file in range(_FILES):
        first, last = loans * file // _FILES, loans * (file + 1) // _FILES
        for start in range(first, last, _BLOCK):
            numbers = range(start, min(start + _BLOCK, last))
            (made,) = make_loans(loans, business_date=BUSINESS_DATE, months=MONTHS, numbers=numbers)
            transactions += made.transactions.num_rows
            write(f"schedules/loans-{file}.parquet", _to_schedule(numbers))
            book = _sorted_book(made.loans, made.transactions)
            states = book[1]
            for name, day in (("month", MONTH_BEFORE), ("day", DAY_BEFORE)):
                states = close_many(*book[:2], states, book[2], day, Policy()).states
                as_of = _with_state(made.loans, states)
                if name == "day":
                    # Boarded as of that day: past changes of rates belong to another book.
                    as_of = as_of.drop_columns("rate_changes")
                recent = _since(made.transactions, day)
                write(f"{name}/loans-{file}.parquet", as_of)
                write(f"{name}/transactions-{file}.parquet", recent)
                if name == "month":
                    rows, offsets = _by_loan(as_of, recent)
                    lines = report_lines(as_of, rows, offsets, investors, BUSINESS_DATE, Policy())
                    write(f"lines/lines-{file}.parquet", lines)
            progress(len(numbers))
    for writer in writers.values():
        writer.close()
    return transactions


def _to_schedule(numbers: range) -> pa.Table:
    """Loans of 360 months, each with other terms."""
    at = np.arange(numbers.start, numbers.stop)
    count = len(at)
    return pa.table(
        {
            "loan_id": pa.array([f"L{number:09}" for number in at.tolist()]),
            "currency": pa.array(["USD"] * count),
            "principal": decimals(5_000_000 + at * 7_919 % 95_000_000, pa.decimal128(18, 2)),
            "annual_rate_percent": decimals(
                2_000_000 + at * 125_000 % 6_000_000, pa.decimal128(10, 6)
            ),
            "day_count": pa.array(["30/360"] * count),
            "disbursed_on": pa.array((19_723 + at % 28).astype(np.int32)).view(pa.date32()),
            "frequency": pa.array(["P1M"] * count),
            "term": pa.array(np.full(count, INSTALMENTS)),
            "method": pa.array(["level"] * count),
        }
    )


def _sorted_book(
    loans: pa.Table, transactions: pa.Table
) -> tuple[TermsColumns, States, Transactions]:
    rows, offsets = _by_loan(loans, transactions)
    return (
        TermsColumns.from_table(loans),
        States.from_table(loans),
        Transactions.from_table(rows, offsets),
    )


def _by_loan(loans: pa.Table, rows: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Transactions in the order of loans, which are by id, and where those of each begin."""
    order = [("loan_id", "ascending"), ("transaction_id", "ascending")]
    rows = rows.sort_by(order).combine_chunks()
    names = rows.column("loan_id").to_numpy()
    starts = np.searchsorted(names, loans.column("loan_id").to_numpy())
    return rows, np.append(starts, rows.num_rows)


def _with_state(loans: pa.Table, states: States) -> pa.Table:
    """The loans with other states; the scheduled balance is taken for the actual one."""
    table = states.table()
    for name in table.column_names:
        if name in loans.column_names:
            loans = loans.drop_columns(name)
        loans = loans.append_column(name, table.column(name))
    where = loans.column_names.index("scheduled_balance")
    return loans.set_column(where, "scheduled_balance", loans.column("balance"))


def _since(transactions: pa.Table, day: datetime.date) -> pa.Table:
    """What is posted after a day and takes effect after it, too."""
    after = pa.scalar(day)
    is_posted = pc.greater(transactions.column("posted_date"), after)
    is_effective = pc.greater(transactions.column("effective_date"), after)
    return transactions.filter(pc.and_(is_posted, is_effective))
