"""The page of `bench_messages.py`: its tables, made of the raw figures."""

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import report
from peers import SMALLER

HEADINGS = ("step", "messages a second", "client µs", "server µs", "both µs")
Lateness = dict[str, list[float]]
"""Milliseconds from the due time, sorted, by what they are counted to."""


class Figure(NamedTuple):
    """What a step took: messages, wall seconds, CPU seconds of client and server."""

    messages: int
    seconds: float
    client: float
    server: float


def cells(figures: dict[str, list[Figure]]) -> Iterator[list[str]]:
    """Rows of the table: medians of the repetitions."""
    for step, ones in figures.items():
        rate = statistics.median(one.messages / one.seconds for one in ones)
        client = statistics.median(1e6 * one.client / one.messages for one in ones)
        server = statistics.median(1e6 * one.server / one.messages for one in ones)
        micros = (f"{value:.1f}" for value in (client, server, client + server))
        yield [step, f"{rate:,.0f}", *micros]


def late_cells(lateness: dict[str, Lateness]) -> Iterator[list[str]]:
    """Rows of the table of lateness."""
    for name, kinds in lateness.items():
        for kind, late in kinds.items():
            percentile = statistics.quantiles(late, n=100, method="inclusive")
            millis = (f"{value:,.0f}" for value in (percentile[49], percentile[98], late[-1]))
            yield [f"{name}, {kind}", f"{len(late):,}", *millis]


def markdown(raw: dict[str, Any]) -> str:
    """The page of results."""
    parts = raw["parts"]
    last = max(parts.values(), key=lambda part: str(part["started"]))
    smaller = ", ".join(f"{name} a {part}th" for name, part in SMALLER.items())
    lines = [
        "# Messages to the future, beside raw SQL and peers",
        "",
        f"- Machine: {last['machine']}",
        "- PostgreSQL on the same, durable: a commit waits for the disk",
        f"- Versions: {', '.join(f'{name} {v}' for name, v in last['versions'].items())}",
        "- Where the machine had other work, CPU time holds better than messages a second",
        "- `raw` is the least that SQL can do for the same, with one table and one index",
        f"- Peers are given the same number of messages, {smaller}",
        "",
        *report.table(
            ("part", "measured on", "by", "messages a step", "repetitions"),
            [
                [
                    name,
                    part["started"],
                    f"`{part['command']}`",
                    f"{part['messages']:,}",
                    str(part["repetitions"]),
                ]
                for name, part in parts.items()
            ],
        ),
        "",
        "Medians of the repetitions:",
        "",
        *report.table(HEADINGS, list(cells(raw["figures"]))),
        "",
        "Milliseconds from due time, by at most:",
        "",
        *report.table(
            ("", "messages", "half of them", "99 in 100", "all"), list(late_cells(raw["lateness"]))
        ),
        "",
        "A scheduler and a consumer with nothing to do, in an hour:",
        "",
        *report.table(
            ("", "client, CPU s", "server, CPU s", "statements a minute"),
            list(idle_cells(raw["idle"])),
        ),
    ]
    return "\n".join(lines) + "\n"


def idle_cells(idle: dict[str, dict[str, float]]) -> Iterator[list[str]]:
    """Rows of the table of idleness."""
    for name, one in idle.items():
        hour = 3600 / one["seconds"]
        seconds = (f"{hour * one[side]:.0f}" for side in ("client", "server"))
        yield [name, *seconds, f"{60 * one['statements'] / one['seconds']:.0f}"]
