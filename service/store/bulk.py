"""Actions on many: what is asked for, and each of its targets, which a router does one by one.

What is done with a target and that it is done are one transaction. So a router may be killed at any
point, another one goes on, and nothing is done twice.
"""

import datetime
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.database import Database
from ledgerbeam.batch.registry.registry import move
from ledgerbeam.batch.registry.schema import event
from ledgerbeam.batch.registry.transitions import check_reopening, lock_run, name_of
from ledgerbeam.io.errors import (
    IllegalMoveError,
    RegistryUnavailableError,
    SamePersonError,
    UserError,
)
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.io.secrets import redact
from ledgerbeam.service.bulk import (
    BulkAsk,
    BulkOf,
    BulkRecord,
    BulkState,
    BulkTarget,
    BulkVerb,
    TargetState,
)
from ledgerbeam.service.errors import (
    BulkNotFoundError,
    IdempotencyConflictError,
    RequestStateError,
)
from ledgerbeam.service.model import KEY_SECONDS, Submission, Verb
from ledgerbeam.service.store.intake import (
    cancel_request,
    change_queue,
    check_etag,
    fingerprint_of,
    lock_key,
    redrive_request,
    store_request,
)
from ledgerbeam.service.store.reading import Page, cursor_of, find_request, note, place_of
from ledgerbeam.service.store.tables import bulk, bulk_target, queue

_log = logging.getLogger(__name__)
_OPEN = (BulkState.WAITING, BulkState.RUNNING)


class Chosen(NamedTuple):
    """A target that an action is for.

    Attributes:
        target: which.
        seen: number of the run's last event when it was chosen; 0 for what is no run.
        requester: of the request; empty for what is none.
    """

    target: BulkTarget
    seen: int = 0
    requester: str = ""


class Bulks:
    """Actions on many. Any number of processes and threads may share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ask(
        self,
        given: BulkAsk,
        chosen: Sequence[Chosen],
        *,
        who: str,
        at: datetime.datetime,
        waits: bool,
        key: str | None = None,
    ) -> BulkRecord:
        """Store an action with its targets, of which each is there once.

        Args:
            given: what is asked for.
            chosen: its targets.
            who: asks.
            at: time in UTC.
            waits: whether a second person has to approve it.
            key: by which the caller would know it again, if it sends it twice.

        Raises:
            IdempotencyConflictError: the key stands for another action.
        """
        kinds = sorted({one.target.kind for one in chosen})
        new = {
            "id": str(uuid.uuid4()),
            **given.model_dump(exclude={"filter"}),
            "filter": given.filter.model_dump(mode="json", exclude_unset=True),
            "requester": who,
            "kinds": kinds,
            "state": BulkState.WAITING if waits else BulkState.RUNNING,
            "asked_at": at,
            "key": key,
            "fingerprint": _fingerprint(given),
            "version": 1,
        }
        with self._database.writing() as connection:
            if key is not None:
                lock_key(connection, who, key)
                known = _known(connection, given, who, at, key)
                if known is not None:
                    return known
            inserted = connection.execute(bulk.insert().values(new)).inserted_primary_key
            assert inserted is not None
            rows = [
                {
                    **one.target.model_dump(),
                    "bulk": inserted[0],
                    "number": number,
                    "seen": one.seen,
                }
                for number, one in enumerate(chosen)
            ]
            if rows:
                connection.execute(bulk_target.insert(), rows)
            row = connection.execute(bulk.select().where(bulk.c.sequence == inserted[0])).one()
            _note(connection, row, at, who, "asked", given.why, targets=len(chosen))
            return _read(connection, row)

    def known(
        self, given: BulkAsk, *, who: str, at: datetime.datetime, key: str
    ) -> BulkRecord | None:
        """The action that a key stands for; None where it stands for none yet.

        Raises:
            IdempotencyConflictError: the key stands for another action.
        """
        with self._database.reading() as connection:
            return _known(connection, given, who, at, key)

    def get(self, bulk_id: str) -> BulkRecord:
        """How an action stands.

        Raises:
            BulkNotFoundError: there is none of that id.
        """
        with self._database.reading() as connection:
            return _read(connection, _find(connection, bulk_id))

    def search(self, *, limit: int = 50, cursor: str | None = None) -> Page:
        """Actions, newest first."""
        query = bulk.select().order_by(bulk.c.sequence.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(bulk.c.sequence < place_of(cursor, int)[0])
        with self._database.reading() as connection:
            found = [_read(connection, row) for row in connection.execute(query).all()]
        more = len(found) > limit
        return Page(found[:limit], cursor_of(found[limit - 1].sequence) if more else None)

    def targets(
        self,
        bulk_id: str,
        *,
        state: TargetState | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """The targets of an action, in the order in which they are reached."""
        with self._database.reading() as connection:
            mine = bulk_target.c.bulk == _find(connection, bulk_id).sequence
            query = bulk_target.select().where(mine).order_by(bulk_target.c.number)
            if state is not None:
                query = query.where(bulk_target.c.state == state)
            if cursor is not None:
                query = query.where(bulk_target.c.number > place_of(cursor, int)[0])
            rows = connection.execute(query.limit(limit + 1)).all()
        last = cursor_of(rows[limit - 1].number) if len(rows) > limit else None
        names = BulkTarget.model_fields.keys()
        found = [{n: v for n, v in row._asdict().items() if n in names} for row in rows[:limit]]
        return Page([BulkTarget.model_validate(facts) for facts in found], last)

    def decide(
        self,
        bulk_id: str,
        to: BulkState,
        *,
        who: str,
        at: datetime.datetime,
        why: str = "",
        etag: int | None = None,
    ) -> BulkRecord:
        """Approve an action that waits (`RUNNING`), refuse it, or cancel what is left of it.

        Raises:
            BulkNotFoundError: there is none of that id.
            RequestStateError: that can't be done with it as it stands.
            SamePersonError: who approves has asked for it.
            ChangedMeanwhileError: its version isn't `etag`.
        """
        with self._database.writing() as connection:
            row = _find(connection, bulk_id, lock=True)
            check_etag(row.version, etag)
            fits = _OPEN if to is BulkState.CANCELED else (BulkState.WAITING,)
            if row.state not in fits:
                raise RequestStateError(
                    f"action {row.id} is {row.state}, and can't become {to} any more",
                    request=row.id,
                    state=row.state,
                )
            if to is BulkState.RUNNING and row.requester == who:
                raise SamePersonError(
                    f"action {row.id}: {who} has asked for it: another person approves it"
                )
            changes: dict[str, Any] = {"state": to, "version": row.version + 1}
            if to is BulkState.RUNNING:
                changes["approved_by"] = who
            else:
                changes["ended_at"] = at
            connection.execute(bulk.update().where(bulk.c.sequence == row.sequence).values(changes))
            words = {BulkState.RUNNING: "approved"}
            _note(connection, row, at, who, words.get(to, to.lower()), why)
            return _read(connection, _find(connection, bulk_id))

    # What a router does

    def at_work(self) -> list[int]:
        """The numbers of the actions that are to be carried out, oldest first."""
        query = sa.select(bulk.c.sequence).where(bulk.c.state == BulkState.RUNNING)
        with self._database.asking() as connection:
            return list(connection.execute(query.order_by(bulk.c.sequence)).scalars())

    def reach(self, sequence: int, at: datetime.datetime, who: str) -> bool:
        """Do what is asked for with the next target of an action, or end it where none is left.

        Returns:
            Whether something was done; else others are at its last targets.
        """
        target: sa.Row[Any] | None = None
        try:
            with self._database.writing() as connection:
                target = _next(connection, sequence)
                if target is None:
                    return _end(connection, sequence, at, who)
                request_id = _ACTS[target.of, target.verb](connection, target, at)
                _mark(connection, target, at, TargetState.DONE, request_id=request_id)
                failpoint("bulk: before commit of a target")
        except RegistryUnavailableError:
            raise
        except (IllegalMoveError, RequestStateError) as error:
            self._leave(target, at, TargetState.SKIPPED, str(error))
        except UserError as error:
            self._leave(target, at, TargetState.FAILED, redact(str(error)))
        except Exception as error:
            _log.exception("action %s: it failed by a bug", sequence)
            self._leave(target, at, TargetState.FAILED, redact(f"{type(error).__name__}: {error}"))
        failpoint("bulk: reached a target")
        return True

    def _leave(
        self, target: sa.Row[Any] | None, at: datetime.datetime, state: TargetState, told: str
    ) -> None:
        """Record why a target was left alone, unless another router has been there by now."""
        assert target is not None
        with self._database.writing() as connection:
            _mark(connection, target, at, state, told=told)


def _known(
    connection: sa.Connection, given: BulkAsk, who: str, at: datetime.datetime, key: str
) -> BulkRecord | None:
    since = at - datetime.timedelta(seconds=KEY_SECONDS)
    mine = (bulk.c.requester == who) & (bulk.c.key == key) & (bulk.c.asked_at > since)
    row = connection.execute(bulk.select().where(mine)).first()
    if row is None:
        return None
    if row.fingerprint != _fingerprint(given):
        raise IdempotencyConflictError(
            f"Idempotency-Key {key} was used for {row.id}, which is another action: give each a "
            "key of its own",
            request=row.id,
        )
    return _read(connection, row)


def _fingerprint(given: BulkAsk) -> str:
    return fingerprint_of(given.model_dump(mode="json"))


def _next(connection: sa.Connection, sequence: int) -> sa.Row[Any] | None:
    """The next target of an action that goes on, locked, with what its action says."""
    query = (
        sa.select(
            bulk_target,
            *(bulk.c.of, bulk.c.verb, bulk.c.why, bulk.c.requester, bulk.c.approved_by),
            bulk.c.id.label("action"),
        )
        .join(bulk, bulk.c.sequence == bulk_target.c.bulk)
        .where(
            bulk.c.sequence == sequence,
            bulk.c.state == BulkState.RUNNING,
            bulk_target.c.state == TargetState.PENDING,
        )
        .order_by(bulk_target.c.number)
        .limit(1)
        .with_for_update(of=bulk_target, skip_locked=True)
    )
    return connection.execute(query).first()


def _mark(
    connection: sa.Connection,
    target: sa.Row[Any],
    at: datetime.datetime,
    state: TargetState,
    **facts: Any,
) -> None:
    pending = bulk_target.update().where(
        bulk_target.c.bulk == target.bulk,
        bulk_target.c.number == target.number,
        bulk_target.c.state == TargetState.PENDING,
    )
    connection.execute(pending.values(state=state, done_at=at, **facts))


def _end(connection: sa.Connection, sequence: int, at: datetime.datetime, who: str) -> bool:
    """End an action of which nothing is left to be done; False where others are at it."""
    pending = sa.select(bulk_target.c.number).where(
        bulk_target.c.bulk == sequence, bulk_target.c.state == TargetState.PENDING
    )
    if connection.execute(pending.limit(1)).first() is not None:
        return False
    mine = bulk.select().where(bulk.c.sequence == sequence, bulk.c.state == BulkState.RUNNING)
    row = connection.execute(mine.with_for_update()).first()
    if row is None:
        return False
    done = {"state": BulkState.DONE, "ended_at": at, "version": row.version + 1}
    connection.execute(bulk.update().where(bulk.c.sequence == sequence).values(done))
    _note(connection, row, at, who, "done", counts=_counts(connection, sequence))
    return True


def _cancel_run(connection: sa.Connection, target: sa.Row[Any], at: datetime.datetime) -> None:
    row = lock_run(connection, target.id)
    _check_same_attempt(connection, row, target)
    if row.status.is_final or row.status is RunStatus.CANCELING:
        raise IllegalMoveError(f"{name_of(row)} is {row.status} already", run=row.id)
    _stop(connection, row, target, at)


def _stop(
    connection: sa.Connection, row: sa.Row[Any], target: sa.Row[Any], at: datetime.datetime
) -> None:
    """Record that a run is to be stopped; its launcher sees it, and steers its workers."""
    begun = row.status is not RunStatus.INITIATED
    to = RunStatus.CANCELING if begun else RunStatus.CANCELED
    move(connection, row.id, to, who=target.requester, at=at, why=target.why, detail=_of(target))


def _retry_run(connection: sa.Connection, target: sa.Row[Any], at: datetime.datetime) -> str:
    row = lock_run(connection, target.id)
    _check_same_attempt(connection, row, target)
    if row.status not in (RunStatus.FAILURE, RunStatus.CANCELED):
        raise IllegalMoveError(f"{name_of(row)} is {row.status}", run=row.id)
    if row.results_expired_at is not None:
        raise IllegalMoveError(f"{name_of(row)}: what it had committed has expired", run=row.id)
    check_reopening(connection, row)
    after = {"after": _last_event(connection, row.id)}
    asked = Submission(kind=target.kind, parameters=after, why=target.why)
    return store_request(
        connection,
        asked,
        who=target.requester,
        at=at,
        verb=Verb.RETRY,
        run_id=row.id,
        **_of(target),
    ).id


def _cancel_request(connection: sa.Connection, target: sa.Row[Any], at: datetime.datetime) -> None:
    row = find_request(connection, target.id, lock=True)
    canceled = cancel_request(
        connection, row, who=target.requester, at=at, why=target.why, **_of(target)
    )
    if not canceled.state.is_final and canceled.run_id is not None:
        run = lock_run(connection, canceled.run_id)
        if not run.status.is_final and run.status is not RunStatus.CANCELING:
            _stop(connection, run, target, at)


def _redrive_request(connection: sa.Connection, target: sa.Row[Any], at: datetime.datetime) -> None:
    row = find_request(connection, target.id, lock=True)
    after = None if row.run_id is None else _last_event(connection, row.run_id)
    redrive_request(
        connection,
        row,
        who=target.requester,
        at=at,
        why=target.why,
        after=after,
        **_of(target),
    )


def _release_queue(connection: sa.Connection, target: sa.Row[Any], at: datetime.datetime) -> None:
    held = sa.select(queue.c.held_why).where(queue.c.kind == target.id).with_for_update()
    if connection.execute(held).scalar() is None:
        raise RequestStateError(f"queue {target.id} isn't held any more")
    change_queue(
        connection,
        target.id,
        {"held": False},
        who=target.requester,
        at=at,
        why=target.why,
        **_of(target),
    )


_ACTS: dict[tuple[BulkOf, BulkVerb], Callable[..., str | None]] = {
    (BulkOf.RUNS, BulkVerb.CANCEL): _cancel_run,
    (BulkOf.RUNS, BulkVerb.RETRY): _retry_run,
    (BulkOf.REQUESTS, BulkVerb.CANCEL): _cancel_request,
    (BulkOf.REQUESTS, BulkVerb.REDRIVE): _redrive_request,
    (BulkOf.QUEUES, BulkVerb.RELEASE): _release_queue,
}


def _check_same_attempt(connection: sa.Connection, row: sa.Row[Any], target: sa.Row[Any]) -> None:
    """Leave a run alone that had ended, and that somebody has had executed again since.

    Raises:
        IllegalMoveError: that is so.
    """
    again = sa.select(event.c.sequence).where(
        event.c.run_id == row.id,
        event.c.sequence > target.seen,
        event.c.from_status.in_([status for status in RunStatus if status.is_final]),
    )
    if connection.execute(again.limit(1)).first() is not None:
        raise IllegalMoveError(
            f"{name_of(row)} was attempted again since this was asked for", run=row.id
        )


def _last_event(connection: sa.Connection, run_id: str) -> int:
    last = sa.select(sa.func.max(event.c.sequence)).where(event.c.run_id == run_id)
    return int(connection.execute(last).scalar_one())


def _of(target: sa.Row[Any]) -> dict[str, Any]:
    """What the record of each target says of its action."""
    approved = {} if target.approved_by is None else {"approved_by": target.approved_by}
    return {"bulk": target.action, **approved}


def _find(connection: sa.Connection, bulk_id: str, *, lock: bool = False) -> sa.Row[Any]:
    query = bulk.select().where(bulk.c.id == bulk_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise BulkNotFoundError(f"no action {bulk_id}: check it against GET /v1/bulk", bulk=bulk_id)
    return row


def _counts(connection: sa.Connection, sequence: int) -> dict[TargetState, int]:
    query = sa.select(bulk_target.c.state, sa.func.count()).where(bulk_target.c.bulk == sequence)
    rows = connection.execute(query.group_by(bulk_target.c.state))
    return {row[0]: row[1] for row in rows}


def _read(connection: sa.Connection, row: sa.Row[Any]) -> BulkRecord:
    facts = {n: v for n, v in row._asdict().items() if n in BulkRecord.model_fields}
    return BulkRecord.model_validate({**facts, "targets": _counts(connection, row.sequence)})


def _note(
    connection: sa.Connection,
    row: sa.Row[Any],
    at: datetime.datetime,
    who: str,
    what: str,
    why: str = "",
    **detail: Any,
) -> None:
    kind = row.kinds[0] if len(row.kinds) == 1 else None
    told = {"of": row.of, "verb": row.verb, "filter": row.filter, **detail}
    note(connection, at, who, f"bulk.{what}", row.id, kind, why, **told)
