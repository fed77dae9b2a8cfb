"""What became of components, as it is stored beside a shard's results.

Only what is not plain is stored: components that failed or are unknown, that took more than one
try, or that gave no row. All others succeeded at the first try, and their keys are in the part.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.io.commit.claims import Call, Decision

OUTCOMES_SCHEMA = pa.schema(
    [
        ("component", pa.string()),
        ("status", pa.string()),
        ("tries", pa.int32()),
        ("error", pa.string()),
        ("code", pa.string()),
        ("traceback", pa.string()),
        ("record", pa.string()),
        ("rule", pa.int16()),
    ]
)
"""The record is JSON."""

_PLACE = re.compile(r" \([^()]+:\d+\)$")


class Outcome(NamedTuple):
    """How a component has ended.

    Attributes:
        component: its key as text; see `component_name`.
        status: its status.
        tries: how often it was called, over all attempts.
        error: the last error in one line, even if a later try was a success; empty if there was
            none.
        code: the error's code, if it is one of `ledgerbeam.io.errors`; else empty.
        traceback: of the error, cut to the frames of the workload's own code; empty where there are
            none.
        record: the record at hand when the call failed, as text by column; None where that isn't
            known.
        rule: number of the rule by which it was executed; None where there are no rules.
    """

    component: str
    status: ComponentStatus
    tries: int = 1
    error: str = ""
    code: str = ""
    traceback: str = ""
    record: Mapping[str, str | None] | None = None
    rule: int | None = None


class FailureGroup(NamedTuple):
    """Components that failed by the same kind of error at the same place.

    Attributes:
        status: FAILURE or UNKNOWN.
        size: how many there are.
        first: one of them, whose error and record stand for all.
    """

    status: ComponentStatus
    size: int
    first: Outcome

    @property
    def text(self) -> str:
        """For a log: how many, the first one's error, its traceback and its record."""
        first = self.first
        others = f" and {self.size - 1:,} more" if self.size > 1 else ""
        lines = [f"{self.status}: component {first.component}{others}: {first.error}"]
        if first.record is not None:
            lines.append(f"record: {record_text(first.record)}")
        if first.traceback:
            lines.append(first.traceback)
        return "\n".join(lines)


def grouped(outcomes: Iterable[Outcome]) -> list[FailureGroup]:
    """Outcomes with errors by status, kind of error and place where it was raised, most first."""
    groups: dict[tuple[str, ...], FailureGroup] = {}
    for outcome in outcomes:
        kind, _, _ = outcome.error.partition(":")
        place = _PLACE.search(outcome.error)
        key = (outcome.status, kind, place[0] if place else "")
        group = groups.get(key) or FailureGroup(outcome.status, 0, outcome)
        groups[key] = group._replace(size=group.size + 1)
    return sorted(groups.values(), key=lambda group: -group.size)


def record_text(record: Mapping[str, str | None]) -> str:
    """A record in one line."""
    shown = (f"{name} {'empty' if value is None else value}" for name, value in record.items())
    return " ".join(", ".join(shown).split())


def decisions(instance_uri: str, shard: int, outcomes: Iterable[Outcome]) -> dict[str, Decision]:
    """What people have found out about those components of a shard that are unknown, by name."""
    found = {}
    for outcome in outcomes:
        if outcome.status is ComponentStatus.UNKNOWN:
            decision = call_of(instance_uri, shard, outcome).decision()
            if decision is not None:
                found[outcome.component] = decision
    return found


def call_of(instance_uri: str, shard: int, outcome: Outcome) -> Call:
    """The call that an outcome is the last one of."""
    return Call(instance_uri, shard, outcome.component, outcome.tries - 1)


def retries(outcomes: Iterable[Outcome]) -> int:
    """How many calls there were beyond the first of each component."""
    return sum(outcome.tries - 1 for outcome in outcomes if outcome.tries > 1)


def outcomes_table(outcomes: Sequence[Outcome]) -> pa.Table:
    """Outcomes as `OUTCOMES_SCHEMA` says, in their order."""
    rows = [
        outcome._asdict()
        | {
            "code": outcome.code or None,
            "traceback": outcome.traceback or None,
            "record": None if outcome.record is None else json.dumps(dict(outcome.record)),
        }
        for outcome in outcomes
    ]
    return pa.Table.from_pylist(rows, OUTCOMES_SCHEMA)


def outcomes_of(table: pa.Table) -> list[Outcome]:
    """The outcomes that a table holds; those of runs of before lack the last columns."""
    return [
        Outcome(
            row["component"],
            ComponentStatus(row["status"]),
            row["tries"],
            row["error"],
            row.get("code") or "",
            row.get("traceback") or "",
            json.loads(row["record"]) if row.get("record") else None,
            row.get("rule"),
        )
        for row in table.to_pylist()
    ]
