"""The hash chain of the audit: each entry's hash covers the one before it, so that changes show.

Entries are the events of runs, and what the service records of requests, queues and keys. They are
recorded in the transaction of what they tell; `reconcile` seals them afterwards, so that nobody
waits for the chain. Whoever can write to the database can change an entry and compute all hashes
that follow: what they can't change is a hash that somebody has kept elsewhere. So `verify` gives
the last hash, and takes one that was kept.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.batch.registry.schema import Json, UtcDateTime, audit_link, event
from ledgerbeam.io.errors import AuditMismatchError

BATCH = 10_000
"""Entries that one transaction seals."""

# Of the service, whose tables stand in the registry's database.
act = sa.table(
    "audit",
    sa.column("sequence", sa.BigInteger),
    sa.column("at", UtcDateTime),
    *(sa.column(name, sa.Text) for name in ("who", "action", "kind", "subject", "why")),
    sa.column("detail", Json),
    sa.column("sealed", sa.Boolean),
)

_SOURCES: Mapping[str, Sequence[Any]] = {
    "event": [
        *(event.c.sequence, event.c.run_id, event.c.attempt, event.c.at, event.c.who),
        *(event.c.type, event.c.from_status, event.c.to_status, event.c.follows),
        *(event.c.why, event.c.detail),
    ],
    "audit": [column for column in act.c if column is not act.c.sealed],
}
"""What a hash covers of an entry, by the table that it stands in; the first column numbers them.

Not whether listeners were notified of an event, and whether it is sealed, which change later."""

_LOCK = 5_303_178_128  # any number that other programs don't lock
_START = "0" * 64


class AuditChain(NamedTuple):
    """What is sealed.

    Attributes:
        entries: number of entries that are sealed.
        unsealed: number of entries that came later, and are sealed by the next `reconcile`.
        head: hash of the last one, which covers all of them.
    """

    entries: int
    unsealed: int
    head: str


def seal(connection: sa.Connection) -> int:
    """Seal the oldest entries that aren't yet, `BATCH` of them at most; others wait meanwhile.

    Returns:
        How many were sealed.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    last = connection.execute(
        sa.select(audit_link.c.number, audit_link.c.sha256)
        .order_by(audit_link.c.number.desc())
        .limit(1)
    ).first()
    number, sha256 = last or (0, _START)
    links = []
    for source, values in _unsealed_entries(connection):
        number, sha256 = number + 1, _hash(sha256, source, values)
        links.append({"number": number, "source": source, "sequence": values[0], "sha256": sha256})
    if links:
        connection.execute(sa.insert(audit_link), links)
    for source, columns in _SOURCES.items():
        marked = sa.update(columns[0].table).where(_unmarked(source), _has_link(source))
        connection.execute(marked.values(sealed=True))
    return len(links)


def verify(connection: sa.Connection, head: str = "") -> AuditChain:
    """Compute all hashes again.

    Args:
        connection: to the registry's database.
        head: a hash that was the last one at some time; empty if none was kept.

    Raises:
        AuditMismatchError: an entry or a hash was changed or removed, or the head isn't there.
    """
    number, before, has_head = 0, _START, not head
    for position, source, sequence, sha256, values in _links(connection):
        number += 1
        if position != number:
            raise _mismatch(f"entry {number} is missing")
        if not values or values[0] is None:
            raise _mismatch(f"{source} {sequence} was removed", source, sequence)
        before = _hash(before, source, values)
        if before != sha256:
            raise _mismatch(f"{source} {sequence} or its hash was changed", source, sequence)
        has_head = has_head or before == head
    if not has_head:
        raise _mismatch(f"none of {number:,} entries has the hash {head}")
    for source, columns in _SOURCES.items():
        lost = sa.select(columns[0]).where(~_unmarked(source), ~_has_link(source))
        if (of_lost := connection.scalar(lost.limit(1))) is not None:
            raise _mismatch(f"{source} {of_lost} was sealed, and its hash was removed")
    unsealed = sum(
        connection.scalar(sa.select(sa.func.count(columns[0])).where(~_has_link(source))) or 0
        for source, columns in _SOURCES.items()
    )
    return AuditChain(number, unsealed, before)


def _unsealed_entries(connection: sa.Connection) -> Iterator[tuple[str, Sequence[Any]]]:
    left = BATCH
    for source, columns in _SOURCES.items():
        query = sa.select(*columns).where(_unmarked(source), ~_has_link(source))
        for values in connection.execute(query.order_by(columns[0]).limit(left)):
            left -= 1
            yield source, values


def _has_link(source: str) -> sa.ColumnElement[bool]:
    of_entry = audit_link.c.sequence == _SOURCES[source][0]
    return sa.exists().where(audit_link.c.source == source, of_entry)


def _unmarked(source: str) -> sa.ColumnElement[bool]:
    """What the table doesn't say is sealed, in the words of its index.

    Programs of the version before seal too, and don't say it: what has a link is sealed.
    """
    return sa.literal_column(f"NOT {source}.sealed", sa.Boolean)


def _links(connection: sa.Connection) -> Iterator[tuple[int, str, int, str, Sequence[Any]]]:
    """The links in their order, with what their entries hold now; nothing if a table is unknown."""
    link = audit_link.c
    columns: list[sa.ColumnElement[Any]] = [link.number, link.source, link.sequence, link.sha256]
    joined: sa.FromClause = audit_link
    at: dict[str, slice] = {}
    for source, covered in _SOURCES.items():
        at[source] = slice(len(columns), len(columns) + len(covered))
        columns += covered
        is_it = (audit_link.c.source == source) & (audit_link.c.sequence == covered[0])
        joined = joined.outerjoin(covered[0].table, is_it)
    query = sa.select(*columns).select_from(joined).order_by(audit_link.c.number)
    for row in connection.execution_options(yield_per=BATCH).execute(query):
        number, source, sequence, sha256 = row[:4]
        yield number, source, sequence, sha256, row[at[source]] if source in at else ()


def _hash(before: str, source: str, values: Sequence[Any]) -> str:
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    text = json.dumps([before, source, *plain], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _mismatch(how: str, source: str | None = None, sequence: int | None = None) -> Exception:
    return AuditMismatchError(
        f"audit: {how}: compare the registry with a copy, and find out who could write to it",
        source=source,
        sequence=sequence,
    )
