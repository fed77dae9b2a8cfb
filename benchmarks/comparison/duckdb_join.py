"""The comparison as DuckDB does it: one FULL JOIN, `duckdb_join.py BEFORE AFTER OUTPUT`."""

import json
import sys
from pathlib import Path

import duckdb

COMPARED = (
    *("client_code", "symbol", "side", "quantity", "price", "trade_date", "currency"),
    "delivery_quantity",
)


def main(before: str, after: str, output: Path) -> None:
    """Write what was found for each id, and how many ids and how much money that is."""
    output.mkdir(parents=True)
    differs = {name: f"b.{name} IS DISTINCT FROM a.{name}" for name in COMPARED}
    names = ", ".join(f"CASE WHEN {test} THEN '{name}' END" for name, test in differs.items())
    connection = duckdb.connect()
    connection.execute(
        f"""
        COPY (
            SELECT coalesce(a.id, b.id) AS id,
                coalesce(a.client_code, b.client_code) AS client_code,
                coalesce(a.currency, b.currency) AS currency,
                CASE WHEN a.id IS NULL THEN 'only_before'
                    WHEN b.id IS NULL THEN 'only_after'
                    WHEN {" OR ".join(differs.values())} THEN 'changed'
                    ELSE 'same' END AS comparison,
                CASE WHEN a.id IS NULL OR b.id IS NULL THEN ''
                    ELSE concat_ws(',', {names}) END AS differing,
                coalesce(a.price, 0) - coalesce(b.price, 0) AS price_change
            FROM read_parquet('{before}') b FULL JOIN read_parquet('{after}') a USING (id)
        ) TO '{output}/part.parquet' (FORMAT parquet)
        """
    )
    results = f"read_parquet('{output}/part.parquet')"
    totals = connection.execute(
        f"""
        SELECT 'keys_' || comparison, count(*) FROM {results} GROUP BY ALL
        UNION ALL
        SELECT 'changed_' || name, count(*) FROM (
            SELECT unnest(string_split(differing, ',')) AS name FROM {results} WHERE differing <> ''
        ) GROUP BY ALL
        UNION ALL
        SELECT 'net_price_' || currency, (100 * sum(price_change))::bigint
            FROM {results} GROUP BY ALL
        UNION ALL
        SELECT 'gross_price_' || currency, (100 * sum(abs(price_change)))::bigint
            FROM {results} GROUP BY ALL
        """
    )
    (output / "totals.json").write_text(json.dumps(dict(totals.fetchall())))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
