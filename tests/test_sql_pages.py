"""Pages of SQL tables: each row once, whatever the keys, the split and the page."""

import datetime
import itertools
import pickle
import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.databases import Database, open_database
from tests.postgres import PostgresServer

from ledgerbeam.io import sql_keys, sql_ranges
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.sql import SqlPage, SqlReader, exported_snapshot
from ledgerbeam.io.sql_keys import KeyRange
from ledgerbeam.io.sql_ranges import ByCount, ByNumber, ByRange, Split, plan_ranges
from ledgerbeam.io.sql_source import SqlQuery, SqlSource, SqlTable
from ledgerbeam.io.sql_types import UnfitValueError, to_array

MICROSECOND = datetime.timedelta(microseconds=1)


def read_pages(source: SqlSource, split: Split, page_rows: int) -> list[SqlPage]:
    """All pages, having checked that ranges and pages follow each other without a gap."""
    ranges = plan_ranges(source, split)
    assert ranges[0].after is None
    assert ranges[-1].upto is None
    assert all(one.upto == other.after for one, other in itertools.pairwise(ranges))
    pages = []
    with SqlReader(source, max_connections=2) as reader:
        for range_ in ranges:
            assert KeyRange.from_json(range_.to_json()) == range_
            after = range_.after
            of_range = list(reader.pages(range_, page_rows))
            for page in of_range:
                assert page.range.after == after
                assert KeyRange.from_json(page.range.to_json()) == page.range
                after = page.range.upto
            assert all(page.table.num_rows == page_rows for page in of_range[:-1])
            assert all(0 < page.table.num_rows <= page_rows for page in of_range)
            pages += of_range
        for page in pages[:: len(pages) // 3 + 1]:
            assert reader.read(page.range) == page.table
    return pages


def keys_of(pages: Sequence[SqlPage], key: tuple[str, ...]) -> list[tuple[Any, ...]]:
    return [
        tuple(record[name] for name in key) for page in pages for record in page.table.to_pylist()
    ]


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
integers = st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1))
dates = st.dates()
KEYS: dict[str, tuple[str, st.SearchStrategy[tuple[Any, ...]]]] = {
    "integers": ("a BIGINT NOT NULL PRIMARY KEY", st.tuples(integers)),
    "texts": ("a TEXT NOT NULL PRIMARY KEY", st.tuples(texts)),
    "pairs": (
        "a BIGINT NOT NULL, b TEXT NOT NULL, PRIMARY KEY (a, b)",
        st.tuples(st.integers(-2, 2), texts),
    ),
    "triples": (
        "a TEXT NOT NULL, b BIGINT NOT NULL, c BIGINT NOT NULL, PRIMARY KEY (a, b, c)",
        st.tuples(st.sampled_from(["", "x", "é"]), st.integers(0, 2), integers),
    ),
    "dates": ("a DATE NOT NULL PRIMARY KEY", st.tuples(dates)),
}
ONLY_POSTGRES: dict[str, tuple[str, st.SearchStrategy[tuple[Any, ...]]]] = {
    "decimals": (
        "a NUMERIC(20, 4) NOT NULL PRIMARY KEY",
        st.tuples(st.decimals(-(10**9), 10**9, places=4)),
    ),
    "timestamps": (
        "a TIMESTAMPTZ NOT NULL, b TIMESTAMP NOT NULL, PRIMARY KEY (a, b)",
        st.tuples(
            st.datetimes(timezones=st.just(datetime.UTC)),
            st.datetimes(),
        ),
    ),
    "uuids": ("a UUID NOT NULL PRIMARY KEY", st.tuples(st.uuids())),
    "collated": (
        'a TEXT COLLATE "und-x-icu" NOT NULL PRIMARY KEY',
        st.tuples(st.text("aAbBéz-_ ", max_size=4)),
    ),
}


def check_each_row_once(database: Database, columns: str, rows: Any, data: st.DataObject) -> None:
    keys = data.draw(st.lists(rows, unique=True, max_size=25), label="keys")
    key = ("a", "b", "c")[: len(keys[0])] if keys else ("a",)
    as_query = data.draw(st.booleans(), label="as a query")
    page_rows = data.draw(st.integers(1, 7), label="rows a page")
    storable = [
        tuple(
            value.isoformat()
            if type(value) is datetime.date and database.engine.dialect.name == "sqlite"
            else value
            for value in row
        )
        for row in keys
    ]
    table = database.create(columns, storable)
    expected = database.ordered_keys(table, key)
    split = data.draw(
        st.one_of(
            st.builds(ByCount, st.integers(1, 9)),
            st.builds(ByNumber, st.integers(1, 9)),
            st.lists(st.integers(0, max(len(keys) - 1, 0)), unique=True, max_size=4).map(
                lambda at: ByRange(tuple(expected[index] for index in sorted(at) if expected))
            ),
        ),
        label="split",
    )
    source: SqlSource = SqlTable(database.url, table, key)
    if as_query:
        source = SqlQuery(database.url, f"SELECT * FROM {table} -- '12:30', 5 % 3", key)
    pages = read_pages(source, split, page_rows)
    found = keys_of(pages, key)
    assert [tuple(map(str, row)) for row in found] == [
        tuple(str(in_utc(value)) for value in row) for row in expected
    ]
    if isinstance(split, ByNumber) and keys:
        bounds = [range_.upto for range_ in plan_ranges(source, split)]
        ranks = [0, *(expected.index(bound) + 1 for bound in bounds[:-1] if bound), len(keys)]
        sizes = [high - low for low, high in itertools.pairwise(ranks)]
        assert len(sizes) == min(split.partitions, len(keys))
        assert max(sizes) - min(sizes) <= 2
    database.execute(f"DROP TABLE {table}")


def in_utc(value: Any) -> Any:
    aware = isinstance(value, datetime.datetime) and value.tzinfo is not None
    return value.astimezone(datetime.UTC) if aware else value


@pytest.mark.parametrize("kind", KEYS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_pages_are_the_rows_by_key_once_each(
    database: Database, kind: str, data: st.DataObject
) -> None:
    check_each_row_once(database, *KEYS[kind], data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONLY_POSTGRES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_pages_are_the_rows_by_key_once_each_for_types_of_postgres(
    postgres_database: Database, kind: str, data: st.DataObject
) -> None:
    check_each_row_once(postgres_database, *ONLY_POSTGRES[kind], data)


@pytest.mark.parametrize("kind", ["pairs", "triples"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_pages_are_the_rows_by_key_where_rows_cannot_be_compared(
    sqlite_database: Database, kind: str, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql_keys, "_COMPARE_ROWS", ())
        check_each_row_once(sqlite_database, *KEYS[kind], data)


MONEY = st.decimals(Decimal(-(10**16)) + 1, Decimal(10**16) - 1, places=2)
WIDE = st.decimals(Decimal(-(10**27)), Decimal(10**27), places=10)
TYPED: dict[str, st.SearchStrategy[Any]] = {
    "text TEXT": st.one_of(
        st.sampled_from(["", '"', '""', ",", "\n", "\r\n", "\\N", "NULL"]), texts
    ),
    "code VARCHAR(20)": st.text("ab \"',;\\\n\r\t", max_size=20),
    "amount NUMERIC(18, 2)": MONEY,
    "rate NUMERIC(38, 10)": WIDE,
    "day DATE": dates,
    "at TIMESTAMPTZ": st.datetimes(timezones=st.just(datetime.UTC)),
    "local TIMESTAMP": st.datetimes(),
    "flag BOOLEAN": st.booleans(),
    "small SMALLINT": st.integers(-(2**15), 2**15 - 1),
    "raw BYTEA": st.binary(max_size=6),
    "free NUMERIC": WIDE,
    "ratio FLOAT8": st.floats(allow_nan=False, allow_infinity=False),
    "note JSON": st.sampled_from(['{"a": "b,\\n"}', "[]"]),
}


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_values_are_what_was_stored_and_what_the_driver_gives(
    postgres_database: Database, data: st.DataObject
) -> None:
    values = st.tuples(*(st.none() | strategy for strategy in TYPED.values()))
    rows = data.draw(st.lists(values, max_size=8))
    columns = ", ".join(["id BIGINT PRIMARY KEY", *TYPED])
    table = postgres_database.create(columns, [(at, *row) for at, row in enumerate(rows)])
    types = {"free": pa.decimal128(38, 10), "ratio": pa.float64(), "note": pa.string()}
    source = SqlTable(postgres_database.url, table, ("id",), types=types)
    with SqlReader(source, 1) as reader:
        found = reader.read(KeyRange())
    assert [tuple(record.values())[1:] for record in found.to_pylist()] == rows
    assert [str(type_) for type_ in found.schema.types] == [
        *["int64", "string", "string", "decimal128(18, 2)", "decimal128(38, 10)", "date32[day]"],
        *["timestamp[us, tz=UTC]", "timestamp[us]", "bool", "int64", "binary"],
        *["decimal128(38, 10)", "double", "string"],
    ]
    with postgres_database.engine.connect() as connection:
        given_rows = connection.exec_driver_sql(
            f"SELECT {', '.join(found.column_names)} FROM {table} ORDER BY id".replace(
                "note", "note::text"
            )
        ).all()
    if given_rows:
        arrays = map(to_array, zip(*given_rows, strict=True), found.schema.types)
        assert pa.table(list(arrays), schema=found.schema) == found
    postgres_database.execute(f"DROP TABLE {table}")


@pytest.mark.slow
def test_tables_of_many_columns_are_read(postgres_database: Database) -> None:
    columns = [f"c{index} INTEGER DEFAULT {index}" for index in range(250)]
    table = postgres_database.create(", ".join(["id BIGINT PRIMARY KEY", *columns]))
    postgres_database.execute(f"INSERT INTO {table} (id) VALUES (-1)")
    with SqlReader(SqlTable(postgres_database.url, table, ("id",)), 1) as reader:
        (row,) = reader.read(KeyRange()).to_pylist()
    assert list(row.values()) == [-1, *range(250)]


def test_columns_are_read_in_the_order_asked_for(database: Database) -> None:
    table = database.create("id BIGINT PRIMARY KEY, b TEXT, c DATE", [(1, "x", "2026-01-05")])
    source = SqlTable(database.url, table, ("id",), columns=("c", "id"))
    with SqlReader(source, 1) as reader:
        assert reader.read(KeyRange()).to_pylist() == [{"c": datetime.date(2026, 1, 5), "id": 1}]


def test_sqlite_values_are_held_as_declared(sqlite_database: Database) -> None:
    table = sqlite_database.create(
        "id INTEGER PRIMARY KEY, amount NUMERIC(18, 2), text_amount TEXT, day DATE, at DATETIME, "
        "flag BOOLEAN, raw BLOB, name VARCHAR(10)",
        [
            (
                1,
                "1.10",
                "12345678901234.56",
                "2026-01-05",
                "2026-01-05 10:00:00.5",
                True,
                b"\0",
                "",
            ),
            (2, 7, None, None, None, None, None, None),
        ],
    )
    types = {"text_amount": pa.decimal128(18, 2)}
    with SqlReader(SqlTable(sqlite_database.url, table, ("id",), types=types), 1) as reader:
        first, second = reader.read(KeyRange()).to_pylist()
    assert list(first.values()) == [
        1,
        Decimal("1.10"),
        Decimal("12345678901234.56"),
        datetime.date(2026, 1, 5),
        datetime.datetime.fromisoformat("2026-01-05 10:00:00.500"),
        True,
        b"\0",
        "",
    ]
    assert list(second.values()) == [2, Decimal("7.00"), *[None] * 6]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.int64(), "x"),
        (pa.int64(), 1.5),
        (pa.int64(), 1.0),
        (pa.int64(), True),
        (pa.int64(), 2**63),
        (pa.string(), b"x"),
        (pa.string(), 1.5),
        (pa.decimal128(5, 2), Decimal("1.005")),
        (pa.decimal128(5, 2), 1.005),
        (pa.decimal128(5, 2), "1000"),
        (pa.decimal128(5, 2), Decimal("NaN")),
        (pa.decimal128(5, 2), float("inf")),
        (pa.decimal128(38, 20), 0.1 + 0.2),
        (pa.date32(), "2026-02-30"),
        (pa.date32(), 20_000),
        (pa.date32(), datetime.datetime.fromisoformat("2026-01-05 01:00")),
        (pa.timestamp("us"), 1_700_000_000),
        (pa.timestamp("us"), datetime.datetime(2026, 1, 5, tzinfo=datetime.UTC)),
        (pa.timestamp("us", "UTC"), "2026-01-05 10:00:00"),
        (pa.bool_(), 2),
        (pa.bool_(), "yes"),
        (pa.binary(), "x"),
        (pa.float64(), "x"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(type_: pa.DataType, value: object) -> None:
    with pytest.raises(UnfitValueError) as caught:
        to_array([None, value], type_)
    assert caught.value.row == 1


class Refused(NamedTuple):
    """A source that can't be read, and what the message must say."""

    columns: str
    rows: list[tuple[Any, ...]]
    key: tuple[str, ...]
    message: str


REFUSED = {
    "a null in the key": Refused(
        "a BIGINT, b TEXT", [(1, "x"), (None, "y")], ("a",), "the key (a) of a row is (None,)"
    ),
    "a null in a part of the key": Refused(
        "a BIGINT, b TEXT",
        [(1, "x"), (2, None)],
        ("a", "b"),
        "the key (a, b) of a row is (2, None)",
    ),
    "two rows of a key on a page": Refused(
        "a BIGINT, b TEXT", [(1, "x"), (1, "y")], ("a",), "two rows have the key (a) = (1,)"
    ),
    "two rows of a key on two pages": Refused(
        "a BIGINT, b BIGINT",
        [(1, 1), (1, 2), (1, 3), (2, 1), (2, 1), (2, 2)],
        ("a", "b"),
        "two rows have the key (a, b) = (2, 1)",
    ),
    "no such key": Refused("a BIGINT", [], ("id",), "key names 'id', and there is no such column"),
    "NUMERIC of no precision": Refused("a BIGINT, b NUMERIC", [], ("a",), "column 'b' is numeric"),
    "FLOAT": Refused("a BIGINT, b DOUBLE PRECISION", [], ("a",), "column 'b' is "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_source_that_cannot_be_read_is_refused_in_one_line(database: Database, case: str) -> None:
    refused = REFUSED[case]
    table = database.create(refused.columns, refused.rows)
    with pytest.raises(UserError) as caught:
        read_pages(SqlTable(database.url, table, refused.key), ByCount(4), 4)
    assert f"table {table}: {refused.message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_or_a_column_that_is_not_there_is_named(database: Database) -> None:
    with pytest.raises(UserError, match=r"table nowhere: .*nowhere"):
        plan_ranges(SqlTable(database.url, "nowhere", ("id",)), ByNumber(2))
    with pytest.raises(UserError, match=r"the query: .*no(where|thing)"):
        plan_ranges(SqlQuery(database.url, "SELECT nothing FROM nowhere", ("id",)), ByNumber(2))
    with pytest.raises(UserError, match="columns leave out 'id'"):
        SqlTable(database.url, "loans", ("id",), columns=("amount",))
    with pytest.raises(UserError, match=r"'amount' as decimal32\(5, 2\), which can't be read"):
        SqlTable(database.url, "loans", ("id",), types={"amount": pa.decimal32(5, 2)})


def test_a_value_that_sqlite_let_in_is_named_by_its_row(sqlite_database: Database) -> None:
    table = sqlite_database.create(
        "id INTEGER PRIMARY KEY, amount NUMERIC(18, 2)", [(1, "2.50"), (7, "a lot")]
    )
    reader = SqlReader(SqlTable(sqlite_database.url, table, ("id",)), 1)
    with reader, pytest.raises(UserError) as caught:
        reader.read(KeyRange())
    assert f"table {table}: column 'amount' of the row with id=7: 'a lot'" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("amount NUMERIC(18, 2)", "NaN"),
        ("day DATE", "infinity"),
        ("at TIMESTAMPTZ", "-infinity"),
        ("day DATE", "0044-03-15 BC"),
    ],
)
def test_a_value_that_arrow_has_not_is_named_by_its_row(
    postgres_database: Database, column: str, value: str
) -> None:
    table = postgres_database.create(f"id BIGINT PRIMARY KEY, {column}")
    postgres_database.execute(f"INSERT INTO {table} VALUES (1, NULL), (7, '{value}')")
    reader = SqlReader(SqlTable(postgres_database.url, table, ("id",)), 1)
    with reader, pytest.raises(UserError) as caught:
        reader.read(KeyRange())
    name = column.partition(" ")[0]
    assert f"column {name!r} of the row with id=7: '{value}" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+psycopg://u:canary@127.0.0.1:1/bank?password=canary", "no connection"),
        ("postgresql+nodriver://u:canary@127.0.0.1/bank", "there is no driver"),
        ("canary is no url", "can't be read"),
        ("sqlite:////nowhere/bank.db", "there is no such file"),
        ("sqlite://", "in memory"),
    ],
)
def test_a_database_that_cannot_be_had_is_one_line_without_password(url: str, message: str) -> None:
    source = SqlTable(url, "loans", ("id",))
    with pytest.raises(UserError, match=message) as caught:
        plan_ranges(source, ByNumber(2))
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(source)
    assert "\n" not in str(caught.value)


def test_bounds_that_do_not_ascend_are_refused(database: Database) -> None:
    table = database.create("a BIGINT NOT NULL, b TEXT NOT NULL, PRIMARY KEY (a, b)")
    source = SqlTable(database.url, table, ("a", "b"))
    assert len(plan_ranges(source, ByRange(((1, "x"), (1, "y"), (2, "a"))))) == 4
    for bounds in [((2, "a"), (1, "b")), ((1, "x"), (1, "x")), ((1, "y"), (1, "x"))]:
        with pytest.raises(UserError, match="isn't greater than"):
            plan_ranges(source, ByRange(bounds))
    with pytest.raises(UserError, match="a value for each column"):
        plan_ranges(source, ByRange((1, 2)))


def test_bounds_ascend_as_the_column_is_collated(sqlite_database: Database) -> None:
    table = sqlite_database.create("a TEXT COLLATE NOCASE NOT NULL PRIMARY KEY")
    source = SqlTable(sqlite_database.url, table, ("a",))
    assert len(plan_ranges(source, ByRange(("a", "B")))) == 3
    with pytest.raises(UserError, match="isn't greater than"):
        plan_ranges(source, ByRange(("B", "a")))


def test_sources_and_ranges_travel_by_pickle() -> None:
    source = SqlTable("sqlite:///x", "loans", ("id",), types={"rate": pa.decimal128(9, 6)})
    assert pickle.loads(pickle.dumps(source)) == source
    range_ = KeyRange((1, "x"), (Decimal("1.50"), datetime.date(2026, 1, 5)))
    assert pickle.loads(pickle.dumps(range_)) == range_
    assert KeyRange.from_json(range_.to_json()) == range_


def write_between(database: Database, table: str, rows: int) -> Callable[[int], None]:
    """A writer that moves through the table, ahead of the reader and behind it."""

    def write(step: int) -> None:
        database.execute(
            f"INSERT INTO {table} VALUES ({-step - 1}, 'new'), ({10 * (rows - step) + 5}, 'new')",
            f"DELETE FROM {table} WHERE id = {10 * (rows - step) + 1}",
            f"UPDATE {table} SET name = 'changed' WHERE id % 10 = 0 AND id > {10 * step + 100}",
        )

    return write


def loans(database: Database) -> str:
    """A table of 200 rows that stay (ids 0, 10, …) and 200 that will be deleted (1, 11, …)."""
    rows = [(10 * at + extra, "old") for at in range(200) for extra in (0, 1)]
    return database.create("id BIGINT PRIMARY KEY, name TEXT", rows)


def test_no_row_that_stays_is_missed_or_repeated_while_others_write(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerbeam.io.sql._ROWS_A_FETCH", 9)
    table = loans(database)
    write = write_between(database, table, 200)
    ids: list[int] = []
    with SqlReader(SqlTable(database.url, table, ("id",)), 1) as reader:
        for step, page in enumerate(reader.pages(KeyRange(), 9)):
            ids += page.table["id"].to_pylist()
            write(step)
    assert ids == sorted(set(ids))
    assert set(range(0, 2_000, 10)) <= set(ids)


@pytest.mark.slow
def test_a_snapshot_shows_nothing_of_what_is_written_meanwhile(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerbeam.io.sql._ROWS_A_FETCH", 9)
    url = postgres_database.url
    table = loans(postgres_database)
    write = write_between(postgres_database, table, 200)
    source = SqlTable(url, table, ("id",))
    with SqlReader(source, 1) as reader:
        before = reader.read(KeyRange())
    with exported_snapshot(url) as snapshot, SqlReader(source, 2, snapshot) as reader:
        write(0)
        pages = []
        for step, page in enumerate(reader.pages(KeyRange(), 9), start=1):
            pages.append(page)
            write(step)
        assert pa.concat_tables([page.table for page in pages]) == before
        assert reader.read(pages[3].range) == pages[3].table
    with SqlReader(source, 2, snapshot) as reader, pytest.raises(UserError, match="snapshot"):
        reader.read(KeyRange())
    with pytest.raises(UserError, match="is no snapshot"):
        SqlReader(source, 1, "'; DROP TABLE loans")


def test_sqlite_offers_no_snapshot(sqlite_database: Database) -> None:
    with exported_snapshot(sqlite_database.url) as snapshot:
        assert snapshot is None


def test_no_connection_is_held_while_a_page_is_worked_on(database: Database) -> None:
    table = database.create("id BIGINT PRIMARY KEY", [(at,) for at in range(40)])
    source = SqlTable(database.url, table, ("id",))
    # Each thread works on a page until all the others have one too, through a single connection.
    everyone = threading.Barrier(4)
    with SqlReader(source, max_connections=1) as reader:

        def work(range_: KeyRange) -> None:
            for page in reader.pages(range_, 5):
                everyone.wait(timeout=60)
                found.extend(page.table["id"].to_pylist())

        found: list[int] = []
        threads = [
            threading.Thread(target=work, args=(range_,))
            for range_ in plan_ranges(source, ByNumber(4))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(range(40))


@pytest.mark.slow
def test_connections_stay_within_their_limit(postgres: PostgresServer) -> None:
    url = postgres.create_database()
    with open_database(url) as database:
        table = database.create("id BIGINT PRIMARY KEY", [(at,) for at in range(600)])
    source = SqlTable(url, table, ("id",))
    watcher = sa.create_engine(postgres.url())
    open_now = sa.text(
        "SELECT state FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()"
    ).bindparams(name=sa.make_url(url).database)
    seen: list[list[str]] = []
    with SqlReader(source, max_connections=2) as reader:

        def work(range_: KeyRange) -> None:
            for _ in reader.pages(range_, 3):
                with watcher.connect() as connection:
                    seen.append(list(connection.scalars(open_now)))

        threads = [
            threading.Thread(target=work, args=(range_,))
            for range_ in plan_ranges(source, ByNumber(6))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 6 * 34
        assert max(map(len, seen)) == 2
        with watcher.connect() as connection:
            assert set(connection.scalars(open_now)) == {"idle"}
    watcher.dispose()


@pytest.mark.slow
def test_a_connection_lost_between_pages_is_made_anew(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerbeam.io.sql._ROWS_A_FETCH", 5)
    url = postgres.create_database()
    with open_database(url) as database:
        table = database.create("id BIGINT PRIMARY KEY", [(at,) for at in range(20)])
    watcher = sa.create_engine(postgres.url(), isolation_level="AUTOCOMMIT")
    ended = 0
    ids: list[int] = []
    with SqlReader(SqlTable(url, table, ("id",)), 1) as reader, watcher.connect() as connection:
        for page in reader.pages(KeyRange(), 5):
            ids += page.table["id"].to_pylist()
            ended += len(
                connection.execute(
                    sa.text(
                        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                        "WHERE datname = :name"
                    ),
                    {"name": sa.make_url(url).database},
                ).all()
            )
    watcher.dispose()
    assert ids == list(range(20))
    assert ended == 4


@pytest.mark.slow
@pytest.mark.parametrize("key", [("id",), ("region", "id")])
def test_partitions_are_balanced_by_a_sample_in_spite_of_gaps_and_skew(
    postgres_database: Database, key: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_ranges, "_BLOCKS_A_PARTITION", 40)
    table = postgres_database.create("id BIGINT, region TEXT, PRIMARY KEY (region, id)")
    postgres_database.execute(
        f"INSERT INTO {table} SELECT "
        "CASE WHEN g <= 60000 THEN g ELSE -((g - 60000)::bigint ^ 3) END, "
        "CASE WHEN g % 10 = 0 THEN 'b' ELSE 'a' END "
        "FROM generate_series(1, 120000) AS g ORDER BY random()",
        f"CREATE UNIQUE INDEX ON {table} (id)",
    )
    source = SqlTable(postgres_database.url, table, key)
    share = []
    sample = sql_ranges._sample
    monkeypatch.setattr(
        sql_ranges, "_sample", lambda *given: share.append(sample(*given)) or share[-1]
    )
    ranges = plan_ranges(source, ByNumber(4))
    assert share[0] < sql_ranges._LARGEST_SAMPLE
    assert len(ranges) == 4
    with SqlReader(source, 1) as reader:
        sizes = [reader.read(range_).num_rows for range_ in ranges]
    assert sum(sizes) == 120_000
    assert all(24_000 < size < 36_000 for size in sizes)
