"""The totals of the report in SQL, by DuckDB, over lines that are computed already."""

import os

import duckdb
from job import Job, job

from ledgerbeam.rules.remittance.pool_totals import LINE_TOTALS

SUMS = ", ".join(f"sum({name}) AS {name}" for name in LINE_TOTALS)
BUCKETS = ", ".join(
    f"count(*) FILTER (least(missed_payments, 4) = {bucket}) AS loans_{bucket}, "
    f"coalesce(sum(ending_balance) FILTER (least(missed_payments, 4) = {bucket}), 0) "
    f"AS balance_{bucket}"
    for bucket in range(5)
)
IS_IN = " OR ".join(f"{name} <> 0" for name in LINE_TOTALS)
QUERY = f"""
COPY (
    SELECT investor_id, pool_id, currency, count(*) AS loans, {SUMS}, {BUCKETS}
    FROM read_parquet($lines) WHERE {IS_IN}
    GROUP BY ALL ORDER BY ALL
) TO $output (FORMAT parquet)
"""


def run(arguments: Job) -> None:
    """Run the query in a database that lives in memory."""
    with duckdb.connect() as connection:
        connection.execute(f"SET threads = {len(os.sched_getaffinity(0))}")
        lines = str(arguments.folder / "lines" / "*.parquet")
        connection.execute(
            QUERY, {"lines": lines, "output": str(arguments.output / "part.parquet")}
        )


if __name__ == "__main__":
    run(job())
