"""What can be asked of the registry."""

import datetime
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from ledgerbeam.batch.model.run import RecordedEvent, RunAttempt, RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.database import Database
from ledgerbeam.batch.registry.parameters import (
    DAMAGE,
    UNLISTED,
    has_parameters,
    list_missed,
    missing_name,
)
from ledgerbeam.batch.registry.schema import attempt, definition, event, instance, run
from ledgerbeam.batch.registry.search import ALL_RUNS, RunFilter, RunPage, best_walk
from ledgerbeam.io.errors import (
    AmbiguousRunError,
    DatabaseError,
    ParameterError,
    RunNotFoundError,
    UserError,
)

REPLACED = "replaced"
"""Type of the event of a run in whose place another one was submitted."""

FINAL = [status for status in RunStatus if status.is_final]
_OPEN = [status for status in RunStatus if not status.is_final]

_UNDELIVERED = sa.literal_column("NOT event.delivered", sa.Boolean)
"""In the words of the index, by which SQLite knows that it may use it."""

_MIN_PREFIX_LENGTH = 6
_IDS = 500  # that one question names
_PAGE = 1_000

_log = logging.getLogger(__name__)
_Row = TypeVar("_Row")


class RegistryReader:
    """Questions; each is answered from one state of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def database(self) -> Database:
        """Where it is kept."""
        return self._database

    def get(self, run_id: str) -> RunRecord:
        """The run of that id.

        Raises:
            RunNotFoundError: there is none.
        """
        with self._database.reading() as connection:
            return get_run(connection, run_id)

    def find(self, text: str) -> RunRecord:
        """The run that a person means.

        Args:
            text: its id, six or more of the id's first characters, `process/instance` for the
                latest run of an instance, or `process/instance/run-number`.

        Raises:
            RunNotFoundError: there is none.
            AmbiguousRunError: several ids begin so.
        """
        with self._database.reading() as connection:
            if "/" in text:
                return _find_by_name(connection, text)
            return _find_by_prefix(connection, text)

    def runs(
        self, wanted: RunFilter = ALL_RUNS, limit: int | None = None, before: str | None = None
    ) -> list[RunRecord]:
        """Runs, newest first.

        Args:
            wanted: which ones.
            limit: at most so many.
            before: id of a run; only those submitted before it, which is the next page.

        Raises:
            RunNotFoundError: there is no run `before`.
            ParameterError: none of the other runs has a parameter of that name.
        """
        found: list[RunRecord] = []
        while limit is None or len(found) < limit:
            page = self.search(wanted, _PAGE if limit is None else limit - len(found), before)
            found += page.runs
            before = page.next
            if before is None:
                break
        return found

    def search(self, wanted: RunFilter, limit: int, before: str | None = None) -> RunPage:
        """A page of runs; arguments and errors are those of `runs`."""
        if wanted.where:
            self._list_missed()
        with self._database.reading() as connection:
            place = None if before is None else get_run(connection, before)
            walk = best_walk(connection, wanted, place)
            found = find_runs(connection, run.c.id.in_(walk.ids(limit + 1)))
            edge = walk.edge(connection) if len(found) <= limit else None
            is_empty = before is None and edge is None and not found
            if wanted.where and is_empty:
                _check_names(connection, wanted)
        kept = [each for each in found[:limit] if has_parameters(each, wanted.where)]
        last = edge if len(found) <= limit else found[limit - 1]
        if last is None:
            return RunPage(kept, None)
        return RunPage(kept, last.id, last.submitted_at if len(kept) < limit else None)

    def _list_missed(self) -> None:
        """Have runs found by their parameters that programs of version 7 have recorded."""
        with self._database.asking() as connection:
            if connection.execute(sa.select(run.c.id).where(UNLISTED).limit(1)).first() is None:
                return
        are_left = True
        while are_left:
            with self._database.writing() as connection:
                are_left = list_missed(connection)

    def open_runs(self) -> list[RunRecord]:
        """Runs whose status isn't final, newest first; a damaged row is logged and left out."""
        with self._database.reading() as connection:
            return find_runs(connection, run.c.status.in_(_OPEN), skip_damaged=True)

    def last_runs(self, processes: Sequence[str]) -> list[RunRecord]:
        """The run of each of these processes that was submitted last, where it has one."""
        if not processes:
            return []
        newest = [
            sa.select(
                sa.select(run.c.id)
                .where(run.c.process == process)
                .order_by(run.c.submitted_at.desc(), run.c.id.desc())
                .limit(1)
                .scalar_subquery()
                .label("id")
            )
            for process in processes
        ]
        with self._database.reading() as connection:
            ids = [id_ for id_ in connection.scalars(sa.union_all(*newest)) if id_ is not None]
            return find_runs(connection, run.c.id.in_(ids))

    def instance_runs(self, process: str, name: str) -> list[RunRecord]:
        """Runs of an instance, from the highest run number to the first."""
        with self._database.reading() as connection:
            return _instance_runs(connection, process, name)

    def expiring(self, now: datetime.datetime) -> list[RunRecord]:
        """Runs that have ended, and whose results are due; a damaged row is logged and left out."""
        with self._database.reading() as connection:
            return find_runs(
                connection,
                run.c.status.in_(FINAL),
                run.c.results_expire_at <= now,
                run.c.results_expired_at.is_(None),
                skip_damaged=True,
            )

    def successor(self, run_id: str) -> str | None:
        """Id of the run that was submitted in the place of this one; None if none was."""
        with self._database.reading() as connection:
            return find_successor(connection, run_id)

    def events(self, run_id: str) -> list[RecordedEvent]:
        """The run's history, from its beginning; empty where there is no such run."""
        with self._database.reading() as connection:
            return _find_events(connection, event.c.run_id == run_id)

    def last_events(self, run_ids: Sequence[str]) -> dict[str, int]:
        """The number of each run's last event, by the run's id."""
        found: dict[str, int] = {}
        for begin in range(0, len(run_ids), _IDS):
            mine = event.c.run_id.in_(run_ids[begin : begin + _IDS])
            last = sa.select(event.c.run_id, sa.func.max(event.c.sequence)).where(mine)
            with self._database.reading() as connection:
                rows = connection.execute(last.group_by(event.c.run_id))
                found |= {row[0]: row[1] for row in rows}
        return found

    def undelivered(self, limit: int) -> list[RecordedEvent]:
        """The oldest events that haven't been marked as delivered.

        Two who ask at once are both given them: listeners are notified of an event at least once.
        A damaged row is logged and left out.
        """
        with self._database.reading() as connection:
            return _find_events(connection, _UNDELIVERED, limit=limit, skip_damaged=True)


def _check_names(connection: sa.Connection, wanted: RunFilter) -> None:
    """Refuse a name that no run has a parameter of, unless there are no runs in any case."""
    name = missing_name(connection, wanted.where, wanted.process)
    others = wanted._replace(where={})
    if name is not None and find_runs(
        connection, run.c.id.in_(best_walk(connection, others, None).ids(1))
    ):
        raise ParameterError(f"no run has a parameter {name}", parameter=name)


def get_run(connection: sa.Connection, run_id: str) -> RunRecord:
    """The run of that id, as the transaction sees it."""
    found = find_runs(connection, run.c.id == run_id)
    if not found:
        raise unknown_run(run_id)
    return found[0]


def unknown_run(text: str) -> UserError:
    """What is said where there is no such run."""
    return RunNotFoundError(f"no run {text}: check it against `ledgerbeam list`", run=text)


def damaged(what: str, key: Any, error: Exception) -> DatabaseError:
    """What is said of a row that isn't as the registry has written it."""
    how = " ".join(str(error).split())
    message = f"{what} {key}: damaged in the registry: {how}: restore it from a copy"
    return DatabaseError(message, database="registry")


def _readable(
    all_: Callable[[], list[_Row]],
    keys: Callable[[], Iterable[Any]],
    one: Callable[[Any], list[_Row]],
    what: str,
    skip_damaged: bool,
) -> list[_Row]:
    """All rows or, where one of them is damaged, those that can be read one by one.

    Args:
        all_: reads all.
        keys: reads the keys of all.
        one: reads the one of a key.
        what: rows of which kind, for the message.
        skip_damaged: whether to log a damaged row and leave it out: one must not keep others from
            what is due to them.

    Raises:
        DatabaseError: a row is damaged.
    """
    try:
        return all_()
    except DAMAGE:
        found = []
        for key in keys():
            try:
                found += one(key)
            except DAMAGE as error:
                told = damaged(what, key, error)
                if not skip_damaged:
                    raise told from error
                _log.error("%s", told)
        return found


def find_runs(
    connection: sa.Connection,
    *conditions: sa.ColumnElement[bool],
    limit: int | None = None,
    skip_damaged: bool = False,
) -> list[RunRecord]:
    """Runs that meet all conditions, as the transaction sees them, newest first.

    Raises:
        DatabaseError: a row is damaged, and damaged ones aren't to be left out.
    """
    from_all = run.join(instance, run.c.instance_id == instance.c.id)
    keys = sa.select(run.c.id).select_from(from_all).where(*conditions)
    return _readable(
        lambda: _find_runs(connection, *conditions, limit=limit),
        lambda: connection.scalars(
            keys.order_by(run.c.submitted_at.desc(), run.c.id.desc()).limit(limit)
        ).all(),
        lambda key: _find_runs(connection, run.c.id == _text(key)),
        "run",
        skip_damaged,
    )


def _find_runs(
    connection: sa.Connection, *conditions: sa.ColumnElement[bool], limit: int | None = None
) -> list[RunRecord]:
    columns = [run.c[name] for name in RunRecord.model_fields if name in run.c]
    query = (
        sa.select(
            *columns,
            definition.c.code_version,
            instance.c.name.label("instance"),
            instance.c.identity,
            instance.c.business_date,
        )
        .join(instance, run.c.instance_id == instance.c.id)
        .join(definition, run.c.definition_id == definition.c.id)
        .where(*conditions)
        .order_by(run.c.submitted_at.desc(), run.c.id.desc())
        .limit(limit)
    )
    rows = connection.execute(query).mappings().all()
    attempts: dict[str, list[RunAttempt]] = defaultdict(list)
    for row in connection.execute(
        sa.select(attempt)
        .where(attempt.c.run_id.in_([_text(row["id"]) for row in rows]))
        .order_by(attempt.c.run_id, attempt.c.number)
    ).mappings():
        facts: dict[str, Any] = dict(row)
        attempts[facts.pop("run_id")].append(RunAttempt.model_validate(facts))
    return [
        RunRecord.model_validate({**row, "attempts": tuple(attempts[row["id"]])}) for row in rows
    ]


def _text(id_: object) -> str:
    """An id as it is; SQLite takes any value for one, and the driver fails at what isn't text."""
    if not isinstance(id_, str):
        raise TypeError("its id is no text")
    return id_


def find_successor(connection: sa.Connection, run_id: str) -> str | None:
    """Id of the run that has replaced this one; None if none has."""
    query = sa.select(event.c.detail).where(event.c.run_id == run_id, event.c.type == REPLACED)
    detail = connection.execute(query).scalar_one_or_none()
    return None if detail is None else str(detail["by"])


def _instance_runs(connection: sa.Connection, process: str, name: str) -> list[RunRecord]:
    runs = find_runs(connection, instance.c.process == process, instance.c.name == name)
    return sorted(runs, key=lambda record: record.run_number, reverse=True)


def _find_by_name(connection: sa.Connection, text: str) -> RunRecord:
    process, _, name = text.partition("/")
    runs = _instance_runs(connection, process, name)
    if not runs:
        name, _, number = name.rpartition("/")
        of_name = _instance_runs(connection, process, name)
        runs = [record for record in of_name if str(record.run_number) == number]
    if not runs:
        raise unknown_run(text)
    return runs[0]


def _find_by_prefix(connection: sa.Connection, text: str) -> RunRecord:
    found = find_runs(connection, run.c.id == text)
    if not found and len(text) < _MIN_PREFIX_LENGTH:
        raise RunNotFoundError(
            f"{text} is no run: give {_MIN_PREFIX_LENGTH} or more characters of its id, or "
            "process/instance",
            run=text,
        )
    if not found:
        found = find_runs(connection, *_begins(connection, text.lower()), limit=2)
    if not found:
        raise unknown_run(text)
    if len(found) > 1:
        both = " and ".join(f"{record.id} ({record.name})" for record in found)
        raise AmbiguousRunError(
            f"several runs begin with {text}, so {both}: give more characters",
            run=text,
            candidates=tuple(record.id for record in found),
        )
    return found[0]


def _begins(connection: sa.Connection, text: str) -> list[sa.ColumnElement[bool]]:
    """Conditions for runs whose ids begin with a text, in words that an index serves."""
    beyond = text[:-1] + chr(ord(text[-1]) + 1)
    if connection.dialect.name == "postgresql":
        # By characters: in the order of a language, signs may count for nothing.
        return [
            run.c.id.op("~>=~", is_comparison=True)(text),
            run.c.id.op("~<~", is_comparison=True)(beyond),
        ]
    return [run.c.id >= text, run.c.id < beyond]


def _find_events(
    connection: sa.Connection,
    condition: sa.ColumnElement[bool],
    limit: int | None = None,
    skip_damaged: bool = False,
) -> list[RecordedEvent]:
    keys = sa.select(event.c.sequence).where(condition).order_by(event.c.sequence).limit(limit)
    return _readable(
        lambda: _read_events(connection, condition, limit),
        lambda: connection.scalars(keys).all(),
        lambda key: _read_events(connection, event.c.sequence == key, None),
        "event",
        skip_damaged,
    )


def _read_events(
    connection: sa.Connection, condition: sa.ColumnElement[bool], limit: int | None
) -> list[RecordedEvent]:
    columns = [event.c[name] for name in RecordedEvent.model_fields if name in event.c]
    query = (
        sa.select(
            *columns,
            event.c.run_id.label("run"),
            instance.c.process,
            instance.c.name.label("instance"),
        )
        .join(run, event.c.run_id == run.c.id)
        .join(instance, run.c.instance_id == instance.c.id)
        .where(condition)
        .order_by(event.c.sequence)
        .limit(limit)
    )
    return [RecordedEvent.model_validate(dict(row)) for row in connection.execute(query).mappings()]
