"""What every change of a run is made of, within a transaction that writes.

The run's row is locked first, always, so that changes of one run come one after another and no
two transactions wait for each other.
"""

import datetime
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from ledgerbeam.batch.model.run import run_name
from ledgerbeam.batch.model.status import MOVES, RunStatus
from ledgerbeam.batch.registry.parameters import DAMAGE, list_parameters
from ledgerbeam.batch.registry.queries import damaged, find_successor, unknown_run
from ledgerbeam.batch.registry.schema import attempt, event, instance, run
from ledgerbeam.io.errors import IllegalMoveError


def lock_run(connection: sa.Connection, run_id: str) -> sa.Row[Any]:
    """The run's row, with `process` and `instance`; nobody else changes it meanwhile.

    Raises:
        RunNotFoundError: there is no such run.
        DatabaseError: its row is damaged.
    """
    query = (
        sa.select(run, instance.c.process, instance.c.name.label("instance"))
        .join(instance, run.c.instance_id == instance.c.id)
        .where(run.c.id == run_id)
        .with_for_update(of=run)
    )
    try:
        row = connection.execute(query).one_or_none()
        if row is not None and not isinstance(row.run_number, int):  # SQLite takes any value
            raise TypeError("run_number is no whole number")
    except DAMAGE as error:
        raise damaged("run", run_id, error) from error
    if row is None:
        raise unknown_run(run_id)
    return row


def last_attempt(connection: sa.Connection, run_id: str) -> sa.Row[Any] | None:
    """The row of the run's last attempt.

    Raises:
        DatabaseError: it is damaged.
    """
    query = sa.select(attempt).where(attempt.c.run_id == run_id)
    try:
        return connection.execute(query.order_by(attempt.c.number.desc()).limit(1)).one_or_none()
    except DAMAGE as error:
        raise damaged("the last attempt of run", run_id, error) from error


def update_own(
    connection: sa.Connection,
    run_id: str,
    number: int,
    launcher: str,
    changes: Mapping[str, Any],
    *conditions: sa.ColumnElement[bool],
) -> bool:
    """Change a live attempt if it belongs to the launcher and meets the conditions."""
    own = attempt.update().where(
        attempt.c.run_id == run_id,
        attempt.c.number == number,
        attempt.c.launcher == launcher,
        attempt.c.ended_at.is_(None),
        *conditions,
    )
    return connection.execute(own.values(dict(changes))).rowcount == 1


def forget_launch(connection: sa.Connection, run_id: str) -> None:
    """The launcher that was started has come, or another one is to be started at once."""
    nothing = {"launcher_started_at": None, "launcher_process": None}
    connection.execute(run.update().where(run.c.id == run_id).values(nothing))


def record_event(
    connection: sa.Connection,
    row: sa.Row[Any],
    type_: str,
    who: str,
    at: datetime.datetime,
    *,
    attempt_number: int | None = None,
    to: RunStatus | None = None,
    why: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Record an event of a locked run, and move the run if it is to be moved.

    Raises:
        IllegalMoveError: `to` can't follow the run's status.
    """
    facts = {
        "run_id": row.id,
        "attempt": attempt_number,
        "at": at,
        "who": who,
        "type": type_,
        "why": why,
        "detail": dict(detail or {}),
        "delivered": False,
    }
    if to is None:
        connection.execute(event.insert().values(facts))
        return
    if to not in MOVES[row.status]:
        raise _illegal(row, to)
    facts |= {"from_status": row.status, "to_status": to, "follows": row.last_move}
    key = connection.execute(event.insert().values(facts)).inserted_primary_key
    assert key is not None
    changes: dict[str, Any] = {"status": to, "last_move": key[0]}
    if to is RunStatus.FAILURE:
        changes["error"] = why or None
    elif to is RunStatus.SUCCESS:
        changes["error"] = None
    connection.execute(run.update().where(run.c.id == row.id).values(**changes))


def change_parameters(
    connection: sa.Connection, row: sa.Row[Any], new: Mapping[str, Any]
) -> dict[str, Any]:
    """Change parameters of a locked run; gives, for the record, what each was and is."""
    before = dict(row.parameters)
    merged = before | dict(new)
    connection.execute(run.update().where(run.c.id == row.id).values(parameters=merged))
    list_parameters(connection, row.id)
    return changes_of(before, merged)


def changes_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """By parameter that changed: its values before and now."""
    names = sorted(before.keys() | now.keys())
    values = {name: (before.get(name), now.get(name)) for name in names}
    return {name: {"before": b, "now": n} for name, (b, n) in values.items() if b != n}


def check_reopening(connection: sa.Connection, row: sa.Row[Any]) -> None:
    """Whether a locked run that has ended can be gone on with.

    Raises:
        IllegalMoveError: a later run of its instance was submitted, or another one in its place.
    """
    by = find_successor(connection, row.id)
    if by is not None:
        raise IllegalMoveError(
            f"{name_of(row)} can't be attempted again, run {by} was submitted in its place: retry "
            "or restart that one",
            run=row.id,
            from_status=row.status,
            to_status=RunStatus.EXECUTING,
        )
    later = sa.select(sa.func.max(run.c.run_number)).where(run.c.instance_id == row.instance_id)
    number = connection.execute(later).scalar_one()
    if number != row.run_number:
        raise IllegalMoveError(
            f"{name_of(row)} can't be attempted again, run {number} of {row.process}/"
            f"{row.instance} was submitted after it: retry or restart that one",
            run=row.id,
            from_status=row.status,
            to_status=RunStatus.EXECUTING,
        )


def name_of(row: sa.Row[Any]) -> str:
    """How an error calls a run."""
    return f"{run_name(row.process, row.instance, row.run_number)} (run {row.id})"


def _illegal(row: sa.Row[Any], to: RunStatus) -> IllegalMoveError:
    next_ = [status for status in RunStatus if status in MOVES[row.status]]
    advice = f"it can become {', '.join(next_)}"
    if row.status is RunStatus.SUCCESS:
        advice = "to run it again, submit it with the next run number and a reason"
    return IllegalMoveError(
        f"{name_of(row)} is {row.status}, and can't become {to}: {advice}",
        run=row.id,
        from_status=row.status,
        to_status=to,
    )
