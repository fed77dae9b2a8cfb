"""What became of components, as it is stored beside a shard's results.

Only what is not plain is stored: components that failed or are unknown, that took more than one
try, or that gave no row. All others succeeded at the first try, and their keys are in the part.
"""

import os
import traceback
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa

from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.claims import Call, Decision
from ledgerbeam.io.records import Totals
from ledgerbeam.io.secrets import redact

OUTCOMES_SCHEMA = pa.schema(
    [
        ("component", pa.string()),
        ("status", pa.string()),
        ("tries", pa.int32()),
        ("error", pa.string()),
    ]
)
_LONGEST_ERROR = 1_000


class Outcome(NamedTuple):
    """What became of a component.

    Attributes:
        component: its key as text; see `component_name`.
        status: where it ended.
        tries: how often it was called, over all attempts.
        error: why it isn't a success, or wasn't at first; one line.
    """

    component: str
    status: ComponentStatus
    tries: int = 1
    error: str = ""


def component_name(key: Iterable[object]) -> str:
    """A key as text: its values joined by slashes; slashes in values are written `%2F`."""
    return "/".join(str(value).replace("%", "%25").replace("/", "%2F") for value in key)


def error_line(error: BaseException) -> str:
    """An error as one line that says where in the code it was raised."""
    text = redact(" ".join(str(error).split()))
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        place = f" ({os.path.basename(frame.f_code.co_filename)}:{line})"
    return f"{type(error).__name__}: {text}"[:_LONGEST_ERROR] + place


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


def retries(outcomes: Iterable[Outcome]) -> Totals:
    """The total of calls beyond the first of each component; none where there were none."""
    count = sum(outcome.tries - 1 for outcome in outcomes if outcome.tries > 1)
    return {"retries": count} if count else {}


def outcomes_table(outcomes: Sequence[Outcome]) -> pa.Table:
    """Outcomes as `OUTCOMES_SCHEMA` says, in their order."""
    columns = zip(*outcomes, strict=True) if outcomes else [[] for _ in OUTCOMES_SCHEMA]
    types = OUTCOMES_SCHEMA.types
    arrays = [pa.array(list(values), type_) for values, type_ in zip(columns, types, strict=True)]
    return pa.table(arrays, schema=OUTCOMES_SCHEMA)


def outcomes_of(table: pa.Table) -> list[Outcome]:
    """The outcomes that a table holds."""
    return [
        Outcome(row["component"], ComponentStatus(row["status"]), row["tries"], row["error"])
        for row in table.to_pylist()
    ]
