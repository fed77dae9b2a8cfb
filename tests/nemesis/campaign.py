"""`python -m tests.nemesis`: disturbs recorded runs at random, and adds up how the trials end.

A seed is a trial: the same faults are drawn again, though no two runs of it meet them at the same
instruction. `--page` writes the table of the campaign into `docs/faults.md`.
"""

import argparse
import multiprocessing
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import ExitStack
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tests.nemesis.faults import draw
from tests.nemesis.scene import clock_library
from tests.nemesis.trial import Result, new_registry, run_trial, undisturbed
from tests.support.postgres import PostgresServer, postgres_server

from ledgerbeam.io.commit.records import Manifest

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
_TABLE = re.compile(r"(?<=<!-- campaign -->\n).*?(?=<!-- end -->)", re.DOTALL)
_HEADER = (
    "| fault | took effect | SUCCESS | SUCCESS by hand | CANCELED | wrong |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: |\n"
)


class Stage(NamedTuple):
    """What the trials of one process share."""

    expected: Manifest
    server: PostgresServer
    library: Path | None


_stack = ExitStack()


@cache
def stage() -> Stage:
    """Set it up, once a process."""
    folder = Path(_stack.enter_context(tempfile.TemporaryDirectory(prefix="nemesis-stage-")))
    server = _stack.enter_context(postgres_server())
    return Stage(undisturbed(folder), server, clock_library(folder))


def trial(seed: int) -> Result:
    """The trial of a seed."""
    shared = stage()
    plan = draw(seed, ["sqlite", "postgresql"], shared.library is not None)
    url = new_registry(shared.server) if plan.database == "postgresql" else ""
    return run_trial(plan, shared.expected, url, shared.library)


def results(seeds: Iterable[int], end_at: float, at_once: int) -> Iterator[Result]:
    """Trials as they end; none is begun after a moment (monotonic)."""
    if at_once == 1:
        for seed in seeds:
            if time.monotonic() >= end_at:
                return
            yield trial(seed)
        return
    left = iter(seeds)
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(trial, seed) for seed in islice(left, at_once)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
                following = next(left, None)
                if following is not None and time.monotonic() < end_at:
                    running.add(pool.submit(trial, following))


def table(found: list[Result]) -> str:
    """Kinds of faults and how the trials ended that they took effect in."""
    counts: dict[str, Counter[str]] = {}
    for result in found:
        end = result.end
        column = "SUCCESS by hand" if end == "SUCCESS" and result.by_hand else end
        for kind in {*result.hit, "any trial"}:
            counts.setdefault(kind, Counter())[column] += 1
    lines = []
    for kind in sorted(counts, key=lambda kind: (kind == "any trial", kind)):
        ends = [counts[kind][end] for end in ("SUCCESS", "SUCCESS by hand", "CANCELED", "WRONG")]
        lines.append(f"| {kind} | {' | '.join(str(n) for n in [sum(ends), *ends])} |\n")
    return _HEADER + "".join(lines)


def main() -> int:
    """The campaign; its status is 1 where a trial ended as it must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first trial")
    parser.add_argument("--trials", type=int, default=20, help="how many, each with the next seed")
    parser.add_argument("--seconds", type=float, default=3600, help="after which none is begun")
    parser.add_argument("--at-once", type=int, default=1, help="trials side by side")
    parser.add_argument("--page", action="store_true", help="write the table into docs/faults.md")
    chosen = parser.parse_args()
    began = time.monotonic()
    found = []
    seeds = range(chosen.seed, chosen.seed + chosen.trials)
    with _stack:
        for result in results(seeds, began + chosen.seconds, chosen.at_once):
            found.append(result)
            wrong = sum(result.end == "WRONG" for result in found)
            so_far = f"{len(found)} of {chosen.trials}, {wrong} wrong"
            print(f"{result.line()} [{so_far}]", flush=True)
    minutes = (time.monotonic() - began) / 60
    shown = table(found)
    seeds_run = sorted(result.plan.seed for result in found)
    print(f"\n{shown}\n{len(found)} trials in {minutes:.0f} minutes", flush=True)
    if chosen.page and found:
        title = f"{len(found)} trials, seeds {seeds_run[0]} to {seeds_run[-1]}:\n\n"
        PAGE.write_text(_TABLE.sub(lambda _: f"\n{title}{shown}\n", PAGE.read_text()))
    return int(any(result.end == "WRONG" for result in found))
