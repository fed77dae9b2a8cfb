"""What callers do to requests and queues. Every method is one transaction, with its audit entry."""

import datetime
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.batch.model.queue import QueuePolicy
from ledgerbeam.io.errors import ParameterError, RegistryUnavailableError, UserError
from ledgerbeam.io.failpoints import failpoint
from ledgerbeam.service.errors import (
    ChangedMeanwhileError,
    IdempotencyConflictError,
    RequestStateError,
)
from ledgerbeam.service.model import (
    KEY_SECONDS,
    QueueRecord,
    RequestRecord,
    RequestState,
    Submission,
    Verb,
)
from ledgerbeam.service.store.reading import (
    RequestReader,
    entry,
    find_request,
    note,
    note_all,
    read_queue,
    record_of,
)
from ledgerbeam.service.store.tables import idempotency, queue, request


class Asked(NamedTuple):
    """What is asked for, and by whom; see `Intake.accept`."""

    submission: Submission
    who: str
    at: datetime.datetime
    verb: Verb = Verb.SUBMIT
    run_id: str | None = None
    key: str | None = None
    traceparent: str | None = None


class Intake(RequestReader):
    """Requests as callers see them. Any number of processes and threads may share one."""

    def accept(
        self,
        submission: Submission,
        *,
        who: str,
        at: datetime.datetime,
        verb: Verb = Verb.SUBMIT,
        run_id: str | None = None,
        key: str | None = None,
        traceparent: str | None = None,
    ) -> tuple[RequestRecord, bool]:
        """Store a request; it is checked later, by a router that knows its kind.

        Args:
            submission: what is asked for.
            who: asks.
            at: time in UTC.
            verb: what is to be done.
            run_id: of the run that another attempt is asked for.
            key: by which the caller would know the request again, if it sends it twice.
            traceparent: the trace that it belongs to.

        Returns:
            The request, and whether it is new.

        Raises:
            IdempotencyConflictError: the key stands for another request.
        """
        asked = Asked(submission, who, at, verb, run_id, key, traceparent)
        (answer,) = self.accept_all([asked])
        if isinstance(answer, UserError):
            raise answer
        return answer

    def accept_all(
        self, asked: Sequence["Asked"]
    ) -> "Sequence[tuple[RequestRecord, bool] | UserError]":
        """The same for many, in one transaction, unless one of them spoils it for the others.

        Returns:
            For each what `accept` returns, or the error that it raises.
        """
        answers: list[tuple[RequestRecord, bool] | UserError] = []
        for few in _with_keys_of_their_own(asked):
            try:
                with self._database.writing() as connection:
                    stored = _accept(connection, few)
                    failpoint("accept: before commit")
                failpoint("accept: stored")
                answers += stored
            except RegistryUnavailableError:
                raise
            except (UserError, sa.exc.SQLAlchemyError):
                if len(few) == 1:
                    raise
                # Which one it is shows when each is stored by itself.
                for one in few:
                    try:
                        answers += self.accept_all([one])
                    except UserError as error:
                        answers.append(error)
        return answers

    def recall(
        self,
        submission: Submission,
        *,
        who: str,
        at: datetime.datetime,
        verb: Verb,
        run_id: str,
        key: str,
    ) -> RequestRecord | None:
        """The request that was stored before by a key, as `accept` would; None where there is none.

        Raises:
            IdempotencyConflictError: the key stands for another request.
        """
        with self._database.writing() as connection:
            known = _known(connection, who, key, at)
            if known is None:
                return None
            asked = Asked(submission, who, at, verb, run_id, key)
            return _same(connection, known, _fingerprint(asked))

    def cancel(
        self, request_id: str, *, who: str, at: datetime.datetime, why: str, etag: int | None = None
    ) -> RequestRecord:
        """Withdraw a request; where a node has it, the node is told to cancel its run.

        Raises:
            RequestStateError: it has ended.
            ChangedMeanwhileError: its version isn't `etag`.
        """
        with self._database.writing() as connection:
            row = _find_for_change(connection, request_id, etag)
            return cancel_request(connection, row, who=who, at=at, why=why)

    def redrive(
        self,
        request_id: str,
        *,
        who: str,
        at: datetime.datetime,
        why: str,
        etag: int | None = None,
        after: int | None = None,
    ) -> RequestRecord:
        """Queue a request again that was put aside, or that wasn't started in time.

        Args:
            request_id: of the request.
            who: for the record.
            at: time in UTC.
            why: for the record.
            etag: the version that the caller has seen; None for any.
            after: the last event of its run, if there is one: it is then attempted again.

        Raises:
            RequestStateError: it is in another state.
            ChangedMeanwhileError: its version isn't `etag`.
        """
        with self._database.writing() as connection:
            row = _find_for_change(connection, request_id, etag)
            return redrive_request(connection, row, who=who, at=at, why=why, after=after)

    def change_queue(
        self,
        name: str,
        changes: dict[str, Any],
        *,
        who: str,
        at: datetime.datetime,
        why: str,
        etag: int | None = None,
    ) -> QueueRecord:
        """Change how a queue is served, hold it or release it.

        Args:
            name: of the kind.
            changes: fields of `QueuePolicy`, and `held`.
            who: for the record.
            at: time in UTC.
            why: for the record.
            etag: the version that the caller has seen; None for any.

        Raises:
            KindNotFoundError: no router has published the kind.
            ParameterError: a value is out of range.
            ChangedMeanwhileError: its version isn't `etag`.
        """
        with self._database.writing() as connection:
            return change_queue(connection, name, changes, who=who, at=at, why=why, etag=etag)


def store_request(
    connection: sa.Connection,
    submission: Submission,
    *,
    who: str,
    at: datetime.datetime,
    verb: Verb,
    run_id: str | None,
    traceparent: str | None = None,
    **noted: Any,
) -> RequestRecord:
    """Store a new request, with its audit entry; `noted` are further facts for that."""
    asked = Asked(submission, who, at, verb, run_id, None, traceparent)
    return _store(connection, [asked], noted)[0]


def _store(
    connection: sa.Connection,
    asked: Sequence[Asked],
    noted: Mapping[str, Any] = MappingProxyType({}),
) -> list[RequestRecord]:
    """Store new requests, each with its audit entry."""
    if not asked:
        return []
    new: list[dict[str, Any]] = [
        {
            "id": str(uuid.uuid4()),
            "kind": one.submission.kind,
            "verb": one.verb,
            "state": RequestState.RECEIVED,
            "parameters": one.submission.parameters,
            "priority": one.submission.priority,
            "turn": 0,
            "requester": one.who,
            "why": one.submission.why,
            "received_at": one.at,
            "start_by": one.submission.start_by,
            "run_id": one.run_id,
            "epoch": 0,
            "lost": 0,
            "problems": [],
            "version": 1,
            "traceparent": one.traceparent,
        }
        for one in asked
    ]
    numbered = request.insert().returning(request.c.sequence, sort_by_parameter_order=True)
    sequences = connection.execute(numbered, new).scalars().all()
    entries = [
        entry(
            one.at,
            one.who,
            "request.received",
            row["id"],
            row["kind"],
            one.submission.why,
            verb=one.verb,
            **noted,
        )
        for one, row in zip(asked, new, strict=True)
    ]
    note_all(connection, entries)
    # What isn't known yet is None; the rows needn't be read again.
    unknown = dict.fromkeys(RequestRecord.model_fields)
    return [
        RequestRecord.model_validate({**unknown, **row, "sequence": sequence})
        for row, sequence in zip(new, sequences, strict=True)
    ]


def _accept(
    connection: sa.Connection, asked: Sequence[Asked]
) -> list[tuple[RequestRecord, bool] | UserError]:
    """Store what isn't known by its key; all keys are different."""
    known: dict[tuple[str, str | None], sa.Row[Any]] = {}
    # In one order everywhere, so that no two wait for each other.
    for one in sorted((one for one in asked if one.key), key=lambda one: (one.who, one.key)):
        assert one.key is not None
        if (row := _known(connection, one.who, one.key, one.at)) is not None:
            known[one.who, one.key] = row
    new = [one for one in asked if (one.who, one.key) not in known]
    stored = dict(zip(map(id, new), _store(connection, new), strict=True))
    remembered = [
        {
            "requester": one.who,
            "key": one.key,
            "fingerprint": _fingerprint(one),
            "request_id": stored[id(one)].id,
            "expires_at": one.at + datetime.timedelta(seconds=KEY_SECONDS),
        }
        for one in new
        if one.key
    ]
    if remembered:
        connection.execute(idempotency.insert(), remembered)
    answers: list[tuple[RequestRecord, bool] | UserError] = []
    for one in asked:
        if id(one) in stored:
            answers.append((stored[id(one)], True))
            continue
        try:
            answers.append((_same(connection, known[one.who, one.key], _fingerprint(one)), False))
        except IdempotencyConflictError as error:
            answers.append(error)
    return answers


def _with_keys_of_their_own(asked: Sequence[Asked]) -> Iterator[Sequence[Asked]]:
    """Parts of a sequence, one after the other, in which no key stands twice."""
    part: list[Asked] = []
    keys: set[tuple[str, str]] = set()
    for one in asked:
        if one.key and (one.who, one.key) in keys:
            yield part
            part, keys = [], set()
        part.append(one)
        if one.key:
            keys.add((one.who, one.key))
    yield part


def cancel_request(
    connection: sa.Connection,
    row: sa.Row[Any],
    *,
    who: str,
    at: datetime.datetime,
    why: str,
    **noted: Any,
) -> RequestRecord:
    """Withdraw a locked request; see `Intake.cancel`."""
    if row.state.is_final:
        raise _wrong_state(row, "it has ended, and can't be canceled")
    changes: dict[str, Any] = {"cancel_why": why}
    if row.state is not RequestState.RUNNING:
        changes |= {"state": RequestState.CANCELED, "ended_at": at}
    note(connection, at, who, "request.canceled", row.id, row.kind, why, **noted)
    return change(connection, row, changes)


def redrive_request(
    connection: sa.Connection,
    row: sa.Row[Any],
    *,
    who: str,
    at: datetime.datetime,
    why: str,
    after: int | None,
    **noted: Any,
) -> RequestRecord:
    """Queue a locked request again; see `Intake.redrive`."""
    if row.state not in (RequestState.DEAD, RequestState.EXPIRED):
        raise _wrong_state(row, "only one that is DEAD or EXPIRED can be redriven")
    changes: dict[str, Any] = {
        "state": RequestState.RECEIVED,
        "lost": 0,
        "start_by": None,
        "node": None,
        "ended_at": None,
        "cancel_why": None,
        "code": None,
        "error": None,
    }
    if after is not None:
        verb = Verb.RETRY if row.verb is Verb.SUBMIT else row.verb
        changes |= {"verb": verb, "parameters": {**row.parameters, "after": after}}
    note(connection, at, who, "request.redriven", row.id, row.kind, why, **noted)
    return change(connection, row, changes)


def change_queue(
    connection: sa.Connection,
    name: str,
    changes: dict[str, Any],
    *,
    who: str,
    at: datetime.datetime,
    why: str,
    etag: int | None = None,
    **noted: Any,
) -> QueueRecord:
    """Change how a queue is served; see `Intake.change_queue`."""
    read_queue(connection, name)
    mine = queue.c.kind == name
    row = connection.execute(queue.select().where(mine).with_for_update()).one()
    check_etag(row.version, etag)
    values: dict[str, Any] = {"version": row.version + 1}
    if "held" in changes:
        values["held_why"] = (why or "held") if changes["held"] else None
    policy = {name: value for name, value in changes.items() if name != "held"}
    values["changes"] = {**row.changes, **policy}
    try:
        QueuePolicy.model_validate(values["changes"])
    except ValueError as error:
        raise ParameterError(f"queue {name}: {error}", parameter="policy") from error
    connection.execute(queue.update().where(mine).values(values))
    note(connection, at, who, "queue.changed", name, name, why, **changes, **noted)
    return read_queue(connection, name)


def change(connection: sa.Connection, row: sa.Row[Any], changes: dict[str, Any]) -> RequestRecord:
    """Change a locked request."""
    return change_all(connection, [(row, changes)])[0]


def change_all(
    connection: sa.Connection, changes: Sequence[tuple[sa.Row[Any], Mapping[str, Any]]]
) -> list[RequestRecord]:
    """Change locked requests, each in the same fields; gives them as they are then."""
    if not changes:
        return []
    values = [
        {**changed, "version": row.version + 1, "own": row.sequence} for row, changed in changes
    ]
    own = request.c.sequence == sa.bindparam("own")
    connection.execute(request.update().where(own), values)
    return [
        RequestRecord.model_validate({**row._asdict(), **changed, "version": row.version + 1})
        for row, changed in changes
    ]


def _find_for_change(connection: sa.Connection, request_id: str, etag: int | None) -> sa.Row[Any]:
    row = find_request(connection, request_id, lock=True)
    check_etag(row.version, etag)
    return row


def check_etag(version: int, etag: int | None) -> None:
    """Let a caller go on who has seen what is to be changed as it is.

    Raises:
        ChangedMeanwhileError: it isn't so any more.
    """
    if etag is not None and etag != version:
        raise ChangedMeanwhileError(
            "it was changed since you read it: read it again, and decide anew",
            etag=str(version),
        )


def _known(
    connection: sa.Connection, who: str, key: str, at: datetime.datetime
) -> sa.Row[Any] | None:
    """What a key stands for; of two callers at once the second waits for the first."""
    lock_key(connection, who, key)
    of_key = (idempotency.c.requester == who) & (idempotency.c.key == key)
    connection.execute(idempotency.delete().where(of_key, idempotency.c.expires_at <= at))
    return connection.execute(idempotency.select().where(of_key)).first()


def _same(connection: sa.Connection, known: sa.Row[Any], fingerprint: str) -> RequestRecord:
    """The request that a key stands for, if it is the one that is sent now."""
    if known.fingerprint != fingerprint:
        raise IdempotencyConflictError(
            f"Idempotency-Key {known.key} was used for request {known.request_id}, which is "
            "another: give each request a key of its own",
            request=known.request_id,
        )
    return record_of(find_request(connection, known.request_id))


def _fingerprint(one: Asked) -> str:
    # Whether it replaces, the verb says.
    asked = one.submission.model_dump(mode="json", exclude={"replace"})
    if one.verb is not Verb.SUBMIT:
        # How the run stood when it was asked for is not what was asked for.
        asked["parameters"].pop("after", None)
    return fingerprint_of(asked, one.verb, one.run_id)


def lock_key(connection: sa.Connection, who: str, key: str) -> None:
    """Have another caller with the same idempotency key wait for the end of this transaction."""
    if connection.dialect.name == "postgresql":
        lock = int.from_bytes(hashlib.sha256(f"{who}\0{key}".encode()).digest()[:8], signed=True)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def fingerprint_of(*facts: Any) -> str:
    """What tells whether the same was asked for."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _wrong_state(row: sa.Row[Any], why: str) -> RequestStateError:
    return RequestStateError(
        f"request {row.id} is {row.state}: {why}", request=row.id, state=row.state
    )
