"""Fixtures of tests of processes over pages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import page_jobs
from tests.support.page_jobs import (
    make_accounts,
    sqlite_file,
)


@pytest.fixture(autouse=True)
def no_hooks() -> Iterator[None]:
    yield
    page_jobs.HOOK.clear()


@pytest.fixture
def accounts(tmp_path: Path) -> str:
    """The URL of a SQLite database with the accounts 1 to 60."""
    url = sqlite_file(tmp_path / "accounts.db")
    make_accounts(url, range(1, 61))
    return url
