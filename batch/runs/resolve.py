"""Resolving what nobody knows: a person has checked whether a call took effect, and says so."""

import datetime
from typing import Any

import pyarrow as pa

from ledgerbeam.batch.define.process import BatchProcess
from ledgerbeam.batch.model.outcomes import call_of
from ledgerbeam.batch.model.status import ComponentStatus
from ledgerbeam.batch.observe.components import unknown_component
from ledgerbeam.io.commit.claims import Call, Decision, Resolution
from ledgerbeam.io.datasets.contract import Column, Contract
from ledgerbeam.io.datasets.readers import read_whole
from ledgerbeam.io.errors import AlreadyResolvedError, ParameterError


def checked_decision(
    instance_uri: str,
    kind: type[BatchProcess[Any]],
    component: str,
    status: ComponentStatus,
    results: str | None,
    who: str,
    why: str,
    at: datetime.datetime,
) -> tuple[Call, Decision]:
    """What a person has found out about the call of a component that is `UNKNOWN`.

    Args:
        instance_uri: of the component's instance.
        kind: its definition.
        component: its key, as text.
        status: `SUCCESS`: the call has taken effect; `FAILURE`: it had none, and the component
            may be called again.
        results: URI of a file with the rows that the call would have given, for `SUCCESS`.
        who: decides.
        why: for the record.
        at: time in UTC.

    Raises:
        UserError: the component isn't unknown, or the rows don't fit.
    """
    from ledgerbeam.batch.execute.rows import text_of

    shard, outcome = unknown_component(instance_uri, component)
    resolution = Resolution(status=status)
    if status is ComponentStatus.SUCCESS:
        resolution = Resolution(status=status, results=text_of(_rows(kind, results)))
    elif status is not ComponentStatus.FAILURE:
        raise ParameterError(
            f"a component can be resolved as SUCCESS or as FAILURE, not as {status}",
            parameter="status",
            value=status,
        )
    elif results is not None:
        raise ParameterError(
            "a component that is resolved as FAILURE has no results: leave them out",
            parameter="results",
            value=results,
        )
    if not why:
        raise ParameterError(
            "resolving needs a reason: say what was found, and where", parameter="why"
        )
    decision = Decision(component=component, resolution=resolution, who=who, why=why, at=at)
    return call_of(instance_uri, shard, outcome), decision


def decide(call: Call, decision: Decision) -> None:
    """Record a decision; it takes effect with the next attempt that retries.

    Raises:
        AlreadyResolvedError: the component was resolved otherwise before.
    """
    stands = call.decide(decision)
    if stands.resolution != decision.resolution:
        raise AlreadyResolvedError(
            f"component {decision.component} was resolved as {stands.resolution.status} by "
            f"{stands.who} at {stands.at:%Y-%m-%d %H:%M:%S} UTC: {stands.why}: that stands, "
            "`ledgerbeam retry` goes by it",
            component=decision.component,
            status=stands.resolution.status,
        )


def _rows(kind: type[BatchProcess[Any]], results: str | None) -> pa.Table:
    schema = kind.results
    assert schema is not None
    if results is None:
        return schema.empty_table()
    contract = Contract(tuple(Column(field.name, field.type) for field in schema))
    return read_whole(results, contract)[1].select(schema.names).cast(schema)
