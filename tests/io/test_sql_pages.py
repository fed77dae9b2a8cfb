"""Pages of SQL tables: each row once, whatever the keys, the split and the page."""

import datetime
import itertools
import pickle
import threading
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.databases import Database, open_database
from tests.support.postgres import PostgresServer

from ledgerbeam.io.errors import UserError
from ledgerbeam.io.sql import keys
from ledgerbeam.io.sql import ranges as key_ranges
from ledgerbeam.io.sql.keys import KeyRange
from ledgerbeam.io.sql.ranges import ByCount, ByNumber, ByRange, Split, plan_ranges
from ledgerbeam.io.sql.reader import SqlPage, SqlReader, exported_snapshot
from ledgerbeam.io.sql.source import SqlQuery, SqlSource, SqlTable


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
        patch.setattr(keys, "_COMPARE_ROWS", ())
        check_each_row_once(sqlite_database, *KEYS[kind], data)


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


def check_equal_keys(database: Database, type_: str) -> None:
    """Keys that the database takes for equal are refused, and others are read."""
    rows = [("a", 1), ("B", 2), ("c", 3), ("D", 4), ("é", 5), ("", 6)]
    good = database.create(f"a {type_} NOT NULL PRIMARY KEY, b BIGINT", rows)
    bad = database.create(f"a {type_} NOT NULL, b BIGINT", [*rows, ("A", 7)])
    for page_rows in (1, 2, 3):
        for split in (ByNumber(1), ByNumber(3), ByCount(2)):
            source = SqlTable(database.url, good, ("a",))
            pages = read_pages(source, split, page_rows)
            assert sorted(keys_of(pages, ("a", "b"))) == sorted(rows)
            with pytest.raises(UserError, match=r"two rows have the key .* to the database as"):
                read_pages(SqlTable(database.url, bad, ("a",)), split, page_rows)
            pages = read_pages(SqlTable(database.url, bad, ("a", "b")), split, page_rows)
            assert sorted(keys_of(pages, ("a", "b"))) == sorted([*rows, ("A", 7)])


def test_keys_that_are_equal_to_sqlite(sqlite_database: Database) -> None:
    check_equal_keys(sqlite_database, "TEXT COLLATE NOCASE")


@pytest.mark.slow
@pytest.mark.parametrize("type_", ["CITEXT", "TEXT COLLATE no_case"])
def test_keys_that_are_equal_to_postgres(postgres_database: Database, type_: str) -> None:
    postgres_database.execute(
        "CREATE EXTENSION IF NOT EXISTS citext",
        "CREATE COLLATION IF NOT EXISTS no_case "
        "(provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    )
    check_equal_keys(postgres_database, type_)


@pytest.mark.slow
def test_a_null_at_the_end_of_a_page_is_no_empty_text(postgres_database: Database) -> None:
    rows = [("1", "x"), ("2", None), ("3", ""), ("4", None)]
    table = postgres_database.create('a TEXT COLLATE "C" NOT NULL PRIMARY KEY, b TEXT', rows)
    for page_rows in (1, 2, 3, 4, 5):
        pages = read_pages(SqlTable(postgres_database.url, table, ("a",)), ByNumber(1), page_rows)
        assert keys_of(pages, ("a", "b")) == rows


@pytest.mark.slow
def test_enumerations_are_texts(postgres_database: Database) -> None:
    postgres_database.execute("CREATE TYPE side AS ENUM ('S', 'B')")
    table = postgres_database.create("a side NOT NULL PRIMARY KEY, b side")
    postgres_database.execute(f"INSERT INTO {table} VALUES ('B', NULL), ('S', 'B')")
    pages = read_pages(SqlTable(postgres_database.url, table, ("a",)), ByNumber(2), 1)
    # In the order of the type.
    assert keys_of(pages, ("a", "b")) == [("S", "B"), ("B", None)]


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
    monkeypatch.setattr("ledgerbeam.io.sql.reader._ROWS_PER_FETCH", 9)
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
    monkeypatch.setattr("ledgerbeam.io.sql.reader._ROWS_PER_FETCH", 9)
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
    monkeypatch.setattr("ledgerbeam.io.sql.reader._ROWS_PER_FETCH", 5)
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
    monkeypatch.setattr(key_ranges, "_BLOCKS_PER_PARTITION", 40)
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
    sample = key_ranges._sample

    def noted(*given: Any) -> float:
        share.append(sample(*given))
        return share[-1]

    monkeypatch.setattr(key_ranges, "_sample", noted)
    planned = plan_ranges(source, ByNumber(4))
    assert share[0] < key_ranges._MAX_SAMPLE
    assert len(planned) == 4
    with SqlReader(source, 1) as reader:
        sizes = [reader.read(range_).num_rows for range_ in planned]
    assert sum(sizes) == 120_000
    assert all(24_000 < size < 36_000 for size in sizes)
