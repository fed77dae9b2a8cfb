r"""Investor report: what is owed to each investor for the month, loan by loan and pool by pool.

    ledgerbeam run investor-report --loans='loans/*' --transactions='transactions/*' \
        --investors=investors.parquet --business-date=2026-11-30 --output=results

The rules are in `ledgerbeam.rules.loan_month` and `ledgerbeam.rules.remittance`. The output holds
a line for every loan; the reports beside it are totals by pool in Parquet and, for each investor,
a page in HTML and the lines in CSV.
"""

import datetime
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ledgerbeam.batch.keyed_process import KeyedProcess, Lookup, RowInput
from ledgerbeam.batch.launch import run_module
from ledgerbeam.io.contract import Column, Contract
from ledgerbeam.io.inputs import ColumnNames, TableName, plan_input
from ledgerbeam.io.readers import find_row
from ledgerbeam.io.records import Control, Totals
from ledgerbeam.pipelines.investor_files import WriteInvestorFiles
from ledgerbeam.pipelines.loan_inputs import loan_inputs
from ledgerbeam.pipelines.loan_policy import PolicyParameters
from ledgerbeam.rules.book import AMOUNT, PERCENT, STATE_SCHEMA
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.day_count import DayCount
from ledgerbeam.rules.loan import RATE_SCALE
from ledgerbeam.rules.loan_month import Money, nothing_to_report
from ledgerbeam.rules.loan_month_columns import report_lines
from ledgerbeam.rules.loan_tables import RATE_CHANGES, with_rate_changes
from ledgerbeam.rules.money import units
from ledgerbeam.rules.remittance import Investor, RemittanceType, unknown_investor
from ledgerbeam.rules.remittance_totals import LINE_TOTALS
from ledgerbeam.transforms.totals import sums_by_currency

_OPTIONAL_STATE = STATE_SCHEMA.names[STATE_SCHEMA.names.index("brought") : -1]

LOANS = Contract(
    (
        Column("loan_id", pa.string()),
        Column("investor_id", pa.string(), few_values=True),
        Column("pool_id", pa.string(), few_values=True),
        Column("currency", pa.string(), few_values=True),
        Column("participation", PERCENT),
        Column("day_count", pa.string(), few_values=True, one_of=tuple(DayCount)),
        Column("origination_date", pa.date32()),
        Column("maturity_date", pa.date32()),
        Column("due_day", pa.int64(), minimum=1),
        Column("escrow_payment", AMOUNT),
        Column("closed_through", pa.date32()),
        Column("balance", AMOUNT),
        Column("scheduled_balance", AMOUNT),
        Column("rate", PERCENT),
        Column("payment", AMOUNT),
        Column("next_due", pa.date32()),
        Column("accrued_from", pa.date32()),
        Column("late_fees_through", pa.date32()),
        *(Column(name, STATE_SCHEMA.field(name).type, required=False) for name in _OPTIONAL_STATE),
        Column(RATE_CHANGES, pa.string(), required=False, nullable=True),
    )
)
"""Loans at the end of a month: terms, the investor's part, and the state on `closed_through`."""

TRANSACTIONS = Contract(
    (
        Column("transaction_id", pa.int64()),
        Column("loan_id", pa.string()),
        Column("kind", pa.string(), few_values=True),
        Column("effective_date", pa.date32()),
        Column("posted_date", pa.date32()),
        Column("amount", AMOUNT),
        Column("currency", pa.string(), few_values=True),
        Column("reverses", pa.int64(), nullable=True),
        Column("rate", PERCENT, nullable=True),
        Column("payment", AMOUNT, nullable=True),
    )
)
"""What came in for the loans since then; see `ledgerbeam.rules.loan.Transaction`."""

INVESTORS = Contract(
    (
        Column("investor_id", pa.string()),
        Column("name", pa.string()),
        Column("remittance_type", pa.string(), few_values=True, one_of=tuple(RemittanceType)),
        Column("servicing_fee", PERCENT),
        Column("guaranty_fee", PERCENT),
    )
)
"""Investors, with their fees in percent a year."""


class InvestorReportParameters(PolicyParameters):
    """Parameters of the investor report."""

    loans: str = Field(
        description="URI or glob of the loans as they stood at the end of an earlier month: CSV, "
        "JSON lines (gzip, zstd), Parquet or Avro; several are separated by commas"
    )
    transactions: str = Field(
        description="URI or glob of all their transactions since then, in any of these formats"
    )
    investors: str = Field(description="URI of the investors, likewise")
    business_date: datetime.date = Field(
        description="the day of the report, which covers its month up to that day"
    )


class InvestorReport(KeyedProcess[InvestorReportParameters]):
    """The definition of the investor report."""

    name = "investor-report"
    parameters_type = InvestorReportParameters
    key = ("loan_id",)
    # Lines come together once more, by investor: what executes them leaves room for that.
    rows_a_shard = 40_000
    lookups = (Lookup("investors", INVESTORS, key="investor_id"),)

    def __init__(self, parameters: InvestorReportParameters) -> None:
        """Make the definition for given parameters.

        Raises:
            UserError: a parameter can't be meant.
        """
        super().__init__(parameters)
        self.policy = parameters.policy()

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The loans, and their transactions."""
        return loan_inputs(LOANS, TRANSACTIONS)

    @property
    def results_are(self) -> str:
        """Rows of the results."""
        return "lines"

    def refusals(self, name: str, rows: pa.Table) -> Mapping[int, str]:
        """Loans of unknown investors, and those that have no month to report."""
        return self._wrong_loans(rows) if name == "loans" else {}

    def _wrong_loans(self, loans: pa.Table) -> dict[int, str]:
        known = self.lookup_tables["investors"].column("investor_id").to_pylist()
        closed = _days(loans, "closed_through")
        is_month_end = closed.astype("datetime64[M]") != (closed + 1).astype("datetime64[M]")
        origination = _days(loans, "origination_date")
        day = self.business_date
        # The first reason that applies is the one that is given.
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
                closed >= np.datetime64(day),
                lambda row: str(nothing_to_report(row["closed_through"], day)),
            ),
            (
                ~is_month_end,
                lambda row: f"closed_through {row['closed_through']} is not the end of a month",
            ),
            (
                origination > closed,
                lambda row: (
                    f"closed_through {row['closed_through']} is before the loan's "
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
        transactions = components.related["transactions"]
        offsets = np.append(transactions.starts, transactions.table.num_rows)
        return report_lines(
            with_rate_changes(components.table),
            transactions.table,
            offsets,
            investors_of(self.lookup_tables["investors"]),
            self.business_date,
            self.policy,
        )

    def executed_totals(self, executed: Components, results: Components) -> Totals:
        """Money in another currency than its loan's, which no loan receives."""
        rows = executed.related["transactions"]
        of_loan = pa.array(np.repeat(executed.starts, rows.ends() - rows.starts))
        loans_currency = executed.table.column("currency").cast(pa.string()).take(of_loan)
        currency = rows.table.column("currency").cast(pa.string())
        foreign = rows.table.filter(pc.not_equal(currency, loans_currency))
        sums = sums_by_currency(foreign, "amount", "currency")
        return {f"foreign_{name}": value for name, value in sums.items()}

    def result_totals(self, results: Components) -> Totals:
        """All amounts, by currency."""
        names = [*LINE_TOTALS, *Money._fields]
        return {
            name: value
            for column in names
            for name, value in sums_by_currency(results.table, column, "currency").items()
        }

    def controls(self, totals: Totals) -> list[Control]:
        """Beginning and changes are the ending; what came in is somewhere."""
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
        find_loan = partial(_find_loan, self.parameters)
        return WriteInvestorFiles(investors, self.business_date, find_loan)


def investors_of(table: pa.Table) -> dict[str, Investor]:
    """The investors by their ids.

    Args:
        table: as `INVESTORS` says.
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


def _find_loan(parameters: InvestorReportParameters, loan_id: str) -> tuple[str, int] | None:
    if TableName.parse(parameters.loans) is not None:
        return None  # in a table the id is what it is found by
    columns = ColumnNames.parse(parameters.columns)
    loans = plan_input(parameters.loans, LOANS, columns=columns, format=parameters.format)
    return find_row(loans, "loan_id", loan_id)


def _days(table: pa.Table, name: str) -> npt.NDArray[np.datetime64]:
    days: Any = table.column(name).to_numpy()
    return np.asarray(days.astype("datetime64[D]"))


def _after(totals: Totals, start: str) -> set[str]:
    """What follows a beginning of names."""
    return {name.removeprefix(start) for name in totals if name.startswith(start)}


PROCESS = InvestorReport
"""What `ledgerbeam` runs and verifies under this module's name."""


def main(arguments: list[str] | None = None) -> int:
    """Run the workload from the command line; returns the exit status."""
    return run_module(InvestorReport, __doc__ or "", arguments)


if __name__ == "__main__":
    # Not from here: what is pickled to workers must live in an importable module.
    from ledgerbeam.pipelines.investor_report import main as importable_main

    sys.exit(importable_main())
