"""The price migration as a loop of one's own: page after page over one connection, in psycopg.

    python benchmarks/migration/plain_loop.py URL PAGE_ROWS PERCENT

A page is read by its key, goes into a staging table by COPY, is noted in `price_change` and raised
by `UPDATE … FROM`, in one transaction. As many products must have been raised as were read, each at
the price that was read.
"""

import sys
from decimal import Decimal

import psycopg

from ledgerbeam.rules.prices import raised_price

INSTANCE = "loop"
FLOOR = Decimal("0.01")
TABLES = """
    CREATE TABLE price_change (
        instance text, product_id bigint, old_price numeric(12, 2) NOT NULL,
        new_price numeric(12, 2) NOT NULL, PRIMARY KEY (instance, product_id));
    CREATE TEMP TABLE staging (
        product_id bigint, old_price numeric(12, 2), new_price numeric(12, 2))
"""
READ = "SELECT id, price FROM product WHERE id > %s ORDER BY id LIMIT %s"
STAGE = "COPY staging FROM STDIN"
NOTE = f"""
    INSERT INTO price_change SELECT '{INSTANCE}', product_id, old_price, new_price FROM staging
"""
RAISE = """
    UPDATE product SET price = new_price FROM staging
    WHERE id = product_id AND price = old_price
"""


def main(url: str, page_rows: int, percent: Decimal) -> None:
    """Raise the prices of all products."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(TABLES)
        connection.commit()
        last, old_total, new_total = 0, Decimal(0), Decimal(0)
        while page := cursor.execute(READ, (last, page_rows)).fetchall():
            changes = [(id_, old, raised_price(old, percent, FLOOR)) for id_, old in page]
            with cursor.copy(STAGE) as copy:
                for change in changes:
                    copy.write_row(change)
            cursor.execute(NOTE)
            cursor.execute(RAISE)
            if cursor.rowcount != len(changes):
                raise ValueError(f"{len(changes) - cursor.rowcount} prices have changed")
            cursor.execute("TRUNCATE staging")
            connection.commit()
            last = page[-1][0]
            old_total += sum(change[1] for change in changes)
            new_total += sum(change[2] for change in changes)
        cursor.execute("SELECT sum(old_price), sum(new_price) FROM price_change")
        if cursor.fetchone() != (old_total, new_total):
            raise ValueError("totals don't balance")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Decimal(sys.argv[3]))
