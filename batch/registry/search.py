"""Runs by any filter, page by page, in front of any number of them.

A page is led by one index, which has the runs of one or two filters in their order. What other
filters say is asked of each run that comes by this index, and of no more than `LOOKED_AT` of them:
a page may have few runs or none, and says how far back it has looked. The next one goes on there.
"""

import datetime
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import sqlalchemy as sa

from ledgerbeam.batch.model.run import RunRecord
from ledgerbeam.batch.model.status import RunStatus
from ledgerbeam.batch.registry.parameters import pair_of
from ledgerbeam.batch.registry.schema import Prose, UtcDateTime, run, run_parameter

LOOKED_AT = 3_000
"""How many runs a page looks at where no index has them by all filters."""

_Asked = Callable[[sa.Subquery], sa.ColumnElement[Any]]


class RunFilter(NamedTuple):
    """Which runs are looked for; None, or nothing, for all.

    Attributes:
        process: only its runs.
        status: only those that have it.
        requester: only those that were submitted by them.
        since: only those submitted at that time in UTC or later.
        where: only those that have these parameters, each as a text.
        error: only those whose error has this text in it, in the same case.
    """

    process: str | None = None
    status: RunStatus | None = None
    requester: str | None = None
    since: datetime.datetime | None = None
    where: Mapping[str, str] = MappingProxyType({})
    error: str | None = None


ALL_RUNS = RunFilter()


class RunPage(NamedTuple):
    """A part of a list of runs.

    Attributes:
        runs: newest first.
        next: id of the run behind which the next part goes on; None at the end.
        looked_back_to: when the last run was submitted that was looked at, in UTC, where the page
            has fewer runs than were asked for although it isn't the last one.
    """

    runs: Sequence[RunRecord]
    next: str | None
    looked_back_to: datetime.datetime | None = None


class Walk(NamedTuple):
    """Runs in the order of an index, and what else is asked of each.

    Attributes:
        steps: time of submission and id of the runs that the index leads to, newest first, with
            what is asked of them.
        asked: conditions, of the runs that come by.
    """

    steps: sa.Select[Any]
    asked: Sequence[_Asked]

    def ids(self, limit: int) -> sa.Select[Any]:
        """The ids of the first runs that meet all conditions, of those that are looked at."""
        reached = self.steps.limit(LOOKED_AT if self.asked else limit).subquery()
        order = (reached.c.submitted_at.desc(), reached.c.id.desc())
        conditions = [asked(reached) for asked in self.asked]
        return sa.select(reached.c.id).where(*conditions).order_by(*order).limit(limit)

    def edge(self, connection: sa.Connection) -> sa.Row[Any] | None:
        """Id and time of the last run that is looked at; None where there is none behind it."""
        if not self.asked:
            return None
        return connection.execute(self.steps.offset(LOOKED_AT - 1).limit(1)).first()


def best_walk(connection: sa.Connection, wanted: RunFilter, before: RunRecord | None) -> Walk:
    """The walk that has the fewest runs to look at.

    Args:
        connection: of the transaction.
        wanted: which runs.
        before: only those submitted before this one.
    """
    walks = [_behind(walk, wanted.since, before) for walk in _walks(wanted)]
    if len(walks) == 1:
        return walks[0]
    reached = [walk.steps.limit(LOOKED_AT).subquery() for walk in walks]
    counts = [sa.select(sa.func.count()).select_from(each).scalar_subquery() for each in reached]
    lengths = connection.execute(sa.select(*counts)).one()
    return walks[min(range(len(walks)), key=lengths.__getitem__)]


def has_text(column: sa.ColumnElement[Any], text: str) -> sa.ColumnElement[bool]:
    """Whether a text stands in another one, in the same case whatever the database is."""
    return sa.and_(
        column.is_not(None), sa.func.replace(column, sa.literal(text, Prose()), "") != column
    )


def _walks(wanted: RunFilter) -> Iterator[Walk]:
    """All that can be led by an index."""
    known = _conditions(wanted, run)
    for led in ({"process", "status"}, {"submitted_by"}):
        if led := led & known.keys():
            yield _by_run(wanted, led, *(known[name] for name in sorted(led)))
    if wanted.error:
        yield _by_run(wanted, set(), run.c.error.is_not(None))
    for pair in wanted.where.items():
        columns = run_parameter.c.submitted_at, run_parameter.c.run_id.label("id")
        others = (other for other in wanted.where.items() if other != pair)
        yield Walk(
            sa.select(*columns).where(_is_pair(pair)),
            [*_own(wanted, set()), *_parameters(others)],
        )
    if not known and not wanted.where:
        yield _by_run(wanted, set())


def _by_run(wanted: RunFilter, led: Collection[str], *conditions: sa.ColumnElement[bool]) -> Walk:
    steps = sa.select(run.c.submitted_at, run.c.id).where(*conditions)
    return Walk(steps, [*_own(wanted, led), *_parameters(wanted.where.items())])


def _conditions(wanted: RunFilter, table: sa.FromClause) -> dict[str, sa.ColumnElement[bool]]:
    """What is asked of a run's own columns, by their names."""
    values = {
        "process": wanted.process,
        "status": wanted.status,
        "submitted_by": wanted.requester,
    }
    found = {name: table.c[name] == value for name, value in values.items() if value is not None}
    if wanted.error:
        found["error"] = has_text(table.c.error, wanted.error)
    return found


def _own(wanted: RunFilter, led: Collection[str]) -> list[_Asked]:
    """What is asked of the columns of a run, but for those by which the index leads.

    As a value, of a row that is found by its id: where databases join, they may read all runs, not
    knowing that few come by; and by columns that an index hasn't, they may choose another one.
    """
    looked = run.alias("looked")
    rest = [made for name, made in _conditions(wanted, looked).items() if name not in led]
    value = sa.select(sa.and_(sa.true(), *rest))
    return (
        [lambda reached: value.where(looked.c.id == reached.c.id).scalar_subquery()] if rest else []
    )


def _parameters(pairs: Iterable[tuple[str, str]]) -> list[_Asked]:
    def has(reached: sa.Subquery, pair: tuple[str, str]) -> sa.ColumnElement[Any]:
        mine = (
            run_parameter.c.submitted_at == reached.c.submitted_at,
            run_parameter.c.run_id == reached.c.id,
        )
        return sa.select(sa.true()).where(_is_pair(pair), *mine).scalar_subquery()

    return [partial(has, pair=pair) for pair in pairs]


def _is_pair(pair: tuple[str, str]) -> sa.ColumnElement[bool]:
    name, value = pair_of(*pair)
    return sa.and_(run_parameter.c.name == name, run_parameter.c.value == value)


def _behind(walk: Walk, since: datetime.datetime | None, before: RunRecord | None) -> Walk:
    """The walk in its order, from where it goes on to where it ends."""
    at, id_ = [*walk.steps.selected_columns][:2]
    steps = walk.steps.order_by(at.desc(), id_.desc())
    if since is not None:
        steps = steps.where(at >= since)
    if before is not None:
        place = sa.tuple_(sa.literal(before.submitted_at, UtcDateTime()), sa.literal(before.id))
        steps = steps.where(sa.tuple_(at, id_) < place)
    return walk._replace(steps=steps)
