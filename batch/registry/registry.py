"""The registry: what was to be run, what became of it, and who did what when.

It is an index. Results, and what each component came to, are in object storage; workers never
connect to the registry. Every method is one transaction: it records all it says, or nothing.
Methods that several may call at once, of whom one can be right, return whether the caller was it.

    draft ── submit ──▶ run ── start_attempt ──▶ attempt ── renew … ── end_attempt ──▶
                         │                          ▲
                        move                     take_over, when its lease ran out

An attempt belongs to its launcher, and only that one can record anything of it. Another who
wants to, because the launcher seems dead, first takes it over. From then on the calls of the
old one return that it is no longer the owner, and it stops.
"""

import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa

from ledgerbeam.batch.model.events import Event
from ledgerbeam.batch.model.run import (
    AttemptKind,
    AttemptOutcome,
    RunAttempt,
    RunDraft,
    RunRecord,
)
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry import audit_chain, submission
from ledgerbeam.batch.registry.database import Database
from ledgerbeam.batch.registry.queries import RegistryReader, get_run
from ledgerbeam.batch.registry.schema import attempt, event, run
from ledgerbeam.batch.registry.transitions import (
    change_parameters,
    check_reopening,
    forget_launch,
    last_attempt,
    lock_run,
    name_of,
    record_event,
    update_own,
)
from ledgerbeam.io.errors import IllegalMoveError

if TYPE_CHECKING:
    from ledgerbeam.batch.registry.audit_export import ChainedEntry


class Registry(RegistryReader):
    """Runs on record. Any number of processes and threads may share one."""

    @classmethod
    def open(cls, url: str) -> Self:
        """The registry at a URL; a new or older database is brought up to date.

        Args:
            url: `sqlite:////path/registry.db` or `postgresql+psycopg://user@host/database`.

        Raises:
            UserError: the URL isn't of that kind, or the schema is newer than this code.
            RegistryUnavailableError: there is no such database.
        """
        return cls(Database(url))

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seal_audit(self) -> int:
        """Seal all entries of the audit that aren't yet; several may do so at once.

        Returns:
            How many were sealed now.
        """
        sealed = 0
        while True:
            with self._database.writing() as connection:
                new = audit_chain.seal(connection)
            sealed += new
            if new < audit_chain.BATCH:
                return sealed

    def verify_audit(self, head: str = "") -> audit_chain.AuditChain:
        """Compute the hashes of all sealed entries again.

        Args:
            head: a hash that was the last one at some time; empty if none was kept.

        Raises:
            AuditMismatchError: an entry or a hash was changed or removed, or the head isn't there.
        """
        with self._database.reading() as connection:
            return audit_chain.verify(connection, head)

    def audit_entries(
        self,
        after: int = 0,
        limit: int = 1000,
        kinds: Sequence[str] | None = None,
        since: datetime.datetime | None = None,
    ) -> "list[ChainedEntry]":
        """Sealed entries of the whole audit behind one; see `audit_export`."""
        from ledgerbeam.batch.registry.audit_export import entries

        with self._database.reading() as connection:
            return entries(connection, after, limit, kinds, since)

    def submit(self, draft: RunDraft, schema: Mapping[str, Any]) -> tuple[RunRecord, bool]:
        """Record a run, unless it is recorded already.

        Args:
            draft: the run.
            schema: JSON schema of the parameters of its process.

        Returns:
            The run on record, and whether it is new. A run of the same instance and run number
            with the same parameters is the same run, whatever the draft's id.

        Raises:
            SubmissionConflictError: it was submitted with other parameters, or a run of that
                number can't be submitted now.
            ParameterError: it is run again without a reason.
        """
        with self._database.writing() as connection:
            return submission.submit(connection, draft, schema)

    def replace(
        self, replaced: str, draft: RunDraft, schema: Mapping[str, Any], why: str
    ) -> RunRecord:
        """Record a run in the place of one that has ended without publishing.

        The run that is replaced keeps its id and its history, under another name.

        Args:
            replaced: id of the run that is replaced.
            draft: the run that takes its place: of the same instance, and with its number.
            schema: JSON schema of the parameters of its process.
            why: for the record of both.

        Raises:
            IllegalMoveError: it hasn't ended, has published, or was replaced before.
            RunNotFoundError: there is no such run.
        """
        with self._database.writing() as connection:
            return submission.replace(connection, replaced, draft, schema, why)

    def move(
        self,
        run_id: str,
        to: RunStatus,
        *,
        who: str,
        at: datetime.datetime,
        why: str = "",
        expected: RunStatus | None = None,
        next_kind: AttemptKind | None = None,
        detail: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> bool:
        """Change a run's status.

        Args:
            run_id: of the run.
            to: its new status.
            who: for the record.
            at: time.
            why: for the record.
            expected: the status that it has to have.
            next_kind: what its next attempt is for; for the record too.
            detail: for the record.
            parameters: those of its parameters that change, with their new values.

        Returns:
            False where it isn't `expected`: somebody else has moved the run, and nothing changed.

        Raises:
            IllegalMoveError: that status can't follow the one it has; it is final and an attempt
                is live, with whose end it has to come (`end_attempt`); or the run has ended, and
                a later one of its instance was submitted.
            RunNotFoundError: there is no such run.
        """
        with self._database.writing() as connection:
            return move(
                connection,
                run_id,
                to,
                who=who,
                at=at,
                why=why,
                expected=expected,
                next_kind=next_kind,
                detail=detail,
                parameters=parameters,
            )

    def append(self, entry: Event) -> None:
        """Record an event that leaves the run's status as it is.

        Raises:
            ValueError: it has a status.
            RunNotFoundError: there is no such run.
        """
        if entry.from_status is not None or entry.to_status is not None:
            raise ValueError(f"{entry} moves the run: use move")
        with self._database.writing() as connection:
            row = lock_run(connection, entry.run)
            record_event(
                connection,
                row,
                entry.type,
                entry.who,
                entry.at,
                attempt_number=entry.attempt,
                why=entry.why,
                detail=entry.detail,
            )

    def mark_delivered(self, sequences: Collection[int]) -> None:
        """Record that listeners have been notified of events."""
        with self._database.writing() as connection:
            connection.execute(
                event.update().where(event.c.sequence.in_(sequences)).values(delivered=True)
            )

    def begin_launch(self, seen: RunRecord, at: datetime.datetime) -> bool:
        """Record that a launcher is started for a run. Of several who want to, one may.

        It is on record until a launcher has begun or taken over an attempt.

        Args:
            seen: the run as the caller knows it: without a launcher, as far as can be seen.
            at: time.

        Returns:
            False where another launcher has been started, or has come, since then.

        Raises:
            RunNotFoundError: there is no such run.
        """
        with self._database.writing() as connection:
            row = lock_run(connection, seen.id)
            last = last_attempt(connection, seen.id)
            launchers = [known.launcher for known in seen.attempts]
            has_come = last is not None and [last.launcher] != launchers[last.number - 1 :]
            if has_come or row.launcher_started_at != seen.launcher_started_at:
                return False
            begun = {"launcher_started_at": at, "launcher_process": None}
            connection.execute(run.update().where(run.c.id == seen.id).values(begun))
            return True

    def record_launcher(self, run_id: str, begun_at: datetime.datetime, process: str) -> None:
        """Record which process was started after `begin_launch`, unless it has come by now."""
        with self._database.writing() as connection:
            begun = run.update().where(run.c.id == run_id, run.c.launcher_started_at == begun_at)
            connection.execute(begun.values(launcher_process=process))

    def start_attempt(
        self,
        run_id: str,
        number: int,
        *,
        launcher: str,
        lease_until: datetime.datetime,
        deadline: datetime.datetime,
        runner: str,
        who: str,
        at: datetime.datetime,
        why: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> RunAttempt | None:
        """Begin an attempt. A run that is to be paused or canceled stays so, others execute.

        One that has ended has to be moved to `EXECUTING` first, which is what retrying it means.

        Args:
            run_id: of the run.
            number: one more than the number of the attempts that the caller knows of.
            launcher: who owns the attempt, unique among all there are and were.
            lease_until: when it may be taken over, unless it is renewed.
            deadline: when it is to end.
            runner: Beam's name of it.
            who: for the record.
            at: time.
            why: for the record.
            detail: for the record.

        Returns:
            The attempt; None where somebody else has begun one of that number, one is live, or
            the run has ended.

        Raises:
            RunNotFoundError: there is no such run.
        """
        with self._database.writing() as connection:
            row = lock_run(connection, run_id)
            last = last_attempt(connection, run_id)
            known = 0 if last is None else last.number
            if number > known + 1:
                raise ValueError(f"run {run_id} has {known} attempts, the next isn't {number}")
            is_live = last is not None and last.ended_at is None
            if number <= known or is_live or row.status.is_final:
                return None
            connection.execute(
                attempt.insert().values(
                    run_id=run_id,
                    number=number,
                    launcher=launcher,
                    lease_until=lease_until,
                    deadline=deadline,
                    runner=runner,
                    kind=row.next_kind,
                    started_at=at,
                )
            )
            forget_launch(connection, run_id)
            record_event(
                connection,
                row,
                "attempt_started",
                who,
                at,
                attempt_number=number,
                to=RunStatus.EXECUTING if row.status is RunStatus.INITIATED else None,
                why=why,
                detail={
                    "kind": row.next_kind,
                    "launcher": launcher,
                    "runner": runner,
                    **(detail or {}),
                },
            )
            return get_run(connection, run_id).attempts[-1]

    def record_job(
        self,
        run_id: str,
        number: int,
        *,
        launcher: str,
        job_id: str,
        who: str,
        at: datetime.datetime,
    ) -> bool:
        """Record the runner's name of an attempt's job; False where the caller doesn't own it."""
        with self._database.writing() as connection:
            row = lock_run(connection, run_id)
            if not update_own(connection, run_id, number, launcher, {"job_id": job_id}):
                return False
            detail = {"job_id": job_id}
            record_event(connection, row, "job", who, at, attempt_number=number, detail=detail)
            return True

    def renew(
        self, run_id: str, number: int, *, launcher: str, lease_until: datetime.datetime
    ) -> bool:
        """Prolong the lease of an attempt.

        Returns:
            False where the caller doesn't own it any more, because it has ended or was taken
            over: nothing of it may be committed from now on.
        """
        with self._database.writing() as connection:
            return update_own(connection, run_id, number, launcher, {"lease_until": lease_until})

    def take_over(
        self,
        run_id: str,
        number: int,
        *,
        old_launcher: str,
        new_launcher: str,
        lease_until: datetime.datetime,
        who: str,
        at: datetime.datetime,
        why: str = "",
        force: bool = False,
    ) -> bool:
        """Become the owner of a live attempt whose lease ran out before `at`.

        Args:
            run_id: of the run.
            number: of the attempt.
            old_launcher: its owner.
            new_launcher: who becomes its owner.
            lease_until: of the new owner.
            who: for the record.
            at: time.
            why: for the record.
            force: whether the lease is of no matter: it isn't believed, or a person says so.

        Returns:
            False where the old launcher has renewed or ended it, or another took it over.
        """
        with self._database.writing() as connection:
            row = lock_run(connection, run_id)
            ran_out = sa.true() if force else attempt.c.lease_until < at
            changes = {"launcher": new_launcher, "lease_until": lease_until}
            if not update_own(connection, run_id, number, old_launcher, changes, ran_out):
                return False
            forget_launch(connection, run_id)
            record_event(
                connection,
                row,
                "attempt_taken_over",
                who,
                at,
                attempt_number=number,
                why=why,
                detail={"from": old_launcher, "to": new_launcher},
            )
            return True

    def end_attempt(
        self,
        run_id: str,
        number: int,
        *,
        launcher: str,
        outcome: AttemptOutcome,
        who: str,
        at: datetime.datetime,
        to: RunStatus | None = None,
        error: str | None = None,
        results_expire_at: datetime.datetime | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> bool:
        """End an attempt, and with it the run or not.

        Args:
            run_id: of the run.
            number: of the attempt.
            launcher: its owner.
            outcome: how it ended.
            who: for the record.
            at: time.
            to: what becomes of the run; None where another attempt is to follow.
            error: why it ended so.
            results_expire_at: when the run's results may be deleted; None leaves that as it is.
            detail: for the record.

        Returns:
            False where the caller doesn't own the attempt any more; nothing changed.

        Raises:
            IllegalMoveError: the run can't become that; nothing changed.
            RunNotFoundError: there is no such run.
        """
        with self._database.writing() as connection:
            row = lock_run(connection, run_id)
            end = {"ended_at": at, "outcome": outcome, "error": error}
            if not update_own(connection, run_id, number, launcher, end):
                return False
            record_event(
                connection,
                row,
                "attempt_ended",
                who,
                at,
                attempt_number=number,
                to=to,
                why=error or "",
                detail={"outcome": outcome, **(detail or {})},
            )
            if to is None:
                _set_next_kind(connection, run_id, AttemptKind.RECONCILE)
            if results_expire_at is not None:
                due = run.update().where(run.c.id == run_id)
                connection.execute(due.values(results_expire_at=results_expire_at))
            return True

    def mark_expired(self, run_id: str, *, who: str, at: datetime.datetime) -> bool:
        """Record that a run's results are deleted; False where that is on record already."""
        with self._database.writing() as connection:
            row = lock_run(connection, run_id)
            if row.results_expired_at is not None:
                return False
            connection.execute(run.update().where(run.c.id == run_id).values(results_expired_at=at))
            record_event(connection, row, "results_expired", who, at)
            return True


def move(
    connection: sa.Connection,
    run_id: str,
    to: RunStatus,
    *,
    who: str,
    at: datetime.datetime,
    why: str = "",
    expected: RunStatus | None = None,
    next_kind: AttemptKind | None = None,
    detail: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> bool:
    """Change a run's status within a transaction that writes; see `Registry.move`."""
    row = lock_run(connection, run_id)
    if expected is not None and row.status is not expected:
        return False
    if next_kind is not None:
        detail = {**(detail or {}), "kind": next_kind}
        _set_next_kind(connection, run_id, next_kind)
        forget_launch(connection, run_id)
    if parameters:
        changed = change_parameters(connection, row, parameters)
        detail = {**(detail or {}), "parameters": changed}
    record_event(connection, row, "status", who, at, to=to, why=why, detail=detail)
    if row.status.is_final:
        check_reopening(connection, row)
    last = last_attempt(connection, run_id)
    if to.is_final and last is not None and last.ended_at is None:
        raise IllegalMoveError(
            f"{name_of(row)} can't become {to} while its attempt {last.number} is live: "
            f"cancel it, or reconcile if its launcher {last.launcher} is dead",
            run=run_id,
            from_status=row.status,
            to_status=to,
        )
    return True


def _set_next_kind(connection: sa.Connection, run_id: str, kind: AttemptKind) -> None:
    connection.execute(run.update().where(run.c.id == run_id).values(next_kind=kind))
