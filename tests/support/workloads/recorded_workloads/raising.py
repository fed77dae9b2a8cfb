"""Raises the price of each product of a table by one, a page in a transaction.

FOLDER/calls gets a line a page.
"""

import datetime
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import sqlalchemy as sa
from pydantic import Field

from ledgerbeam.batch.define.page_process import Page, PageProcess, SqlPages, SqlParameters
from ledgerbeam.batch.define.process import Record
from ledgerbeam.io.sql.ranges import ByNumber
from ledgerbeam.io.sql.source import SqlTable

RAISE = sa.text("UPDATE product SET price = price + 1 WHERE id BETWEEN :first AND :last")


class RaisingParameters(SqlParameters):
    business_date: datetime.date = Field(description="the day")
    folder: Path = Field(description="of the log")


class Raising(PageProcess[RaisingParameters]):
    name = "raising"
    results = pa.schema([("product", pa.int64())])

    @property
    def source(self) -> SqlPages:
        products = SqlTable(self.parameters.database, "product", ("id",), columns=("id",))
        return SqlPages(products, ByNumber(3), page_rows=4)

    def execute(self, page: Page) -> Iterator[Record]:
        with open(self.parameters.folder / "calls", "a") as log:
            log.write(f"{page.name}\n")
        ids = [item["id"] for item in page.items]
        with page.transaction(self.parameters.database) as transaction:
            if not transaction.already_done:
                transaction.connection.execute(RAISE, {"first": ids[0], "last": ids[-1]})
        yield from ({"product": id_} for id_ in ids)
