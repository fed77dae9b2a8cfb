"""The page about the service does what it says, on a port that is free."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.pages import ROOT, carry_out, normal

from ledgerbeam.io.errors import LedgerbeamError
from ledgerbeam.service import errors
from ledgerbeam.service.problems import status_of

PAGE = (ROOT / "docs" / "running-the-service.md").read_text()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(tmp_path.resolve() / "home"):
                process.kill()
        except psutil.Error:
            continue


@pytest.mark.slow
def test_it_does_and_prints_what_it_says(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = PAGE.replace("ledgerbeam up >", f"ledgerbeam up --port={port} >").replace(
        "localhost:8017", f"localhost:{port}"
    )
    for step in carry_out(page, home):
        if step.expected:
            assert normal(step.actual) == normal(step.expected), step.command
        else:
            log = home / "home" / "up.log"
            told = log.read_text() if log.exists() else ""
            assert step.status == 0, f"{step.command}\n{step.actual}\n{told}"


def test_it_has_every_code_of_the_service() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \| .* \| (\d+) \|$", PAGE, re.MULTILINE)
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, LedgerbeamError)
        and kind.__module__ == errors.__name__
    ]
    expected = {(kind.code, kind.__name__, str(status_of(kind.code))) for kind in kinds}
    assert set(rows) == expected
