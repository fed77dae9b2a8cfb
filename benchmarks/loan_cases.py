"""What the loan benchmarks are run on: a portfolio made once and kept for the next time.

A portfolio of 24 months is closed through the end of the month before the last one, and through
the day before the last one. For the report the contenders get the loans as they stood at the end
of that month, and what came in since; for the close of business the loans as they were published
the night before, and everything that came in since they were boarded. A smaller portfolio is the
first files of the largest one. A tenth of the loans is made; the others are the same ones again
under ids of their own, since making them takes much longer than closing their day.
"""

import datetime
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ledgerbeam.pipelines.investor_report import investors_of
from ledgerbeam.rules.closing.close_many import close_many
from ledgerbeam.rules.loans.book import States, Transactions
from ledgerbeam.rules.loans.loan import Policy
from ledgerbeam.rules.loans.read_book import Book
from ledgerbeam.rules.loans.tables import OPENING, with_state_columns, write_states
from ledgerbeam.rules.loans.terms_columns import TermsColumns
from ledgerbeam.rules.money import decimals
from ledgerbeam.rules.remittance.report_line_many import report_line_many
from ledgerbeam.synthetic.loan_history import IDS_PER_LOAN
from ledgerbeam.synthetic.loans import investor_table, make_loans

BUSINESS_DATE = datetime.date(2026, 11, 30)
MONTH_BEFORE = datetime.date(2026, 10, 31)
DAY_BEFORE = BUSINESS_DATE - datetime.timedelta(1)
MONTHS = 24
INSTALMENTS = 360
FILES = 40
"""Of each kind: a portfolio of a fortieth is one of them."""
_MADE = FILES // 10
"""Files whose loans are made; those of each other file are the loans of one of these."""

_ROOMS = ("schedules", "month", "day", "lines")
_BLOCK = 4_000


class LoanCase(NamedTuple):
    """A portfolio.

    Attributes:
        loans: how many there are.
        transactions: of all months, those of the loans together.
        folder: holds `schedules`, `month`, `day` and `lines`.
    """

    loans: int
    transactions: int
    folder: Path


def portfolio(data: Path, loans: int, most: int, progress: Callable[[int], None]) -> LoanCase:
    """The first `loans` of a portfolio of `most`, which is made unless `data` holds it already."""
    folder = data / f"loans-{most}"
    if not folder.exists():
        # A name of its own until it is complete: what was interrupted is made again.
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _write(partial, most, progress)
        partial.rename(folder)
    case = data / f"loans-{loans}-of-{most}"
    if not case.exists():
        _link(folder, case, range(loans * FILES // most))
    day = case / "day"
    footers = [pq.read_metadata(file) for file in day.glob("transactions-*.parquet")]
    return LoanCase(loans, sum(footer.num_rows for footer in footers), case)


def _link(folder: Path, case: Path, files: range) -> None:
    for room in _ROOMS:
        (case / room).mkdir(parents=True)
        for file in folder.joinpath(room).iterdir():
            number = file.stem.partition("-")[2]
            if not number or int(number) in files:
                (case / room / file.name).hardlink_to(file)


def _write(folder: Path, loans: int, progress: Callable[[int], None]) -> None:
    for room in _ROOMS:
        (folder / room).mkdir(parents=True)
    pq.write_table(investor_table(), folder / "month" / "investors.parquet")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for count in pool.map(_write_file, repeat(folder), repeat(loans), range(_MADE)):
            progress(count)
        for count in pool.map(_copy_file, repeat(folder), repeat(loans), range(_MADE, FILES)):
            progress(count)


def _write_file(folder: Path, loans: int, file: int) -> int:
    """Make one of the files of each room; how many loans are in it."""
    writers: dict[str, pq.ParquetWriter] = {}

    def write(room: str, name: str, table: pa.Table) -> None:
        path = f"{room}/{name}-{file:02}.parquet"
        if path not in writers:
            writers[path] = pq.ParquetWriter(folder / path, table.schema)
        writers[path].write_table(table)

    investors = investors_of(investor_table())
    first, last = loans * file // FILES, loans * (file + 1) // FILES
    for start in range(first, last, _BLOCK):
        numbers = range(start, min(start + _BLOCK, last))
        (made,) = make_loans(loans, business_date=BUSINESS_DATE, months=MONTHS, numbers=numbers)
        write("schedules", "loans", _to_schedule(numbers))
        rows, offsets = _by_loan(made.loans, made.transactions)
        terms = TermsColumns.from_table(made.loans)
        opening = States.from_table(made.loans)
        transactions = Transactions.from_table(rows, offsets)
        month = close_many(terms, opening, opening, transactions, MONTH_BEFORE, Policy()).states
        as_of = _with_state(made.loans, month, terms)
        recent = _since(made.transactions, MONTH_BEFORE)
        write("month", "loans", as_of)
        write("month", "transactions", recent)
        book = Book(terms, month, Transactions.from_table(*_by_loan(as_of, recent)))
        in_month = report_line_many(book, as_of, investors, BUSINESS_DATE, Policy())
        write("lines", "lines", in_month)
        day = close_many(terms, opening, month, transactions, DAY_BEFORE, Policy()).states
        write("day", "loans", write_states(with_state_columns(made.loans), day, terms.places))
        write("day", "transactions", made.transactions)
    for writer in writers.values():
        writer.close()
    return last - first


def _copy_file(folder: Path, loans: int, file: int) -> int:
    """Give the loans of a made file once more, under other ids; how many there are."""
    copy, made = divmod(file, _MADE)
    for path in folder.glob(f"*/*-{made:02}.parquet"):
        source = pq.ParquetFile(path)
        target = path.with_name(path.name.replace(f"-{made:02}", f"-{file:02}"))
        with pq.ParquetWriter(target, source.schema_arrow) as writer:
            for group in range(source.num_row_groups):
                writer.write_table(_renumbered(source.read_row_group(group), copy * loans))
    return int(pq.read_metadata(folder / "day" / f"loans-{file:02}.parquet").num_rows)


def _renumbered(table: pa.Table, shift: int) -> pa.Table:
    """The rows of loans whose numbers are higher by `shift`."""
    number = pc.utf8_slice_codeunits(table.column("loan_id"), 1).cast(pa.int64())
    digits = pc.utf8_lpad(pc.add(number, shift).cast(pa.string()), 9, "0")
    columns = {"loan_id": pc.binary_join_element_wise("L", digits, "")}
    for name in {"transaction_id", "reverses"}.intersection(table.column_names):
        columns[name] = pc.add(table.column(name), shift * IDS_PER_LOAN)
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


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


def _by_loan(loans: pa.Table, rows: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Transactions in the order of loans, which are by id, and where those of each begin."""
    order = [("loan_id", "ascending"), ("transaction_id", "ascending")]
    rows = rows.sort_by(order).combine_chunks()
    names = rows.column("loan_id").to_numpy()
    starts = np.searchsorted(names, loans.column("loan_id").to_numpy())
    return rows, np.append(starts, rows.num_rows)


def _with_state(loans: pa.Table, states: States, terms: TermsColumns) -> pa.Table:
    """The loans boarded in other states; the scheduled balance is taken for the actual one."""
    loans = write_states(with_state_columns(loans), states, terms.places)
    loans = loans.drop_columns([n for n in loans.column_names if n.startswith(OPENING)])
    where = loans.column_names.index("scheduled_balance")
    return loans.set_column(where, "scheduled_balance", loans.column("balance"))


def _since(transactions: pa.Table, day: datetime.date) -> pa.Table:
    """What is posted after a day and takes effect after it, too."""
    after = pa.scalar(day)
    is_posted = pc.greater(transactions.column("posted_date"), after)
    is_effective = pc.greater(transactions.column("effective_date"), after)
    return transactions.filter(pc.and_(is_posted, is_effective))
