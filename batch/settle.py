"""Settling what nobody knows: a person has looked whether a call has taken effect, and says so."""

import datetime
from typing import Any

import pyarrow as pa

from ledgerbeam.batch.components import unknown_component
from ledgerbeam.batch.outcomes import call_of
from ledgerbeam.batch.process import BatchProcess
from ledgerbeam.batch.status import ComponentStatus
from ledgerbeam.io.claims import Decision, Settlement
from ledgerbeam.io.contract import Column, Contract
from ledgerbeam.io.errors import UserError
from ledgerbeam.io.readers import read_whole


def settle(
    instance_uri: str,
    kind: type[BatchProcess[Any]],
    component: str,
    status: ComponentStatus,
    results: str | None,
    who: str,
    why: str,
    at: datetime.datetime,
) -> None:
    """Record what a person has found out about a component that is `UNKNOWN`.

    It takes effect with the next attempt that retries.

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
        UserError: the component isn't unknown, or was settled otherwise before, or the rows don't
            fit.
    """
    from ledgerbeam.batch.execution import text_of

    shard, outcome = unknown_component(instance_uri, component)
    settlement = Settlement(status=status)
    if status is ComponentStatus.SUCCESS:
        settlement = Settlement(status=status, results=text_of(_rows(kind, results)))
    elif status is not ComponentStatus.FAILURE:
        raise UserError(f"a component can be settled as SUCCESS or as FAILURE, not as {status}")
    elif results is not None:
        raise UserError("a component that is settled as FAILURE has no results: leave them out")
    if not why:
        raise UserError("settling needs a reason: say what was found, and where")
    decision = Decision(component=component, settlement=settlement, who=who, why=why, at=at)
    stands = call_of(instance_uri, shard, outcome).decide(decision)
    if stands.settlement != settlement:
        raise UserError(
            f"component {component} was settled as {stands.settlement.status} by {stands.who} at "
            f"{stands.at:%Y-%m-%d %H:%M:%S} UTC: {stands.why}: that stands, `ledgerbeam retry` "
            "goes by it"
        )


def _rows(kind: type[BatchProcess[Any]], results: str | None) -> pa.Table:
    schema = kind.results
    assert schema is not None
    if results is None:
        return schema.empty_table()
    contract = Contract(tuple(Column(field.name, field.type) for field in schema))
    return read_whole(results, contract)[1].select(schema.names).cast(schema)
