"""The page on correctness: tables of what came out of the published examples."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.correctness.cases import Outcome, Status, sources
from tests.correctness.conventions import CONVENTIONS, Convention

PAGE = Path(__file__).parents[2] / "docs" / "correctness.md"
BEGIN = "<!-- Written by `python -m tests.correctness`. -->"
END = "<!-- The end of what is written. -->"


def with_tables(text: str, outcomes: Sequence[Outcome]) -> str:
    """The page with the tables of these outcomes between its marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables(outcomes)}\n{END}{after}"


def tables(outcomes: Sequence[Outcome]) -> str:
    """What was tried, by source; then what differs, by the convention that explains it."""
    parts = [_summary(outcomes), "## Where a convention differs"]
    explained = [outcome for outcome in outcomes if outcome.status is Status.EXPLAINED]
    for convention in CONVENTIONS.values():
        some = [outcome for outcome in explained if outcome.case.convention is convention]
        parts += [f"### {convention.title}", _described(convention), _differences(some)]
    return "\n".join(f"{part}\n" for part in parts)


def _summary(outcomes: Sequence[Outcome]) -> str:
    rows = []
    numbers = Counter[int]()
    for source in sources():
        some = [outcome for outcome in outcomes if outcome.case.source == source]
        explained = [outcome.case for outcome in some if outcome.status is Status.EXPLAINED]
        by = Counter(case.convention for case in explained)
        counted = [
            len(some),
            sum(len(outcome.figures) for outcome in some),
            len(some) - len(explained),
            len(explained),
        ]
        for at, number in enumerate(counted):
            numbers[at] += number
        title = f"[{source.title}]({source.url})" if source.url else source.title
        links = ", ".join(f"[{each.title}](#{anchor(each.title)})" for each in by)
        rows.append([source.topic, source.id, title, *map(str, counted), links])
    rows.append(["all", "", "", *(str(numbers[at]) for at in range(4)), ""])
    header = [
        "topic", "source", "published in", "examples", "figures", "equal", "explained",
        "by which convention",
    ]  # fmt: skip
    return _table(header, rows, right={3, 4, 5, 6})


def _described(convention: Convention) -> str:
    links = [f"[{_label(path)}]({path})" for path in convention.documented]
    return f"{convention.text} See {' and '.join(links)}."


def _label(path: str) -> str:
    page, _, section = path.removeprefix("../").partition("#")
    if page.endswith(".py"):
        return f"`{page}`"
    title = page.removesuffix(".md").replace("-", " ")
    return f"{title}, {section.replace('-', ' ')}" if section else title


def _differences(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [o.case.source.id, o.case.name, o.case.data["within"], o.case.explained] for o in outcomes
    ]
    return _table(["source", "example", "by at most", "why"], rows, right={2})


def anchor(title: str) -> str:
    """The anchor that a heading has where the page is shown."""
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


def _table(header: Iterable[str], rows: Iterable[Iterable[str]], right: set[int]) -> str:
    header = list(header)
    rule = ["---:" if at in right else "---" for at in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])
