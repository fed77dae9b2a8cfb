"""The benchmarks, in small: all contenders run, and agree."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ledgerbeam.synthetic.trades import write_trades

TRADE_DATE = datetime.date(2026, 11, 20)
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
def test_a_migration_and_a_loop_leave_the_same_prices(tmp_path: Path) -> None:
    benchmark("bench_migration.py", tmp_path, "--rows=5000", "--page-rows=500", "--repetitions=1")
    table = (tmp_path / "migration.md").read_text()
    for contender in ("plain loop", "price migration"):
        assert f"| {contender} |" in table


@pytest.mark.slow
def test_all_ways_to_do_loans_agree(tmp_path: Path) -> None:
    benchmark("bench_loans.py", tmp_path, "--loans=100", "--repetitions=1")
    raw = json.loads((tmp_path / "loans.json").read_text())
    assert not raw["differing"]
    table = (tmp_path / "loans.md").read_text()
    for contender in ("plain loop", "row-wise Beam", "DuckDB, totals of lines"):
        assert f"| {contender} " in table
    assert (tmp_path / "loans.png").stat().st_size > 10_000


def trades(folder: Path) -> list[str]:
    """The flags of a small day of delivery marking."""
    write_trades(str(folder / "trades"), 20_000, files=2, trade_date=TRADE_DATE)
    return [f"--trades={folder}/trades/*.parquet", f"--trade-date={TRADE_DATE}"]


@pytest.mark.slow
def test_steps_add_up_to_the_whole_run(tmp_path: Path) -> None:
    benchmark("bench_steps.py", tmp_path, "delivery_marking", *trades(tmp_path))
    steps = json.loads((tmp_path / "delivery_marking.json").read_text())["steps"]
    seconds = {step["step"]: step["cpu_seconds"] for step in steps}
    whole = seconds.pop("all")
    assert sum(seconds.values()) == pytest.approx(whole)
    assert {"read and decode Parquet", "rule", "encode Parquet"} < seconds.keys()
    (spilled,) = [step["bytes"] for step in steps if step["step"] == "write the spill"]
    assert spilled > 20_000 * 20


@pytest.mark.slow
def test_two_versions_are_compared_byte_by_byte(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    (root / ".venv").symlink_to(Path(sys.prefix))
    flags = ["itself", str(root), str(root), "--repetitions=2", "delivery_marking"]
    benchmark("bench_versions.py", tmp_path, *flags, *trades(tmp_path))
    raw = json.loads((tmp_path / "itself.json").read_text())
    assert raw["same_bytes"] is True
    assert [len(entry["cpu_seconds"]) for entry in raw["entries"]] == [2, 2]


@pytest.mark.slow
def test_comparisons_agree(tmp_path: Path) -> None:
    benchmark("bench_compare.py", tmp_path, "--rows=20000", "--repetitions=1")
    assert "| duckdb |" in (tmp_path / "comparison.md").read_text()


@pytest.mark.slow
def test_messages_are_measured_beside_raw_sql_and_peers(tmp_path: Path) -> None:
    flags = ["--messages=500", "--cold=1000", "--late=10", "--a-second=200", "--repetitions=1"]
    flags.append("--backlog=1000")
    benchmark("bench_messages.py", tmp_path, *flags)
    raw = json.loads((tmp_path / "messages.json").read_text())
    figures, lateness = raw["figures"], raw["lateness"]
    steps = ("schedule_many", "due to stream", "handled, Does nothing")
    for step in steps:
        for label in ("", ", snapshot held", ", 1,000 waiting"):
            assert [one[0] for one in figures[f"{step}{label}"]] == [500]
    assert [len(late) for late in lateness["ledgerbeam"].values()] == [10, 10]
    assert all(min(late) >= 0 for kinds in lateness.values() for late in kinds.values())
    assert all(one["statements"] > 0 for one in raw["idle"].values())
    assert list(raw["parts"]) == ["steps", "peers", "rest", "cold", "load", "backlog"]
    assert "| due to stream |" in (tmp_path / "messages.md").read_text()
    if not (ROOT / ".cache/peers/stamp").exists():
        pytest.skip("PEERS NOT MEASURED: make bench-messages builds them")
    for peer, size in {"River": 500, "graphile-worker": 500, "Procrastinate": 25}.items():
        assert [one[0] for one in figures[f"{peer}: scheduled"]] == [size]
        assert [len(late) for late in lateness[peer].values()] == [10]


@pytest.mark.slow
def test_a_replay_is_measured_beside_a_consumer(tmp_path: Path) -> None:
    benchmark("bench_replay.py", tmp_path, "--messages=500", "--repetitions=2", "--no-flink")
    figures = json.loads((tmp_path / "replay.json").read_text())["figures"]
    assert [len(ones) for ones in figures.values()] == [2, 2]
    assert all(one["server_cpu_seconds"] > 0 for ones in figures.values() for one in ones)
    table = (tmp_path / "replay.md").read_text()
    for way in ("`consume --slots=2`", "`run`, local runner"):
        assert f"| {way} |" in table


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
    raw = json.loads((tmp_path / "service.json").read_text())["ledgerbeam"]
    assert len(raw["seconds until work begins"]) == 1
    assert raw["accepted a second"][0] > 0
    assert "| accepted a second |" in (tmp_path / "service.md").read_text()


@pytest.mark.slow
def test_runs_on_record_publish_what_the_module_does(tmp_path: Path) -> None:
    benchmark("bench_record.py", tmp_path, "--trades=1000", "--repetitions=1")
    table = (tmp_path / "record.md").read_text()
    for contender in ("module", "run --registry", "submit --watch", "client, warm node"):
        assert f"| {contender} |" in table
