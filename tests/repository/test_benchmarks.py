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
    for contender in ("ledgerbeam-per-component", "duckdb", "polars", "pandas", "rowwise-beam"):
        assert f"| {contender} " in table
    assert (tmp_path / "delivery-marking.png").stat().st_size > 10_000


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


@pytest.mark.slow
def test_lists_are_asked_for_in_front_of_many_runs(tmp_path: Path) -> None:
    benchmark("bench_lists.py", tmp_path, "--runs=3000", "--times=2")
    figures = json.loads((tmp_path / "lists.json").read_text())["figures"]
    assert set(figures) == {"postgresql", "sqlite"}
    assert all(len(one["milliseconds and CPU"]) > 40 for one in figures.values())
    assert "| runs of a retired kind |" in (tmp_path / "lists.md").read_text()


@pytest.mark.slow
def test_the_service_accepts_begins_and_idles(tmp_path: Path) -> None:
    size = ("--submissions=40", "--rounds=1", "--works=1", "--idle=4")
    benchmark("bench_service.py", tmp_path, "--contenders=ledgerbeam", *size)
    raw = json.loads((tmp_path / "service.json").read_text())["figures"]["ledgerbeam"]
    assert len(raw["seconds until work begins"]) == 1
    assert raw["accepted a second"][0] > 0
    assert "| accepted a second |" in (tmp_path / "service.md").read_text()
