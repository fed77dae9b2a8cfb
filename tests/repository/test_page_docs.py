"""The page about page processes: its definitions run, and its commands print what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.support.page_jobs import feed_server
from tests.support.pages import ROOT, carry_out, normal
from tests.support.postgres import PostgresServer

PAGE = (ROOT / "docs" / "page-processes.md").read_text()

pytestmark = pytest.mark.slow


def block(heading: str) -> str:
    """The page's one block of that kind."""
    content: str
    (content,) = re.findall(rf"^```{heading}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return content


@pytest.fixture
def shop(postgres: PostgresServer) -> str:
    """The URL of the page's own shop."""
    url = postgres.create_database()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in filter(str.strip, block("sql").split(";")):
            connection.execute(sa.text(statement))
    engine.dispose()
    return url


def test_commands_print_what_the_page_says(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP", shop)
    steps = list(carry_out(PAGE, tmp_path))
    assert len(steps) == 3
    for step in steps:
        # Some shells tell of a process that was killed, each in its own way.
        printed = [line for line in normal(step.actual) if "Killed" not in line]
        assert printed == normal(step.expected), step.command


def test_its_definitions_run(shop: str, tmp_path: Path) -> None:
    (tmp_path / "stock.py").write_text(block('python title="stock.py"'))
    payments = block('python title="payments.py"').replace('["payments"]', '["items"]')
    (tmp_path / "payments.py").write_text(payments)
    day = 'business_date="2026-11-20", output="results"'
    with feed_server([range(5), range(5, 9)]) as server:
        script = f"""
from ledgerbeam.batch.attempt.run import run
from stock import StockParameters, StockValue
from payments import PaymentParameters, Payments
print(run(StockValue(StockParameters({day}, database={shop!r}))).counts)
Payments.execute_item = lambda self, item: [{{"cents": 100 * item["id"]}}]
print(run(Payments(PaymentParameters({day}, api={server.url!r}))).counts)
"""
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("{'rows_in': 20000, 'rows_out': 32,")
    assert second.startswith("{'rows_in': 9, 'rows_out': 9, 'components': 9,")
