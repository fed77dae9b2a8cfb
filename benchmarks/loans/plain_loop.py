"""The plain rules in a loop, one loan after the other, Parquet to Parquet."""

import glob
from collections import defaultdict
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from job import Job, Row, closed_of, instalments_of, job, line_of

from ledgerbeam.rules.loans.entries import ENTRY_SCHEMA

ROWS_PER_GROUP = 100_000


def rows_of(arguments: Job) -> Iterator[Row]:
    """All rows of the result."""
    loans = (
        row
        for file in sorted(glob.glob(arguments.loans))
        for batch in pq.ParquetFile(file).iter_batches()
        for row in batch.to_pylist()
    )
    if arguments.workload == "schedules":
        for loan in loans:
            yield from instalments_of(loan)
        return
    transactions: dict[str, list[Row]] = defaultdict(list)
    for file in sorted(glob.glob(arguments.transactions)):
        for row in pq.read_table(file).to_pylist():
            transactions[row["loan_id"]].append(row)
    date = arguments.business_date
    if arguments.workload == "report":
        investors = arguments.investors()
        for loan in loans:
            yield line_of(loan, transactions[loan["loan_id"]], investors, date)
        return
    made: list[Row] = []
    for loan in loans:
        closed, entries = closed_of(loan, transactions[loan["loan_id"]], date)
        made += entries
        yield closed
    pq.write_table(pa.Table.from_pylist(made, ENTRY_SCHEMA), arguments.output / "entries.parquet")


def run(arguments: Job) -> None:
    """Write the result."""
    schema = arguments.schema
    with pq.ParquetWriter(arguments.output / "part.parquet", schema) as writer:
        rows: list[Row] = []
        for row in rows_of(arguments):
            rows.append(row)
            if len(rows) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))


if __name__ == "__main__":
    run(job())
