"""The shipped rules as transforms: the same results as the workloads and the plain functions."""

import datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.harness import pipeline as local_pipeline
from tests.support.loan_jobs import LAST, parameters_of, portfolio, write_portfolio

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.pipelines.loan_close_of_business import LoanCloseOfBusiness
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.delivery.deliver import Trade, deliver
from ledgerbeam.rules.loans.loan import Policy
from ledgerbeam.rules.loans.read_book import read_book
from ledgerbeam.rules.loans.tables import with_state_columns
from ledgerbeam.rules.remittance.remit import Investor, RemittanceType
from ledgerbeam.rules.remittance.report_line_many import report_line_many
from ledgerbeam.rules.schedules.schedule_many import schedule_many
from ledgerbeam.transforms import (
    CloseLoans,
    MarkDeliveries,
    RemittanceLines,
    RepaymentSchedules,
)

TRADES = pa.schema(
    [("client", pa.string()), ("id", pa.int64()), ("side", pa.string()), ("quantity", pa.int64())]
)
TRADE = st.tuples(
    st.sampled_from(["C1", "C2", "C3"]),
    st.integers(0, 99),
    st.sampled_from(["B", "S"]),
    st.integers(0, 1000),
)


def halves(table: pa.Table) -> list[pa.Table]:
    middle = table.num_rows // 2
    return [table.slice(middle), table.slice(0, middle)]


@settings(max_examples=5)
@given(st.lists(TRADE, min_size=1, max_size=30, unique_by=lambda trade: trade[1]))
def test_deliveries_are_those_of_the_plain_rule(trades: list[tuple[str, int, str, int]]) -> None:
    expected = []
    for client in {trade[0] for trade in trades}:
        of_client = sorted(trade for trade in trades if trade[0] == client)
        marked = deliver([Trade(side, quantity) for *_, side, quantity in of_client])
        expected += [(trade[1], n) for trade, n in zip(of_client, marked, strict=True)]
    columns = zip(*trades, strict=True)
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, TRADES, strict=True)], TRADES)
    with local_pipeline() as pipeline:
        marked = (
            pipeline | beam.Create(halves(table)) | MarkDeliveries(TRADES, ["client"], ["id"], 2)
        )
        rows = marked | beam.FlatMap(pa.Table.to_pylist)
        found = rows | beam.Map(lambda row: (row["id"], row["delivery_quantity"]))
        assert_that(found, equal_to(expected))


def test_schedules_and_loans_that_have_none() -> None:
    loans = pa.table(
        {
            "loan_id": ["L1", "L2"],
            "principal": pa.array([100_000, 5_000], pa.decimal128(18, 2)),
            "currency": ["USD", "USD"],
            "annual_rate_percent": pa.array([3, 3], pa.decimal128(7, 4)),
            "day_count": ["30/360", "31/360"],
            "method": ["level", "level"],
            "frequency": ["P1M", "P1M"],
            "disbursed_on": pa.array([datetime.date(2026, 1, 1)] * 2),
            "term": [12, 12],
        }
    )
    expected, rejected = schedule_many(loans)
    assert sorted(rejected) == [1]
    with local_pipeline() as pipeline:
        schedules = pipeline | beam.Create([loans]) | RepaymentSchedules()
        instalments = schedules.instalments | beam.FlatMap(pa.Table.to_pylist)
        assert_that(instalments, equal_to(expected.to_pylist()))
        wrong = schedules.rejected | "Wrong" >> beam.FlatMap(pa.Table.to_pylist)
        reasons = wrong | beam.Map(lambda row: (row["loan_id"], row["reason"]))
        assert_that(reasons, equal_to([("L2", rejected[1])]), label="rejected")


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    return portfolio(count=20, months=2)


class TestLoans:
    def test_loans_are_closed_as_the_workload_closes_them(
        self, tables: tuple[pa.Table, pa.Table], tmp_path: Path
    ) -> None:
        loans, transactions = tables
        write_portfolio(tmp_path, loans, transactions)
        process = LoanCloseOfBusiness(parameters_of(tmp_path))
        run(process)
        uri = f"{tmp_path}/results/loan-close-of-business/{LAST}"
        expected = {
            name or "loans": read_published(uri, name).to_table().to_pylist()
            for name in (None, "entries", "receipts")
        }
        # The workload adds optional columns, and where a rejected transaction stood.
        known = with_state_columns(loans).column_names
        for row in expected["loans"]:
            assert all(value is None for name, value in row.items() if name not in known)
        expected["loans"] = [{n: row[n] for n in known} for row in expected["loans"]]
        for row in expected["entries"]:
            del row["file"], row["row"]
        with local_pipeline() as pipeline:
            inputs: Any = {
                "loans": pipeline | "Loans" >> beam.Create(halves(loans)),
                "transactions": pipeline | "Transactions" >> beam.Create(halves(transactions)),
            }
            closed = inputs | CloseLoans(
                LAST, process.policy, loans.schema, transactions.schema, shards=3
            )
            for name, rows in expected.items():
                found = closed[name] | name >> beam.FlatMap(rows_with, list(rows[0]))
                assert_that(found, equal_to(rows), label=f"{name} are equal")
            rejected = closed.rejected | "Rejected" >> beam.FlatMap(pa.Table.to_pylist)
            assert_that(rejected, equal_to([]), label="nothing is rejected")

    def test_lines_are_those_of_the_rule(self, tables: tuple[pa.Table, pa.Table]) -> None:
        loans, transactions = tables
        owner = pa.array(["I"] * loans.num_rows)
        balance = loans.column("balance")
        for name, column in (("investor_id", owner), ("pool_id", owner)):
            if name not in loans.column_names:
                loans = loans.append_column(name, column)
        if "scheduled_balance" not in loans.column_names:
            loans = loans.append_column("scheduled_balance", balance)
        investors = {
            code: Investor(code, RemittanceType.ACTUAL_ACTUAL, 250_000, 0)
            for code in loans.column("investor_id").unique().to_pylist()
        }
        month_end = datetime.date(2026, 2, 28)
        policy = Policy()
        expected = lines_of(loans, transactions, investors, month_end, policy)
        with local_pipeline() as pipeline:
            inputs: Any = {
                "loans": pipeline | "Loans" >> beam.Create(halves(loans)),
                "transactions": pipeline | "Transactions" >> beam.Create(halves(transactions)),
            }
            report = inputs | RemittanceLines(
                month_end, investors, policy, loans.schema, transactions.schema, shards=3
            )
            lines = report.lines | beam.FlatMap(pa.Table.to_pylist)
            assert_that(lines, equal_to(expected))


def rows_with(table: pa.Table, columns: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.select(columns).to_pylist()
    return rows


def lines_of(
    loans: pa.Table,
    transactions: pa.Table,
    investors: dict[str, Investor],
    month_end: datetime.date,
    policy: Policy,
) -> list[dict[str, Any]]:
    """Lines by the rule, a loan at a time."""
    lines = []
    for row in range(loans.num_rows):
        loan = loans.slice(row, 1)
        ids = transactions.column("loan_id")
        own = transactions.filter(pa.compute.equal(ids, loan.column("loan_id")[0]))
        own = own.sort_by("transaction_id")
        table = with_state_columns(loan)
        book = read_book(table, Components(own, pa.array([0]).to_numpy()))
        lines += report_line_many(book, table, investors, month_end, policy).to_pylist()
    return lines
