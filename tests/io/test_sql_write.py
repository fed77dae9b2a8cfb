"""Writes of a component: once per instance and component, whoever dies, races or is too late."""

import datetime
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from tests.support.databases import Database, open_database, sqlite_url
from tests.support.postgres import PostgresServer

from ledgerbeam.io.errors import DatabaseError, UserError
from ledgerbeam.io.sql.engine import connect, database_errors, open_engine
from ledgerbeam.io.sql.write import DONE, component_transaction, insert_rows

INSTANCE = "2026-01-05"
RAISE_PRICE = "UPDATE product SET price = price + 1 WHERE id = 7"

# Says at which point it is, and waits for a line before it goes on.
WRITER = f"""
import sys
import sqlalchemy as sa
from ledgerbeam.io.sql.engine import open_engine
from ledgerbeam.io.sql.write import component_transaction

def reach(point):
    print(point, flush=True)
    sys.stdin.readline()

reach("ready")
engine = open_engine(sys.argv[1])
with component_transaction(engine, {INSTANCE!r}, sys.argv[2]) as transaction:
    transaction.connection.execute(sa.text({RAISE_PRICE!r}))
    reach("already done" if transaction.already_done else "written")
print("committed", flush=True)
"""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with a product at 100, and without the table of components done."""
    if request.param == "sqlite":
        url = sqlite_url(tmp_path)
    else:
        url = request.getfixturevalue("postgres").create_database()
    with open_database(url) as database:
        database.execute(
            "CREATE TABLE product (id INTEGER PRIMARY KEY, price INTEGER NOT NULL)",
            "INSERT INTO product VALUES (7, 100)",
        )
        yield database


@pytest.fixture
def engine(bank: Database) -> Iterator[sa.Engine]:
    engine = open_engine(bank.url, max_connections=2)
    yield engine
    engine.dispose()


def price(bank: Database) -> int:
    with bank.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT price FROM product").scalar_one())


def done(bank: Database) -> list[str]:
    with bank.engine.connect() as connection:
        if not sa.inspect(connection).has_table(DONE.name):
            return []
        return list(connection.scalars(sa.select(DONE.c.component).order_by(DONE.c.component)))


def raise_price(
    engine: sa.Engine, component: str = "7", fence: Callable[[], None] | None = None
) -> bool:
    """Whether the component was done before."""
    with component_transaction(engine, INSTANCE, component, fence) as transaction:
        transaction.connection.execute(sa.text(RAISE_PRICE))
        return transaction.already_done


def raise_price_and_fail(connection: sa.Connection) -> None:
    connection.execute(sa.text(RAISE_PRICE))
    raise ZeroDivisionError


def test_a_component_is_written_once_per_instance(bank: Database, engine: sa.Engine) -> None:
    assert [raise_price(engine) for _ in range(3)] == [False, True, True]
    assert price(bank) == 101
    assert not raise_price(engine, "8")
    with component_transaction(engine, "2026-01-06", "7") as transaction:
        assert not transaction.already_done
        transaction.connection.execute(sa.text(RAISE_PRICE))
    assert price(bank) == 103
    assert done(bank) == ["7", "7", "8"]


def test_nothing_is_written_by_a_component_that_fails(bank: Database, engine: sa.Engine) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        component_transaction(engine, INSTANCE, "7") as transaction,
    ):
        raise_price_and_fail(transaction.connection)
    assert (price(bank), done(bank)) == (100, [])
    assert not raise_price(engine)
    assert (price(bank), done(bank)) == (101, ["7"])


def test_nothing_is_written_by_a_component_that_is_too_late(
    bank: Database, engine: sa.Engine
) -> None:
    calls: list[int] = []

    def fence() -> None:
        calls.append(price(bank))
        raise TimeoutError

    with pytest.raises(TimeoutError):
        raise_price(engine, fence=fence)
    assert calls == [100]
    assert (price(bank), done(bank)) == (100, [])
    assert not raise_price(engine, fence=lambda: None)
    assert (price(bank), done(bank)) == (101, ["7"])


def test_a_fence_is_not_asked_where_nothing_will_be_written(
    bank: Database, engine: sa.Engine
) -> None:
    raise_price(engine)
    with component_transaction(engine, INSTANCE, "7", lambda: pytest.fail("asked")) as transaction:
        assert transaction.already_done
    assert price(bank) == 101


ROWS = pa.table(
    {
        "id": pa.array([1, 2, 3], pa.int64()),
        "Na me %": ["", None, 'say "a,b"\n\\N\n\\.\nend'],
        "price": pa.array([Decimal("1.50"), None, Decimal("-0.01")], pa.decimal128(12, 2)),
        "day": pa.array([datetime.date(2026, 11, 20), None, datetime.date(1, 1, 1)]),
        "made": [datetime.datetime.fromisoformat("2026-01-02 03:04:05.678901"), None, None],
        "is_new": [True, None, False],
        "digest": pa.array([b"\x00\xff,", None, b""], pa.large_binary()),
    }
)
NOTE = sa.Table(
    "no te",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("Na me %", sa.Text),
    sa.Column("price", sa.Numeric(12, 2)),
    sa.Column("day", sa.Date),
    sa.Column("made", sa.DateTime),
    sa.Column("is_new", sa.Boolean),
    sa.Column("digest", sa.LargeBinary),
    sa.Column("note", sa.Text, server_default="none"),
)


class TestInsert:
    def test_values_come_back_as_they_were(self, engine: sa.Engine) -> None:
        NOTE.create(engine)
        with component_transaction(engine, INSTANCE, "7") as transaction:
            transaction.insert(NOTE, ROWS.slice(0, 0))
            transaction.insert(NOTE, ROWS.select(reversed(ROWS.column_names)))
        with engine.connect() as connection:
            found = connection.execute(NOTE.select().order_by(NOTE.c.id)).mappings().all()
        assert [dict(row) for row in found] == [row | {"note": "none"} for row in ROWS.to_pylist()]

    def test_they_are_there_with_the_transaction(self, bank: Database, engine: sa.Engine) -> None:
        NOTE.create(engine)

        def insert() -> None:
            with component_transaction(engine, INSTANCE, "7") as transaction:
                transaction.insert(NOTE, ROWS)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            insert()
        with engine.connect() as connection:
            insert_rows(connection, NOTE, ROWS)  # which begins one where there is none
            connection.rollback()
            assert connection.execute(NOTE.select()).all() == []
            insert_rows(connection, NOTE, ROWS)
            connection.commit()
        with bank.engine.connect() as connection:
            assert len(connection.execute(NOTE.select()).all()) == 3

    def test_rows_that_the_database_refuses(self, engine: sa.Engine) -> None:
        NOTE.create(engine)
        with (
            engine.connect() as connection,
            pytest.raises(DBAPIError, match=r"(?i)unique") as refused,
        ):
            insert_rows(connection, NOTE, pa.concat_tables([ROWS, ROWS]))
        assert isinstance(refused.value, IntegrityError)

    def test_defaults_and_types_of_the_definition_count(self, engine: sa.Engine) -> None:
        call = sa.Table(
            "call",
            sa.MetaData(),
            sa.Column("id", sa.BigInteger, primary_key=True),
            sa.Column("took", sa.Interval),
            sa.Column("state", sa.Text, default="new", nullable=False),
        )
        call.create(engine)
        took = datetime.timedelta(seconds=5)
        for number, unit in enumerate(("ms", "us")):
            rows = pa.table({"id": [number], "took": pa.array([took], pa.duration(unit))})
            with engine.begin() as connection:
                insert_rows(connection, call, rows)
        with engine.connect() as connection:
            found = connection.execute(call.select().order_by(call.c.id)).all()
        assert found == [(0, took, "new"), (1, took, "new")]


def test_a_connection_that_is_lost_during_an_insert_says_so(postgres_database: Database) -> None:
    table = postgres_database.create("id bigint")
    engine = open_engine(postgres_database.url, max_connections=2)
    with engine.connect() as connection, engine.connect() as other:
        process = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": process})
        definition = sa.Table(table, sa.MetaData(), sa.Column("id", sa.BigInteger))
        with pytest.raises(DBAPIError) as lost:
            insert_rows(connection, definition, pa.table({"id": [1]}))
        assert lost.value.connection_invalidated
    engine.dispose()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_component_that_ends_its_transaction_itself_is_a_defect(
    engine: sa.Engine, end: str
) -> None:
    with (
        pytest.raises(RuntimeError, match="ended its transaction itself"),
        component_transaction(engine, INSTANCE, "7") as transaction,
    ):
        getattr(transaction.connection, end)()


def test_a_part_of_a_component_may_be_undone(bank: Database, engine: sa.Engine) -> None:
    with component_transaction(engine, INSTANCE, "7") as transaction:
        with pytest.raises(ZeroDivisionError), transaction.connection.begin_nested():
            raise_price_and_fail(transaction.connection)
        transaction.connection.execute(sa.text(RAISE_PRICE))
    assert (price(bank), done(bank)) == (101, ["7"])


def test_an_error_that_a_component_swallows_does_not_lose_its_writes_in_silence(
    bank: Database, engine: sa.Engine
) -> None:
    try:
        with component_transaction(engine, INSTANCE, "7") as transaction:
            transaction.connection.execute(sa.text(RAISE_PRICE))
            with pytest.raises(sa.exc.IntegrityError):
                transaction.connection.execute(sa.text("INSERT INTO product VALUES (7, 0)"))
    except sa.exc.DBAPIError:
        # PostgreSQL keeps nothing of a transaction in which a statement has failed.
        assert (price(bank), done(bank)) == (100, [])
    else:
        assert (price(bank), done(bank)) == (101, ["7"])


def test_errors_of_a_component_stay_what_they_are(engine: sa.Engine) -> None:
    with (
        pytest.raises(sa.exc.IntegrityError),
        component_transaction(engine, INSTANCE, "7") as transaction,
    ):
        transaction.connection.execute(sa.text("INSERT INTO product VALUES (7, 0)"))


def test_a_database_that_cannot_be_had_is_one_line() -> None:
    engine = open_engine("postgresql+psycopg://u:canary@127.0.0.1:1/bank")
    with (
        pytest.raises(UserError, match="component 7 of 2026-01-05: no connection") as caught,
        component_transaction(engine, INSTANCE, "7"),
    ):
        pass
    assert "canary" not in str(caught.value)


class Writer:
    """A process that writes a component and stops at each point until it may go on."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def reaches(self) -> str:
        """The next point; empty if the process has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def writer(bank: Database, component: str = "7") -> Iterator[Writer]:
    """A writer that is ready to begin."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, bank.url, component],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            started = Writer(process)
            assert started.reaches() == "ready"
            yield started
        finally:
            process.kill()


def test_a_writer_killed_before_its_commit_has_written_nothing(
    bank: Database, engine: sa.Engine
) -> None:
    with writer(bank) as killed:
        killed.go_on()
        assert killed.reaches() == "written"
        killed.kill()
    assert (price(bank), done(bank)) == (100, [])
    assert not raise_price(engine)
    assert (price(bank), done(bank)) == (101, ["7"])


@pytest.mark.parametrize("first_one_dies", [False, True])
def test_of_two_writers_of_a_component_one_writes(bank: Database, first_one_dies: bool) -> None:
    with writer(bank) as first, writer(bank) as second:
        first.go_on()
        assert first.reaches() == "written"
        second.go_on()  # it waits for the first
        if bank.engine.dialect.name == "postgresql":
            wait_for_a_waiting_backend(bank)
        if first_one_dies:
            first.kill()
        else:
            first.go_on()
            assert first.reaches() == "committed"
        assert second.reaches() == ("written" if first_one_dies else "already done")
        second.go_on()
        assert second.reaches() == "committed"
    assert (price(bank), done(bank)) == (101, ["7"])


def wait_for_a_waiting_backend(bank: Database) -> None:
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity, pg_sleep(0.01) "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    while True:
        with bank.engine.connect() as connection:
            if connection.scalar(waiting):
                return


def test_writers_that_all_find_no_table_of_components_all_write(bank: Database) -> None:
    with (
        writer(bank, "1") as one,
        writer(bank, "2") as two,
        writer(bank, "3") as three,
    ):
        everyone = [one, two, three]
        for each in everyone:
            each.go_on()
            each.go_on()
        for each in everyone:
            assert [each.reaches(), each.reaches()] == ["written", "committed"]
    assert (price(bank), done(bank)) == (103, ["1", "2", "3"])


@pytest.mark.slow
def test_a_writer_waits_for_another_that_makes_the_table_of_components(
    postgres: PostgresServer,
) -> None:
    with open_database(postgres.create_database()) as bank:
        bank.execute("CREATE TABLE product (id INTEGER, price INTEGER)")
        with writer(bank) as waiting, bank.engine.connect() as connection:
            DONE.create(connection)
            waiting.go_on()
            wait_for_a_waiting_backend(bank)
            connection.commit()
            assert waiting.reaches() == "written"
            waiting.go_on()
            assert waiting.reaches() == "committed"
        assert done(bank) == ["7"]


@pytest.mark.slow
def test_a_server_that_shuts_down_in_a_query_is_told_in_one_line(postgres: PostgresServer) -> None:
    engine = open_engine(postgres.create_database())
    with (
        pytest.raises(DatabaseError, match=r"terminating connection.*try again") as caught,
        database_errors(engine, "a page"),
        connect(engine, "a page") as connection,
    ):
        connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
    engine.dispose()
    assert "\n" not in str(caught.value)
    assert caught.value.is_transient


def test_a_file_that_is_locked_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerbeam.io.sql.engine._SQLITE_WAITS_FOR_LOCKS", 0.2)
    url = sqlite_url(tmp_path)
    with open_database(url) as database:
        database.execute("CREATE TABLE product (id INTEGER PRIMARY KEY)")
    engine = open_engine(url)
    writer = sqlite3.connect(str(engine.url.database), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with (
        pytest.raises(DatabaseError, match=r"is locked: another process.*fuser"),
        database_errors(engine, "a page"),
        connect(engine, "a page") as connection,
    ):
        connection.execute(sa.text("INSERT INTO product VALUES (7)"))
    writer.close()
    engine.dispose()


@pytest.mark.parametrize("options", ["timeout=abc", "timeout=5&timeout=6", "time=5"])
def test_an_option_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, options: str) -> None:
    with pytest.raises(DatabaseError, match=r"behind its \?"):
        open_engine(f"{sqlite_url(tmp_path)}?{options}")


def test_a_url_of_sqlite_with_a_host_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="Invalid SQLite URL") as caught:
        open_engine(sqlite_url(tmp_path).replace(":///", "://host/"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql+psycopg://u:canary@host:/54/shop", "mysql://u:canary@h:\x005/d"]
)
def test_a_url_that_cannot_be_read_is_not_shown(url: str) -> None:
    with pytest.raises(DatabaseError, match="the database's URL can't be read: write") as caught:
        open_engine(url)
    assert "canary" not in str(caught.value)
