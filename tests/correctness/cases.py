"""Published examples, as data, and what this project makes of them.

Each file beside this one holds the examples of a topic, with where they were published. A case is
equal if every figure comes out as published, to the cent. Where a documented convention differs,
the case names it (`convention`, one of `CONVENTIONS`), says how (`explained`) and by how much at
most (`within`); it fails if it differs by more, and also if it doesn't differ at all.
"""

import datetime
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from tests.correctness.conventions import CONVENTIONS, Convention
from tests.correctness.figures import KINDS, Figure

FOLDER = Path(__file__).parent


class Status(StrEnum):
    EQUAL = "equal"
    EXPLAINED = "explained"
    DIFFERENT = "different"


class Source(NamedTuple):
    """Where examples were published."""

    topic: str
    id: str
    title: str
    url: str = ""


class Case(NamedTuple):
    """One example: `data` as it stands in the file, `kind` the name of its table there."""

    source: Source
    kind: str
    name: str
    data: dict[str, Any]

    @property
    def explained(self) -> str:
        return str(self.data.get("explained", ""))

    @property
    def convention(self) -> Convention:
        """What explains the difference."""
        return CONVENTIONS[self.data["convention"]]


class Outcome(NamedTuple):
    """What came out of a case; `note` says what is wrong if it is different."""

    case: Case
    status: Status
    figures: list[Figure]
    note: str = ""

    @property
    def largest(self) -> Fraction:
        return max((figure.difference for figure in self.figures), default=Fraction(0))


def all_cases() -> list[Case]:
    return [case for file in sorted(FOLDER.glob("*.toml")) for case in _read(file)]


def sources() -> list[Source]:
    return [
        Source(_topic(file), **source)
        for file in sorted(FOLDER.glob("*.toml"))
        for source in tomllib.loads(file.read_text())["sources"]
    ]


def run(case: Case) -> Outcome:
    """What comes out of a case; never raises for a difference."""
    figures = list(KINDS[case.kind](case.data))
    assert figures, f"{case.name} compares nothing"
    outcome = Outcome(case, Status.EQUAL, figures)
    different = [figure for figure in figures if figure.difference]
    if not different:
        if case.explained:
            return outcome._replace(status=Status.DIFFERENT, note="explained, and not different")
        return outcome
    if case.explained and outcome.largest <= Fraction(case.data["within"]):
        return outcome._replace(status=Status.EXPLAINED)
    first = max(different, key=lambda figure: figure.difference)
    note = f"{first.name}: published {float(first.published)}, ours {float(first.ours)}"
    return outcome._replace(status=Status.DIFFERENT, note=note)


def _topic(file: Path) -> str:
    return file.stem.replace("_", " ").capitalize()


def _read(file: Path) -> Iterator[Case]:
    content = tomllib.loads(file.read_text())
    known = {source["id"]: Source(_topic(file), **source) for source in content.pop("sources")}
    for kind, tables in content.items():
        for data in tables:
            source = known[data.pop("source")]
            if "periods" not in data:
                yield Case(source, kind, data.pop("name"), data)
                continue
            for line in data["periods"].strip().splitlines():
                start, end, expected, *more = line.split()
                period = {key: value for key, value in data.items() if key != "periods"} | {
                    "start": datetime.date.fromisoformat(start),
                    "end": datetime.date.fromisoformat(end),
                    "expected": expected,
                }
                period |= dict(zip(data.get("columns", ()), more, strict=True))
                yield Case(
                    source, kind, f"{data['day_count']} {' '.join([start, end, *more])}", period
                )
