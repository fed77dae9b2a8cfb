"""Parameters of runs as rows of a table, in which runs are found by them.

The rows lead to runs, and no more: a value is cut to its beginning, and those that a correction has
left stay. Who has found a run by them compares with what the run has (`has_parameters`).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.registry.database import insert_into
from ledgerbeam.batch.registry.schema import run, run_parameter

_CHARACTERS = 100
_MISSED_AT_ONCE = 500
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


def list_parameters(connection: sa.Connection, run_id: str) -> None:
    """Have a run found by the parameters that it has now, in a transaction that writes."""
    row = connection.execute(run.select().where(run.c.id == run_id)).one()
    _list(connection, [row])


def list_missed(connection: sa.Connection) -> bool:
    """Do so for some runs that programs of version 7 have recorded; whether there were any."""
    missed = run.select().where(UNLISTED).limit(_MISSED_AT_ONCE)
    rows = connection.execute(missed.with_for_update()).all()
    _list(connection, rows)
    return bool(rows)


def _list(connection: sa.Connection, rows: Any) -> None:
    found = [
        {"name": name, "value": value, "submitted_at": row.submitted_at, "run_id": row.id}
        for row in rows
        for name, value in pairs_of(row.parameters, row.run_number, row.reason)
    ]
    if found:
        connection.execute(insert_into(connection, run_parameter).on_conflict_do_nothing(), found)
        ids = [row.id for row in rows]
        connection.execute(run.update().where(run.c.id.in_(ids)).values(listed=True))


def missing_name(connection: sa.Connection, where: Mapping[str, str]) -> str | None:
    """A name that no run has a parameter of; None where there is none such."""
    for name in where:
        known = run_parameter.c.name == pair_of(name, "")[0]
        if connection.execute(sa.select(sa.literal(1)).where(known).limit(1)).first() is None:
            return name
    return None
