"""The hash chain of the audit: each entry's hash covers the one before it, so that changes show.

An event is recorded in the transaction of what it tells; `reconcile` seals events afterwards, so
that nobody waits for the chain. Whoever can write to the database can change an event and compute
all the hashes that follow: what they can't change is a hash that somebody has kept elsewhere. So
`verify` gives the last hash, and takes one that was kept.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.batch.registry.schema import audit_link, event
from ledgerbeam.io.errors import AuditMismatchError

_COVERED = (
    *(event.c.sequence, event.c.run_id, event.c.attempt, event.c.at, event.c.who, event.c.type),
    *(event.c.from_status, event.c.to_status, event.c.follows, event.c.why, event.c.detail),
)
"""What a hash covers; not whether listeners were notified, which changes later."""

_LOCK = 5_303_178_128  # any number that other programs don't lock
BATCH = 10_000
"""Events that one transaction seals."""

_START = "0" * 64
_UNSEALED = event.c.sequence.not_in(sa.select(audit_link.c.sequence))


class AuditChain(NamedTuple):
    """What is sealed.

    Attributes:
        entries: number of events that are sealed.
        unsealed: number of events that came later, and are sealed by the next `reconcile`.
        head: hash of the last one, which covers all of them.
    """

    entries: int
    unsealed: int
    head: str


def seal(connection: sa.Connection) -> int:
    """Seal the oldest events that aren't yet, `BATCH` of them at most; others wait meanwhile.

    Returns:
        How many were sealed.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    links = [
        {"number": number, "sequence": sequence, "sha256": sha256}
        for number, sequence, sha256 in _new_links(connection)
    ]
    if links:
        connection.execute(sa.insert(audit_link), links)
    return len(links)


def verify(connection: sa.Connection, head: str = "") -> AuditChain:
    """Compute all hashes again.

    Args:
        connection: to the registry's database.
        head: a hash that was the last one at some time; empty if none was kept.

    Raises:
        AuditMismatchError: an event or a hash was changed or removed, or the head isn't there.
    """
    number, before, has_head = 0, _START, not head
    links = connection.execution_options(yield_per=BATCH).execute(
        sa.select(audit_link, *_COVERED)
        .join_from(audit_link, event, audit_link.c.sequence == event.c.sequence, isouter=True)
        .order_by(audit_link.c.number)
    )
    for link in links:
        position, sequence, sha256, *values = link
        number += 1
        if position != number:
            raise _mismatch(f"entry {number} is missing", None)
        if values[0] is None:
            raise _mismatch(f"event {sequence} was removed", sequence)
        before = _hash(before, values)
        if before != sha256:
            raise _mismatch(f"event {sequence} or its hash was changed", sequence)
        has_head = has_head or before == head
    if not has_head:
        raise _mismatch(f"none of {number:,} entries has the hash {head}", None)
    unsealed = connection.scalar(sa.select(sa.func.count()).select_from(event).where(_UNSEALED))
    return AuditChain(number, unsealed or 0, before)


def _new_links(connection: sa.Connection) -> Iterator[tuple[int, int, str]]:
    last = connection.execute(
        sa.select(audit_link.c.number, audit_link.c.sha256)
        .order_by(audit_link.c.number.desc())
        .limit(1)
    ).first()
    number, sha256 = last or (0, _START)
    events = connection.execute(
        sa.select(*_COVERED).where(_UNSEALED).order_by(event.c.sequence).limit(BATCH)
    )
    for values in events:
        number, sha256 = number + 1, _hash(sha256, values)
        yield number, values[0], sha256


def _hash(before: str, values: Any) -> str:
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    text = json.dumps([before, *plain], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _mismatch(how: str, sequence: int | None) -> AuditMismatchError:
    return AuditMismatchError(
        f"audit: {how}: compare the registry with a copy, and find out who could write to it",
        sequence=sequence,
    )
