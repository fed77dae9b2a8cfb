"""What routers and nodes do with requests. Every method is one transaction.

A request that a node has is under a lease, with an epoch that counts who has taken it. Where the
lease has run out, another node takes it over, and from then on the calls of the first one return
that it isn't theirs any more. A lost request keeps its place among those that run until it is taken
over: its run may go on somewhere, and a queue that is served in order begins nothing else before
that is settled.
"""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.service.model import (
    KindRecord,
    Problem,
    RequestRecord,
    RequestState,
    Submission,
    Verb,
)
from ledgerbeam.service.store.intake import change, change_all, store_request
from ledgerbeam.service.store.reading import (
    RequestReader,
    entry,
    find_request,
    note,
    note_all,
    order_of,
    policy_of,
    record_of,
)
from ledgerbeam.service.store.tables import idempotency, kind, queue, request, turn

_BATCH = 200
"""Requests that a router decides on in one transaction at most."""


class Dispatch(RequestReader):
    """Requests as routers and nodes see them."""

    def publish(self, kinds: Iterable[KindRecord]) -> None:
        """Record the kinds that a router knows; their queues stay as people have changed them."""
        with self._database.writing() as connection:
            for found in sorted(kinds, key=lambda found: found.name):
                facts = found.model_dump(mode="json") | {"seen_at": found.seen_at}
                del facts["name"]
                mine = kind.c.name == found.name
                if not connection.execute(kind.update().where(mine).values(facts)).rowcount:
                    connection.execute(kind.insert().values({**facts, "name": found.name}))
                    new = queue.insert().values(kind=found.name, changes={}, clock=0, version=1)
                    connection.execute(new)

    def received(self, kinds: Sequence[str]) -> list[RequestRecord]:
        """The oldest requests that wait for a router of these kinds, or are of no kind at all."""
        published = sa.select(kind.c.name)
        query = request.select().where(
            request.c.state == RequestState.RECEIVED,
            request.c.kind.in_(kinds) | request.c.kind.not_in(published),
        )
        with self._database.asking() as connection:
            rows = connection.execute(query.order_by(request.c.sequence).limit(_BATCH))
            return [record_of(row) for row in rows]

    def admit(self, request_ids: Sequence[str], who: str, at: datetime.datetime) -> int:
        """Put requests into their queues; gives how many, less those not `RECEIVED` any more.

        The turn of each is the one behind its requester's last, or that at which the queue stands:
        who asks for many takes turns with those who ask for few.
        """
        asked = request.c.id.in_(request_ids)
        with self._database.writing() as connection:
            # Queues are locked before requests, everywhere.
            own = queue.c.kind.in_(sa.select(request.c.kind).where(asked))
            locked = queue.select().where(own).order_by(queue.c.kind).with_for_update()
            clocks = {row.kind: row.clock for row in connection.execute(locked)}
            received = request.select().where(asked, request.c.state == RequestState.RECEIVED)
            rows = connection.execute(received.order_by(request.c.sequence).with_for_update()).all()
            places = _places(connection, rows, clocks)
            state = {"state": RequestState.QUEUED, "queued_at": at}
            change_all(
                connection,
                [(row, {**state, "turn": place}) for row, place in zip(rows, places, strict=True)],
            )
            queued = "request.queued"
            note_all(connection, [entry(at, who, queued, row.id, row.kind) for row in rows])
            failpoint("route: before commit")
        failpoint("route: queued")
        return len(rows)

    def settle(
        self,
        request_id: str,
        state: RequestState,
        who: str,
        at: datetime.datetime,
        code: str | None = None,
        error: str | None = None,
        problems: Sequence[Problem] = (),
        *,
        hide_parameters: bool = False,
    ) -> bool:
        """End a request that only a router has seen.

        Args:
            request_id: of the request.
            state: that it ends in.
            who: for the record.
            at: time in UTC.
            code: of the error, where there is one.
            error: one line that says why.
            problems: what is wrong with which parameter.
            hide_parameters: whether their values are forgotten, as one is a secret.

        Returns:
            False where it isn't `RECEIVED` any more.
        """
        with self._database.writing() as connection:
            row = find_request(connection, request_id, lock=True)
            if row.state is not RequestState.RECEIVED:
                return False
            told = [problem.model_dump() for problem in problems]
            end = {"state": state, "ended_at": at, "code": code, "error": error, "problems": told}
            if hide_parameters:
                end["parameters"] = dict.fromkeys(row.parameters, "***")
            change(connection, row, end)
            note(connection, at, who, f"request.{state.lower()}", row.id, row.kind, error or "")
        return True

    def take(
        self,
        kinds: Sequence[str],
        slots: int,
        *,
        node: str,
        now: datetime.datetime,
        lease_until: datetime.datetime,
    ) -> list[RequestRecord]:
        """Take requests, as many as there are slots: those of lost nodes first.

        Requests whose time is over are `EXPIRED` meanwhile.
        """
        taken: list[RequestRecord] = []
        busy = self._busy(kinds, now)
        for name in kinds:
            if name in busy and len(taken) < slots:
                with self._database.writing() as connection:
                    found = _take(connection, name, slots - len(taken), node, now, lease_until)
                    if found:
                        failpoint("take: before commit")
                taken += found
        if taken:
            failpoint("take: taken")
        return taken

    def _busy(self, kinds: Sequence[str], now: datetime.datetime) -> set[str]:
        """Kinds of which something waits, or was lost: one question, where there is nothing."""
        waits = request.c.state == RequestState.QUEUED
        lost = (request.c.state == RequestState.RUNNING) & (request.c.lease_until < now)
        query = sa.select(request.c.kind).distinct().where(request.c.kind.in_(kinds), waits | lost)
        with self._database.asking() as connection:
            return {*connection.execute(query).scalars()}

    def adopt(
        self,
        submission: Submission,
        *,
        who: str,
        node: str,
        now: datetime.datetime,
        lease_until: datetime.datetime,
    ) -> RequestRecord:
        """Store a request that a node has already, past its queue.

        Args:
            submission: what is asked for.
            who: asks.
            node: has it.
            now: time in UTC.
            lease_until: when another node may take it over.
        """
        with self._database.writing() as connection:
            stored = store_request(
                connection, submission, who=who, at=now, verb=Verb.SUBMIT, run_id=None, inline=True
            )
            row = find_request(connection, stored.id, lock=True)
            mine = {"node": node, "lease_until": lease_until, "epoch": 1}
            begun = {"state": RequestState.RUNNING, "queued_at": now, "started_at": now}
            note(connection, now, node, "request.taken", row.id, row.kind)
            return change(connection, row, {**mine, **begun})

    def renew(
        self, epochs: Mapping[str, int], node: str, lease_until: datetime.datetime
    ) -> list[RequestRecord]:
        """Prolong the leases of a node's requests, given with their epochs.

        Returns:
            Those that are the node's still.
        """
        kept = []
        with self._database.writing() as connection:
            for request_id, epoch in sorted(epochs.items()):
                mine = _own(request_id, epoch, node)
                own = request.update().where(mine).values(lease_until=lease_until)
                if connection.execute(own).rowcount:
                    kept.append(record_of(find_request(connection, request_id)))
        return kept

    def link(self, request_id: str, epoch: int, node: str, run_id: str) -> RequestRecord | None:
        """Record which run has come of a request.

        Returns:
            The request as it stands now; None where it isn't the node's any more.
        """
        with self._database.writing() as connection:
            row = find_request(connection, request_id, lock=True)
            if not _is_own(row, epoch, node):
                return None
            return change(connection, row, {"run_id": run_id})

    def finish(
        self,
        request_id: str,
        epoch: int,
        node: str,
        state: RequestState,
        at: datetime.datetime,
        code: str | None = None,
        error: str | None = None,
    ) -> bool:
        """End a request; False where it isn't the node's any more, and nothing changed."""
        with self._database.writing() as connection:
            row = find_request(connection, request_id, lock=True)
            if not _is_own(row, epoch, node):
                return False
            end = {"state": state, "ended_at": at, "lease_until": None}
            change(connection, row, {**end, "code": code, "error": error})
            note(connection, at, node, f"request.{state.lower()}", row.id, row.kind, error or "")
            failpoint("finish: before commit")
        failpoint("finish: recorded")
        return True

    def hand_over(self, request_id: str, epoch: int, node: str, at: datetime.datetime) -> bool:
        """Let another node go on with a request at once; the node that had it isn't lost."""
        with self._database.writing() as connection:
            values = {"lease_until": at, "lost": request.c.lost - 1}
            mine = request.update().where(_own(request_id, epoch, node)).values(values)
            return bool(connection.execute(mine).rowcount)

    def forget(self, now: datetime.datetime) -> None:
        """Delete idempotency keys that have expired."""
        with self._database.writing() as connection:
            connection.execute(idempotency.delete().where(idempotency.c.expires_at <= now))


def _places(
    connection: sa.Connection, rows: Sequence[sa.Row[Any]], clocks: Mapping[str, int]
) -> list[int]:
    """The turn of each request in its locked queue, which is its requester's last from now on."""
    of_requesters = sa.tuple_(turn.c.kind, turn.c.requester)
    pairs = {(row.kind, row.requester) for row in rows}
    before = {
        (row.kind, row.requester): row.last
        for row in connection.execute(turn.select().where(of_requesters.in_(pairs)))
    }
    last = dict(before)
    places = []
    for row in rows:
        own = row.kind, row.requester
        last[own] = max(clocks[row.kind], last[own] + 1 if own in last else 0)
        places.append(last[own])
    new = [
        {"kind": name, "requester": who, "last": last[name, who]}
        for name, who in sorted(pairs - before.keys())
    ]
    if new:
        connection.execute(turn.insert(), new)
    for name, who in sorted(before):
        mine = (turn.c.kind == name) & (turn.c.requester == who)
        connection.execute(turn.update().where(mine).values(last=last[name, who]))
    return places


def _take(
    connection: sa.Connection,
    name: str,
    slots: int,
    node: str,
    now: datetime.datetime,
    lease_until: datetime.datetime,
) -> list[RequestRecord]:
    joined = sa.select(queue, kind.c.policy).join(kind, kind.c.name == queue.c.kind)
    place = connection.execute(joined.where(queue.c.kind == name).with_for_update(of=queue)).first()
    if place is None:
        return []
    policy = policy_of(place)
    of_kind = request.c.kind == name
    running = of_kind & (request.c.state == RequestState.RUNNING)
    lost = connection.execute(
        request.select()
        .where(running, request.c.lease_until < now)
        .order_by(request.c.sequence)
        .limit(slots)
        .with_for_update(skip_locked=True)
    ).all()
    lease: dict[str, Any] = {"node": node, "lease_until": lease_until}
    taken = change_all(
        connection,
        [(row, {**lease, "epoch": row.epoch + 1, "lost": row.lost + 1}) for row in lost],
    )
    over = "request.taken-over"
    note_all(
        connection,
        [entry(now, node, over, row.id, name, f"{row.node} was lost") for row in lost],
    )
    queued = of_kind & (request.c.state == RequestState.QUEUED)
    _expire(connection, queued, node, now)
    free = slots - len(taken)
    if policy.limit is not None:
        count = sa.select(sa.func.count()).select_from(request).where(running)
        free = min(free, policy.limit - connection.execute(count).scalar_one())
    if place.held_why is not None or free <= 0:
        return taken
    rows = connection.execute(
        request.select()
        .where(queued)
        .order_by(*order_of(policy))
        .limit(free)
        # In a queue that is served in order nobody overtakes one that is being looked at.
        .with_for_update(skip_locked=policy.limit != 1)
    ).all()
    first = {**lease, "state": RequestState.RUNNING, "started_at": now}
    taken += change_all(connection, [(row, {**first, "epoch": row.epoch + 1}) for row in rows])
    note_all(connection, [entry(now, node, "request.taken", row.id, name) for row in rows])
    if rows:
        clock = max(place.clock, *(row.turn for row in rows))
        connection.execute(queue.update().where(queue.c.kind == name).values(clock=clock))
    return taken


def _expire(
    connection: sa.Connection, queued: sa.ColumnElement[bool], who: str, now: datetime.datetime
) -> None:
    late = request.select().where(queued, request.c.start_by < now)
    rows = connection.execute(late.with_for_update(skip_locked=True)).all()
    told = [f"no node was free before {row.start_by:%Y-%m-%d %H:%M:%S} UTC" for row in rows]
    end = {"state": RequestState.EXPIRED, "ended_at": now}
    change_all(connection, [(row, {**end, "error": t}) for row, t in zip(rows, told, strict=True)])
    note_all(
        connection,
        [
            entry(now, who, "request.expired", row.id, row.kind, t)
            for row, t in zip(rows, told, strict=True)
        ],
    )


def _own(request_id: str, epoch: int, node: str) -> sa.ColumnElement[bool]:
    return sa.and_(
        request.c.id == request_id,
        request.c.epoch == epoch,
        request.c.node == node,
        request.c.state == RequestState.RUNNING,
    )


def _is_own(row: sa.Row[Any], epoch: int, node: str) -> bool:
    own: bool = (row.state, row.epoch, row.node) == (RequestState.RUNNING, epoch, node)
    return own
