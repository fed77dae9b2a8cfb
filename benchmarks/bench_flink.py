"""Delivery marking on a Flink cluster of this machine, beside the local runner.

    python benchmarks/bench_flink.py --trades 10000000 --repetitions 3

The cluster is the tests' own: a JobManager, two TaskManagers of two slots, Python workers. All of
it shares the machine's cores with the driver, so this shows what the engine costs, and how a job
takes to more slots, rather than what a cluster of many machines would do. The contenders take
turns, repetition by repetition; their outputs must be the same to the byte.
"""

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import report
import typer
from cases import TRADE_DATE, Case, generated
from measure import measure
from rich.console import Console

from ledgerbeam.io.commit.attempts import load_manifest

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
    "trades/s of the job",
    "shuffled MB",
    "written MB",
)


def run(case: Case, flags: list[str], output: Path) -> dict[str, Any]:
    """Mark a day's deliveries once.

    Returns:
        `wall_seconds` of the whole driver, and `hashes` of what it has published.

    Raises:
        RuntimeError: it failed.
    """
    module = [sys.executable, "-m", "ledgerbeam.pipelines.delivery_marking", *case.ours]
    arguments = [f"--trade-date={TRADE_DATE}", f"--output={output}", *flags]
    measured = measure([*module, *arguments], limit_seconds=LIMIT_SECONDS, env=dict(os.environ))
    if measured.exit_code != 0:
        raise RuntimeError(f"{flags}: {measured.errors}")
    manifest = load_manifest(str(output / "delivery-marking" / TRADE_DATE.isoformat()))
    shutil.rmtree(output)
    return {
        "wall_seconds": measured.wall_seconds,
        "hashes": [commit.part.sha256 for commit in manifest.shards],
    }


def of_last_job(cluster: Any) -> dict[str, Any]:
    """What Flink says of the job that began last: its seconds, bytes written and shuffled."""
    job = max(cluster.get("/jobs/overview")["jobs"], key=lambda job: job["start-time"])
    vertices = cluster.get(f"/jobs/{job['jid']}")["vertices"]
    grouped = [v for v in vertices if "GroupReduce at" in v["name"] and "GroupByShard" in v["name"]]
    return {
        "job_seconds": job["duration"] / 1000,
        "written_bytes": sum(vertex["metrics"]["write-bytes"] for vertex in vertices),
        "shuffled_bytes": sum(vertex["metrics"]["read-bytes"] for vertex in grouped),
    }


def table_rows(figures: dict[str, list[dict[str, Any]]], trades: int) -> Iterator[list[str]]:
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
        if "job_seconds" in ones[0]:
            job = statistics.median(one["job_seconds"] for one in ones)
            cells += [f"{job:.2f}", f"{trades / job:,.0f}"]
            for name in ("shuffled_bytes", "written_bytes"):
                cells.append(f"{statistics.median(one[name] for one in ones) / 1e6:,.0f}")
        yield cells + [""] * (len(HEADINGS) - len(cells))


def markdown(raw: dict[str, Any], cells: list[list[str]]) -> str:
    """The page of results."""
    lines = [
        "# Delivery marking on Flink, beside the local runner",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}; the whole cluster on it, two TaskManagers of two slots",
        f"- Versions: Flink {raw['flink']}, "
        f"{', '.join(f'{name} {version}' for name, version in raw['versions'].items())}",
        f"- {raw['trades']:,} trades in {raw['files']} Parquet files, {raw['shards']} shards; "
        f"{raw['repetitions']} repetitions, in turns; medians. All outputs are the same by byte.",
        "- `wall` is that of the driver: the import of Beam, the upload of the job's jar and the "
        "wait for its end. `job` is what Flink says of the job, the start of Python workers "
        "included. `shuffled` is what the group-by-key of pieces has read, `written` what all "
        "steps have handed on: a step of four outputs writes all of them once for each.",
        "",
        *report.table(HEADINGS, cells),
    ]
    return "\n".join(lines) + "\n"


def main(
    trades: Annotated[int, typer.Option(min=1, help="of the day")] = 10_000_000,
    files: Annotated[int, typer.Option(min=1, help="that share the trades")] = 16,
    shards: Annotated[int, typer.Option(min=1, help="of the output")] = 16,
    parallelism: Annotated[
        list[int] | None, typer.Option(help="slots of a job; several times for several")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="of each runner")] = 3,
    results: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure delivery marking on Flink and locally; writes flink.md and flink.json."""
    sys.path.insert(0, str(ROOT))
    from tests.support.flink_cluster import flink_cluster

    started = datetime.now().astimezone()
    console = Console(stderr=True)
    case = generated(HERE / "data", trades, files, lambda count: None)
    figures: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, flink_cluster(Path(folder)) as cluster:
        version = cluster.get("/overview")["flink-version"]
        runners = {"local": [f"--shards={shards}"]} | {
            f"Flink, parallelism {n}": [f"--shards={shards}", *cluster.flags(n)]
            for n in parallelism or (1, 2)
        }
        for repetition in range(repetitions):
            for runner, flags in runners.items():
                told = run(case, flags, Path(folder) / "output")
                if runner != "local":
                    told |= of_last_job(cluster)
                figures.setdefault(runner, []).append(told)
                console.print(
                    f"{repetition + 1} of {repetitions}: {runner}: {told['wall_seconds']:.1f} s"
                )
    outputs = {tuple(one.pop("hashes")) for ones in figures.values() for one in ones}
    if len(outputs) > 1:
        raise SystemExit("the outputs differ")
    raw = report.circumstances(started) | {
        "flink": version,
        "trades": trades,
        "files": files,
        "shards": shards,
        "repetitions": repetitions,
        "figures": figures,
    }
    report.save(results, "flink", raw, markdown(raw, list(table_rows(figures, trades))))
    console.print(f"written to {results / 'flink.md'}")


if __name__ == "__main__":
    typer.run(main)
