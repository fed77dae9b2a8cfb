"""The files that investors get: totals of all pools, and a page and the lines for each investor."""

import datetime
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from apache_beam.pvalue import AsList, TaggedOutput
from apache_beam.typehints.decorators import no_annotations

from ledgerbeam.io.arrow_stream import join, narrow, widen
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.investor_page import Header, in_units, render
from ledgerbeam.rules.delinquency import BUCKETS
from ledgerbeam.rules.loan_month import Money
from ledgerbeam.rules.remittance_columns import totals_many
from ledgerbeam.rules.remittance_totals import (
    LINE_TOTALS,
    InvestorTotal,
    pool_imbalances,
    sum_imbalances,
)
from ledgerbeam.transforms.totals import exact_sum, sums_by_currency

File = tuple[str, bytes]

TOTALS_FILE = "investor-totals.parquet"

_POOLS = "pools"
_WIDE = pa.decimal128(38, 2)
_BUCKET_NAMES = [name.replace("+", "_plus") for name in BUCKETS]

TOTALS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("investor_id", "pool_id", "currency")),
        ("loans", pa.int64()),
        *((name, _WIDE) for name in LINE_TOTALS),
        *((f"loans_{name}", pa.int64()) for name in _BUCKET_NAMES),
        *((f"balance_{name}", _WIDE) for name in _BUCKET_NAMES),
    ]
)
"""A row a pool: amounts of its loans, and by payments missed their number and ending balance."""


FindLoan = Callable[[str], tuple[str, int] | None]
"""From a loan's id to its file, and its line or row there; None where it isn't found."""


class WriteInvestorFiles(beam.PTransform):
    """From tables of lines to (file name, bytes).

    Every investor's lines come together in one place: an investor with a million loans takes about
    half a gigabyte there.
    """

    def __init__(
        self, investors: pa.Table, business_date: datetime.date, find_loan: FindLoan
    ) -> None:
        """Hold what pages show besides the lines.

        Args:
            investors: with the columns of `Header`.
            business_date: of the report.
            find_loan: where a loan that can't be reported stands, for its error.
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
        """`(file name, bytes)` of each investor's files, and of the file of totals."""
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
    """Sums over lines, whoever the investor is.

    Attributes:
        loans: lines of loans that had a balance in the month.
        amounts: by the names of `LINE_TOTALS`.
    """

    loans: int
    amounts: dict[str, int]


def _by_investor(lines: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    # The local runner holds all that it groups in memory, several times over.
    lines = narrow(lines)
    column = lines.column("investor_id")
    for investor_id in pc.unique(column).to_pylist():
        yield investor_id, lines.filter(pc.equal(column, investor_id))


def _with_balance(lines: pa.Table) -> pa.Table:
    """The lines of loans that are in the totals: those not paid off before."""
    nothing = pa.scalar(0, _WIDE)
    flags = [pc.not_equal(lines.column(name), nothing) for name in LINE_TOTALS]
    is_in = flags[0]
    for flag in flags[1:]:
        is_in = pc.or_(is_in, flag)
    return lines.filter(is_in)


def _sums_of(lines: pa.Table) -> LineSums:
    amounts = {name: exact_sum(lines.column(name)) for name in LINE_TOTALS}
    return LineSums(_with_balance(lines).num_rows, amounts)


@dataclass
class _FilesOf(beam.DoFn):
    """The files of an investor; tagged, the totals of the investor's pools."""

    headers: dict[str, Header]
    find_loan: FindLoan

    def process(self, element: tuple[str, Iterable[pa.Table]]) -> Iterator[Any]:
        investor_id, tables = element
        lines = widen(join(list(tables)).sort_by("loan_id"))
        pools = pool_totals(lines, self.find_loan)
        for pool in pools:
            yield TaggedOutput(_POOLS, pool)
        header = self.headers[investor_id]
        money = {name: sums_by_currency(lines, name, "currency") for name in Money._fields}
        rejected = lines.filter(pc.is_valid(lines.column("rejections")))
        rejections = [
            (row["loan_id"], row["rejections"])
            for row in rejected.select(["loan_id", "rejections"]).to_pylist()
        ]
        name = file_name(investor_id)
        yield f"{name}.html", render(header, pools, money, rejections, f"report-{name}.csv")
        yield f"{name}.csv", _csv(lines)


def pool_totals(lines: pa.Table, find_loan: FindLoan) -> list[InvestorTotal]:
    """Totals by pool of an investor's lines.

    Args:
        lines: of one investor.
        find_loan: where a loan stands, for the error.

    Raises:
        UserError: a pool has loans in two currencies.
    """
    lines = _with_balance(lines)
    try:
        return totals_many(lines)
    except ValueError as error:
        loans = zip(
            *(lines.column(n).to_pylist() for n in ("pool_id", "currency", "loan_id")), strict=True
        )
        pool_id = re.findall("pool (.*) of investor", str(error))[0]
        by_currency = Counter[str]()
        first: dict[str, str] = {}
        for pool, currency, loan_id in loans:
            if pool == pool_id:
                by_currency[currency] += 1
                first.setdefault(currency, loan_id)
        rarest = min(by_currency, key=lambda currency: (by_currency[currency], currency))
        place = find_loan(first[rarest])
        where = "" if place is None else f" ({place[0]} row {place[1]})"
        raise UserError(
            f"nothing published: {error}: loan {first[rarest]}{where} is in {rarest}: correct its "
            "currency or pool"
        ) from error


def _reconciled(_: None, pools: list[InvestorTotal], sums: list[LineSums]) -> File:
    """The file of all totals, if they are those of the lines.

    Raises:
        UserError: they aren't.
    """
    pools.sort(key=lambda pool: (pool.investor_id, pool.pool_id))
    by_loan = {name: sum(each.amounts[name] for each in sums) for name in LINE_TOTALS}
    wrong = [problem for pool in pools for problem in pool_imbalances(pool)]
    wrong += sum_imbalances(sum(each.loans for each in sums), by_loan, pools)
    if wrong:
        raise UserError(f"nothing published: the report doesn't reconcile: {'; '.join(wrong)}")
    return TOTALS_FILE, _totals_file(pools)


def _totals_file(pools: list[InvestorTotal]) -> bytes:
    rows = []
    for pool in pools:
        row: dict[str, Any] = {
            **{name: getattr(pool, name) for name in TOTALS_SCHEMA.names[:4]},
            **{name: in_units(amount) for name, amount in pool.amounts.items()},
        }
        for at, name in enumerate(_BUCKET_NAMES):
            row[f"loans_{name}"] = pool.delinquent[at]
            row[f"balance_{name}"] = in_units(pool.delinquent_balance[at])
        rows.append(row)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, TOTALS_SCHEMA), sink)
    return sink.getvalue()


def _csv(lines: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa_csv.write_csv(lines, sink, pa_csv.WriteOptions(quoting_style="needed"))
    return sink.getvalue()


def file_name(investor_id: str) -> str:
    """An investor's id as a part of file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", lambda bad: f"~{bad[0].encode().hex()}", investor_id)
