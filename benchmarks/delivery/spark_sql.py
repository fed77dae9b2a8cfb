"""Delivery marking in SQL, by Spark: for `spark-submit --master local[2]`.

The query is that of `duckdb_sql.py`. Spark plans one exchange of the rows, and one sort of each
partition, for both windows.
"""

import glob

from job import DELIVERY_QUANTITY, Job, job
from pyspark.sql import SparkSession

QUERY = f"""
SELECT
    * EXCEPT (net, bought, sold),
    CAST(greatest(0, least(
        quantity,
        quantity + CASE side WHEN 'B' THEN net - bought ELSE -net - sold END
    )) AS BIGINT) AS {DELIVERY_QUANTITY}
FROM (
    SELECT
        *,
        sum(CASE side WHEN 'B' THEN quantity ELSE -quantity END) OVER whole AS net,
        sum(CASE side WHEN 'B' THEN quantity ELSE 0 END) OVER so_far AS bought,
        sum(CASE side WHEN 'S' THEN quantity ELSE 0 END) OVER so_far AS sold
    FROM trades
    WHERE trade_date = :trade_date
    WINDOW
        whole AS (
            PARTITION BY client_code, symbol ORDER BY id
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ),
        so_far AS (
            PARTITION BY client_code, symbol ORDER BY id
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        )
)
"""


def run(arguments: Job) -> None:
    """Run the query."""
    spark = SparkSession.builder.getOrCreate()
    try:
        spark.read.parquet(*sorted(glob.glob(arguments.trades))).createOrReplaceTempView("trades")
        marked = spark.sql(QUERY, args={"trade_date": arguments.trade_date})
        marked.write.option("compression", "snappy").parquet(str(arguments.output / "parts"))
    finally:
        spark.stop()


if __name__ == "__main__":
    run(job())
