"""Two checkouts of this project side by side, on the same input.

    python benchmarks/bench_versions.py close-of-business ../old . --repetitions=5
        loan_close_of_business --loans='day/loans-*' --transactions='day/transactions-*'
        --business-date=2026-11-30

Both run the workload in turns, each in its own `.venv`, and must publish the same bytes: else the
exit status is 1. CPU seconds are user and system time of the whole process, imports included.
"""

import argparse
import json
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import report
from measure import measure

HERE = Path(__file__).resolve().parent
LIMIT_SECONDS = 1_800.0

Entry = dict[str, Any]
"""`contender`, and of each of its repetitions `wall_seconds`, `cpu_seconds`, `peak_bytes`."""


def main() -> None:
    """Measure, compare, and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", help="of the files with the results")
    parser.add_argument("old", type=Path, help="a checkout with its .venv")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "versions")
    parser.add_argument("module", help="of the workload, such as delivery_marking")
    given, arguments = parser.parse_known_args()
    started = datetime.now().astimezone()
    entries: dict[str, Entry] = {}
    published: dict[str, list[str]] = {}
    roots = {"old": given.old, "new": given.new}
    for repetition in range(given.repetitions):
        for name in [*roots] if repetition % 2 == 0 else [*reversed(roots)]:
            hashes, run = _run(roots[name], given.module, arguments)
            published[name] = hashes
            entry = entries.setdefault(name, {"contender": name})
            for key, value in run.items():
                entry.setdefault(key, []).append(value)
    raw = report.circumstances(started) | {
        "entries": [entries[name] for name in roots],
        "same_bytes": published["old"] == published["new"],
    }
    page = page_of(given.name, raw)
    report.save(given.results, given.name, raw, page)
    print(page)
    sys.exit(0 if raw["same_bytes"] else 1)


def _run(root: Path, module: str, arguments: list[str]) -> tuple[list[str], dict[str, float]]:
    """The digests of what a checkout publishes, and what it took."""
    with tempfile.TemporaryDirectory() as output:
        python = str(root.resolve() / ".venv/bin/python")
        command = [python, "-m", f"ledgerbeam.pipelines.{module}", *arguments]
        found = measure([*command, f"--output={output}", "--json"], limit_seconds=LIMIT_SECONDS)
        if found.exit_code != 0:
            sys.exit(f"{root}: {found.errors.strip() or found.output.strip()}")
        (manifest,) = Path(output).glob("*/*/manifest.json")
        published = json.loads(manifest.read_text())
    parts = [
        file for each in published["shards"] for file in (each["part"], *each["tables"].values())
    ]
    digests = [file["sha256"] for file in (*parts, *published["reports"])]
    return digests, {
        "wall_seconds": found.wall_seconds,
        "cpu_seconds": found.cpu_seconds,
        "peak_bytes": found.peak_bytes,
    }


def page_of(name: str, raw: dict[str, Any]) -> str:
    """The figures as a page."""
    same = "the same bytes" if raw["same_bytes"] else "DIFFERENT BYTES"
    rows = [
        [
            entry["contender"],
            f"{statistics.median(entry['cpu_seconds']):.2f}",
            f"{min(entry['cpu_seconds']):.2f} - {max(entry['cpu_seconds']):.2f}",
            f"{statistics.median(entry['wall_seconds']):.2f}",
            f"{max(entry['peak_bytes']) / 1e6:,.0f}",
        ]
        for entry in raw["entries"]
    ]
    lines = [
        f"# Two versions side by side: {name}",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`; both publish {same}.",
        "",
        f"- Machine: {raw['machine']}",
        f"- Versions: {', '.join(f'{lib} {v}' for lib, v in raw['versions'].items())}",
        "",
        *report.table(["version", "cpu s", "min - max", "wall s", "peak MB"], rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
