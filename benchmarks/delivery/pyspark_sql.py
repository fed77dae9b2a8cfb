"""Delivery marking in SQL, by Spark: `spark-submit pyspark_sql.py INPUT_GLOB OUTPUT TRADE_DATE`.

The query is DuckDB's, in Spark's words.
"""

from job import DELIVERY_QUANTITY, Job, job
from pyspark.sql import SparkSession

QUERY = f"""
SELECT
    *,
    greatest(0, least(
        quantity,
        quantity + CASE side WHEN 'B' THEN net - bought ELSE -net - sold END
    )) AS {DELIVERY_QUANTITY}
FROM (
    SELECT
        *,
        sum(CASE side WHEN 'B' THEN quantity ELSE -quantity END) OVER whole AS net,
        sum(CASE side WHEN 'B' THEN quantity ELSE 0 END) OVER so_far AS bought,
        sum(CASE side WHEN 'S' THEN quantity ELSE 0 END) OVER so_far AS sold
    FROM trades
    WHERE trade_date = DATE '{{trade_date}}'
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
    """Run the query in the session that `spark-submit` has set up."""
    with SparkSession.builder.getOrCreate() as session:
        session.read.parquet(arguments.trades).createOrReplaceTempView("trades")
        marked = session.sql(QUERY.format(trade_date=arguments.trade_date))
        marked = marked.drop("net", "bought", "sold")
        # The folder was made before, and is empty.
        marked.write.mode("append").parquet(str(arguments.output))


if __name__ == "__main__":
    run(job())
