"""The price migration on PostgreSQL: every price raised once, whatever dies on the way."""

import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.postgres import PostgresServer

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.define.process import instance_uri
from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.errors import UserError
from ledgerbeam.pipelines.price_migration import PriceMigration, PriceParameters
from ledgerbeam.rules.money import Rounding
from ledgerbeam.rules.prices import raised_price, raised_prices

DAY = datetime.date(2026, 11, 20)
PRODUCTS = 600
TIMEOUT = 120


class TestRule:
    @pytest.mark.parametrize(
        ("price", "percent", "new"),
        [
            ("10.00", "2.5", "10.25"),
            ("0.50", "1", "0.50"),  # 0.505: to the even cent below
            ("1.50", "1", "1.52"),  # 1.515: to the even cent above
            ("0.10", "-99", "0.05"),  # the floor
            ("0.00", "5", "0.05"),
        ],
    )
    def test_examples(self, price: str, percent: str, new: str) -> None:
        raised = raised_price(Decimal(price), Decimal(percent), Decimal("0.05"))
        assert raised == Decimal(new)
        assert raised.as_tuple().exponent == -2

    @given(
        st.decimals(0, 10**9, places=2, allow_nan=False),
        st.decimals(-100, 1_000, places=3, allow_nan=False),
    )
    def test_nothing_is_nearer(self, price: Decimal, percent: Decimal) -> None:
        exact = Fraction(price) * (100 + Fraction(percent)) / 100
        raised = Fraction(raised_price(price, percent, Decimal("0.00")))
        assert abs(raised - exact) <= Fraction(1, 200)
        if abs(raised - exact) == Fraction(1, 200):
            assert raised * 100 % 2 == 0

    @given(
        st.lists(st.decimals(0, 10**9, places=2, allow_nan=False), max_size=9),
        st.decimals(-100, 1_000, places=10, allow_nan=False),
        st.decimals(0, 10, places=2, allow_nan=False),
        st.sampled_from(Rounding),
    )
    @example([Decimal("0.50"), Decimal("1.50")], Decimal(1), Decimal("0.05"), Rounding.HALF_UP)
    def test_a_column_is_raised_as_each_price_is(
        self, prices: list[Decimal], percent: Decimal, floor: Decimal, mode: Rounding
    ) -> None:
        column = pa.array(prices, pa.decimal128(16, 2))
        raised = raised_prices(column, percent, floor, mode)
        assert raised.type == column.type
        assert raised.to_pylist() == [raised_price(p, percent, floor, 2, mode) for p in prices]

    def test_a_price_that_would_have_too_many_digits(self) -> None:
        column = pa.array([Decimal("999.99")], pa.decimal128(5, 2))
        with pytest.raises(OverflowError, match=r"more digits than decimal128\(5, 2\)"):
            raised_prices(column, Decimal("2.5"), Decimal(0))


@pytest.fixture
def shop(postgres: PostgresServer) -> Iterator[sa.Engine]:
    """A database with products, between whose ids there are gaps."""
    engine = sa.create_engine(postgres.create_database(), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            sa.text(
                "CREATE TABLE product (id bigint PRIMARY KEY, name text NOT NULL, "
                "price numeric(12, 2) NOT NULL, currency text NOT NULL DEFAULT 'USD')"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO product SELECT n * n, 'product ' || n, (n * 37 % 1000) / 8.0 "
                f"FROM generate_series(1, {PRODUCTS}) AS n"
            )
        )
    yield engine
    engine.dispose()


def prices(shop: sa.Engine) -> dict[int, Decimal]:
    with shop.connect() as connection:
        found = connection.execute(sa.text("SELECT id, price FROM product ORDER BY id"))
        return {row.id: row.price for row in found}


def raised(before: dict[int, Decimal]) -> dict[int, Decimal]:
    percent, floor = Decimal("2.5"), Decimal("0.01")
    return {id_: raised_price(price, percent, floor) for id_, price in before.items()}


def migration(shop: sa.Engine, output: Path, **others: object) -> PriceMigration:
    url = shop.url.render_as_string(hide_password=False)
    given_ = {"partitions": 3, "page_rows": 20, "business_date": DAY, "percent": "2.5"} | others
    return PriceMigration(
        PriceParameters.model_validate({"database": url, "output": str(output), **given_})
    )


def start(process: PriceMigration, failpoint: str = "") -> "subprocess.Popen[str]":
    """The migration as a program."""
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in process.parameters.model_dump(mode="json", exclude_none=True).items()
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "ledgerbeam.pipelines.price_migration", *flags],
        env={**os.environ, "LEDGERBEAM_FAILPOINT": failpoint},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_right(process: PriceMigration, before: dict[int, Decimal], shop: sa.Engine) -> None:
    """Every price was raised once, and the results say so."""
    new = raised(before)
    assert prices(shop) == new
    results = read_published(instance_uri(process)).to_table()
    assert results.column("product_id").to_pylist() == list(before)
    assert results.column("old_price").to_pylist() == list(before.values())
    assert results.column("new_price").to_pylist() == list(new.values())
    manifest = load_manifest(instance_uri(process))
    assert manifest.counts["rows_in"] == manifest.counts["rows_out"] == len(before)
    assert manifest.totals == {
        "price": 100 * sum(before.values()),
        "new_price": 100 * sum(new.values()),
    }
    verify(instance_uri(process), process)


@pytest.mark.parametrize("percent", ["250", "-20.01", "NaN", "Infinity"])
def test_a_slip_of_the_pen_is_refused(percent: str) -> None:
    given_ = {"database": "sqlite:////shop.db", "output": "o", "business_date": DAY}
    with pytest.raises(ValueError, match=r"more than max_percent 20: correct|finite number"):
        PriceParameters.model_validate({**given_, "percent": percent})
    assert PriceParameters.model_validate({**given_, "percent": "-20"}).percent == -20


@pytest.mark.slow
class TestMigration:
    def test_a_dry_run_gives_the_same_and_changes_nothing(
        self, shop: sa.Engine, tmp_path: Path
    ) -> None:
        before = prices(shop)
        dry = migration(shop, tmp_path, dry_run=True)
        run(dry)
        assert prices(shop) == before
        assert not sa.inspect(shop).has_table("price_change")
        process = migration(shop, tmp_path)
        run(process)
        assert_right(process, before, shop)
        tables = [read_published(instance_uri(each)).to_table() for each in (dry, process)]
        assert tables[0].equals(tables[1])
        assert Path(instance_uri(dry)).name == f"{DAY}-dry-run"

    def test_undisturbed(self, shop: sa.Engine, tmp_path: Path) -> None:
        before = prices(shop)
        process = migration(shop, tmp_path)
        with start(process) as program:
            output, errors = program.communicate(timeout=TIMEOUT)
        assert program.returncode == 0, errors
        assert "new price" in output
        assert_right(process, before, shop)
        run(process)
        assert prices(shop) == raised(before)

    @pytest.mark.parametrize(
        "point", ["pages: cut", "commit: files written", "commit: marker made", "publish: ended"]
    )
    def test_killed_and_run_again(self, shop: sa.Engine, tmp_path: Path, point: str) -> None:
        before = prices(shop)
        process = migration(shop, tmp_path / "disturbed")
        with start(process, failpoint=point) as program:
            _, errors = program.communicate(timeout=TIMEOUT)
        assert program.returncode == -signal.SIGKILL, errors
        if point != "pages: cut":
            assert prices(shop) != before  # pages were raised, and nobody knows which
        run(process)
        assert_right(process, before, shop)

    def test_products_that_come_and_go_between_two_attempts(
        self, shop: sa.Engine, tmp_path: Path
    ) -> None:
        """Pages were written and not committed: each product of theirs is still raised once."""
        before = prices(shop)
        process = migration(shop, tmp_path, partitions=1)
        with start(process, failpoint="commit: files written") as program:
            program.communicate(timeout=TIMEOUT)
        assert prices(shop) == raised(before)
        with shop.connect() as connection:
            connection.execute(sa.text("DELETE FROM product WHERE id IN (1, 400, 2500, 3600)"))
            new = "(2, 'new', 3.50), (390, 'new', 4.50), (2501, 'new', 5.50), (3599, 'new', 6.50)"
            connection.execute(sa.text(f"INSERT INTO product VALUES {new}"))
        now = before | {
            id_: Decimal(price)
            for id_, price in ((2, "3.50"), (390, "4.50"), (2501, "5.50"), (3599, "6.50"))
        }
        now = {id_: now[id_] for id_ in sorted(now) if id_ not in (1, 400, 2500, 3600)}
        with start(process, failpoint="commit: files written") as program:
            program.communicate(timeout=TIMEOUT)
        assert prices(shop) == raised(now)
        with shop.connect() as connection:
            connection.execute(sa.text("INSERT INTO product VALUES (3, 'newer', 7.50)"))
        now = dict(sorted({**now, 3: Decimal("7.50")}.items()))
        run(process)
        assert_right(process, now, shop)

    def test_killed_between_two_pages(self, shop: sa.Engine, tmp_path: Path) -> None:
        before = prices(shop)
        process = migration(shop, tmp_path, page_rows=1, partitions=1)
        with start(process) as program:
            end = time.monotonic() + TIMEOUT
            while prices(shop) == before:
                assert time.monotonic() < end
                assert program.poll() is None
                time.sleep(0.01)
            program.kill()
            program.communicate(timeout=TIMEOUT)
        assert raised(before) != prices(shop) != before
        run(process)
        assert_right(process, before, shop)

    def test_a_connection_that_is_dropped(self, shop: sa.Engine, tmp_path: Path) -> None:
        """Some page's transaction loses its connection in the middle; the page is tried again."""
        before = prices(shop)
        process = migration(shop, tmp_path)
        process.before()
        with shop.connect() as connection:
            connection.execute(
                sa.text(
                    "CREATE SEQUENCE dropped; "
                    "CREATE FUNCTION drop_me() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                    "IF nextval('dropped') = 150 THEN "
                    "PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN new; END $$; "
                    "CREATE TRIGGER drop_me BEFORE INSERT ON price_change "
                    "FOR EACH ROW EXECUTE FUNCTION drop_me()"
                )
            )
        run(process)
        assert_right(process, before, shop)

    def test_a_price_that_somebody_else_changes(self, shop: sa.Engine, tmp_path: Path) -> None:
        """It is never written over; the page is for the next attempt, at the price of then."""
        before = prices(shop)
        process = migration(shop, tmp_path, partitions=1)
        process.before()
        with shop.connect() as connection:
            connection.execute(
                sa.text(
                    "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                    "UPDATE product SET price = 77 WHERE id = 250000 AND price <> 77; "
                    "RETURN NULL; END $$; "
                    "CREATE TRIGGER meddle AFTER INSERT ON price_change FOR EACH ROW "
                    "WHEN (new.product_id = 1) EXECUTE FUNCTION meddle()"
                )
            )
        with pytest.raises(UserError, match=r"1 of 30 components failed.*another price since"):
            run(process)
        assert prices(shop) == raised(before) | {
            id_: before[id_] for id_ in before if 480**2 < id_ <= 500**2
        } | {250_000: Decimal(77)}
        run(process)
        assert prices(shop) == raised(before | {250_000: Decimal(77)})

    def test_other_parameters_raise_nothing_twice(self, shop: sa.Engine, tmp_path: Path) -> None:
        before = prices(shop)
        process = migration(shop, tmp_path)
        with start(process, failpoint="commit: files written") as program:
            program.communicate(timeout=TIMEOUT)
        other = migration(shop, tmp_path, percent="50", max_percent="50")
        with pytest.raises(UserError, match="raised before, to other prices"):
            run(other)
        once = raised(before)
        thrice = {id_: raised_price(before[id_], Decimal(50), Decimal(0)) for id_ in before}
        assert all(price in (once[id_], thrice[id_]) for id_, price in prices(shop).items())
