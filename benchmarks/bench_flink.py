"""Delivery marking on a Flink cluster of this machine, beside the local runner and Spark.

    python benchmarks/bench_flink.py --trades 10000000 --repetitions 3

The cluster is the tests' own: a JobManager, two TaskManagers of two slots, Python workers. All of
it shares the machine's cores with the driver, so this shows what the engine costs, and how a job
takes to more slots, rather than what a cluster of many machines would do. Spark does the same in
SQL, on two threads. The contenders take turns; our outputs must be the same to the byte, and
Spark's the same by value. Figures are written after each repetition.
"""

import glob
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import agreement
import pyarrow.dataset as ds
import report
import typer
from agreement import Fingerprint
from cases import TRADE_DATE, Case, generated
from measure import measure
from rich.console import Console

from ledgerbeam.io.commit.attempts import load_manifest
from ledgerbeam.io.commit.published import read_published

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
LIMIT_SECONDS = 600.0
HEADINGS = (
    "runner",
    "wall s",
    "min - max",
    "÷ local",
    "job s",
    "less start s",
    "CPU s: driver",
    "Java",
    "Python",
    "shuffled MB",
    "written MB",
)
NAMES = {
    "job_seconds": (1, 1),
    "seconds_after_start": (1, 1),
    "cpu_seconds": (1, 1),
    "java_cpu_seconds": (1, 1),
    "python_cpu_seconds": (1, 1),
    "shuffled_bytes": (1e6, 0),
    "written_bytes": (1e6, 0),
}
"""Figures of the last columns, with what they are divided by and their digits."""
SPARK = "Spark, local[2]"
SPARK_SUBMIT = ROOT / ".cache" / "spark" / "bin" / "spark-submit"
CONTENDERS: dict[str, tuple[str, ...]] = {"batch": (), "--streaming": ("--streaming",)}
PARALLELISM = 2


def run(case: Case, flags: list[str], output: Path) -> dict[str, Any]:
    """Mark a day's deliveries once.

    Returns:
        `wall_seconds` and `cpu_seconds` of the whole driver, `hashes` of what it has published,
        and the `fingerprint` of its rows.

    Raises:
        RuntimeError: it failed.
    """
    module = [sys.executable, "-m", "ledgerbeam.pipelines.delivery_marking", *case.ours]
    arguments = [f"--trade-date={TRADE_DATE}", f"--output={output}", *flags]
    measured = measure([*module, *arguments], limit_seconds=LIMIT_SECONDS, env=dict(os.environ))
    if measured.exit_code != 0:
        raise RuntimeError(f"{flags}: {measured.errors}")
    published = str(output / "delivery-marking" / TRADE_DATE.isoformat())
    manifest = load_manifest(published)
    fingerprint = fingerprint_of(case, read_published(published))
    shutil.rmtree(output)
    return {
        "wall_seconds": measured.wall_seconds,
        "cpu_seconds": measured.cpu_seconds,
        "hashes": [commit.part.sha256 for commit in manifest.shards],
        "fingerprint": fingerprint,
    }


def run_spark(case: Case, shards: int, output: Path, expected: Fingerprint) -> dict[str, Any]:
    """Mark the same day's deliveries by Spark once.

    Returns:
        `wall_seconds` and `cpu_seconds` of all of it.

    Raises:
        RuntimeError: it failed, or its result isn't as expected.
    """
    command = [
        *(str(SPARK_SUBMIT), "--master=local[2]", "--driver-memory=8g"),
        *("--conf=spark.ui.enabled=false", f"--conf=spark.sql.shuffle.partitions={shards}"),
        *(str(HERE / "delivery" / "spark_sql.py"), case.parquet, str(output), str(TRADE_DATE)),
    ]
    env = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}
    measured = measure(command, limit_seconds=LIMIT_SECONDS, env=env)
    if measured.exit_code != 0:
        raise RuntimeError(f"Spark: {measured.errors}")
    found = fingerprint_of(case, ds.dataset(output / "parts", format="parquet"))
    shutil.rmtree(output)
    if found != expected:
        raise RuntimeError("Spark's deliveries aren't ours")
    return {"wall_seconds": measured.wall_seconds, "cpu_seconds": measured.cpu_seconds}


def fingerprint_of(case: Case, deliveries: ds.Dataset) -> Fingerprint:
    """What the rows of a result boil down to, whatever their order."""
    trades = ds.dataset(sorted(glob.glob(case.parquet)), format="parquet")
    types = [*agreement.sql_types(trades, case.columns), "BIGINT"]
    columns = [*case.columns, agreement.DELIVERY_QUANTITY]
    return agreement.fingerprint(deliveries, columns, types)


def of_last_job(cluster: Any) -> dict[str, Any]:
    """What Flink says of the job that began last: its seconds, bytes written and shuffled."""
    job = max(cluster.get("/jobs/overview")["jobs"], key=lambda job: job["start-time"])
    vertices = cluster.get(f"/jobs/{job['jid']}")["vertices"]
    # In a batch job, the step in front of it is called after it, too.
    grouped = [
        vertex
        for vertex in vertices
        if "GroupByShard" in vertex["name"] and "GroupCombine" not in vertex["name"]
    ]
    # The splits are made by the first call of a Python worker.
    (started,) = [v["end-time"] for v in vertices if "Read/Splits" in v["name"]]
    return {
        "job_seconds": job["duration"] / 1000,
        "seconds_after_start": (job["end-time"] - started) / 1000,
        "written_bytes": sum(vertex["metrics"]["write-bytes"] for vertex in vertices),
        "shuffled_bytes": sum(vertex["metrics"]["read-bytes"] for vertex in grouped),
    }


def cpu_seconds(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """CPU seconds of the cluster's processes between two looks at them."""
    taken = {name: after[name] - before[name] for name in after}
    python = taken.pop("pool")
    return {"java_cpu_seconds": sum(taken.values()), "python_cpu_seconds": python}


def table_rows(figures: dict[str, list[dict[str, Any]]]) -> Iterator[list[str]]:
    """Cells of the results table, a row a runner."""
    local = statistics.median(one["wall_seconds"] for one in figures["local"])
    for runner, ones in figures.items():
        walls = [one["wall_seconds"] for one in ones]
        wall = statistics.median(walls)
        cells = [
            runner,
            f"{wall:.2f}",
            f"{min(walls):.2f} - {max(walls):.2f}",
            f"{wall / local:.2f}",
        ]
        medians = {
            name: statistics.median(one[name] for one in ones) for name in ones[0] if name in NAMES
        }
        cells += [
            f"{medians[name] / unit:,.{digits}f}" if name in medians else ""
            for name, (unit, digits) in NAMES.items()
        ]
        yield cells


def markdown(raw: dict[str, Any], cells: list[list[str]]) -> str:
    """The page of results."""
    lines = [
        "# Delivery marking on Flink, beside the local runner",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}; the whole cluster on it, two TaskManagers of two slots, of "
        f"which a job takes {PARALLELISM}",
        f"- Versions: Flink {raw['flink']}, "
        f"{', '.join(f'{name} {version}' for name, version in raw['versions'].items())}",
        f"- {raw['trades']:,} trades in {raw['files']} Parquet files, {raw['shards']} shards; "
        f"{raw['repetitions']} repetitions, in turns; medians. All outputs of ours are the same by "
        "byte, and Spark's are by value.",
        "- `wall` is that of the driver: the import of Beam, the upload of the job's jar and the "
        "wait for its end. `job` is what Flink says of the job, and `less start` the same from "
        "the moment at which the first call of a Python worker has ended.",
        "- CPU seconds are user and system, of the driver, of the JobManager and the TaskManagers, "
        "and of the pool with its workers; all of Spark's are the driver's. On a busy machine they "
        "hold where seconds don't.",
        "- `shuffled` is what the group-by-key of batches has read, `written` what all steps have "
        "handed on.",
        "",
        *report.table(HEADINGS, cells),
    ]
    return "\n".join(lines) + "\n"


def main(
    trades: Annotated[int, typer.Option(min=1, help="of the day")] = 10_000_000,
    files: Annotated[int, typer.Option(min=1, help="that share the trades")] = 16,
    shards: Annotated[int, typer.Option(min=1, help="of the output")] = 16,
    repetitions: Annotated[int, typer.Option(min=1, help="of each runner")] = 3,
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure delivery marking on Flink, locally and by Spark; writes flink.md and flink.json."""
    sys.path.insert(0, str(ROOT))
    from tests.support.flink_cluster import flink_cluster

    started = datetime.now().astimezone()
    console = Console(stderr=True)
    case = generated(HERE / "data", trades, files, lambda count: None)
    figures: dict[str, list[dict[str, Any]]] = {}
    outputs: set[tuple[str, ...]] = set()
    expected: Fingerprint | None = None

    def note(runner: str, repetition: int, told: dict[str, Any]) -> None:
        figures.setdefault(runner, []).append(told)
        console.print(f"{repetition} of {repetitions}: {runner}: {told['wall_seconds']:.1f} s")

    with tempfile.TemporaryDirectory() as folder, flink_cluster(Path(folder)) as cluster:
        version = cluster.get("/overview")["flink-version"]
        runners = {"local": [f"--shards={shards}"]} | {
            f"Flink, {name}": [f"--shards={shards}", *cluster.flags(PARALLELISM, *more)]
            for name, more in CONTENDERS.items()
        }
        for repetition in range(1, repetitions + 1):
            for runner, flags in runners.items():
                before = cluster.cpu_seconds()
                told = run(case, flags, Path(folder) / "output")
                if runner != "local":
                    cluster.await_idle()
                    told |= of_last_job(cluster) | cpu_seconds(before, cluster.cpu_seconds())
                outputs.add(tuple(told.pop("hashes")))
                expected = told.pop("fingerprint")
                note(runner, repetition, told)
            if SPARK_SUBMIT.exists():
                assert expected is not None
                spark = run_spark(case, shards, Path(folder) / "output", expected)
                note(SPARK, repetition, spark)
            if len(outputs) > 1:
                raise SystemExit("the outputs differ")
            raw = report.circumstances(started) | {
                "flink": version,
                "trades": trades,
                "files": files,
                "shards": shards,
                "repetitions": repetition,
                "figures": figures,
            }
            report.save(results, "flink", raw, markdown(raw, list(table_rows(figures))))
    console.print(f"written to {results / 'flink.md'}")


if __name__ == "__main__":
    typer.run(main)
