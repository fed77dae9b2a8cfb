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
from decimal import Decimal
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from pydantic import Field, model_validator

from ledgerbeam.batch.cli.module import main
from ledgerbeam.batch.define.page_process import Page, PageProcess, SqlPages, SqlParameters
from ledgerbeam.io.commit.records import Totals
from ledgerbeam.io.secrets import resolve_url
from ledgerbeam.io.sql.engine import connect, database_errors, open_engine
from ledgerbeam.io.sql.ranges import ByNumber
from ledgerbeam.io.sql.source import SqlQuery
from ledgerbeam.io.sql.write import ComponentTransaction
from ledgerbeam.rules.components import Components
from ledgerbeam.rules.prices import raised_prices
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
    percent: Decimal = Field(decimal_places=10, description="by how much prices are raised, as 2.5")
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
        # A subquery is looked up for the rows of a page; a join would begin at the first change.
        query = (
            "SELECT id AS product_id, coalesce((SELECT old_price FROM price_change "  # noqa: S608
            f"WHERE instance = '{self.instance}' AND price_change.product_id = product.id), "
            "price) AS price FROM product"
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

    def execute(self, page: Page) -> pa.Table:
        """Raise the prices of a page."""
        old = page.table.column("price")
        new = raised_prices(old, self.parameters.percent, self.parameters.floor)
        changes = pa.table([page.table.column("product_id"), old, new], schema=self.results)
        if not self.parameters.dry_run:
            self._raise(page, changes)
        return changes

    def _raise(self, page: Page, changes: pa.Table) -> None:
        """Write those changes that aren't recorded yet."""
        url = self.parameters.database
        with page.transaction(url) as transaction:
            if not transaction.already_done:
                self._write(transaction, changes)
                return
            recorded = self._recorded(transaction.connection, changes)
        ids, prices = (changes.column(name) for name in ("product_id", "new_price"))
        for id_, price in zip(ids.to_pylist(), prices.to_pylist(), strict=True):
            if recorded.get(id_, price) != price:
                raise ValueError(
                    "these products were raised before, to other prices: give the parameters of "
                    "then"
                )
        # An earlier attempt wrote the page and ended before it committed; these came since then.
        came = pc.indices_nonzero(pc.invert(pc.is_in(ids, pa.array([*recorded], ids.type))))
        if len(came):
            first = ids[came[0].as_py()].as_py()
            with page.transaction(url, str(first)) as transaction:
                if not transaction.already_done:
                    for row in came.to_pylist():  # between two of them are some that were raised
                        self._write(transaction, changes.slice(row, 1))

    def _recorded(self, connection: sa.Connection, changes: pa.Table) -> dict[int, Decimal]:
        """The new prices that this instance gave between the first product and the last one."""
        recorded = connection.execute(
            sa.select(PRICE_CHANGE.c.product_id, PRICE_CHANGE.c.new_price)
            .where(PRICE_CHANGE.c.instance == self.instance)
            .where(PRICE_CHANGE.c.product_id.between(*_first_and_last(changes)))
        )
        return {row.product_id: row.new_price for row in recorded}

    def _write(self, transaction: ComponentTransaction, changes: pa.Table) -> None:
        """Record and make changes that are all there are between the first and the last of them."""
        instance = pa.repeat(self.instance, len(changes))
        transaction.insert(PRICE_CHANGE, changes.append_column("instance", instance))
        bounds = _first_and_last(changes)
        raised = transaction.connection.execute(
            PRODUCT.update()
            .values(price=PRICE_CHANGE.c.new_price)
            .where(PRICE_CHANGE.c.instance == self.instance)
            .where(PRICE_CHANGE.c.product_id == PRODUCT.c.id)
            .where(PRICE_CHANGE.c.old_price == PRODUCT.c.price)
            # Both, so that the database needn't search either table for rows of other pages.
            .where(PRICE_CHANGE.c.product_id.between(*bounds))
            .where(PRODUCT.c.id.between(*bounds))
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


def _first_and_last(changes: pa.Table) -> tuple[int, int]:
    ids = changes.column("product_id")
    return ids[0].as_py(), ids[-1].as_py()


if __name__ == "__main__":
    sys.exit(main(PriceMigration))
