"""The DAGs in Airflow itself, which has an environment of its own: `make airflow-test`."""

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from tests.support.command import COMMAND, ledgerbeam
from tests.support.postgres import PostgresServer
from tests.support.recorded import until

from ledgerbeam.io.commit.published import read_published

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
AIRFLOW = Path(os.environ.get("AIRFLOW_BIN", ROOT / ".cache" / "airflow" / "bin")) / "airflow"
FRIDAY = "2026-11-20T21:00:00+00:00"
SATURDAY = "2026-11-21T21:00:00+00:00"


@dataclass
class Scheduler:
    """An Airflow with our DAGs, over a folder of data.

    Attributes:
        folder: of all that it keeps.
        environment: of its processes.
    """

    folder: Path
    environment: dict[str, str]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def airflow(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(AIRFLOW), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def dag(self, name: str, date: str, **conf: str) -> "subprocess.CompletedProcess[str]":
        """Carry out a DAG, all tasks in one process."""
        return self.airflow("dags", "test", name, date, "--conf", json.dumps(conf))

    def ledgerbeam(self, *arguments: str) -> str:
        return ledgerbeam(*arguments, environment=self.environment)

    def run(self, name: str) -> dict[str, object]:
        run: dict[str, object] = json.loads(self.ledgerbeam("get", name, "--json"))
        return run


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Scheduler:
    assert AIRFLOW.exists(), f"{AIRFLOW} isn't there: make airflow-test makes it"
    folder = tmp_path_factory.mktemp("airflow")
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("AIRFLOW", "PYTEST"))}
    environment = kept | {
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_VAR_LEDGERBEAM_DATA": str(folder / "data"),
        "AIRFLOW_VAR_LEDGERBEAM_SHOP": postgres.create_database(),
        "LEDGERBEAM_COMMAND": str(COMMAND),
        "LEDGERBEAM_STATE": str(folder / "state"),
        "LEDGERBEAM_LEASE_SECONDS": "3",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    scheduler = Scheduler(folder, environment)
    migrated = scheduler.airflow("db", "migrate")
    assert migrated.returncode == 0, migrated.stderr
    data = str(scheduler.data)
    scheduler.ledgerbeam(
        *("generate", "trades", f"--output={data}/trades/2026-11-20", "--count=50000", "--files=4")
    )
    scheduler.ledgerbeam(
        *("generate", "loans", f"--output={data}/loans", "--count=300", "--months=1", "--files=2")
    )
    return scheduler


def test_all_dags_are_understood(scheduler: Scheduler) -> None:
    scheduler.environment["LEDGERBEAM_NIGHT_HOURS"] = "8"
    try:
        done = scheduler.airflow("dags", "reserialize")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        # Carried out by `dags test`, a DAG with a deadline ends with an error of Airflow's own.
        del scheduler.environment["LEDGERBEAM_NIGHT_HOURS"]
    engine = sa.create_engine(f"sqlite:///{scheduler.folder}/home/airflow.db")
    with engine.connect() as connection:
        names = connection.execute(sa.text("SELECT dag_id FROM dag")).scalars()
        assert set(names) == {"ledgerbeam_nightly", "ledgerbeam_prices", "ledgerbeam_upkeep"}
        assert not connection.execute(sa.text("SELECT count(*) FROM import_error")).scalar_one()
        intervals = connection.execute(sa.text("SELECT interval FROM deadline_alert")).scalars()
        assert len(list(intervals)) == 1
    engine.dispose()


def test_two_nights(scheduler: Scheduler) -> None:
    friday = scheduler.dag("ledgerbeam_nightly", FRIDAY, boarded="2026-11-19")
    assert friday.returncode == 0, friday.stdout[-5000:]
    results = scheduler.data / "results"
    assert read_published(f"{results}/delivery-marking/2026-11-20").count_rows() == 50_000
    first = read_published(f"{results}/loan-close-of-business/2026-11-20").to_table()
    assert read_published(f"{results}/investor-report/2026-11-20").count_rows() == 300
    saturday = scheduler.dag("ledgerbeam_nightly", SATURDAY, boarded="2026-11-19")
    assert saturday.returncode == 0, saturday.stdout[-5000:]
    assert not Path(f"{results}/delivery-marking/2026-11-21").exists()
    second = read_published(f"{results}/loan-close-of-business/2026-11-21").to_table()
    assert {str(day) for day in second["closed_through"].to_pylist()} == {"2026-11-21"}
    # The loans of the second night are those that the first has published.
    given = scheduler.run("loan-close-of-business/2026-11-21")["parameters"]
    assert str(given["loans"]).endswith("/results/loan-close-of-business/2026-11-20")  # type: ignore[index]
    assert second.num_rows == first.num_rows == 300
    again = scheduler.dag("ledgerbeam_nightly", SATURDAY, boarded="2026-11-19")
    assert again.returncode == 0, again.stdout[-5000:]
    assert len(scheduler.run("loan-close-of-business/2026-11-21")["attempts"]) == 1  # type: ignore[arg-type]


def test_prices(scheduler: Scheduler) -> None:
    engine = sa.create_engine(scheduler.environment["AIRFLOW_VAR_LEDGERBEAM_SHOP"])
    with engine.begin() as connection:
        connection.execute(
            sa.text("CREATE TABLE product (id bigint PRIMARY KEY, price numeric(12, 2) NOT NULL)")
        )
        connection.execute(
            sa.text("INSERT INTO product SELECT n, 100 FROM generate_series(1, 5000) AS n")
        )
    for _ in range(2):  # the second time changes nothing
        done = scheduler.dag("ledgerbeam_prices", FRIDAY, percent="10")
        assert done.returncode == 0, done.stdout[-5000:]
        with engine.connect() as connection:
            prices = connection.execute(sa.text("SELECT DISTINCT price FROM product")).scalars()
            assert [str(price) for price in prices] == ["110.00"]
    engine.dispose()


def test_a_night_whose_machine_dies_is_resumed(scheduler: Scheduler) -> None:
    """Airflow's process, the launcher and the pipeline are killed; another try goes on."""
    day, name = "2026-11-19", "delivery-marking/2026-11-19"
    trades = f"--output={scheduler.data}/trades/{day}"
    scheduler.ledgerbeam(
        "generate", "trades", trades, "--count=2000000", "--files=4", f"--trade-date={day}"
    )
    logical_date = f"{day}T21:00:00+00:00"
    airflow = subprocess.Popen(
        [str(AIRFLOW), "dags", "test", "ledgerbeam_nightly", logical_date, "--conf",
         '{"boarded": "2026-11-18"}'],
        env=scheduler.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def at_work() -> bool:
        try:
            scheduler.ledgerbeam("set-rate", name, "200000")
        except AssertionError:
            return False
        return True

    def shards_done() -> int:
        return int(scheduler.run(name)["progress"]["shards_done"])  # type: ignore[index]

    until(at_work, "a run")
    until(shards_done, "a shard")
    airflow.send_signal(signal.SIGKILL)
    airflow.wait()
    attempt = scheduler.run(name)["attempts"][-1]  # type: ignore[index]
    for process in (attempt["launcher"], attempt["job_id"]):
        psutil.Process(int(process.split(":")[1])).kill()
    committed = {
        path: path.stat().st_mtime_ns
        for path in scheduler.data.glob(f"results/{name}/attempt-1/committed-*.json")
    }
    assert committed
    scheduler.ledgerbeam("set-rate", name, "none")

    def is_taken_over() -> bool:
        done = scheduler.dag("ledgerbeam_upkeep", FRIDAY)
        assert done.returncode == 0, done.stdout[-5000:]
        return len(scheduler.run(name)["attempts"]) > 1  # type: ignore[arg-type]

    until(is_taken_over, "another attempt")
    done = scheduler.dag("ledgerbeam_nightly", logical_date, boarded="2026-11-18")
    assert done.returncode == 0, done.stdout[-5000:]
    run = scheduler.run(name)
    assert run["status"] == "SUCCESS"
    manifest = json.loads(Path(str(run["uri"]), "manifest.json").read_text())
    from_first = [shard for shard in manifest["shards"] if shard["attempt"] == 1]
    assert len(from_first) >= len(committed)
    assert {path: path.stat().st_mtime_ns for path in committed} == committed
