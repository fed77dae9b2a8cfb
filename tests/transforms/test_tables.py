"""Reading, shuffling and publishing as transforms of anybody's pipeline, against plain Python."""

import datetime
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.harness import pipeline as local_pipeline

from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.datasets import readers
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.errors import UserError
from ledgerbeam.rules.components import Components
from ledgerbeam.transforms import PublishTables, ReadTables, ShuffleByKey
from ledgerbeam.transforms.read import ReadSplits, SplitBatches

MONEY = pa.decimal128(18, 2)
PAYMENTS = Contract(
    (
        Column("account", pa.string()),
        Column("id", pa.int64()),
        Column("amount", MONEY),
    )
)
SCHEMA = pa.schema([("account", pa.string()), ("id", pa.int64()), ("amount", MONEY)])
AT = datetime.datetime(2026, 11, 20, 18, tzinfo=datetime.UTC)

Row = tuple[str, int, Decimal]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["A", "B", "é", "a/b"]),
        st.integers(-(2**40), 2**40),
        st.decimals(-1000, 1000, places=2),
    ),
    max_size=30,
)


def table_of(rows: list[Row]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], SCHEMA)


def rows_of(table: pa.Table) -> list[Row]:
    return [tuple(row.values()) for row in table.to_pylist()]


def in_tables(rows: list[Row], size: int) -> list[pa.Table]:
    return [table_of(rows[n : n + size]) for n in range(0, len(rows), size)]


def each(components: Components) -> list[list[Row]]:
    rows = rows_of(components.table)
    return [rows[start:end] for start, end in components.bounds()]


class Written:
    """Rejected rows that have reached the step behind reading."""

    tables: ClassVar[list[Any]] = []


def refuse_the_second_batch(read: Iterator[SplitBatches]) -> Iterator[pa.Table]:
    for _, batches in read:
        for number, rows in enumerate(batches):
            if number:
                raise ValueError("too many rows are wrong")
            yield rows.table


class TestRead:
    def test_no_rejected_row_leaves_before_its_input_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who reads may find that they are too many, and write them to the same place."""
        monkeypatch.setattr(readers, "ROWS_PER_SPLIT", 2)
        Written.tables.clear()
        (tmp_path / "a.csv").write_text("account,id,amount\n" + "A,1,2.50\nB,x,1\n" * 4)
        splits = plan_input(f"{tmp_path}/a.csv", PAYMENTS).splits
        pipeline = local_pipeline()
        read = pipeline | ReadSplits(splits, refuse_the_second_batch)
        _ = read.rejected | "Write" >> beam.Map(lambda found: Written.tables.append(found))
        with pytest.raises(ValueError, match="too many"):
            pipeline.run()
        assert not Written.tables

    def test_rows_that_break_the_contract_are_the_second_output(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("account,id,amount\nA,1,2.50\n\nB,x,1\nC,3,1.234\n")
        (tmp_path / "b.csv").write_text("account,id,amount\nD,4,-1.00\n")
        with local_pipeline() as pipeline:
            read = pipeline | ReadTables(f"{tmp_path}/*.csv", PAYMENTS)
            rows = read.rows | "Rows" >> beam.FlatMap(rows_of)
            assert_that(rows, equal_to([("A", 1, Decimal("2.50")), ("D", 4, Decimal("-1.00"))]))
            rejected = read.rejected | "Rejected" >> beam.FlatMap(pa.Table.to_pylist)
            places = rejected | beam.Map(lambda row: (row["file"], row["row"], row["raw"]))
            file = f"{tmp_path}/a.csv"
            expected = [(file, 4, "B,x,1"), (file, 5, "C,3,1.234")]
            assert_that(places, equal_to(expected), label="rejected")

    def test_a_missing_file_is_one_line_when_the_graph_is_built(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="nothing"):
            _ = beam.Pipeline() | ReadTables(f"{tmp_path}/nothing.csv", PAYMENTS)


class TestShuffle:
    @settings(max_examples=10)
    @given(ROWS, st.integers(1, 4), st.integers(1, 7))
    def test_components_are_whole_and_in_order(
        self, rows: list[Row], shards: int, size: int
    ) -> None:
        expected = defaultdict(list)
        for row in sorted(rows, key=lambda row: (row[1], row[2])):
            expected[row[0]].append(row)
        with local_pipeline() as pipeline:
            tables = pipeline | beam.Create(in_tables(rows, size), reshuffle=False)
            shuffled = tables | ShuffleByKey(["account"], shards, SCHEMA, order=["id", "amount"])
            found = shuffled.components | beam.FlatMapTuple(lambda _, components: each(components))
            assert_that(found, equal_to(list(expected.values())))
            numbers = shuffled.components | "Shards" >> beam.Keys()
            assert_that(numbers, equal_to(list(range(shards))), label="every shard")

    def test_other_inputs_stand_beside_the_first(self) -> None:
        accounts = pa.table({"account": ["A", "B"]})
        payments = table_of([("B", 2, Decimal(1)), ("C", 3, Decimal(2)), ("B", 1, Decimal(3))])
        twice = pa.concat_tables([payments, payments.slice(2)])
        with local_pipeline() as pipeline:
            inputs: Any = {
                "accounts": pipeline | "Accounts" >> beam.Create([accounts]),
                "payments": pipeline | "Payments" >> beam.Create([twice]),
            }
            shuffled = inputs | ShuffleByKey(
                ["account"],
                1,
                {"accounts": accounts.schema, "payments": SCHEMA},
                order={"payments": ["id"]},
                ids={"payments": ["account", "id"]},
            )

            def related(_: int, components: Components) -> list[Any]:
                beside = components.related["payments"]
                return list(
                    zip(components.table.column("account").to_pylist(), each(beside), strict=True)
                )

            found = shuffled.components | beam.FlatMapTuple(related)
            assert_that(found, equal_to([("A", []), ("B", [("B", 2, Decimal("1.00"))])]))
            rejected = shuffled.rejected | beam.FlatMap(pa.Table.to_pylist)
            reasons = rejected | beam.Map(lambda row: (row["account"], row["id"], row["reason"]))
            alike = "another row of payments has the same key and ids"
            expected = [
                ("B", 1, alike),
                ("B", 1, alike),
                ("C", 3, "accounts has no row of this key"),
            ]
            assert_that(reasons, equal_to(expected), label="rejected")

    def test_what_cannot_be_is_refused_when_it_is_made(self) -> None:
        with pytest.raises(ValueError, match="rows: the schema has no column client of the key"):
            ShuffleByKey(["client"], 1, SCHEMA)
        with pytest.raises(ValueError, match="a key and a shard are needed"):
            ShuffleByKey(["account"], 0, SCHEMA)


class TestPublish:
    def publish(self, folder: Path, tables: list[pa.Table], **options: Any) -> None:
        with local_pipeline() as pipeline:
            _ = (
                pipeline
                | beam.Create(tables, reshuffle=False)
                | PublishTables(
                    f"{folder}/payments/2026-11-20",
                    schema=SCHEMA,
                    key=["account"],
                    order=["id", "amount"],
                    amounts=["amount"],
                    at=AT,
                    **options,
                )
            )

    @settings(max_examples=5)
    @given(ROWS, st.integers(1, 3))
    def test_what_is_published_is_what_came_in(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[Row], shards: int
    ) -> None:
        folder = tmp_path_factory.mktemp("published")
        self.publish(folder, in_tables(rows, 4), shards=shards)
        found = read_published(f"{folder}/payments/2026-11-20").to_table()
        assert sorted(rows_of(found)) == sorted(rows)

    def test_bytes_do_not_depend_on_how_rows_came(self, tmp_path: Path) -> None:
        rows = [("A", n % 5, Decimal(n)) for n in range(20)]
        self.publish(tmp_path / "one", in_tables(rows, 20), shards=2)
        self.publish(tmp_path / "many", in_tables(rows[::-1], 3), shards=2)
        one, many = (
            {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.parquet")}
            for name in ("one", "many")
        )
        assert one == many
        assert len(one) == 2

    def test_nothing_is_published_over_what_is(self, tmp_path: Path) -> None:
        self.publish(tmp_path, [table_of([("A", 1, Decimal(1))])])
        with pytest.raises(Exception, match="has published in the meantime"):
            self.publish(tmp_path, [table_of([("A", 2, Decimal(2))])])
        found = read_published(f"{tmp_path}/payments/2026-11-20").to_table()
        assert rows_of(found) == [("A", 1, Decimal("1.00"))]

    def test_a_column_that_is_not_there(self) -> None:
        with pytest.raises(ValueError, match="the schema has no column due"):
            PublishTables("x/y/z", schema=SCHEMA, key=["account"], order=["-due"], at=AT)
        with pytest.raises(ValueError, match="name the dataset by two parts"):
            PublishTables("z", schema=SCHEMA, key=["account"], at=AT)
