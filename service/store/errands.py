"""Errands: what a node is to answer at once, while the caller waits.

    ask ─▶ a node that serves the kind takes it ─▶ answer, before its deadline, or nobody does

They pass by the queues, which may be held, or hours long. One whose node is lost isn't taken by
another: the caller is told so at the deadline, and asks again.
"""

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ledgerbeam.batch.registry.database import Database
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.service.errors import (
    IdempotencyConflictError,
    RequestNotFoundError,
    ServiceUnavailableError,
)
from ledgerbeam.service.model import KEY_SECONDS, Errand, ErrandKind
from ledgerbeam.service.store.intake import fingerprint_of, lock_key
from ledgerbeam.service.store.reading import note
from ledgerbeam.service.store.tables import errand
from ledgerbeam.service.store.tables import node as present

APPEAR_SECONDS = 120.0
"""How often a node says that it is there."""

_GONE_SECONDS = 2.5 * APPEAR_SECONDS


class Errands:
    """Errands as front ends and nodes see them; any number of them may share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def appear(self, name: str, host: str, kinds: Sequence[str], at: datetime.datetime) -> None:
        """Record that a node is there, and which kinds it serves; it says so again in time."""
        facts = {"host": host, "kinds": list(kinds), "seen_at": at}
        mine = present.c.name == name
        with self._database.writing() as connection:
            if not connection.execute(present.update().where(mine).values(facts)).rowcount:
                connection.execute(present.insert().values({**facts, "name": name}))

    def leave(self, name: str) -> None:
        """Record that a node serves no more."""
        with self._database.writing() as connection:
            connection.execute(present.delete().where(present.c.name == name))

    def ask(
        self,
        what: ErrandKind,
        kind: str,
        given: Mapping[str, Any],
        *,
        who: str,
        at: datetime.datetime,
        seconds: float,
        why: str = "",
        host: str | None = None,
        key: str | None = None,
    ) -> Errand:
        """Store an errand, which a node may take until its deadline.

        Args:
            what: is asked for.
            kind: name of the workload, which the node has to serve.
            given: arguments.
            who: asks.
            at: time in UTC.
            seconds: until its deadline.
            why: for the record.
            host: of the node that alone can answer; None for any.
            key: by which the caller would know it again, if it sends it twice.

        Raises:
            IdempotencyConflictError: the key stands for another errand.
            ServiceUnavailableError: there is no node that could take it.
        """
        fingerprint = fingerprint_of(what, kind, dict(given), why)
        errand_id = str(uuid.uuid4())
        new = {
            "id": errand_id,
            "what": what,
            "kind": kind,
            "host": host,
            "given": dict(given),
            "requester": who,
            "why": why,
            "asked_at": at,
            "deadline": at + datetime.timedelta(seconds=seconds),
            "key": key,
            "fingerprint": fingerprint,
            "expires_at": at + datetime.timedelta(seconds=KEY_SECONDS),
        }
        with self._database.writing() as connection:
            if key is not None:
                lock_key(connection, who, key)
                mine = (errand.c.requester == who) & (errand.c.key == key)
                query = errand.select().where(mine, errand.c.expires_at > at)
                known = connection.execute(query.order_by(errand.c.sequence.desc())).first()
                if known is not None and known.fingerprint != fingerprint:
                    raise IdempotencyConflictError(
                        f"Idempotency-Key {key} was used for {known.id}, which is another call: "
                        "give each a key of its own",
                        request=known.id,
                    )
                if known is not None and (known.node is not None or known.deadline > at):
                    return _read(known)
            _check_served(connection, kind, host, at)
            connection.execute(errand.insert().values(new))
            note(connection, at, who, f"{what}.asked", errand_id, kind, why, **_shown(given))
            return _find(connection, errand_id)

    def get(self, errand_id: str) -> Errand:
        """An errand, with its answer where there is one.

        Raises:
            RequestNotFoundError: there is none of that id.
        """
        with self._database.reading() as connection:
            return _find(connection, errand_id)

    def take(
        self, kinds: Sequence[str], slots: int, *, node: str, host: str, now: datetime.datetime
    ) -> list[Errand]:
        """Take errands that aren't too late, oldest first, as many as there are slots."""
        free = (
            errand.select()
            .where(
                errand.c.node.is_(None),
                errand.c.deadline > now,
                errand.c.kind.in_(kinds),
                errand.c.host.is_(None) | (errand.c.host == host),
            )
            .order_by(errand.c.sequence)
            .limit(slots)
        )
        # Where there is nothing, which is most of the time, nobody is kept from writing.
        with self._database.asking() as connection:
            if connection.execute(free).first() is None:
                return []
        with self._database.writing() as connection:
            rows = connection.execute(free.with_for_update(skip_locked=True)).all()
            for row in rows:
                mine = errand.update().where(errand.c.sequence == row.sequence)
                connection.execute(mine.values(node=node))
        if rows:
            failpoint("errand: taken")
        return [_read(row) for row in rows]

    def answer(
        self,
        asked: Errand,
        *,
        node: str,
        at: datetime.datetime,
        answer: Mapping[str, Any] | None = None,
        code: str | None = None,
        error: str | None = None,
        hide: bool = False,
    ) -> None:
        """Record the answer to an errand, or why there is none.

        Args:
            asked: the errand.
            node: whose answer it is.
            at: time in UTC.
            answer: what was asked for.
            code: of the error, where there is one.
            error: one line that says why.
            hide: whether parameters are forgotten, as one is a secret.
        """
        with self._database.writing() as connection:
            mine = errand.update().where(errand.c.id == asked.id, errand.c.answered_at.is_(None))
            told = None if answer is None else dict(answer)
            values: dict[str, Any] = {
                "answered_at": at,
                "answer": told,
                "code": code,
                "error": error,
            }
            if hide:
                values["given"] = {**asked.given, "parameters": "***"}
            if connection.execute(mine.values(values)).rowcount:
                detail = {} if answer is None else {"state": answer.get("state")}
                what = f"{asked.what}.answered"
                note(connection, at, node, what, asked.id, asked.kind, error or "", **detail)

    def forget(self, now: datetime.datetime) -> None:
        """Delete errands with their answers a day after they were asked for, and lost nodes."""
        with self._database.writing() as connection:
            connection.execute(errand.delete().where(errand.c.expires_at <= now))
            gone = now - datetime.timedelta(seconds=KEY_SECONDS)
            connection.execute(present.delete().where(present.c.seen_at <= gone))


def _check_served(
    connection: sa.Connection, kind: str, host: str | None, at: datetime.datetime
) -> None:
    alive = present.c.seen_at > at - datetime.timedelta(seconds=_GONE_SECONDS)
    on_host = sa.true() if host is None else present.c.host == host
    served = connection.execute(sa.select(present.c.kinds).where(alive, on_host)).scalars()
    if not any(kind in kinds for kinds in served):
        where = "" if host is None else f" on {host}"
        raise ServiceUnavailableError(
            f"no node{where} serves {kind}: start one by `ledgerbeam work --kinds={kind}`"
        )


def _shown(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says of arguments; parameters may hold a secret, until they are checked."""
    return {name: value for name, value in given.items() if name != "parameters"}


def _find(connection: sa.Connection, errand_id: str) -> Errand:
    row = connection.execute(errand.select().where(errand.c.id == errand_id)).first()
    if row is None:
        raise RequestNotFoundError(f"no errand {errand_id}: it is forgotten after a day")
    return _read(row)


def _read(row: sa.Row[Any]) -> Errand:
    facts = {n: v for n, v in row._asdict().items() if n in Errand.model_fields}
    return Errand.model_validate(facts)
