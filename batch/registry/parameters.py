"""Parameters of runs as rows of a table, in which runs are found by them.

The rows lead to runs, and no more: a value is cut to its beginning, and those that a correction has
left stay. Who has found a run by them compares with what the run has (`has_parameters`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from ledgerbeam.batch.model.run import RunDraft, RunRecord
from ledgerbeam.batch.registry.database import insert_into
from ledgerbeam.batch.registry.schema import definition, run, run_parameter

DAMAGE = (ValueError, LookupError, TypeError)
"""By these a value is refused that isn't what the registry has written; pydantic's is the first."""

_CHARACTERS = 100
_MISSED_AT_ONCE = 500
_LOOKED_AT = 3_000
UNLISTED = sa.literal_column("NOT run.listed", sa.Boolean)
"""In the words of the index, by which SQLite knows that it may use it."""


def has_parameters(record: RunRecord, where: Mapping[str, str]) -> bool:
    """Whether a run has all these parameters, each as a text."""
    given = record.all_parameters
    return all(name in given and parameter_text(given[name]) == where[name] for name in where)


def parameter_text(value: object) -> str:
    """A parameter as people write it: what is empty as nothing, truth as in JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def pair_of(name: str, text: str) -> tuple[str, str]:
    """What stands in the table of a parameter: indexes take no text of any length."""
    return name[:_CHARACTERS], text[:_CHARACTERS]


def pairs_of(parameters: Mapping[str, Any], run_number: int, reason: str) -> Iterator[Any]:
    """The same of all parameters of a run."""
    given = {**parameters, "run_number": run_number, "reason": reason}
    return (pair_of(name, parameter_text(value)) for name, value in given.items())


def add_rows(connection: sa.Connection, of: RunDraft | sa.Row[Any]) -> None:
    """Make the rows of a run that aren't there yet."""
    found = [
        {"name": name, "value": value, "submitted_at": of.submitted_at, "run_id": of.id}
        for name, value in pairs_of(of.parameters, of.run_number, of.reason)
    ]
    connection.execute(insert_into(connection, run_parameter).on_conflict_do_nothing(), found)


def list_parameters(connection: sa.Connection, run_id: str) -> None:
    """Have a run on record found by the parameters that it has now."""
    mine = run.c.id == run_id
    add_rows(connection, connection.execute(run.select().where(mine)).one())
    connection.execute(run.update().where(mine).values(listed=True))


def list_missed(connection: sa.Connection) -> bool:
    """Do so for some runs that programs of version 7 have recorded; whether there were any."""
    missed = sa.select(run.c.id).where(UNLISTED).limit(_MISSED_AT_ONCE)
    # One that somebody is changing is left for the next search: submissions lock runs, too, in
    # another order.
    missed = missed.with_for_update(skip_locked=True)
    ids = [id_ for id_ in connection.scalars(missed) if isinstance(id_, str)]
    for run_id in ids:
        try:
            list_parameters(connection, run_id)
        except DAMAGE:  # it is told of where it is read
            connection.execute(run.update().where(run.c.id == run_id).values(listed=True))
    return bool(ids)


def missing_name(
    connection: sa.Connection, where: Mapping[str, str], process: str | None
) -> str | None:
    """A name that no run has a parameter of; None where there is none such.

    Args:
        connection: to the registry.
        where: values by name.
        process: whose runs alone count, since who asks may not know others; None for all.
    """
    declared = {"run_number", "reason"}  # which all runs have
    if process is not None:
        schemas = sa.select(definition.c.parameters_schema).where(definition.c.process == process)
        declared.update(*map(_properties, connection.scalars(schemas)))
    for name in where.keys() - declared:
        known = run_parameter.c.name == pair_of(name, "")[0]
        found = sa.select(run_parameter.c.run_id).where(known)
        if process is None:
            found = found.limit(1)
        else:
            # Of a name that only others have, there may be as many rows as runs.
            some = found.limit(_LOOKED_AT).subquery()
            own = (run.c.id == some.c.run_id) & (run.c.process == process)
            found = sa.select(run.c.id).join(some, own).limit(1)
        if connection.execute(found).first() is None:
            return name
    return None


def _properties(schema: Any) -> Iterable[str]:
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else ()
