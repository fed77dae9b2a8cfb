"""The page about page processes: its definitions run, and its commands print what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.page_jobs import feed_server
from tests.postgres import PostgresServer
from tests.test_docs import blocks, normal

PAGE = "docs/page-processes.md"


@pytest.fixture
def shop(postgres: PostgresServer) -> str:
    """The URL of the page's own shop."""
    url = postgres.create_database()
    engine = sa.create_engine(url)
    (script,) = blocks(PAGE, "sql")
    with engine.begin() as connection:
        for statement in filter(str.strip, script.split(";")):
            connection.execute(sa.text(statement))
    engine.dispose()
    return url


@pytest.mark.slow
def test_commands_print_what_the_page_says(shop: str, tmp_path: Path) -> None:
    home = tmp_path.resolve()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "SHOP": shop, "PATH": path}
    (block,) = blocks(PAGE, "console")
    for step in block.split("$ ")[1:]:
        command, _, expected = step.partition("\n")
        done = subprocess.run(
            command,
            shell=True,
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        # Some shells tell of a process that was killed, each in its own way.
        printed = [line for line in normal(done.stdout, home) if "Killed" not in line]
        assert printed == normal(expected, home), command


@pytest.mark.slow
def test_its_definitions_run(shop: str, tmp_path: Path) -> None:
    stock, payments = blocks(PAGE, "python")
    (tmp_path / "stock.py").write_text(stock)
    (tmp_path / "payments.py").write_text(payments.replace('["payments"]', '["items"]'))
    day = 'business_date="2026-11-20", output="results"'
    with feed_server([range(5), range(5, 9)]) as server:
        script = f"""
from ledgerbeam.batch.launch import run
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
