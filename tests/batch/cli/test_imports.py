"""What the command line imports: verbs that only show runs do without the others' libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.racers import NOON, submitted

from ledgerbeam.batch.registry.registry import Registry
from ledgerbeam.io.commit.attempts import start_attempt
from ledgerbeam.io.commit.records import AttemptRecord, FileRecord, ShardCommit

# Prints, behind what the command prints, each package that it has imported.
PROGRAM = """
import atexit, sys
atexit.register(lambda: print("IMPORTED", *sys.modules))
from ledgerbeam.batch.cli.app import main
sys.exit(main())
"""
HEAVY = {
    "alembic",
    "apache_beam",
    "fastavro",
    "google",
    "grpc",
    "holidays",
    "numpy",
    "pandas",
    "psutil",
    "psycopg",
    "pyarrow",
    "requests",
    "tenacity",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of commands that find a run, half of whose shards are committed."""
    folder = tmp_path_factory.mktemp("state")
    url = f"sqlite:///{folder}/registry.db"
    uri = f"{folder}/output"
    with Registry.open(url) as registry:
        run = submitted(registry, instance="2026-11-20", uri=uri)
    record = AttemptRecord(
        process=run.process,
        instance=run.instance,
        number=1,
        run=run.id,
        launch=1,
        started_at=NOON,
        code_version="1",
        parameters={},
        inputs=[],
        shards=2,
        fingerprint="f",
    )
    part = FileRecord(name="attempt-1/part", rows=3, size=1, sha256="0")
    totals = {"components": 2, "rows": 3, "amount_USD": 98_000, "refused_amount_USD": 100}
    attempt = start_attempt(uri, record)
    (folder / "output" / part.name).write_bytes(b"x")
    attempt.commit(ShardCommit(shard=0, attempt=1, code_version="1", part=part, totals=totals))
    return {**os.environ, "LEDGERBEAM_REGISTRY": url, "LEDGERBEAM_STATE": str(folder)}


def run(environment: dict[str, str], *arguments: str) -> tuple[str, set[str]]:
    """What a command prints, and the modules that it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed, _, imported = done.stdout.rpartition("IMPORTED ")
    return printed, set(imported.split())


@pytest.mark.parametrize(
    ("arguments", "prints", "without"),
    [
        (["--help"], "Usage:", {"sqlalchemy", "iso4217"}),
        (["list"], "delivery-marking/2026-11-20", {"iso4217"}),
        (["list", "--json"], '"delivery-marking/2026-11-20"', {"rich", "iso4217"}),
        (["get", "delivery-marking/2026-11-20"], "980.00 USD", set()),
        (["get", "delivery-marking/2026-11-20", "--json"], '{"amount": "1.00", ', {"rich"}),
        (["audit", "delivery-marking/2026-11-20"], "INITIATED", {"iso4217"}),
        (["cancel", "delivery-marking/2026-11-20", "--help"], "Usage:", {"sqlalchemy"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_nothing_that_it_does_not_need(
    environment: dict[str, str], arguments: list[str], prints: str, without: set[str]
) -> None:
    printed, modules = run(environment, *arguments)
    assert prints in printed
    packages = {module.partition(".")[0] for module in modules}
    assert packages & (HEAVY | without) == set()
    assert not any(module.startswith("sqlalchemy.dialects.postgresql") for module in modules)


@pytest.mark.parametrize(
    "module",
    [
        "batch.attempt.run",
        "batch.cli.arguments",
        "batch.cli.module",
        "batch.execute.helper",
        "batch.testing",
        "pipelines.delivery_marking",
        "service.node",
    ],
)
def test_beam_is_imported_without_collecting_garbage(module: str) -> None:
    """Collecting it among Beam's objects takes a quarter of a second, and as much at the end."""
    code = f"import gc, ledgerbeam.{module}; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    assert printed_by(code) == "True True\n"


@pytest.mark.parametrize("module", ["batch.launch.launcher", "batch.launch.ahead"])
def test_a_launcher_does_without_beam(module: str) -> None:
    assert printed_by(f"import sys, ledgerbeam.{module}; print('apache_beam' in sys.modules)") == (
        "False\n"
    )


def printed_by(code: str) -> str:
    """What a program prints."""
    return subprocess.check_output([sys.executable, "-c", code], text=True)
