"""Values of SQL columns as they are declared, and what can't be read, in one line."""

import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.databases import Database

from ledgerbeam.io.errors import UserError
from ledgerbeam.io.sql.column_types import UnfitValueError, to_array
from ledgerbeam.io.sql.keys import KeyRange
from ledgerbeam.io.sql.ranges import ByCount, ByNumber, plan_ranges
from ledgerbeam.io.sql.reader import SqlReader
from ledgerbeam.io.sql.source import SqlQuery, SqlSource, SqlTable


def read_pages(source: SqlSource, page_rows: int) -> None:
    (range_,) = plan_ranges(source, ByCount(page_rows))
    with SqlReader(source, 1) as reader:
        for _ in reader.pages(range_, page_rows):
            pass


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
dates = st.dates()
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
        read_pages(SqlTable(database.url, table, refused.key), 4)
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
