"""The plain rules in a loop, one loan after the other, Parquet to Parquet."""

import glob
from collections import defaultdict
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from job import SCHEMAS, Job, Row, instalments_of, job, line_of

ROWS_A_GROUP = 100_000


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
    investors = arguments.investors()
    for loan in loans:
        rows = transactions[loan["loan_id"]]
        yield line_of(loan, rows, investors, arguments.business_date)


def run(arguments: Job) -> None:
    """Write the result."""
    schema = SCHEMAS[arguments.workload]
    with pq.ParquetWriter(arguments.output / "part.parquet", schema) as writer:
        rows: list[Row] = []
        for row in rows_of(arguments):
            rows.append(row)
            if len(rows) == ROWS_A_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema))


if __name__ == "__main__":
    run(job())
