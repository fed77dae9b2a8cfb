"""The investors' files: totals of all pools, and a page and the lines for each investor."""

import datetime
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.pvalue import AsList, TaggedOutput
from apache_beam.typehints.decorators import no_annotations

from ledgerbeam.io.arrow.stream import join, narrow, widen
from ledgerbeam.io.datasets.spreadsheet import spreadsheet_csv
from ledgerbeam.io.errors import ControlTotalMismatchError, MixedCurrenciesError
from ledgerbeam.pipelines.investor_page import Header, render
from ledgerbeam.rules.closing.delinquency import BUCKETS
from ledgerbeam.rules.currency import minor_units, to_decimal
from ledgerbeam.rules.loans.columns import encoded
from ledgerbeam.rules.remittance.pool_totals import (
    LINE_TOTALS,
    PoolCurrenciesError,
    PoolTotal,
    pool_imbalances,
    sum_imbalances,
)
from ledgerbeam.rules.remittance.remit_many import pool_totals_many
from ledgerbeam.rules.remittance.report_line import MonthMoney
from ledgerbeam.transforms.columnar.totals import sums_by_currency

File = tuple[str, bytes]

TOTALS_FILE = "investor-totals.parquet"

_POOLS = "pools"
_WIDEST = 38
_MAX_NAME = 120
_BUCKET_NAMES = [name.replace("+", "_plus") for name in BUCKETS]


def totals_schema(decimals: int = 2) -> pa.Schema:
    """One row per pool: amounts of its loans; their number and ending balance by payments missed.

    Args:
        decimals: decimals of the amounts.
    """
    amount = pa.decimal128(_WIDEST, decimals)
    return pa.schema(
        [
            *((name, pa.string()) for name in ("investor_id", "pool_id", "currency")),
            ("loans", pa.int64()),
            *((name, amount) for name in LINE_TOTALS),
            *((f"loans_{name}", pa.int64()) for name in _BUCKET_NAMES),
            *((f"balance_{name}", amount) for name in _BUCKET_NAMES),
        ]
    )


FindLoan = Callable[[str], tuple[str, int] | None]
"""Gives a loan's file, and its line or row there, by the loan's id; None if it isn't found."""


class WriteInvestorFiles(beam.PTransform):
    """Turns tables of lines into pairs of file name and bytes.

    All lines of an investor are collected on one worker: an investor with a million loans takes
    about half a gigabyte of its memory.
    """

    def __init__(
        self, investors: pa.Table, business_date: datetime.date, find_loan: FindLoan
    ) -> None:
        """Create the transform.

        Args:
            investors: table of the investors, with the columns of `Header`.
            business_date: business date of the report.
            find_loan: finds the location of a loan that can't be reported, for the error.
        """
        super().__init__()
        self._find_loan = find_loan
        names = [name for name in Header._fields if name != "business_date"]
        self._headers = {
            row["investor_id"]: Header(business_date=business_date, **row)
            for row in investors.select(names).to_pylist()
        }

    @no_annotations  # Beam warns of outputs that are a tuple.
    def expand(self, lines: beam.PCollection) -> tuple[beam.PCollection, beam.PCollection]:
        """`(file name, bytes)` of all investors' files, and of the file of totals."""
        files = (
            lines
            | "ByInvestor" >> beam.FlatMap(_by_investor).with_output_types(tuple[str, pa.Table])
            | "GroupByInvestor" >> beam.GroupByKey()
            | "WriteFiles"
            >> beam.ParDo(_FilesOf(self._headers, self._find_loan)).with_outputs(
                _POOLS, main="files"
            )
        )
        sums = lines | "SumLines" >> beam.Map(_sums_of)
        totals = (
            lines.pipeline
            | "Once" >> beam.Create([None], reshuffle=False)
            | "Reconcile" >> beam.Map(_reconciled, AsList(files[_POOLS]), AsList(sums))
        )
        return files.files, totals


class LineSums(NamedTuple):
    """Sums over the lines of all investors.

    Attributes:
        loans: number of loans that had a balance in the month.
        amounts: sums by the names of `LINE_TOTALS` and currency: `interest_USD`, in minor units.
    """

    loans: int
    amounts: dict[str, int]


def _by_investor(lines: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    # The local runner holds several copies in memory of all that it groups.
    lines = narrow(lines)
    investors = encoded(lines.column("investor_id"))
    codes = investors.indices.to_numpy()
    lines = lines.take(pa.array(np.argsort(codes, kind="stable")))
    counts = np.bincount(codes, minlength=len(investors.dictionary))
    starts = np.cumsum(counts) - counts
    for investor_id, start, count in zip(
        investors.dictionary.to_pylist(), starts.tolist(), counts.tolist(), strict=True
    ):
        if count:
            yield investor_id, lines.slice(start, count)


def _with_balance(lines: pa.Table) -> pa.Table:
    """The lines of loans that enter the totals: those not paid off earlier."""
    nothing = pa.scalar(0, pa.decimal128(_WIDEST, lines.schema.field(LINE_TOTALS[0]).type.scale))
    flags = [pc.not_equal(lines.column(name), nothing) for name in LINE_TOTALS]
    is_in = flags[0]
    for flag in flags[1:]:
        is_in = pc.or_(is_in, flag)
    return lines.filter(is_in)


def _sums_of(lines: pa.Table) -> LineSums:
    amounts: dict[str, int] = {}
    for name in LINE_TOTALS:
        amounts |= sums_by_currency(lines, name, "currency")
    return LineSums(_with_balance(lines).num_rows, amounts)


@dataclass
class _FilesOf(beam.DoFn):
    """Gives the files of an investor and, as a tagged output, the totals of the pools."""

    headers: dict[str, Header]
    find_loan: FindLoan

    def process(self, element: tuple[str, Iterable[pa.Table]]) -> Iterator[Any]:
        investor_id, tables = element
        lines = widen(join(list(tables)).sort_by("loan_id"))
        pools = pool_totals(lines, self.find_loan)
        for pool in pools:
            yield TaggedOutput(_POOLS, pool)
        header = self.headers[investor_id]
        money = {name: sums_by_currency(lines, name, "currency") for name in MonthMoney._fields}
        rejected = lines.filter(pc.is_valid(lines.column("rejections")))
        rejections = [
            (row["loan_id"], row["rejections"])
            for row in rejected.select(["loan_id", "rejections"]).to_pylist()
        ]
        name = file_name(investor_id)
        yield f"{name}.html", render(header, pools, money, rejections, f"report-{name}.csv")
        yield f"{name}.csv", spreadsheet_csv(lines)


def pool_totals(lines: pa.Table, find_loan: FindLoan) -> list[PoolTotal]:
    """Totals of an investor's lines by pool.

    Args:
        lines: the lines of one investor.
        find_loan: finds the location of a loan, for the error.

    Raises:
        MixedCurrenciesError: a pool has loans in two currencies.
    """
    lines = _with_balance(lines)
    try:
        return pool_totals_many(lines)
    except PoolCurrenciesError as error:
        loans = zip(
            *(lines.column(n).to_pylist() for n in ("pool_id", "currency", "loan_id")), strict=True
        )
        by_currency = Counter[str]()
        first: dict[str, str] = {}
        for pool, currency, loan_id in loans:
            if pool == error.pool_id:
                by_currency[currency] += 1
                first.setdefault(currency, loan_id)
        rarest = min(by_currency, key=lambda currency: (by_currency[currency], currency))
        file, row = find_loan(first[rarest]) or (None, None)
        where = "" if file is None else f" ({file} row {row})"
        raise MixedCurrenciesError(
            f"nothing published: {error}: loan {first[rarest]}{where} is in {rarest}: correct its "
            "currency or pool",
            file=file,
            row=row,
            column="currency",
            value=rarest,
            currencies=error.currencies,
        ) from error


def _reconciled(_: None, pools: list[PoolTotal], sums: list[LineSums]) -> File:
    """The file of all totals, after checking them against the sums of the lines.

    Raises:
        ControlTotalMismatchError: they differ.
    """
    pools.sort(key=lambda pool: (pool.investor_id, pool.pool_id))
    by_loan = Counter[str]()
    for each in sums:
        by_loan.update(each.amounts)
    wrong = [problem for pool in pools for problem in pool_imbalances(pool)]
    wrong += sum_imbalances(sum(each.loans for each in sums), by_loan, pools)
    if wrong:
        raise ControlTotalMismatchError(
            f"nothing published: the report doesn't reconcile: {'; '.join(wrong)}", name=wrong[0]
        )
    return TOTALS_FILE, _totals_file(pools)


def _totals_file(pools: list[PoolTotal]) -> bytes:
    schema = totals_schema(max([2, *(minor_units(pool.currency) for pool in pools)]))
    rows = []
    for pool in pools:
        row: dict[str, Any] = {
            **{name: getattr(pool, name) for name in schema.names[:4]},
            **{name: to_decimal(value, pool.currency) for name, value in pool.amounts.items()},
        }
        for at, name in enumerate(_BUCKET_NAMES):
            row[f"loans_{name}"] = pool.delinquent[at]
            row[f"balance_{name}"] = to_decimal(pool.delinquent_balance[at], pool.currency)
        rows.append(row)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()


def file_name(investor_id: str) -> str:
    """An investor's id as a part of file names: different for each, and short enough for any disk.

    A file name has at most 255 bytes in most file systems.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", lambda bad: f"~{bad[0].encode().hex()}~", investor_id)
    if len(name) <= _MAX_NAME:
        return name
    # No other name has two of these signs in a row.
    digest = hashlib.sha256(investor_id.encode()).hexdigest()
    return f"{name[: _MAX_NAME - len(digest) - 2]}~~{digest}"
