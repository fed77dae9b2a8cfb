"""An instance of one component: the same rows as in the whole day, and nothing of the others."""

import datetime
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from tests.support.databases import Database

import ledgerbeam as lb
from ledgerbeam.batch.observe.rejections import rejected_tables
from ledgerbeam.io.datasets.inputs import plan_input
from ledgerbeam.io.datasets.readers import read_split

MOVES = lb.Contract(
    (
        lb.Column("bank", pa.string(), dictionary_encoded=True),
        lb.Column("account", pa.int64()),
        lb.Column("number", pa.int64()),
        lb.Column("amount", pa.decimal128(18, 2)),
    )
)


class MovesParameters(lb.FileParameters):
    moves: Annotated[str, lb.RowInput(MOVES, order="number", amounts=("amount",))]
    business_date: datetime.date = datetime.date(2026, 11, 20)


class Moves(lb.KeyedProcess[MovesParameters]):
    name = "moves"
    key = ("bank", "account")
    results = pa.schema([("total", pa.decimal128(18, 2))])
    expect = lb.Expect(min_rows=50)

    def execute(self, component: lb.Component) -> list[Mapping[str, Any]]:
        return [{"total": sum(component.values("amount"))}]


def rows() -> list[dict[str, Any]]:
    found = [
        {"bank": bank, "account": account, "number": number, "amount": f"{account}.{number:02}"}
        for bank in ("north", "south/east", "100%")
        for account in range(10)
        for number in range(3)
    ]
    return sorted(found, key=lambda row: (row["bank"], row["account"]))


def table() -> pa.Table:
    schema = pa.schema([(column.name, column.type) for column in MOVES.columns])
    amounts = [{**row, "amount": pa.scalar(row["amount"]).cast(pa.decimal128(18, 2)).as_py()}
               for row in rows()]  # fmt: skip
    return pa.Table.from_pylist(amounts, schema)


def write_csv(path: Path, *more: str) -> str:
    lines = ["bank,account,number,amount", *(",".join(map(str, r.values())) for r in rows()), *more]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_parquet(path: Path) -> str:
    pq.write_table(table(), path, row_group_size=10)
    return str(path)


def published(output: Path, moves: str, only_key: str = "", **given: Any) -> lb.Manifest:
    return lb.run(
        Moves(MovesParameters(moves=moves, output=str(output), only_key=only_key, **given))
    )


def results(output: Path, instance: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]]
    found = lb.read_published(str(output / "moves" / instance)).to_table().to_pylist()
    return found


@pytest.mark.parametrize("write", [write_csv, write_parquet])
def test_it_has_the_rows_that_the_whole_day_has_of_it(write: Any, tmp_path: Path) -> None:
    moves = write(tmp_path / f"moves.{write.__name__.removeprefix('write_')}")
    published(tmp_path, moves, min_rows=1)
    whole = results(tmp_path, "2026-11-20")
    one = published(tmp_path, moves, "south%2Feast/7")
    assert one.attempt.instance.startswith("2026-11-20-only-south-2Feast-7-")
    mine = [row for row in whole if (row["bank"], row["account"]) == ("south/east", 7)]
    assert results(tmp_path, one.attempt.instance) == mine
    assert (one.counts["components"], one.counts["rows_in"]) == (1, 3)
    percent = published(tmp_path, moves, "100%25/1")
    assert [row["bank"] for row in results(tmp_path, percent.attempt.instance)] == ["100%"]


def test_groups_of_rows_that_cannot_have_it_are_not_read(tmp_path: Path) -> None:
    (split,) = plan_input(write_parquet(tmp_path / "moves.parquet"), MOVES).splits
    (batch,) = read_split(split)
    assert batch.line_count == 90
    (batch,) = read_split(replace(split, only=(("bank", "south/east"), ("account", "7"))))
    assert batch.table.column("number").to_pylist() == [0, 1, 2]
    # It reads one group of ten rows, and says where they stand in the file.
    assert batch.line_count == 10
    places = batch.table.column(lb.ROW_LOCATION).to_pylist()
    keys = [(move["bank"], move["account"]) for move in rows()]
    at = [row for row, key in enumerate(keys) if key == ("south/east", 7)]
    assert places == at


def test_only_rows_that_may_be_of_it_are_refused(tmp_path: Path) -> None:
    bad = ("north,4,8,x", "north,5,9,x", "north,?,9,1.00", "south")
    moves = write_csv(tmp_path / "moves.csv", *bad)
    one = published(tmp_path, moves, "north/5", max_rejects=3)
    uri = str(tmp_path / "moves" / one.attempt.instance)
    refused = [row["row"] for part in rejected_tables(uri) for row in part.to_pylist()]
    assert sorted(refused) == [93, 94, 95]
    with pytest.raises(lb.TooManyRejectionsError):
        published(tmp_path, moves, "north/6", max_rejects=1)


@pytest.mark.parametrize("key", ["north/77", "nowhere/1", "north/x", "north/07"])
def test_a_key_that_no_row_has_is_not_found(key: str, tmp_path: Path) -> None:
    moves = write_csv(tmp_path / "moves.csv")
    with pytest.raises(lb.ComponentNotFoundError, match=f"have the key {key}"):
        published(tmp_path, moves, key)


def test_a_key_of_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lb.ParameterError, match="--only-key=north: give bank/account"):
        published(tmp_path, write_csv(tmp_path / "moves.csv"), "north")


def test_a_table_is_asked_for_it_and_pinned_by_its_rows(database: Database, tmp_path: Path) -> None:
    stored = [(r["bank"], r["account"], r["number"], r["amount"]) for r in rows()]
    named = database.create(
        "bank TEXT, account BIGINT, number BIGINT, amount NUMERIC(18, 2), "
        "PRIMARY KEY (bank, account, number)",
        stored,
    )
    moves = f"{database.url}#{named}"
    one = published(tmp_path, moves, "south%2Feast/7")
    (row,) = results(tmp_path, one.attempt.instance)
    assert (row["bank"], row["account"], str(row["total"])) == ("south/east", 7, "21.03")
    (pinned,) = one.attempt.inputs
    assert pinned.size == 3
    with database.engine.begin() as connection:
        connection.execute(sa.text(f"DELETE FROM {named} WHERE bank = 'north'"))
    # What others' rows have become, is nothing to it.
    assert published(tmp_path, moves, "south%2Feast/7").attempt.number == 1
