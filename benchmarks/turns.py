"""Contenders that take turns, so that a machine's moods fall on all of them alike."""

import os
import shutil
import statistics
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from measure import measure

Figures = dict[str, dict[str, list[float]]]
"""By contender: `wall` and `cpu` in seconds, `peak` in megabytes; a value for each repetition."""


def take_turns(
    contenders: Sequence[str],
    repetitions: int,
    scratch: Path,
    command_of: Callable[[str, Path], Sequence[str]],
    results_of: Callable[[Path], Any],
    exit_codes: Collection[int] = (0,),
) -> Figures:
    """Measure whole processes; the program ends if one fails, or gives other results.

    Args:
        contenders: their names; the results of the first count.
        repetitions: how often each of them runs.
        scratch: folder for what they write, which is removed.
        command_of: gives the command of a contender that writes to a folder.
        results_of: gives what is found in that folder, to be compared by `==`.
        exit_codes: those of a contender that did what it should.
    """
    figures: Figures = {name: {"wall": [], "cpu": [], "peak": []} for name in contenders}
    expected = None
    try:
        for repetition in range(repetitions):
            first = repetition % len(contenders)
            for name in [*contenders[first:], *contenders[:first]]:
                output = scratch / f"{name}-{repetition}"
                os.sync()
                measured = measure(command_of(name, output), limit_seconds=900)
                if measured.exit_code not in exit_codes:
                    sys.exit(f"{name} failed: {measured.errors.strip()[-400:]}")
                found = results_of(output)
                expected = found if expected is None else expected
                if found != expected:
                    sys.exit(f"{name} gives other results than {contenders[0]}")
                figures[name]["wall"].append(measured.wall_seconds)
                figures[name]["cpu"].append(measured.cpu_seconds)
                figures[name]["peak"].append(measured.peak_bytes / 1e6)
                shutil.rmtree(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return figures


def medians(figures: Figures) -> dict[str, dict[str, float]]:
    """The median of each figure of each contender."""
    return {
        name: {what: statistics.median(values) for what, values in of.items()}
        for name, of in figures.items()
    }
