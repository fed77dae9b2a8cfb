"""What became of components, as it is stored beside a shard's results.

Only what is not plain is stored: components that failed or are unknown, that took more than one
try, or that gave no row. All others succeeded at the first try, and their keys are in the part.
"""

from collections.abc import Iterable, Sequence
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
    ]
)


class Outcome(NamedTuple):
    """How a component has ended.

    Attributes:
        component: its key as text; see `component_name`.
        status: its status.
        tries: how often it was called, over all attempts.
        error: the last error in one line, even if a later try was a success; empty if there was
            none.
        code: the error's code, if it is one of `ledgerbeam.io.errors`; else empty.
    """

    component: str
    status: ComponentStatus
    tries: int = 1
    error: str = ""
    code: str = ""


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
    rows = [outcome._asdict() | {"code": outcome.code or None} for outcome in outcomes]
    return pa.Table.from_pylist(rows, OUTCOMES_SCHEMA)


def outcomes_of(table: pa.Table) -> list[Outcome]:
    """The outcomes that a table holds; those of runs of before have no codes."""
    return [
        Outcome(
            row["component"],
            ComponentStatus(row["status"]),
            row["tries"],
            row["error"],
            row.get("code") or "",
        )
        for row in table.to_pylist()
    ]
