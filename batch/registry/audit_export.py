"""The whole audit in one order: entries of runs and of the service, as the hash chain has them.

Numbers of entries say nothing of when they were committed; those of the chain do. Whoever goes on
behind the last number that they have misses nothing.
"""

import datetime
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import AwareDatetime, BaseModel, ConfigDict

from ledgerbeam.batch.model.run import run_name
from ledgerbeam.batch.registry.audit_chain import act
from ledgerbeam.batch.registry.schema import audit_link, event, instance, run


class ChainedEntry(BaseModel):
    """An entry of the audit: who did what, when and why.

    Attributes:
        number: its place in the chain, from 1.
        at: time in UTC.
        who: the name of a person or a process.
        action: what was done: `run.status`, `request.received`, `queue.changed`, ….
        kind: name of the workload; None for what has none.
        subject: id or name of what it was done to.
        name: how people call the run; empty for what is none.
        why: the reason.
        detail: more facts.
        sha256: the hash that seals it, which covers all entries before it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    at: AwareDatetime
    who: str
    action: str
    kind: str | None
    subject: str
    name: str
    why: str
    detail: dict[str, Any]
    sha256: str


def entries(
    connection: sa.Connection,
    after: int,
    limit: int,
    kinds: Sequence[str] | None = None,
    since: datetime.datetime | None = None,
) -> list[ChainedEntry]:
    """Sealed entries, in the order of the chain.

    Args:
        connection: to the registry's database.
        after: number of an entry; only those behind it.
        limit: how many at most.
        kinds: only those of these workloads; None for all.
        since: only those of that time or later.
    """
    of_run, of_service = audit_link.c.source == "event", audit_link.c.source == "audit"
    joined = (
        audit_link.outerjoin(event, of_run & (event.c.sequence == audit_link.c.sequence))
        .outerjoin(run, run.c.id == event.c.run_id)
        .outerjoin(instance, instance.c.id == run.c.instance_id)
        .outerjoin(act, of_service & (act.c.sequence == audit_link.c.sequence))
    )
    kind = sa.func.coalesce(instance.c.process, act.c.kind)
    query = (
        sa.select(
            *(audit_link.c.number, audit_link.c.sha256, audit_link.c.source),
            *(kind.label("kind"), instance.c.name.label("instance"), run.c.run_number),
            *(event.c[n].label(f"event_{n}") for n in _OF_RUN),
            *(act.c[n].label(f"act_{n}") for n in _OF_SERVICE),
        )
        .select_from(joined)
        .where(audit_link.c.number > after)
        .order_by(audit_link.c.number)
        .limit(limit)
    )
    if kinds is not None:
        query = query.where(kind.in_(kinds))
    if since is not None:
        query = query.where(sa.or_(event.c.at >= since, act.c.at >= since))
    return [_entry(row) for row in connection.execute(query)]


_OF_RUN = ("run_id", "at", "who", "type", "attempt", "from_status", "to_status", "why", "detail")
_OF_SERVICE = ("at", "who", "action", "subject", "why", "detail")


def _entry(row: sa.Row[Any]) -> ChainedEntry:
    chained = {"number": row.number, "sha256": row.sha256, "kind": row.kind}
    if row.source != "event":
        facts = {name: getattr(row, f"act_{name}") for name in _OF_SERVICE}
        return ChainedEntry.model_validate({**chained, **facts, "name": ""})
    moved = {"from": row.event_from_status, "to": row.event_to_status, "attempt": row.event_attempt}
    told = {name: value for name, value in moved.items() if value is not None}
    return ChainedEntry(
        **chained,
        at=row.event_at,
        who=row.event_who,
        action=f"run.{row.event_type}",
        subject=row.event_run_id,
        name=run_name(row.kind, row.instance, row.run_number),
        why=row.event_why,
        detail={**told, **row.event_detail},
    )
