"""Which runs may be submitted, and how one gets on record."""

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from ledgerbeam.batch.model.run import RunDraft, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.database import insert_into
from ledgerbeam.batch.registry.parameters import add_rows
from ledgerbeam.batch.registry.queries import REPLACED, find_runs, get_run
from ledgerbeam.batch.registry.schema import definition, event, instance, run
from ledgerbeam.batch.registry.transitions import (
    changes_of,
    lock_run,
    name_of,
    record_event,
)
from ledgerbeam.io.errors import IllegalMoveError, ParameterError, SubmissionConflictError


def submit(
    connection: sa.Connection, draft: RunDraft, schema: Mapping[str, Any]
) -> tuple[RunRecord, bool]:
    """Record a run within a transaction that writes; see `Registry.submit`."""
    definition_id = _record_definition(connection, draft, schema)
    instance_id = _lock_instance(connection, draft)
    of_instance = run.c.instance_id == instance_id
    # So that none of them begins another attempt meanwhile.
    connection.execute(sa.select(run.c.id).where(of_instance).with_for_update())
    runs = {record.run_number: record for record in find_runs(connection, of_instance)}
    if draft.run_number in runs:
        _check_same(runs[draft.run_number], draft)
        return runs[draft.run_number], False
    _check_next(draft, runs)
    return _insert_run(connection, draft, instance_id, definition_id, draft.reason, {}), True


def replace(
    connection: sa.Connection,
    replaced: str,
    draft: RunDraft,
    schema: Mapping[str, Any],
    why: str,
) -> RunRecord:
    """Record a run in the place of another one, within a transaction that writes."""
    definition_id = _record_definition(connection, draft, schema)
    instance_id = _lock_instance(connection, draft)
    row = lock_run(connection, replaced)
    last = sa.select(sa.func.max(run.c.run_number)).where(run.c.instance_id == instance_id)
    is_last = row.instance_id == instance_id and row.run_number == draft.run_number
    if not (is_last and connection.execute(last).scalar_one() == row.run_number):
        raise IllegalMoveError(
            f"{name_of(row)} can't be replaced: it isn't the last run of "
            f"{draft.process}/{draft.instance} any more",
            run=row.id,
            from_status=row.status,
        )
    if row.status not in (RunStatus.FAILURE, RunStatus.CANCELED):
        raise IllegalMoveError(
            f"{name_of(row)} is {row.status}, and can be replaced only when it has ended without "
            "publishing",
            run=row.id,
            from_status=row.status,
        )
    # The new run is to have its number and its name. What was to be deleted in its folder one day
    # will be of the new one.
    aside = draft.model_copy(update={"instance": f"{draft.instance} (replaced {row.id[:8]})"})
    connection.execute(
        run.update()
        .where(run.c.id == row.id)
        .values(instance_id=_lock_instance(connection, aside), results_expire_at=None)
    )
    by = {"by": draft.id}
    record_event(
        connection, row, REPLACED, draft.submitted_by, draft.submitted_at, why=why, detail=by
    )
    detail = {
        "replaces": row.id,
        "parameters": changes_of(row.parameters, _as_stored(draft.parameters)),
    }
    return _insert_run(connection, draft, instance_id, definition_id, why, detail)


def _insert_run(
    connection: sa.Connection,
    draft: RunDraft,
    instance_id: int,
    definition_id: int,
    why: str,
    detail: Mapping[str, Any],
) -> RunRecord:
    beginning = connection.execute(
        event.insert().values(
            run_id=draft.id,
            at=draft.submitted_at,
            who=draft.submitted_by,
            type="submitted",
            to_status=RunStatus.INITIATED,
            why=why,
            detail=dict(detail),
            delivered=False,
        )
    )
    facts = {name: value for name, value in draft.model_dump().items() if name in run.c}
    connection.execute(
        run.insert().values(
            **facts,
            instance_id=instance_id,
            definition_id=definition_id,
            status=RunStatus.INITIATED,
            last_move=_key_of(beginning),
            listed=True,
        )
    )
    add_rows(connection, draft)
    return get_run(connection, draft.id)


def _record_definition(
    connection: sa.Connection, draft: RunDraft, schema: Mapping[str, Any]
) -> int:
    of_version = {"process": draft.process, "code_version": draft.code_version}
    seen = {"parameters_schema": dict(schema), "last_seen_at": draft.submitted_at}
    connection.execute(
        insert_into(connection, definition)
        .values(**of_version, **seen, first_seen_at=draft.submitted_at)
        .on_conflict_do_update(index_elements=list(of_version), set_=seen)
    )
    key = sa.select(definition.c.id).filter_by(**of_version)
    return connection.execute(key).scalar_one()


def _lock_instance(connection: sa.Connection, draft: RunDraft) -> int:
    named = {"process": draft.process, "name": draft.instance}
    facts = {"identity": draft.identity, "business_date": draft.business_date}
    new = insert_into(connection, instance).values(**named, **facts).on_conflict_do_nothing()
    connection.execute(new)
    row = connection.execute(sa.select(instance).filter_by(**named).with_for_update()).one()
    if row.business_date != draft.business_date or row.identity != _as_stored(draft.identity):
        raise SubmissionConflictError(
            f"{draft.process}: the name {draft.instance} is taken by the instance of "
            f"{row.business_date} with {row.identity}, and {draft.business_date} with "
            f"{draft.identity} is another: give one of them another name",
            instance=f"{draft.process}/{draft.instance}",
        )
    return row.id


def _check_same(record: RunRecord, draft: RunDraft) -> None:
    given = _as_stored(draft.parameters)
    names = sorted(record.parameters.keys() | given.keys())
    missing = object()
    # A parameter that the definition has got since then is the same while it is empty.
    before = {**{name: value for name, value in given.items() if not value}, **record.parameters}
    changed = [name for name in names if before.get(name, missing) != given.get(name, missing)]
    if changed:
        raise SubmissionConflictError(
            f"{record.name} was submitted before (run {record.id}, {record.status}) with other "
            f"parameters: {', '.join(changed)}: submit it with those, or {_other_way(record)}",
            instance=f"{draft.process}/{draft.instance}",
            run=record.id,
        )


def _other_way(record: RunRecord) -> str:
    """How an instance that has a run is submitted with other parameters."""
    if record.status is RunStatus.SUCCESS:
        return f"as a run of its own: --run-number={record.run_number + 1} --reason=WHY"
    return "with these in the place of that run: --replace --why=WHY"


def _check_next(draft: RunDraft, runs: Mapping[int, RunRecord]) -> None:
    name = f"{draft.process}/{draft.instance}"
    if draft.run_number != len(runs) + 1:
        raise SubmissionConflictError(
            f"{name} has {len(runs)} runs, so it can't have a run number {draft.run_number} now: "
            f"give --run-number={len(runs) + 1}",
            instance=name,
        )
    if draft.run_number == 1:
        return
    last = runs[len(runs)]
    if not last.status.is_final:
        raise SubmissionConflictError(
            f"{name} can't be run again, its run {last.run_number} ({last.id}) is {last.status}: "
            "wait for its end, or cancel it",
            instance=name,
            run=last.id,
        )
    if not draft.reason.strip():
        raise ParameterError(
            f"{name} was run before (run {last.id}, {last.status}): give the reason why it is "
            f"run again as number {draft.run_number}: --reason=WHY",
            parameter="--reason",
        )


def _as_stored(value: Mapping[str, Any]) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(json.dumps(value))
    return stored


def _key_of(result: sa.CursorResult[Any]) -> int:
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])
