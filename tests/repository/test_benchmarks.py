"""The benchmarks, in small: all contenders run, and agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(script: str, results: Path, *flags: str) -> None:
    """Run a benchmark, which has to succeed and writes its results to a folder."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *flags, f"--results={results}"],
        cwd=results,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_all_contenders_agree(tmp_path: Path) -> None:
    benchmark("bench_delivery.py", tmp_path, "--trades=20000", "--files=2", "--repetitions=1")
    assert json.loads((tmp_path / "delivery-marking.json").read_text())
    table = (tmp_path / "delivery-marking.md").read_text()
    ours = ("ledgerbeam-per-component", "ledgerbeam-per-component-one-core")
    for contender in (*ours, "duckdb", "polars", "pandas", "rowwise-beam"):
        assert f"| {contender} " in table
    assert (tmp_path / "delivery-marking.png").stat().st_size > 10_000


@pytest.mark.slow
def test_components_agree_on_one_core_and_on_all(tmp_path: Path) -> None:
    benchmark("bench_components.py", tmp_path, "--components=2000", "--repetitions=1")
    table = (tmp_path / "components.md").read_text()
    for contender in ("ledgerbeam", "ledgerbeam-one-core", "bare-beam", "plain-loop"):
        assert f"| {contender} |" in table


@pytest.mark.slow
def test_pages_in_flight_reach_their_limit(tmp_path: Path) -> None:
    benchmark("bench_pages.py", tmp_path, "--rows=60000", "--repetitions=1", "--parallelism=4")
    figures = json.loads((tmp_path / "pages.json").read_text())["figures"]
    assert [one["peak"] for one in figures["loop"]] == [1]
    for name in ("number, 4 in flight", "count, 4 in flight"):
        assert [one["peak"] for one in figures[name]] == [4]
        assert [one["rows"] for one in figures[name]] == [60_000]
    assert "| walk, a page a shard | 4 | 4 |" in (tmp_path / "pages.md").read_text()


@pytest.mark.slow
def test_all_ways_to_do_loans_agree(tmp_path: Path) -> None:
    benchmark("bench_loans.py", tmp_path, "--loans=100", "--repetitions=1")
    raw = json.loads((tmp_path / "loans.json").read_text())
    assert not raw["differing"]
    table = (tmp_path / "loans.md").read_text()
    for contender in ("plain loop", "row-wise Beam", "DuckDB, totals of lines"):
        assert f"| {contender} " in table
    assert (tmp_path / "loans.png").stat().st_size > 10_000


@pytest.mark.slow
def test_comparisons_agree(tmp_path: Path) -> None:
    benchmark("bench_compare.py", tmp_path, "--rows=20000", "--repetitions=1")
    assert "| duckdb |" in (tmp_path / "comparison.md").read_text()


@pytest.mark.slow
def test_messages_are_measured_beside_raw_sql(tmp_path: Path) -> None:
    benchmark(
        "bench_messages.py",
        tmp_path,
        "--messages=500",
        "--cold=1000",
        "--late=10",
        "--repetitions=1",
    )
    raw = json.loads((tmp_path / "messages.json").read_text())
    assert all(one[0] == 500 for ones in raw["figures"].values() for one in ones)
    assert len(raw["lateness_ms"]) == 10
    assert min(raw["lateness_ms"]) >= 0
    assert "| due to stream |" in (tmp_path / "messages.md").read_text()
