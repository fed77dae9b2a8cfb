"""What page processes ask of a database: connections, a snapshot, secrets that stay secret."""

import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support import page_jobs
from tests.support.page_jobs import Calls, RowItems, RowParameters, Rows, amount_of, make_accounts
from tests.support.postgres import PostgresServer

from ledgerbeam.batch.attempt.run import run
from ledgerbeam.batch.attempt.verify import verify
from ledgerbeam.batch.define.page_process import Page
from ledgerbeam.batch.define.process import instance_uri
from ledgerbeam.io.commit.published import read_published
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.sql.keys import KeyRange
from ledgerbeam.io.sql.reader import SqlReader, exported_snapshot
from ledgerbeam.io.sql.source import SqlTable

pytestmark = pytest.mark.slow

COUNT = 200


@pytest.fixture
def accounts(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database with 200 accounts."""
    url = postgres.create_database()
    make_accounts(url, range(1, COUNT + 1))
    yield url
    page_jobs.HOOK.clear()


def rows(url: str, output: Path, split: str, **others: Any) -> Rows:
    return Rows(RowParameters(database=url, output=str(output), split=split, **others))


@pytest.mark.parametrize("split", ["count=7", "number=4", "range=50,60"])
def test_each_row_once(accounts: str, tmp_path: Path, split: str) -> None:
    calls = Calls(hold=4)
    page_jobs.HOOK[Rows.name] = calls
    process = rows(accounts, tmp_path, split)
    manifest = run(process)
    assert calls.peak == 4
    found = read_published(instance_uri(process)).to_table()
    assert found.column("id").to_pylist() == list(range(1, COUNT + 1))
    assert found.column("amount").to_pylist() == [amount_of(n) for n in range(1, COUNT + 1)]
    assert verify(instance_uri(process), process) == manifest.controls


@pytest.mark.parametrize("split", ["count=5", "number=4"])
def test_connections_are_bounded(accounts: str, tmp_path: Path, split: str) -> None:
    """Twelve pages in flight that write, and those that are fetched, share three connections."""
    observer = sa.create_engine(accounts, isolation_level="AUTOCOMMIT", pool_size=1)
    lock = threading.Lock()
    seen: list[int] = []
    process = rows(accounts, tmp_path, split, max_connections=3, page_rows=5)

    def write(page: Page) -> None:
        with page.transaction(accounts) as transaction:
            transaction.connection.execute(sa.text("SELECT 1"))
        with lock, observer.connect() as connection:
            others = "datname = current_database() AND pid <> pg_backend_pid()"
            seen.append(
                connection.scalar(sa.text(f"SELECT count(*) FROM pg_stat_activity WHERE {others}"))
            )

    page_jobs.HOOK[Rows.name] = write
    run(process)
    # The snapshot's is the launcher's own.
    assert 2 <= max(seen) <= 3 + 1
    with observer.connect() as connection:
        done = connection.scalar(sa.text("SELECT count(*) FROM ledgerbeam_component"))
        left = connection.scalar(
            sa.text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid()"
            )
        )
    assert done == COUNT / 5
    assert left == 0
    observer.dispose()


@pytest.mark.parametrize("split", ["count=20", "number=2"])
def test_a_run_sees_one_state_of_the_table(accounts: str, tmp_path: Path, split: str) -> None:
    engine = sa.create_engine(accounts)
    meddled = threading.Event()

    def meddle(page: Page) -> None:
        if not meddled.is_set():
            meddled.set()
            with engine.begin() as connection:
                connection.execute(sa.text("UPDATE account SET amount = 0"))
                connection.execute(sa.text("DELETE FROM account WHERE id = 150"))
                connection.execute(sa.text("INSERT INTO account VALUES (1000, 1)"))

    page_jobs.HOOK[Rows.name] = meddle
    process = rows(accounts, tmp_path, split)
    run(process)
    engine.dispose()
    found = read_published(instance_uri(process)).to_table()
    assert found.column("id").to_pylist() == list(range(1, COUNT + 1))
    assert found.column("amount").to_pylist() == [amount_of(n) for n in range(1, COUNT + 1)]


def test_a_snapshot_that_is_gone(accounts: str) -> None:
    source = SqlTable(accounts, "account", ("id",))
    with exported_snapshot(accounts) as snapshot, SqlReader(source, 1, snapshot) as reader:
        assert reader.read(KeyRange()).num_rows == COUNT
    gone = pytest.raises(UserError, match=r"table account: the snapshot .* is gone")
    with SqlReader(source, 1, snapshot) as reader, gone:
        reader.read(KeyRange())


def test_items_write_by_themselves(accounts: str, tmp_path: Path) -> None:
    engine = sa.create_engine(accounts)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE log (id bigint, note text)"))

    def write(item: Any) -> None:
        with item.transaction(accounts) as transaction:
            if not transaction.already_done:
                transaction.connection.execute(
                    sa.text("INSERT INTO log VALUES (:id, 'seen')"), {"id": item["id"]}
                )
            if item["id"] % 50 == 0 and not retried.is_set():
                raise ValueError("not now")

    retried = threading.Event()
    page_jobs.HOOK[RowItems.name] = write
    process = RowItems(RowParameters(database=accounts, output=str(tmp_path), split="number=2"))
    assert run(process).counts["failed"] == 4
    with engine.begin() as connection:
        written = connection.execute(sa.text("SELECT count(*), count(DISTINCT id) FROM log")).one()
        names = connection.execute(
            sa.text("SELECT instance, component FROM ledgerbeam_component ORDER BY 2 LIMIT 1")
        ).one()
    engine.dispose()
    assert tuple(written) == (COUNT - 4, COUNT - 4)
    assert tuple(names) == ("row-items/2026-11-20", "1")


def test_a_password_is_stored_nowhere(
    accounts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGES_PASSWORD", "canary-of-pages")
    url = accounts.replace("postgres@", "postgres:${env:PAGES_PASSWORD}@")
    assert url != accounts
    process = rows(url, tmp_path, "number=2")
    run(process)
    assert read_published(instance_uri(process)).count_rows() == COUNT
    assert b"canary-of-pages" not in pickle.dumps(process)
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert stored
    for path in stored:
        assert b"canary-of-pages" not in path.read_bytes(), path


def test_a_server_that_is_gone_is_told_in_one_line(tmp_path: Path) -> None:
    url = "postgresql+psycopg://postgres@127.0.0.1:9/nothing"
    for split in ("count=5", "number=2"):
        with pytest.raises(UserError, match="no connection") as raised:
            run(rows(url, tmp_path / split, split))
        assert "\n" not in str(raised.value)
