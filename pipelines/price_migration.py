"""Price migration: raises the prices of a product table, each of them once.

    ledgerbeam run price-migration --database='postgresql+psycopg://batch:${env:PGPASS}@db/shop' \
        --business-date=2026-11-20 --percent=2.5 --output=results

The table `product` has the columns `id` and `price numeric(12, 2)`. A page of products is raised in
one transaction, which also notes every change in the table `price_change`. What has been raised is
read as it was before, so that a page that is tried again, in this attempt or in a later one, gives
the same results and raises nothing twice. The rule is in `ledgerbeam.rules.prices`.

With `--dry-run` the results and their totals are the same, and the database stays as it is; the
run is an instance of its own, such as 2026-11-20-dry-run.
"""

import datetime
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Self

import pyarrow as pa
import sqlalchemy as sa
from pydantic import Field, model_validator

from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.define.page_process import Page, PageProcess, SqlPages, SqlParameters
from ledgerbeam.batch.define.process import Record
from ledgerbeam.io.commit.records import Totals
from ledgerbeam.io.secrets import resolve_url
from ledgerbeam.io.sql.engine import connect, database_errors, open_engine
from ledgerbeam.io.sql.ranges import ByNumber
from ledgerbeam.io.sql.source import SqlQuery
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.prices import raised_price
from ledgerbeam.transforms.columnar.totals import exact_sum

PRICE = pa.decimal128(12, 2)

_METADATA = sa.MetaData()
PRODUCT = sa.Table(
    "product",
    _METADATA,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("price", sa.Numeric(12, 2), nullable=False),
)
PRICE_CHANGE = sa.Table(
    "price_change",
    _METADATA,
    sa.Column("instance", sa.Text, primary_key=True),
    sa.Column("product_id", sa.BigInteger, primary_key=True),
    sa.Column("old_price", sa.Numeric(12, 2), nullable=False),
    sa.Column("new_price", sa.Numeric(12, 2), nullable=False),
)
"""Every price that was changed, with the instance that changed it."""


class PriceParameters(SqlParameters):
    """Parameters of the price migration."""

    business_date: datetime.date = Field(description="the day that the prices are for")
    percent: Decimal = Field(description="by how much prices are raised, as 2.5")
    max_percent: Decimal = Field(
        default=Decimal(20),
        ge=0,
        description="a percent above it, or as far below 0, is refused: a slip of the pen",
    )
    dry_run: bool = Field(default=False, description="only give what the new prices would be")
    floor: Decimal = Field(
        default=Decimal("0.01"), ge=0, decimal_places=2, description="the least new price"
    )
    partitions: int = Field(default=8, ge=1, description="how many the table is cut into")
    page_rows: int = Field(default=1_000, ge=1, description="products raised in one transaction")

    @model_validator(mode="after")
    def _check_percent(self) -> Self:
        if abs(self.percent) > self.max_percent:
            raise ValueError(
                f"percent {self.percent} is more than max_percent {self.max_percent}: correct it, "
                "or give both if it is meant so"
            )
        return self


class PriceMigration(PageProcess[PriceParameters]):
    """The definition of the price migration."""

    name = "price-migration"
    results = pa.schema([("product_id", pa.int64()), ("old_price", PRICE), ("new_price", PRICE)])

    @property
    def instance_name(self) -> str:
        """The business date; a dry run of it is another instance."""
        return super().instance_name + ("-dry-run" if self.parameters.dry_run else "")

    @property
    def source(self) -> SqlPages:
        """The products with the prices that they had before this instance."""
        # The instance is a date, perhaps with a run number: it holds no quotes.
        query = (
            "SELECT product.id AS product_id, coalesce(old_price, price) AS price "  # noqa: S608
            "FROM product LEFT JOIN price_change "
            f"ON instance = '{self.instance}' AND price_change.product_id = product.id"
        )
        if self.parameters.dry_run:
            query = "SELECT id AS product_id, price FROM product"
        return SqlPages(
            SqlQuery(
                self.parameters.database,
                query,
                key=("product_id",),
                types={"product_id": pa.int64(), "price": PRICE},
            ),
            ByNumber(self.parameters.partitions),
            page_rows=self.parameters.page_rows,
            amounts=("price",),
        )

    def before(self) -> None:
        """Create the table of changes if it doesn't exist; a dry run needs none."""
        if self.parameters.dry_run:
            return
        engine = open_engine(resolve_url(self.parameters.database))
        try:
            what = f"table {PRICE_CHANGE.name}"
            with connect(engine, what) as connection, database_errors(engine, what):
                PRICE_CHANGE.create(connection, checkfirst=True)
                connection.commit()
        finally:
            engine.dispose()

    def execute(self, page: Page) -> Iterator[Record]:
        """Raise the prices of a page."""
        percent, floor = self.parameters.percent, self.parameters.floor
        changes = [
            {
                "product_id": item["product_id"],
                "old_price": item["price"],
                "new_price": raised_price(item["price"], percent, floor),
            }
            for item in page.items
        ]
        if not self.parameters.dry_run:
            self._raise(page, changes)
        yield from changes

    def _raise(self, page: Page, changes: Sequence[Record]) -> None:
        """Write those changes that aren't recorded yet."""
        url = self.parameters.database
        with page.transaction(url) as transaction:
            if not transaction.already_done:
                self._write(transaction.connection, changes)
                return
            recorded = self._recorded(transaction.connection, changes)
        if any(recorded.get(c["product_id"], c["new_price"]) != c["new_price"] for c in changes):
            raise ValueError(
                "these products were raised before, to other prices: give the parameters of then"
            )
        # An earlier attempt wrote the page and ended before it committed; these came since then.
        came = [change for change in changes if change["product_id"] not in recorded]
        if came:
            with page.transaction(url, str(came[0]["product_id"])) as transaction:
                if not transaction.already_done:
                    self._write(transaction.connection, came)

    def _recorded(self, connection: sa.Connection, changes: Sequence[Record]) -> dict[int, Decimal]:
        """The new prices that this instance gave between the first product and the last one."""
        recorded = connection.execute(
            sa.select(PRICE_CHANGE.c.product_id, PRICE_CHANGE.c.new_price)
            .where(PRICE_CHANGE.c.instance == self.instance)
            .where(PRICE_CHANGE.c.product_id.between(*_first_and_last(changes)))
        )
        return {row.product_id: row.new_price for row in recorded}

    def _write(self, connection: sa.Connection, changes: Sequence[Record]) -> None:
        connection.execute(
            PRICE_CHANGE.insert(), [{"instance": self.instance, **change} for change in changes]
        )
        raised = connection.execute(
            PRODUCT.update()
            .values(price=PRICE_CHANGE.c.new_price)
            .where(PRICE_CHANGE.c.instance == self.instance)
            .where(PRICE_CHANGE.c.product_id == PRODUCT.c.id)
            .where(PRICE_CHANGE.c.old_price == PRODUCT.c.price)
            .where(PRODUCT.c.id.in_([change["product_id"] for change in changes]))
        )
        if raised.rowcount != len(changes):
            raise ValueError(
                f"{len(changes) - raised.rowcount} of the page's products were deleted or given "
                "another price since they were read: retry the run"
            )

    def result_totals(self, results: Components) -> Totals:
        """Number of products, and the sums of their prices before and after."""
        return {
            "rows": results.table.num_rows,
            "price": exact_sum(results.table.column("old_price")),
            "new_price": exact_sum(results.table.column("new_price")),
        }


def _first_and_last(changes: Sequence[Record]) -> tuple[int, int]:
    return changes[0]["product_id"], changes[-1]["product_id"]


if __name__ == "__main__":
    sys.exit(main(PriceMigration))
