"""The benchmarks, in small: all contenders run, and agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_all_contenders_agree(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "bench_delivery.py"),
            "--trades=20000",
            "--files=2",
            "--repetitions=1",
            f"--results={tmp_path}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "delivery-marking.json").read_text())
    table = (tmp_path / "delivery-marking.md").read_text()
    for contender in ("ledgerbeam-per-component", "duckdb", "polars", "pandas", "rowwise-beam"):
        assert f"| {contender} " in table
    assert (tmp_path / "delivery-marking.png").stat().st_size > 10_000


@pytest.mark.slow
def test_pages_in_flight_reach_their_limit(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "bench_pages.py"),
            "--rows=60000",
            "--repetitions=1",
            "--parallelism=4",
            f"--results={tmp_path}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "pages.json").read_text())["figures"]
    assert [one["peak"] for one in figures["loop"]] == [1]
    for name in ("number, 4 in flight", "count, 4 in flight"):
        assert [one["peak"] for one in figures[name]] == [4]
        assert [one["rows"] for one in figures[name]] == [60_000]
    assert "| walk, a page a shard | 4 | 4 |" in (tmp_path / "pages.md").read_text()


@pytest.mark.slow
def test_all_ways_to_do_loans_agree(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "bench_loans.py"),
            "--loans=100",
            "--repetitions=1",
            f"--results={tmp_path}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    raw = json.loads((tmp_path / "loans.json").read_text())
    assert not raw["differing"]
    table = (tmp_path / "loans.md").read_text()
    for contender in ("plain loop", "row-wise Beam", "DuckDB, totals of lines"):
        assert f"| {contender} " in table
    assert (tmp_path / "loans.png").stat().st_size > 10_000
