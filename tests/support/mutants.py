"""`python -m tests.support.mutants MODULE…` prints what became of mutants, as a table.

mutmut keeps what each of them ended with in a JSON file beside the mutated module.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mutmut.stats import status_by_exit_code

RULES = Path("src/ledgerbeam/rules")
HEADER = "| module | mutants | killed | survived | score |\n| --- | ---: | ---: | ---: | ---: |"
KILLED = {"killed", "timeout", "segfault"}


def row(module: str, statuses: Iterable[str]) -> str:
    """The line of the table for a module; the score is the share of mutants that were killed."""
    ended = list(statuses)
    killed = sum(status in KILLED for status in ended)
    score = f"{killed / len(ended):.1%}" if ended else ""
    return f"| `{module}` | {len(ended)} | {killed} | {len(ended) - killed} | {score} |"


def tried(module: str) -> Iterator[str]:
    """How each mutant of a module ended, of those that were tried."""
    stored = Path("mutants") / RULES / f"{module.replace('.', '/')}.py.meta"
    for code in json.loads(stored.read_text())["exit_code_by_key"].values():
        if code is not None:
            yield status_by_exit_code[code]


if __name__ == "__main__":
    modules = sys.argv[1:] or [
        ".".join(file.relative_to(RULES).with_suffix("").parts) for file in RULES.rglob("*.py")
    ]
    print(HEADER)
    for module in sorted(modules):
        print(row(module, tried(module)))
