"""The packages under `examples/`, installed as their owner would and run by `ledgerbeam`."""

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.pages import ROOT, user_environment

pytestmark = pytest.mark.slow

Call = Callable[..., str]
PACKAGE = "payment_requests"
NAME = "expire-payment-requests"


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Runs commands where the package is installed, in a copy of its folder."""
    folder = tmp_path_factory.mktemp("user")
    environment = user_environment(folder)
    home = shutil.copytree(ROOT / "examples" / PACKAGE, folder / PACKAGE)

    def call(*command: str) -> str:
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("pip", "install", "--quiet", ".")
    # Found as it is installed, and nowhere else.
    for module in home.glob("*.py"):
        if not module.name.startswith("test_"):
            module.unlink()
    _write_requests(home / "requests.csv")
    return call


def _write_requests(file: Path) -> None:
    """Of 200 payees with two requests each, one has a due time that is none."""
    with file.open("w") as text:
        writer = csv.writer(text)
        writer.writerow(["request", "payee", "state", "amount", "currency", "due_at"])
        for payee in range(200):
            currency = "EUR" if payee % 2 else "USD"
            due = "soon" if payee == 7 else "2026-11-18T10:00:00+00:00"
            writer.writerow([f"{payee}-a", f"P{payee:03}", "open", "10.01", currency, due])
            later = "2026-12-01T10:00:00+00:00"
            writer.writerow([f"{payee}-b", f"P{payee:03}", "open", "5.00", currency, later])


def flags(region: str) -> list[str]:
    return [
        "--requests=requests.csv",
        f"--region={region}",
        "--business-date=2026-11-20",
        "--output=results",
    ]


def check(folder: Path) -> None:
    """What is published holds all payees but one, and the report adds them up."""
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = manifest["counts"]
    assert (counts["components"], counts["failed"], counts["rows_out"]) == (200, 1, 199)
    (report,) = manifest["reports"]
    assert (folder / report["name"]).read_text() == (
        "currency,requests,amount\nEUR,99,990.99\nUSD,100,1001.00\n"
    )


def test_its_own_tests_pass(call: Call) -> None:
    assert "15 passed" in call("pytest", "-q", "-p", "no:cacheprovider")


def test_it_is_found_and_runs(call: Call) -> None:
    home = Path(call("pwd").strip())
    assert NAME in call("ledgerbeam", "workloads").split()
    assert "whose requests these are" in call("ledgerbeam", "run", NAME, "--help")
    shown = call("ledgerbeam", "run", NAME, *flags("eu"))
    assert "failed 1" in " ".join(shown.split())
    check(home / "results" / NAME / "2026-11-20-region-eu")
    call("python", "-m", "expire_payment_requests", *flags("uk"))
    check(home / "results" / NAME / "2026-11-20-region-uk")
    script = Path(call("python", "-c", "import expire_payment_requests as e; print(e.__file__)"))
    call("python", str(script).strip(), *flags("fr"))
    check(home / "results" / NAME / "2026-11-20-region-fr")


def test_it_is_submitted_and_tells_what_became_of_it(call: Call) -> None:
    home = Path(call("pwd").strip())
    run = f"{NAME}/2026-11-20-region-us"
    call("ledgerbeam", "submit", NAME, *flags("us"))
    done = json.loads(call("ledgerbeam", "wait", run, "--timeout=300", "--json"))
    assert done["progress"]["components"] == {"SUCCESS": 199, "FAILURE": 1}
    check(home / "results" / run)
    failed = json.loads(call("ledgerbeam", "components", run, "--status=FAILURE", "--json"))
    assert failed["component"] == "P007"
    assert "Invalid isoformat string: 'soon'" in failed["error"]
    rows = call("ledgerbeam", "results", run, "--json", "--limit=500").splitlines()
    assert len(rows) == 199
    assert json.loads(rows[0])["days_late"] == 2
    call("ledgerbeam", "verify", f"results/{run}")
