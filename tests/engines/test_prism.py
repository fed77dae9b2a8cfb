"""The workloads on Prism, Beam's local runner in Go, which has to be built: `make prism-test`."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.support.command import COMMAND, ledgerbeam, published_by
from tests.support.postgres import PostgresServer
from tests.support.prism import ON_PRISM, assert_is_built

from ledgerbeam.io.commit.published import read_published

pytestmark = pytest.mark.prism

LOANS = (
    "--loans=loans/loans-*",
    "--transactions=loans/transactions-*",
    "--business-date=2026-11-30",
)
OF_FILES = {
    "delivery-marking": ("--trades=trades/*", "--trade-date=2026-11-20", "--shards=5"),
    "loan-close-of-business": (*LOANS, "--shards=3"),
    "investor-report": (*LOANS, "--investors=loans/investors.parquet", "--shards=3"),
    "repayment-schedules": ("--loans=schedules.csv", "--business-date=2026-11-20", "--shards=2"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert_is_built()
    folder = tmp_path_factory.mktemp("prism")
    ledgerbeam("generate", "trades", "--output=trades", "--count=20000", "--files=4", folder=folder)
    given = ("--count=300", "--months=3", "--business-date=2026-11-30", "--files=2")
    ledgerbeam("generate", "loans", "--output=loans", *given, folder=folder)
    head = "loan_id,currency,principal,annual_rate_percent,day_count,disbursed_on,frequency,term"
    rows = [f"L{n},USD,{1000 + n}.00,{3 + n % 5}.25,30/360,2026-11-20,P1M,36" for n in range(200)]
    lines = [f"{head},method", *(f"{row},level" for row in rows)]
    (folder / "schedules.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("workload", OF_FILES)
def test_bytes_are_those_of_the_local_runner(workload: str, folder: Path) -> None:
    flags = OF_FILES[workload]
    local = published_by(workload, *flags, "--output=local", folder=folder)
    prism = published_by(workload, *flags, "--output=prism", *ON_PRISM, folder=folder)
    assert prism[1:] == local[1:]
    ledgerbeam("verify", prism.uri)


def test_pages_of_a_table(
    folder: Path, postgres: PostgresServer, new_schema: Callable[[], str]
) -> None:
    results = []
    for runner, flags in (("local", ()), ("prism", ON_PRISM)):
        url = postgres.create_database()
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(
                sa.text("CREATE TABLE product (id bigint PRIMARY KEY, price numeric(12, 2))")
            )
            connection.execute(
                sa.text("INSERT INTO product SELECT 3 * n, n FROM generate_series(1, 5000) AS n")
            )
        given = (f"--database={url}", "--business-date=2026-11-20", "--percent=10")
        given = ("price-migration", *given, f"--output={runner}", *flags)
        uri = published_by(*given, folder=folder).uri
        with engine.connect() as connection:
            prices = connection.execute(sa.text("SELECT id, price FROM product ORDER BY id")).all()
        engine.dispose()
        results.append((prices, read_published(uri).to_table().sort_by("product_id")))
    assert results[0] == results[1]


def test_a_worker_that_fails_is_told_in_its_own_words(folder: Path) -> None:
    (folder / "bad.csv").write_text("id,client_code,symbol,side,quantity\n1,A,S,X,1\n")
    done = subprocess.run(
        [str(COMMAND), "run", "delivery-marking", "--trades=bad.csv", "--trade-date=2026-11-20",
         "--output=bad", *ON_PRISM],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    # Among what Prism logs.
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("delivery-marking: ")]
    assert "bad.csv row 2 (side 'X' is none of B, S" in line
