r"""Investor report: what is owed to each investor for the month, loan by loan and pool by pool.

    ledgerbeam run investor-report --loans='loans/*' --transactions='transactions/*' \
        --investors=investors.parquet --business-date=2026-11-30 --output=results

The rules are in `ledgerbeam.rules.remittance`. The output holds a line for every loan; the reports
beside it are totals by pool in Parquet and, for each investor, a page in HTML and the lines in CSV.
"""

import datetime
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.define.keyed_process import KeyedProcess, Lookup, RowInput
from ledgerbeam.io.commit.records import Control, Totals
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import TableName, plan_input
from ledgerbeam.io.datasets.readers import find_row
from ledgerbeam.io.datasets.reading import reading_of
from ledgerbeam.pipelines.investor_files import WriteInvestorFiles
from ledgerbeam.pipelines.loan_inputs import A_YEAR, TRANSACTIONS, loans_input
from ledgerbeam.pipelines.loan_policy import PolicyParameters
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.loans.columns import PERCENT
from ledgerbeam.rules.loans.loan import RATE_SCALE
from ledgerbeam.rules.loans.read_book import read_book
from ledgerbeam.rules.loans.tables import (
    LOCKED,
    OPENING,
    with_state_columns,
)
from ledgerbeam.rules.money import units
from ledgerbeam.rules.remittance.pool_totals import LINE_TOTALS
from ledgerbeam.rules.remittance.remit import Investor, RemittanceType, unknown_investor
from ledgerbeam.rules.remittance.report_line import MonthMoney, nothing_to_report
from ledgerbeam.rules.remittance.report_line_many import report_line_many
from ledgerbeam.transforms.columnar.totals import sums_by_currency

LOANS = loans_input(investor=True)
"""Loans at the end of a month: terms, the investor's part, and the state on `closed_through`; or
loans as the close of business has published them, with the state in which they were boarded."""

_INTEREST = ("collected_interest", "interest", "guaranty_fee", "servicing_fee")

INVESTORS = Contract(
    (
        Column("investor_id", pa.string()),
        Column("name", pa.string()),
        Column(
            "remittance_type", pa.string(), dictionary_encoded=True, one_of=tuple(RemittanceType)
        ),
        Column("servicing_fee", PERCENT),
        Column("guaranty_fee", PERCENT),
    )
)
"""Investors, with their fees in percent a year."""


class InvestorReportParameters(PolicyParameters):
    """Parameters of the investor report."""

    loans: Annotated[str, LOANS] = Field(
        description="URI or glob of the loans as they stood at the end of an earlier month (CSV, "
        "JSON lines (gzip, zstd), Parquet or Avro; several are separated by commas), or of a "
        "published close of business"
    )
    transactions: Annotated[str, TRANSACTIONS] = Field(
        description="URI or glob of all their transactions since then, in any of these formats"
    )
    transactions_columns: str = Field(default="", description="as --columns, of the transactions")
    transactions_profile: str = Field(default="", description="as --profile, of the transactions")
    transactions_constants: str = Field(
        default="", description="as --constants, of the transactions"
    )
    transactions_values: str = Field(default="", description="as --values, of the transactions")
    investors: Annotated[str, Lookup(INVESTORS, key="investor_id")] = Field(
        description="URI of the investors, likewise"
    )
    investors_profile: str = Field(default="", description="as --profile, of the investors")
    business_date: datetime.date = Field(
        description="the day of the report, which covers its month up to that day"
    )


class InvestorReport(KeyedProcess[InvestorReportParameters]):
    """The definition of the investor report."""

    name = "investor-report"
    key = ("loan_id",)
    expect = A_YEAR
    # Lines are grouped once more, by investor: smaller shards leave memory for that.
    rows_per_shard = 40_000

    def __init__(self, parameters: InvestorReportParameters) -> None:
        """Make the definition for given parameters.

        Raises:
            UserError: a parameter has an invalid value.
        """
        super().__init__(parameters)
        self.policy = parameters.policy()

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The loans and their transactions, with the requested number of decimals in amounts."""
        return self.parameters.with_decimals(super().inputs)

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """The investors, and corrections of calendars."""
        # Their order enters the fingerprints of runs, also of those already recorded.
        changes, investors = super().lookups
        return investors, changes

    @property
    def results_label(self) -> str:
        """What the rows of the results are called."""
        return "lines"

    def rejections(self, name: str, rows: pa.Table) -> Mapping[int, str]:
        """Loans of unknown investors, and loans without a month to report."""
        return self._wrong_loans(rows) if name == "loans" else {}

    def _wrong_loans(self, loans: pa.Table) -> dict[int, str]:
        known = self.lookup_tables["investors"].column("investor_id").to_pylist()
        loans = with_state_columns(loans)
        closed = _days(loans, f"{OPENING}closed_through")
        is_month_end = closed.astype("datetime64[M]") != (closed + 1).astype("datetime64[M]")
        origination = _days(loans, "origination_date")
        day = self.business_date
        # Of several reasons that apply, the first one is given.
        checks: tuple[tuple[Any, Callable[[dict[str, Any]], str]], ...] = (
            (
                ~pc.is_in(loans.column("investor_id"), pa.array(known)).to_numpy(),
                lambda row: str(unknown_investor(row["loan_id"], row["investor_id"])),
            ),
            (
                loans.column("due_day").to_numpy() > 31,
                lambda row: f"due_day {row['due_day']} is above 31",
            ),
            (
                pc.is_valid(loans.column(LOCKED)).to_numpy(),
                lambda row: f"the loan is locked: {row[LOCKED]}",
            ),
            (
                closed >= np.datetime64(day),
                lambda row: str(nothing_to_report(row[f"{OPENING}closed_through"], day)),
            ),
            (
                ~is_month_end,
                lambda row: (
                    f"closed_through {row[f'{OPENING}closed_through']} is not the end of a month"
                ),
            ),
            (
                origination > closed,
                lambda row: (
                    f"closed_through {row[f'{OPENING}closed_through']} is before the loan's "
                    f"origination {row['origination_date']}"
                ),
            ),
        )
        reasons: dict[int, str] = {}
        for is_wrong, reason in checks:
            at = np.flatnonzero(is_wrong)
            rows = loans.take(pa.array(at)).to_pylist()
            for number, row in zip(at.tolist(), rows, strict=True):
                reasons.setdefault(number, reason(row))
        return reasons

    def execute_components(self, components: Components) -> pa.Table:
        """A line for each loan."""
        calendar = self.parameters.business_days(self.lookup_tables)
        loans = with_state_columns(components.table)
        book = read_book(loans, components.related["transactions"], calendar)
        return report_line_many(
            book,
            loans,
            investors_of(self.lookup_tables["investors"]),
            self.business_date,
            self.policy,
        )

    def executed_totals(self, executed: Components, results: Components) -> Totals:
        """Money in a currency other than its loan's, which no loan receives."""
        rows = executed.related["transactions"]
        of_loan = pa.array(np.repeat(executed.starts, rows.ends() - rows.starts))
        loans_currency = executed.table.column("currency").cast(pa.string()).take(of_loan)
        currency = rows.table.column("currency").cast(pa.string())
        foreign = rows.table.filter(pc.not_equal(currency, loans_currency))
        sums = sums_by_currency(foreign, "amount", "currency")
        return {f"foreign_{name}": value for name, value in sums.items()}

    def result_totals(self, results: Components) -> Totals:
        """Totals of all amounts, by currency."""
        lines = results.table
        is_collected = pc.equal(lines.column("remittance_type"), RemittanceType.ACTUAL_ACTUAL)
        nothing = pa.scalar(0, lines.schema.field("actual_balance").type)
        is_over = pc.equal(lines.column("actual_balance"), nothing)
        parts = {
            "": (lines, (*LINE_TOTALS, *MonthMoney._fields)),
            "actual_actual_": (lines.filter(is_collected), _INTEREST),
            "paid_off_": (lines.filter(is_over), ("ending_balance",)),
        }
        return {
            f"{prefix}{name}": value
            for prefix, (table, columns) in parts.items()
            for column in columns
            for name, value in sums_by_currency(table, column, "currency").items()
        }

    def controls(self, totals: Totals) -> list[Control]:
        """The ending is the beginning plus changes; all money that came in is accounted for."""
        controls = []
        for currency in sorted(_after(totals, "beginning_balance_")):

            def total(name: str, currency: str = currency) -> int:
                return totals.get(f"{name}_{currency}", 0)

            repaid = total("scheduled_principal") + total("curtailment") + total("payoff")
            controls += [
                Control(
                    name=f"beginning less principal = ending balance, {currency}",
                    expected=total("beginning_balance") - repaid,
                    actual=total("ending_balance"),
                ),
                Control(
                    name=f"interest + principal = remittance, {currency}",
                    expected=total("interest") + total("principal"),
                    actual=total("remittance"),
                ),
                Control(
                    name=f"actual/actual: interest + fees = interest collected, {currency}",
                    expected=total("actual_actual_collected_interest"),
                    actual=sum(total(f"actual_actual_{name}") for name in _INTEREST[1:]),
                ),
                Control(
                    name=f"ending balance of loans that owe nothing = 0, {currency}",
                    expected=0,
                    actual=total("paid_off_ending_balance"),
                ),
                Control(
                    name=f"received = applied + suspense + rejected + reversed, {currency}",
                    expected=total("received"),
                    actual=total("applied")
                    + total("suspense")
                    + total("rejected")
                    + total("reversed"),
                ),
            ]
        controls += [
            Control(
                name=f"transactions = received + those of other months and currencies, {currency}",
                expected=totals[f"transactions_amount_{currency}"],
                actual=sum(
                    totals.get(f"{name}_{currency}", 0)
                    for name in ("received", "other_months", "foreign_amount")
                ),
            )
            for currency in sorted(_after(totals, "transactions_amount_"))
        ]
        return controls

    def finish(self) -> WriteInvestorFiles:
        """Totals, pages and lines, by investor."""
        investors = self.lookup_tables["investors"]
        find_loan = partial(_find_loan, self.parameters, self.inputs[0].contract)
        return WriteInvestorFiles(investors, self.business_date, find_loan)


def investors_of(table: pa.Table) -> dict[str, Investor]:
    """The investors by their ids.

    Args:
        table: a table with the columns of `INVESTORS`.
    """
    return {
        name: Investor(name, RemittanceType(type_), servicing, guaranty)
        for name, type_, servicing, guaranty in zip(
            table.column("investor_id").to_pylist(),
            table.column("remittance_type").to_pylist(),
            units(table.column("servicing_fee"), RATE_SCALE).tolist(),
            units(table.column("guaranty_fee"), RATE_SCALE).tolist(),
            strict=True,
        )
    }


def _find_loan(
    parameters: InvestorReportParameters, contract: Contract, loan_id: str
) -> tuple[str, int] | None:
    if TableName.parse(parameters.loans) is not None:
        return None  # in a database table the id itself identifies the loan
    loans = plan_input(parameters.loans, contract, reading_of(parameters.model_dump()))
    return find_row(loans, "loan_id", loan_id)


def _days(table: pa.Table, name: str) -> npt.NDArray[np.datetime64]:
    days: Any = table.column(name).to_numpy()
    return np.asarray(days.astype("datetime64[D]"))


def _after(totals: Totals, start: str) -> set[str]:
    """The rest of each name that begins with `start`."""
    return {name.removeprefix(start) for name in totals if name.startswith(start)}


if __name__ == "__main__":
    sys.exit(main(InvestorReport))
