"""A database of messages of each kind, and short ways to send, post and handle."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.messages.senders import Bank, create_noted

from ledgerbeam.messages.store.database import MessageDatabase, create_sqlite_file


@pytest.fixture(scope="session")
def postgres_bank(new_schema: Callable[[], str]) -> Iterator[Bank]:
    yield from _bank(new_schema())


@pytest.fixture(scope="session")
def sqlite_bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    yield from _bank(f"sqlite:///{tmp_path_factory.mktemp('messages')}/bank.db")


@pytest.fixture
def sqlite_fresh(tmp_path: Path) -> Iterator[Bank]:
    """Another database, without topics."""
    yield from _bank(f"sqlite:///{tmp_path}/fresh.db")


@pytest.fixture
def fresh_postgres(new_schema: Callable[[], str]) -> Iterator[Bank]:
    yield from _bank(new_schema())


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    """A database of each kind for one test alone."""
    if request.param == "sqlite":
        yield from _bank(f"sqlite:///{tmp_path}/own.db")
    else:
        yield from _bank(request.getfixturevalue("new_schema")())


@pytest.fixture(params=["sqlite", "postgresql"])
def bank(request: pytest.FixtureRequest) -> Bank:
    """Tables of messages on each kind of database; each test declares topics of its own."""
    kind = "sqlite_bank" if request.param == "sqlite" else "postgres_bank"
    found: Bank = request.getfixturevalue(kind)
    return found.for_a_test()


def _bank(url: str) -> Iterator[Bank]:
    create_sqlite_file(url)
    with MessageDatabase(url) as database:
        database.migrate()
        bank = Bank(url, database)
        create_noted(bank)
        yield bank
