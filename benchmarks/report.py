"""The table, the plot and the raw figures of a benchmark."""

import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NAME = "delivery-marking"
HEADINGS = (
    "contender",
    "wall s",
    "min - max",
    "cpu s",
    "trades/s",
    "peak MB",
    "÷ duckdb",
    "÷ ledgerbeam",
)
LIBRARIES = ("apache-beam", "duckdb", "ledgerbeam", "numpy", "pandas", "polars", "pyarrow")

_OURS = "#1f5fa8"
_OTHERS = "#a9b4c0"

Raw = dict[str, Any]
"""A day's figures as JSON holds them: title, trades, files, entries, agreeing, examples."""


def rows(bout: Raw) -> list[list[str]]:
    """Give the cells of a day's table, a row a contender."""
    medians = {
        entry["contender"]: statistics.median(entry["wall_seconds"])
        for entry in bout["entries"]
        if entry["wall_seconds"]
    }
    cells = []
    for entry in bout["entries"]:
        name, walls = entry["contender"], entry["wall_seconds"]
        if not walls:
            cells.append([name, entry["trouble"], *[""] * (len(HEADINGS) - 2)])
            continue
        wall = medians[name]
        note = f" ({entry['trouble']})" if entry["trouble"] else ""
        ratios = [
            f"{wall / medians[other]:.2f}" if other in medians else ""
            for other in ("duckdb", "ledgerbeam")
        ]
        cells.append(
            [
                name,
                f"{wall:.2f}{note}",
                f"{min(walls):.2f} - {max(walls):.2f}",
                f"{statistics.median(entry['cpu_seconds']):.2f}",
                f"{bout['trades'] / wall:,.0f}",
                f"{_peak_megabytes(entry):,.0f}",
                *ratios,
            ]
        )
    return cells


def verdict(bout: Raw) -> str:
    """Say who agrees with whom."""
    groups = bout["agreeing"]
    if not groups:
        return "No contender has a result."
    if len(groups) == 1 and len(groups[0]) == 1:
        return f"Only {groups[0][0]} has a result."
    if len(groups) == 1:
        pairs = len(list(itertools.combinations(groups[0], 2)))
        return f"All {pairs} pairs of {', '.join(groups[0])} agree on every trade."
    parts = "; ".join(" = ".join(group) for group in groups)
    return f"RESULTS DIFFER. Equal among themselves: {parts}."


def write(folder: Path, bouts: Sequence[Raw], started: datetime) -> None:
    """Write `delivery-marking.md`, `.png` and `.json`.

    Args:
        folder: where to; made if need be.
        bouts: one a day of trades.
        started: when the benchmark was.
    """
    raw = circumstances(started) | {"bouts": list(bouts)}
    save(folder, NAME, raw, _markdown(raw))
    _plot(folder / f"{NAME}.png", raw)


def circumstances(started: datetime) -> Raw:
    """What belongs to all figures: `started`, `command`, `machine`, `versions`."""
    return {
        "started": started.isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
    }


def save(folder: Path, name: str, raw: Raw, page: str) -> None:
    """Write `NAME.json` and the page `NAME.md` to a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown, whose first column is text and whose others are figures."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _markdown(raw: Raw) -> str:
    lines = [
        "# Delivery marking, side by side",
        "",
        f"Measured on {raw['started']} by `{raw['command']}`.",
        "",
        f"- Machine: {raw['machine']}",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in raw['versions'].items())}",
        "- Wall time is that of the whole process, imports included, with the input in the page "
        "cache. Peak memory is that of the whole process tree, the highest of all repetitions, "
        "shared pages counted once. MB are 1,000,000 bytes.",
        "- The contenders took turns, repetition by repetition; `wall s` is the median, and the "
        "last two columns divide medians.",
        "",
        f"![Wall time and peak memory]({NAME}.png)",
        "",
    ]
    for bout in raw["bouts"]:
        runs = max((len(entry["wall_seconds"]) for entry in bout["entries"]), default=0)
        lines += [
            f"## {bout['title']}",
            "",
            f"{bout['files']} Parquet file{'s' * (bout['files'] > 1)}, "
            f"{runs} repetition{'s' * (runs != 1)}. {verdict(bout)}",
            "",
            *table(HEADINGS, rows(bout)),
            "",
            *(f"- differs: {example}" for example in bout["examples"]),
        ]
    return "\n".join(lines).rstrip() + "\n"


def _plot(path: Path, raw: Raw) -> None:
    """Draw a row of two panels for each day: wall seconds, peak memory."""
    bouts = [
        (bout, entries)
        for bout in raw["bouts"]
        if (entries := [entry for entry in bout["entries"] if entry["wall_seconds"]])
    ]
    if not bouts:
        return
    heights = [len(entries) + 1.6 for _, entries in bouts]
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(11, 0.36 * sum(heights) + 0.9), layout="constrained")
        panels = figure.subplots(len(bouts), 2, squeeze=False, height_ratios=heights)
        for (bout, entries), (left, right) in zip(bouts, panels, strict=True):
            names = [entry["contender"] for entry in entries]
            walls = [statistics.median(entry["wall_seconds"]) for entry in entries]
            spread = [
                [
                    wall - min(entry["wall_seconds"])
                    for wall, entry in zip(walls, entries, strict=True)
                ],
                [
                    max(entry["wall_seconds"]) - wall
                    for wall, entry in zip(walls, entries, strict=True)
                ],
            ]
            _bars(left, names, walls, [f"{wall:.2f} s" for wall in walls], spread)
            peaks = [_peak_megabytes(entry) for entry in entries]
            _bars(right, names, peaks, [f"{peak:,.0f} MB" for peak in peaks])
            left.set_title(bout["title"], loc="left", fontweight="bold")
            left.set_xlabel("wall seconds: median, with lowest and highest")
            right.set_xlabel("peak memory of the process tree, MB")
            right.set_yticklabels([])
        figure.suptitle("Delivery marking: whole process, less is better", fontweight="bold")
        figure.supxlabel(f"{raw['machine']} · {raw['started'][:10]}", fontsize=8, color="#555555")
        figure.savefig(path, dpi=130)


def _bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    labels: Sequence[str],
    spread: Sequence[Sequence[float]] | None = None,
) -> None:
    colours = [_OURS if name.startswith("ledgerbeam") else _OTHERS for name in names]
    axes.barh(
        names, values, color=colours, xerr=spread, height=0.7, error_kw={"lw": 1, "capsize": 2}
    )
    reach = [
        value + more
        for value, more in zip(values, spread[1] if spread else [0] * len(values), strict=True)
    ]
    for place, (end, label) in enumerate(zip(reach, labels, strict=True)):
        axes.annotate(label, (end, place), (5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.17 * max(reach))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e3e6ea")
    axes.set_axisbelow(True)


def _peak_megabytes(entry: Raw) -> float:
    peak: int = max(entry["peak_bytes"])
    return peak / 1e6


def machine() -> str:
    """Processor, memory, system, and how busy it is now."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the architecture has to do
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB RAM, {platform.system()} "
        f"{platform.release()}, load at the end {load:.1f}"
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that matter, by name."""
    return {"Python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in LIBRARIES
    }
