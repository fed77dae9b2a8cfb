"""Repayment schedules: loans in, a row for each of their instalments out.

    ledgerbeam run repayment-schedules --loans='loans/*' --business-date=2026-11-20 --output=results

The rule is in `ledgerbeam.rules.schedule`. The output holds the instalments of every loan, sorted
by loan and number within each part.
"""

import datetime
import sys
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.keyed_process import FileParameters, KeyedProcess, RowInput
from ledgerbeam.batch.launch import run_module
from ledgerbeam.io.contract import Column, Contract
from ledgerbeam.io.records import Control, Totals
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.loan_terms import check_loans
from ledgerbeam.rules.schedule import RATE_DECIMALS
from ledgerbeam.rules.schedule_tables import AMOUNT_DIGITS, build_schedules
from ledgerbeam.transforms.totals import sums_by_currency

LOANS = Contract(
    (
        Column("loan_id", pa.string()),
        Column("currency", pa.string(), few_values=True),
        Column("principal", pa.decimal128(AMOUNT_DIGITS, 2)),
        Column("annual_rate_percent", pa.decimal128(10, RATE_DECIMALS)),
        Column("day_count", pa.string(), few_values=True),
        Column("disbursed_on", pa.date32()),
        Column("frequency", pa.string(), few_values=True),
        Column("term", pa.int64(), minimum=1),
        Column("method", pa.string(), few_values=True),
    )
)
"""Loans as they come in: a row a loan; see `ledgerbeam.rules.schedule.Loan`."""


class ScheduleParameters(FileParameters):
    """Parameters of repayment schedules."""

    loans: str = Field(
        description="URI or glob of the loans: CSV, JSON lines (gzip, zstd), Parquet or Avro; "
        "several are separated by commas"
    )
    business_date: datetime.date = Field(
        description="the day that the schedules are made for; names the result"
    )
    decimals: int = Field(
        default=2,
        ge=0,
        le=4,
        description="of amounts, in and out: 3 for loans in KWD and its like, 4 for CLF or UYW",
    )


class RepaymentSchedules(KeyedProcess[ScheduleParameters]):
    """The definition of repayment schedules."""

    name = "repayment-schedules"
    parameters_type = ScheduleParameters
    key = ("loan_id",)
    # A loan of 30 years gives 360 rows: 720,000 a shard, of 80 bytes.
    rows_a_shard = 2_000

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The loans, with amounts of the decimals asked for."""
        amount = pa.decimal128(AMOUNT_DIGITS, self.parameters.decimals)
        return (
            RowInput(
                "loans",
                LOANS.with_type("principal", amount),
                order="loan_id",
                amounts=("principal",),
                currency="currency",
                ids=("loan_id",),
            ),
        )

    @property
    def results_are(self) -> str:
        """Rows of the results."""
        return "instalments"

    def refusals(self, name: str, rows: pa.Table) -> Mapping[int, str]:
        """Loans whose terms can't be scheduled."""
        return check_loans(rows)

    def execute_components(self, components: Components) -> pa.Table:
        """The instalments of each loan."""
        instalments, refused = build_schedules(components.table)
        if refused:
            raise ValueError(next(iter(refused.values())))
        return instalments

    def executed_totals(self, executed: Components, results: Components) -> Totals:
        """Principal of all instalments, by the currency of their loans."""
        rows = pa.array(np.repeat(executed.starts, results.ends() - results.starts))
        currency = executed.table.column("currency").take(rows)
        table = pa.table({"principal": results.table.column("principal"), "currency": currency})
        sums = sums_by_currency(table, "principal", "currency")
        return {f"instalment_{name}": value for name, value in sums.items()}

    def controls(self, totals: Totals) -> list[Control]:
        """The instalments of all loans repay what was lent."""
        return [
            Control(
                name=f"principal of instalments = principal of loans, {name[-3:]}",
                expected=value,
                actual=totals.get(f"instalment_{name}", 0),
            )
            for name, value in sorted(totals.items())
            if name.startswith("principal_")
        ]


PROCESS = RepaymentSchedules
"""What `ledgerbeam` runs and verifies under this module's name."""


def main(arguments: list[str] | None = None) -> int:
    """Run the workload from the command line; returns the exit status."""
    return run_module(RepaymentSchedules, __doc__ or "", arguments)


if __name__ == "__main__":
    # Not from here: what is pickled to workers must live in an importable module.
    from ledgerbeam.pipelines.repayment_schedules import main as importable_main

    sys.exit(importable_main())
