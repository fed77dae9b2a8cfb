"""What can be asked of the request database. Lists are read by keyset, newest first."""

import base64
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.batch.registry.database import Database
from ledgerbeam.batch.registry.search import has_text
from ledgerbeam.io.parsing import parse_json
from ledgerbeam.service.errors import BadRequestError, KindNotFoundError, RequestNotFoundError
from ledgerbeam.service.model import (
    AuditEntry,
    KindRecord,
    QueueRecord,
    RequestRecord,
    RequestState,
)
from ledgerbeam.service.store.tables import audit, kind, queue, request


class Page(NamedTuple):
    """A part of a list.

    Attributes:
        items: its records.
        next: cursor of the part behind it; None at the end.
        looked_back_to: when the last request was received that was looked at, in UTC, where the
            part has fewer than were asked for although it isn't the last one.
    """

    items: Sequence[Any]
    next: str | None
    looked_back_to: datetime.datetime | None = None


LOOKED_AT = 5_000
"""How many requests with an error a page looks at for a text."""


def cursor_of(*place: int | str) -> str:
    """A cursor: opaque to callers, who give it back as it is."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def place_of(cursor: str, *types: type) -> list[Any]:
    """The place that a cursor stands for.

    Raises:
        BadRequestError: it is none that this service has given.
    """
    try:
        place = parse_json(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if [type(value) for value in place] == list(types) and all(map(_is_place, place)):
            return list(place)
    except (ValueError, TypeError):
        pass
    raise BadRequestError(f"cursor {cursor[:40]}: it is none: give `next` of the page before it")


def _is_place(value: int | str) -> bool:
    """Whether databases can compare it."""
    return isinstance(value, str) or 0 <= value < 2**63


class RequestReader:
    """Questions; each is answered from one state of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, request_id: str) -> RequestRecord:
        """The request of that id.

        Raises:
            RequestNotFoundError: there is none.
        """
        with self._database.reading() as connection:
            return record_of(find_request(connection, request_id))

    def of_run(self, run_id: str) -> RequestRecord | None:
        """The last request that had that run executed."""
        last = request.select().where(request.c.run_id == run_id)
        with self._database.reading() as connection:
            row = connection.execute(last.order_by(request.c.sequence.desc()).limit(1)).first()
        return None if row is None else record_of(row)

    def search(
        self,
        *,
        kind: str | None = None,
        state: RequestState | None = None,
        requester: str | None = None,
        error: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Requests, newest first; by a text, of the next `LOOKED_AT` that have an error.

        Args:
            kind: only those for it.
            state: only those that are in it.
            requester: only those of that requester.
            error: only those whose error has this text in it, in the same case.
            kinds: only those for one of them, which is what the caller may see; None for all.
            limit: how many at most.
            cursor: of the page, as the one before it gives it.
        """
        conditions = [
            column == value
            for column, value in (
                (request.c.kind, kind),
                (request.c.state, state),
                (request.c.requester, requester),
            )
            if value is not None
        ]
        edge = self._edge(cursor, kinds) if error else None
        if error:
            conditions.append(has_text(request.c.error, error))
        if edge is not None:
            conditions.append(request.c.sequence >= edge.sequence)
        page = self._page(list(request.c), conditions, kinds, limit, cursor, record_of)
        if edge is None or page.next is not None:
            return page
        is_full = len(page.items) == limit
        return Page(page.items, cursor_of(edge.sequence), None if is_full else edge.received_at)

    def _edge(self, cursor: str | None, kinds: Sequence[str] | None) -> "sa.Row[Any, Any] | None":
        """The last request with an error that a page looks at; None where it looks at all."""
        conditions = [request.c.error.is_not(None)]
        if cursor is not None:
            conditions.append(request.c.sequence < place_of(cursor, int)[0])
        if kinds is not None:
            conditions.append(request.c.kind.in_(kinds))
        found = sa.select(request.c.sequence).where(*conditions)
        last = found.order_by(request.c.sequence.desc()).offset(LOOKED_AT - 1).limit(1)
        facts: sa.Select[Any] = sa.select(request.c.sequence, request.c.received_at)
        with self._database.asking() as connection:
            query = facts.where(request.c.sequence == last.scalar_subquery())
            return connection.execute(query).first()

    def kinds(self) -> list[KindRecord]:
        """What routers have published, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(kind.select().order_by(kind.c.name)).mappings()
            return [KindRecord.model_validate(dict(row)) for row in rows]

    def kind(self, name: str) -> KindRecord:
        """A kind by its name.

        Raises:
            KindNotFoundError: no router has published it.
        """
        with self._database.reading() as connection:
            row = connection.execute(kind.select().where(kind.c.name == name)).mappings().first()
        if row is None:
            raise unknown_kind(name)
        return KindRecord.model_validate(dict(row))

    def queues(self) -> list[QueueRecord]:
        """How the queue of each kind stands, by name.

        What waits or runs is counted, which is little; what has ended isn't.
        """
        with self._database.reading() as connection:
            return _read_queues(connection)

    def queue(self, name: str) -> QueueRecord:
        """How the queue of a kind stands.

        Raises:
            KindNotFoundError: no router has published the kind.
        """
        with self._database.reading() as connection:
            return read_queue(connection, name)

    def waiting(self, name: str, limit: int = 20) -> list[RequestRecord]:
        """Requests that wait in a queue, in the order in which they are taken."""
        with self._database.reading() as connection:
            policy = read_queue(connection, name).policy
            query = request.select().where(
                request.c.kind == name, request.c.state == RequestState.QUEUED
            )
            rows = connection.execute(query.order_by(*order_of(policy)).limit(limit))
            return [record_of(row) for row in rows]

    def audit(
        self,
        *,
        subject: str | None = None,
        kinds: Sequence[str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Who did what, newest first; the history of a run is in the registry."""
        columns = [audit.c[name] for name in AuditEntry.model_fields]
        conditions = [] if subject is None else [audit.c.subject == subject]
        return self._page(columns, conditions, kinds, limit, cursor, _entry_of)

    def _page(
        self,
        columns: Sequence[sa.Column[Any]],
        conditions: Sequence[sa.ColumnElement[bool]],
        kinds: Sequence[str] | None,
        limit: int,
        cursor: str | None,
        read: Any,
    ) -> Page:
        table = columns[0].table
        before = [] if cursor is None else [table.c.sequence < place_of(cursor, int)[0]]
        # Which ones they are is found in an index alone, kind by kind. The database's planner,
        # which expects each kind everywhere, would else read on and on for one that is retired.
        numbers = sa.select(table.c.sequence).where(*conditions, *before)
        numbers = numbers.order_by(table.c.sequence.desc()).limit(limit + 1)
        parts = [numbers] if kinds is None else [numbers.where(table.c.kind == k) for k in kinds]
        newest = [sa.select(part.subquery().c.sequence) for part in parts]
        query = sa.select(*columns).order_by(table.c.sequence.desc()).limit(limit + 1)
        found = table.c.sequence.in_(sa.union_all(*newest)) if newest else sa.false()
        with self._database.asking() as connection:
            rows = connection.execute(query.where(found)).all()
        items = [read(row) for row in rows[:limit]]
        return Page(items, cursor_of(items[-1].sequence) if len(rows) > limit else None)


def find_request(connection: sa.Connection, request_id: str, *, lock: bool = False) -> sa.Row[Any]:
    """The row of a request.

    Args:
        connection: of the transaction.
        request_id: of the request.
        lock: whether nobody else may change it meanwhile.

    Raises:
        RequestNotFoundError: there is none.
    """
    query = request.select().where(request.c.id == request_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise RequestNotFoundError(
            f"no request {request_id}: check it against GET /v1/requests", request=request_id
        )
    return row


def read_queue(connection: sa.Connection, name: str) -> QueueRecord:
    """How a queue stands, as the transaction sees it."""
    found = _read_queues(connection, name)
    if not found:
        raise unknown_kind(name)
    return found[0]


def _read_queues(connection: sa.Connection, name: str | None = None) -> list[QueueRecord]:
    """How all queues stand, or the one of a kind, by two questions."""
    joined = sa.select(queue, kind.c.policy).join(kind, kind.c.name == queue.c.kind)
    counted = (
        sa.select(
            request.c.kind,
            request.c.state,
            sa.func.count().label("count"),
            sa.func.min(request.c.queued_at).label("oldest"),
        )
        .where(request.c.state.in_((RequestState.QUEUED, RequestState.RUNNING)))
        .group_by(request.c.kind, request.c.state)
    )
    if name is not None:
        joined, counted = joined.where(queue.c.kind == name), counted.where(request.c.kind == name)
    counts = {(row.kind, row.state): row for row in connection.execute(counted)}
    found = []
    for row in connection.execute(joined.order_by(queue.c.kind)):
        queued = counts.get((row.kind, RequestState.QUEUED))
        running = counts.get((row.kind, RequestState.RUNNING))
        found.append(
            QueueRecord(
                kind=row.kind,
                policy=policy_of(row),
                held_why=row.held_why,
                queued=0 if queued is None else queued[2],
                running=0 if running is None else running[2],
                oldest_at=None if queued is None else queued.oldest,
                version=row.version,
            )
        )
    return found


def policy_of(row: sa.Row[Any]) -> QueuePolicy:
    """The policy in force: the kind's, with what people have changed of it."""
    return QueuePolicy.model_validate({**row.policy, **row.changes})


def order_of(policy: QueuePolicy) -> list[sa.ColumnElement[Any]]:
    """The order in which requests are taken from a queue."""
    if policy.limit == 1:
        return [request.c.sequence]
    return [request.c.priority.desc(), request.c.turn, request.c.sequence]


def record_of(row: sa.Row[Any]) -> RequestRecord:
    """A request from its row."""
    return RequestRecord.model_validate(row._asdict())


def unknown_kind(name: str) -> KindNotFoundError:
    """What is said where no router has published a kind."""
    return KindNotFoundError(f"no kind {name}: check it against GET /v1/kinds", kind=name)


def note(
    connection: sa.Connection,
    at: datetime.datetime,
    who: str,
    action: str,
    subject: str,
    kind_name: str | None,
    why: str = "",
    **detail: Any,
) -> None:
    """Record who did what, in the transaction in which it is done."""
    note_all(connection, [entry(at, who, action, subject, kind_name, why, **detail)])


def note_all(connection: sa.Connection, entries: Sequence[Mapping[str, Any]]) -> None:
    """The same for what was done to many, each made by `entry`."""
    if entries:
        connection.execute(audit.insert(), entries)


def entry(
    at: datetime.datetime,
    who: str,
    action: str,
    subject: str,
    kind_name: str | None,
    why: str = "",
    **detail: Any,
) -> dict[str, Any]:
    """A row of the audit table."""
    return {
        "at": at,
        "who": who,
        "action": action,
        "kind": kind_name,
        "subject": subject,
        "why": why,
        "detail": detail,
    }


def _entry_of(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry.model_validate(row._asdict())
