"""The plain rules as Beam is usually written: a dictionary a row, grouped by loan."""

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
from apache_beam.io.parquetio import ReadFromParquet, WriteToParquet
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from job import Job, Row, closed_of, instalments_of, job, line_of

from ledgerbeam.rules.loans.entries import ENTRY_SCHEMA
from ledgerbeam.rules.remittance.remit import Investor


class Report(beam.DoFn):
    """The line of each loan."""

    def __init__(self, arguments: Job, investors: dict[str, Investor]) -> None:
        self._date = arguments.business_date
        self._investors = investors

    def process(self, element: tuple[str, dict[str, Iterable[Row]]]) -> Iterable[Row]:
        """One line, as there is one loan."""
        _, rows = element
        for loan in rows["loans"]:
            yield line_of(loan, rows["transactions"], self._investors, self._date)


class Close(beam.DoFn):
    """Each loan in its new state; the entries made beside it."""

    def __init__(self, arguments: Job) -> None:
        self._date = arguments.business_date

    def process(self, element: tuple[str, dict[str, Iterable[Row]]]) -> Iterable[Any]:
        """One state, as there is one loan."""
        _, rows = element
        for loan in rows["loans"]:
            closed, entries = closed_of(loan, rows["transactions"], self._date)
            yield closed
            for entry in entries:
                yield beam.pvalue.TaggedOutput("entries", entry)


def by_loan(row: Row) -> tuple[str, Row]:
    """Key a row by its loan."""
    return row["loan_id"], row


def run(arguments: Job) -> None:
    """Run the pipeline on the local runner."""
    # By default Beam would first try to download another runner.
    with beam.Pipeline(FnApiRunner()) as pipeline:
        loans = pipeline | "ReadLoans" >> ReadFromParquet(arguments.loans)
        if arguments.workload == "schedules":
            rows = loans | "Schedule" >> beam.FlatMap(instalments_of)
        else:
            transactions = pipeline | "ReadTransactions" >> ReadFromParquet(arguments.transactions)
            grouped = {
                "loans": loans | "LoansById" >> beam.Map(by_loan),
                "transactions": transactions | "TransactionsByLoan" >> beam.Map(by_loan),
            } | "GroupByLoan" >> beam.CoGroupByKey()
            if arguments.workload == "report":
                rows = grouped | "Report" >> beam.ParDo(Report(arguments, arguments.investors()))
            else:
                rows, entries = grouped | "Close" >> beam.ParDo(Close(arguments)).with_outputs(
                    "entries", main="closed"
                )
                _ = entries | "WriteEntries" >> WriteToParquet(
                    str(arguments.output / "entries"), ENTRY_SCHEMA, codec="snappy"
                )
        _ = rows | "Write" >> WriteToParquet(
            str(arguments.output / "part"),
            arguments.schema,
            codec="snappy",
            file_name_suffix=".parquet",
        )


if __name__ == "__main__":
    # Not from here: functions of `__main__` are pickled with all that they refer to.
    from rowwise_beam import run as importable_run

    importable_run(job())
