"""Repayment schedules: loans in, a row for each of their instalments out.

    ledgerbeam run repayment-schedules --loans='loans/*' --business-date=2026-11-20 --output=results

The rule is in `ledgerbeam.rules.schedules.schedule`. The output holds the instalments of every
loan, sorted by loan and number within each part.
"""

import datetime
import sys
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.define.keyed_process import KeyedProcess, RowInput
from ledgerbeam.io.commit.records import Control, Totals
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.pipelines.parameters import CalendarParameters, MoneyParameters
from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.money import AMOUNT_DIGITS
from ledgerbeam.rules.schedules.loan_columns import check_loan_many
from ledgerbeam.rules.schedules.schedule import RATE_DECIMALS
from ledgerbeam.rules.schedules.schedule_many import schedule_many
from ledgerbeam.transforms.columnar.totals import sums_by_currency

LOANS = Contract(
    (
        Column("loan_id", pa.string()),
        Column("currency", pa.string(), dictionary_encoded=True),
        Column("principal", pa.decimal128(AMOUNT_DIGITS, 2), currency="currency"),
        Column("annual_rate_percent", pa.decimal128(10, RATE_DECIMALS)),
        Column("day_count", pa.string(), dictionary_encoded=True),
        Column("disbursed_on", pa.date32()),
        Column("frequency", pa.string(), dictionary_encoded=True),
        Column("term", pa.int64(), minimum=1),
        Column("method", pa.string(), dictionary_encoded=True),
        Column("first_due", pa.date32(), required=False, nullable=True),
        Column("due_day", pa.int64(), required=False, nullable=True),
        Column("second_due_day", pa.int64(), required=False, nullable=True),
        Column("first_period", pa.string(), required=False, nullable=True, dictionary_encoded=True),
        *(
            Column(
                name,
                pa.decimal128(AMOUNT_DIGITS, 2),
                required=False,
                nullable=True,
                currency="currency",
            )
            for name in ("payment", "round_payment_to")
        ),
    )
)
"""Loans as they come in: one row per loan; see `ledgerbeam.rules.schedules.schedule.Loan`."""


class ScheduleParameters(CalendarParameters, MoneyParameters):
    """Parameters of repayment schedules."""

    loans: Annotated[
        str,
        RowInput(
            LOANS, order="loan_id", amounts=("principal",), currency="currency", ids=("loan_id",)
        ),
    ] = Field(
        description="URI or glob of the loans: CSV, JSON lines (gzip, zstd), Parquet or Avro; "
        "several are separated by commas"
    )
    business_date: datetime.date = Field(
        description="the day that the schedules are made for; names the result"
    )


class RepaymentSchedules(KeyedProcess[ScheduleParameters]):
    """The definition of repayment schedules."""

    name = "repayment-schedules"
    key = ("loan_id",)
    # A loan of 30 years gives 360 rows: 720,000 rows of 80 bytes per shard.
    rows_per_shard = 2_000

    def __init__(self, parameters: ScheduleParameters) -> None:
        """Make the definition for given parameters.

        Raises:
            ParameterError: the calendar is unknown, or due dates are to be moved without one.
        """
        super().__init__(parameters)
        parameters.check_calendar()

    @property
    def inputs(self) -> tuple[RowInput, ...]:
        """The loans, with the requested number of decimals in amounts."""
        return self.parameters.with_decimals(super().inputs)

    @property
    def _calendar(self) -> BusinessCalendar | None:
        return self.parameters.business_days(self.lookup_tables)

    @property
    def results_label(self) -> str:
        """What the rows of the results are called."""
        return "instalments"

    def rejections(self, name: str, rows: pa.Table) -> Mapping[int, str]:
        """Loans whose terms can't be scheduled."""
        return check_loan_many(rows, self._calendar, self.parameters.due_dates)

    def execute_components(self, components: Components) -> pa.Table:
        """The instalments of each loan."""
        instalments, refused = schedule_many(
            components.table, calendar=self._calendar, convention=self.parameters.due_dates
        )
        if refused:
            raise ValueError(next(iter(refused.values())))
        return instalments

    def executed_totals(self, executed: Components, results: Components) -> Totals:
        """Principal of all instalments, by the currency of the loans."""
        rows = pa.array(np.repeat(executed.starts, results.ends() - results.starts))
        currency = executed.table.column("currency").take(rows)
        table = pa.table({"principal": results.table.column("principal"), "currency": currency})
        sums = sums_by_currency(table, "principal", "currency")
        return {f"instalment_{name}": value for name, value in sums.items()}

    def controls(self, totals: Totals) -> list[Control]:
        """The principal of all instalments equals the amount lent."""
        return [
            Control(
                name=f"principal of instalments = principal of loans, {name[-3:]}",
                expected=value,
                actual=totals.get(f"instalment_{name}", 0),
            )
            for name, value in sorted(totals.items())
            if name.startswith("principal_")
        ]


if __name__ == "__main__":
    sys.exit(main(RepaymentSchedules))
