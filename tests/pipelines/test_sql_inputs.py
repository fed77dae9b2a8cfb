"""Tables of databases as inputs: the same results as from files, whatever the database."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.support.databases import Database
from tests.support.loan_jobs import (
    close_files,
    portfolio,
    published,
    uri_of,
    write_portfolio,
)

from ledgerbeam.io.commit.attempts import attempts
from ledgerbeam.io.commit.published import read_part
from ledgerbeam.io.commit.records import Manifest
from ledgerbeam.io.datasets import tables as table_inputs
from ledgerbeam.io.datasets.inputs import TableName
from ledgerbeam.io.datasets.readers import read_split
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.sql import reader
from ledgerbeam.transforms import read as read_transform

TYPES = {
    pa.string(): "TEXT",
    pa.int64(): "BIGINT",
    pa.date32(): "DATE",
    pa.decimal128(18, 2): "NUMERIC(18, 2)",
    pa.decimal128(9, 6): "NUMERIC(9, 6)",
}
# SQLite has neither decimals nor dates: text holds them exactly.
_STORED: dict[str, Callable[[Any], Any]] = {"sqlite": str, "postgresql": lambda value: value}


def load(database: Database, table: pa.Table, key: str = "", **types: str) -> str:
    """A table of the database with the rows of an Arrow table."""
    columns = [f"{f.name} {types.get(f.name, TYPES[f.type])}" for f in table.schema]
    if key:
        columns.append(f"PRIMARY KEY ({key})")
    stored = _STORED[database.engine.dialect.name]
    rows = [
        tuple(
            stored(value) if value is not None and not isinstance(value, int) else value
            for value in row.values()
        )
        for row in table.to_pylist()
    ]
    return database.create(", ".join(columns), rows)


@pytest.fixture(scope="module")
def made() -> tuple[pa.Table, pa.Table]:
    return portfolio(12)


def inputs(database: Database, loans: str, transactions: str) -> dict[str, str]:
    return {
        "loans": f"{database.url}#{loans}",
        "transactions": f"{database.url}#{transactions}",
    }


@pytest.fixture
def tables(database: Database, made: tuple[pa.Table, pa.Table]) -> dict[str, str]:
    return inputs(
        database, load(database, made[0], "loan_id"), load(database, made[1], "transaction_id")
    )


def parts(manifest: Manifest) -> list[str]:
    files = [file for commit in manifest.shards for file in (commit.part, *commit.tables.values())]
    return [file.sha256 for file in files]


def test_tables_give_what_files_give(
    tables: dict[str, str],
    made: tuple[pa.Table, pa.Table],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_portfolio(tmp_path, *made)
    monkeypatch.setattr(table_inputs, "ROWS_PER_RANGE", 7)
    by_tables = close_files(tmp_path, output=str(tmp_path / "tables"), **tables)
    assert parts(by_tables) == parts(close_files(tmp_path))
    assert [file.size for file in by_tables.attempt.inputs] == [12, made[1].num_rows]
    # It is published, and stays.
    again = close_files(tmp_path, output=str(tmp_path / "tables"), **tables)
    assert again == by_tables


def test_rows_that_changed_are_another_input(
    database: Database, tables: dict[str, str], tmp_path: Path
) -> None:
    close_files(tmp_path, **tables)
    table = tables["loans"].rpartition("#")[2]
    database.execute(f"UPDATE {table} SET payment = '1.00' WHERE loan_id = 'L000000003'")
    with pytest.raises(UserError, match="published already, from other input"):
        close_files(tmp_path, **tables)


class TestRefused:
    def test_a_row_is_named_by_table_and_key(
        self, database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path
    ) -> None:
        loans = load(database, made[0], "loan_id")
        exact = "TEXT" if database.engine.dialect.name == "sqlite" else "NUMERIC"
        transactions = load(database, made[1], "transaction_id", amount=exact)
        number = made[1]["transaction_id"][3].as_py()
        database.execute(
            f"UPDATE {transactions} SET amount = '1.005' WHERE transaction_id = {number}"
        )
        ((file, row, reason, raw),) = self.rejects(
            tmp_path, **inputs(database, loans, transactions)
        )
        assert file.endswith(f"#{transactions}")
        assert "@" not in file
        place = sorted(made[1]["transaction_id"].to_pylist()).index(number) + 1
        assert row == place
        assert reason.startswith(f"transaction_id {number}: amount '1.005")
        assert reason.endswith("has more than 2 decimals")
        assert str(number) in raw

    def test_a_transaction_of_no_loan(
        self, database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path
    ) -> None:
        loans = load(database, made[0].slice(1), "loan_id")
        tables = inputs(database, loans, load(database, made[1], "transaction_id"))
        found = self.rejects(tmp_path, **tables)
        assert {reason for _, _, reason, _ in found} == {"there is no loan_id L000000001 in loans"}

    def rejects(self, folder: Path, **tables: str) -> list[tuple[str, int, str, str]]:
        with pytest.raises(UserError, match="rejected, and --max-rejects is 0"):
            close_files(folder, **tables)
        manifest = close_files(folder, max_rejects=1_000, **tables)
        uri = uri_of(folder, max_rejects=1_000, **tables)
        files = [*manifest.rejects, *(c.rejects for c in manifest.shards if c.rejects)]
        rows = [row for file in files for row in read_part(uri, file).to_pylist()]
        return [(row["file"], row["row"], row["reason"], row["raw"]) for row in rows]

    def test_floats(
        self, database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path
    ) -> None:
        loans = load(database, made[0], "loan_id", balance="DOUBLE PRECISION")
        tables = inputs(database, loans, load(database, made[1], "transaction_id"))
        with pytest.raises(UserError, match=r"wrong schema: balance is .* can't hold values exact"):
            close_files(tmp_path, **tables)

    def test_ids_that_are_numbers_are_refused_before_anything_is_read(
        self, database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path
    ) -> None:
        numbers = [
            table.set_column(
                table.schema.get_field_index("loan_id"),
                "loan_id",
                pc.utf8_slice_codeunits(table.column("loan_id"), 1).cast(pa.int64()),
            )
            for table in made
        ]
        loans, transactions = (load(database, table) for table in numbers)
        with pytest.raises(UserError, match="loan_id is int64, and must be string"):
            close_files(tmp_path, **inputs(database, loans, transactions))
        assert attempts(uri_of(tmp_path)) == []

    @pytest.mark.parametrize(
        ("drop", "message"),
        [("balance", "wrong schema: no column balance"), ("loan_id", "no column loan_id")],
    )
    def test_a_column_that_is_not_there(
        self,
        database: Database,
        made: tuple[pa.Table, pa.Table],
        tmp_path: Path,
        drop: str,
        message: str,
    ) -> None:
        loans = load(database, made[0].drop_columns(drop))
        tables = inputs(database, loans, load(database, made[1], "transaction_id"))
        with pytest.raises(UserError, match=message):
            close_files(tmp_path, **tables)

    def test_a_table_that_is_not_there(
        self, database: Database, tables: dict[str, str], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=r"table nothing|nothing.*(exist|names|there)"):
            close_files(tmp_path, **tables | {"loans": f"{database.url}#nothing"})

    def test_twins_without_a_primary_key(
        self, database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path
    ) -> None:
        twins = pa.concat_tables([made[0], made[0].slice(2, 1)])
        tables = inputs(database, load(database, twins), load(database, made[1], "transaction_id"))
        with pytest.raises(UserError, match=r"key .*loan_id.*L000000003|L000000003.*loan_id"):
            close_files(tmp_path, **tables)


def test_columns_are_renamed_and_left_out(
    database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path
) -> None:
    write_portfolio(tmp_path, *made)
    renamed = made[0].rename_columns({"loan_id": "number", "pool_id": "pool"})
    renamed = renamed.append_column("score", pa.array(range(renamed.num_rows)))
    loans = load(database, renamed, "number", score="REAL")
    tables = inputs(database, loans, load(database, made[1], "transaction_id"))
    with pytest.raises(UserError, match=r"score is .*: leave it out with --columns=_=score"):
        close_files(tmp_path, **tables, columns="loan_id=number,pool_id=pool")
    columns = "loan_id=number,pool_id=pool,_=score"
    manifest = close_files(tmp_path, **tables, columns=columns, output=str(tmp_path / "renamed"))
    assert published(manifest) == published(close_files(tmp_path))


class TestSecrets:
    def test_a_literal_password_is_refused_before_anything_is_stored(self, tmp_path: Path) -> None:
        url = "postgresql+psycopg://batch:hunter2@localhost/bank#loans"
        with pytest.raises(UserError, match="holds a literal password") as caught:
            close_files(tmp_path, loans=url)
        assert "hunter2" not in str(caught.value)
        assert not (tmp_path / "results").exists()

    def test_a_url_may_be_a_reference(
        self, tables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url, _, loans = tables["loans"].rpartition("#")
        monkeypatch.setenv("BANK", url)
        manifest = close_files(tmp_path, **tables | {"loans": f"env:BANK#{loans}"})
        assert manifest.attempt.parameters["loans"] == f"env:BANK#{loans}"

    @pytest.mark.slow
    def test_references_are_resolved_and_not_stored(
        self, postgres_database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("BANK_PASSWORD", "hunter-2")
        loans = load(postgres_database, made[0], "loan_id")
        tables = inputs(
            postgres_database, loans, load(postgres_database, made[1], "transaction_id")
        )
        tables = {
            name: table.replace("postgres@", "postgres:${env:BANK_PASSWORD}@")
            for name, table in tables.items()
        }
        manifest = close_files(tmp_path, **tables)
        assert manifest.attempt.parameters["loans"].count("${env:BANK_PASSWORD}") == 1
        stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert not any(b"hunter-2" in data for data in stored)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sqlite:////folder/bank.db#loans", ("sqlite:////folder/bank.db", "loans")),
        ("postgresql+psycopg://db/bank#s.loans", ("postgresql+psycopg://db/bank", "s.loans")),
        ("env:BANK#loans", ("env:BANK", "loans")),
        ("loans/*.parquet", None),
        ("results/2026-01-31#entries", None),
        ("gs://bucket/results#entries", None),
        ("s3://bucket/loans*", None),
        ("file:///folder/loans#1.csv", None),
    ],
)
def test_what_is_a_table(text: str, expected: tuple[str, str] | None) -> None:
    assert TableName.parse(text) == (None if expected is None else TableName(*expected))


@pytest.mark.slow
class TestSnapshot:
    def test_what_is_written_meanwhile_is_not_seen(
        self, postgres_database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        database = postgres_database
        write_portfolio(tmp_path, *made)
        loans = load(database, made[0], "loan_id")
        transactions = load(database, made[1], "transaction_id")
        once = threading.Lock()

        def disturbed(split: Any, check: Any) -> Iterator[Any]:
            if once.acquire(blocking=False):
                database.execute(
                    f"DELETE FROM {transactions}", f"UPDATE {loans} SET balance = balance + 1"
                )
            yield from read_split(split, check)

        monkeypatch.setattr(read_transform, "read_split", disturbed)
        manifest = close_files(
            tmp_path, output=str(tmp_path / "tables"), **inputs(database, loans, transactions)
        )
        monkeypatch.undo()
        assert once.locked()
        assert parts(manifest) == parts(close_files(tmp_path))

    def test_a_table_that_changes_before_the_snapshot_is_noticed(
        self, postgres_database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        database = postgres_database
        loans = load(database, made[0], "loan_id")
        tables = inputs(database, loans, load(database, made[1], "transaction_id"))
        with (
            changed_before_snapshot(monkeypatch, database, f"DELETE FROM {loans}"),
            pytest.raises(UserError, match=f"#{loans}: the table has changed since the run"),
        ):
            close_files(tmp_path, **tables)
        (record,) = attempts(uri_of(tmp_path, **tables))
        assert record.inputs[0].size == made[0].num_rows


@contextmanager
def changed_before_snapshot(
    monkeypatch: pytest.MonkeyPatch, database: Database, statement: str
) -> Iterator[None]:
    export = reader.exported_snapshot

    def late(url: str) -> Any:
        database.execute(statement)
        return export(url)

    with monkeypatch.context() as patch:
        patch.setattr(reader, "exported_snapshot", late)
        yield


def test_an_empty_table_is_an_input(
    database: Database, made: tuple[pa.Table, pa.Table], tmp_path: Path
) -> None:
    nothing = load(database, made[1].slice(0, 0), "transaction_id")
    manifest = close_files(
        tmp_path, **inputs(database, load(database, made[0], "loan_id"), nothing)
    )
    assert manifest.counts["transactions_in"] == 0
    assert {row["kind"] for row in published(manifest, "entries")} == {"accrual", "late_fee"}
