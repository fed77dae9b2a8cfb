"""Ranges of keys: how a table or query is split into partitions, without OFFSET.

A range holds the keys after one key and up to another, in the database's own order. Consecutive
ranges cover every row once, wherever their bounds lie; the choice of the bounds only decides how
even the partitions are.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ledgerbeam.io.errors import ParameterError
from ledgerbeam.io.sql.engine import connect, database_errors, open_engine
from ledgerbeam.io.sql.keys import Key, KeyRange, greater, stored_form
from ledgerbeam.io.sql.source import SqlSource, SqlTable, read_columns, refuse_null_keys

# A partition's share of n sampled blocks is off by 1/√n, here 5%, even if rows lie in the order
# of the key. Where rows lie at random it is far less.
_BLOCKS_PER_PARTITION = 400
# Sorting all keys of 1,000,000 rows takes 0.35 s; a sample larger than this saves little time.
_MAX_SAMPLE = 0.25
_BLOCK = 8192


@dataclass(frozen=True)
class ByCount:
    """Partitions of a given number of consecutive keys; the last one may hold fewer.

    Reading the table page by page finds where they end, so they are the pages of one open range.

    Attributes:
        rows: how many rows a partition has.
    """

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ParameterError(
                f"split by count: rows is {self.rows}: give 1 or more",
                parameter="rows",
                value=self.rows,
            )


@dataclass(frozen=True)
class ByNumber:
    """A fixed number of partitions with about as many rows each, whatever the keys' values.

    There are fewer where there are fewer keys.

    Attributes:
        partitions: number of partitions.
    """

    partitions: int

    def __post_init__(self) -> None:
        if self.partitions < 1:
            raise ParameterError(
                f"split by number: partitions is {self.partitions}: give 1 or more",
                parameter="partitions",
                value=self.partitions,
            )


@dataclass(frozen=True)
class ByRange:
    """Partitions that end at given keys; one more holds the keys after the last of these.

    Attributes:
        bounds: the last key of each partition, ascending in the database's order. A key of one
            column may be given as its bare value.
    """

    bounds: tuple[Any, ...]

    def __post_init__(self) -> None:
        keys = tuple(bound if isinstance(bound, tuple) else (bound,) for bound in self.bounds)
        object.__setattr__(self, "bounds", keys)


Split = ByCount | ByNumber | ByRange


def plan_ranges(source: SqlSource, split: Split) -> list[KeyRange]:
    """Disjoint ranges in the order of the key that together hold every row.

    On PostgreSQL a table of many blocks is split by a sample of them, and a key of one column by a
    sort of the keys alone; elsewhere rows are numbered in one pass over the keys.

    Raises:
        UserError: the source can't be read, a row's key has a null, or bounds don't ascend.
    """
    engine = open_engine(source.url)
    try:
        with connect(engine, source.name) as connection, database_errors(engine, source.name):
            read_columns(connection, source)
            refuse_null_keys(connection, source)
            if isinstance(split, ByNumber):
                bounds = _even_bounds(connection, source, split.partitions)
            elif isinstance(split, ByRange):
                _check_ascending(connection, source, split.bounds)
                bounds = list(split.bounds)
            else:
                bounds = []
    finally:
        engine.dispose()
    return [KeyRange(*pair) for pair in itertools.pairwise([None, *bounds, None])]


def _even_bounds(connection: sa.Connection, source: SqlSource, partitions: int) -> list[Key]:
    relation = source.relation(source.key)
    if connection.dialect.name != "postgresql":
        return _bounds_by_rank(connection, relation, source, partitions)
    share = _sample(connection, source, partitions)
    if share < _MAX_SAMPLE:
        relation = relation.tablesample(
            sa.func.system(sa.literal_column(f"{100 * share:.9f}")), "sample"
        )
    if len(source.key) > 1:
        return _bounds_by_rank(connection, relation, source, partitions)
    (key,) = relation.c
    shares = [number / partitions for number in range(1, partitions + 1)]
    percentiles = sa.func.percentile_disc(sa.cast(shares, sa.ARRAY(sa.Double)))
    # unnest: drivers can't parse an array whose type they don't know.
    statement = sa.select(sa.func.unnest(percentiles.within_group(key))).select_from(relation)
    found = [tuple(row) for row in connection.execute(statement)]
    # The last bound is the greatest key: a range after it would be empty.
    return [bound for bound, _ in itertools.groupby(found)][:-1]


def _sample(connection: sa.Connection, source: SqlSource, partitions: int) -> float:
    """Share of a table's blocks to sample; 1 if a sample would save little."""
    if not isinstance(source, SqlTable) or source.where:
        return 1.0
    quoted = connection.dialect.identifier_preparer.format_table(source.relation())
    size, kind = connection.execute(
        sa.text(
            "SELECT pg_catalog.pg_relation_size(oid), relkind FROM pg_catalog.pg_class "
            "WHERE oid = CAST(:name AS regclass)"
        ),
        {"name": quoted},
    ).one()
    blocks = size / _BLOCK if kind in ("r", "m") else 0
    return min(1.0, _BLOCKS_PER_PARTITION * partitions / blocks) if blocks else 1.0


def _bounds_by_rank(
    connection: sa.Connection, relation: sa.FromClause, source: SqlSource, partitions: int
) -> list[Key]:
    key = [relation.c[name] for name in source.key]
    rank = sa.func.row_number().over(order_by=key).label("ledgerbeam_rank")
    ranked = sa.select(*key, rank, sa.func.count().over().label("ledgerbeam_rows")).subquery("k")
    number, rows = ranked.c.ledgerbeam_rank, ranked.c.ledgerbeam_rows
    # The rows at which number · partitions / rows, rounded down, increases.
    at_bound = (number * partitions) % rows < partitions
    statement = (
        sa.select(*(ranked.c[name] for name in source.key))
        .where(at_bound & (number < rows))
        .order_by(number)
    )
    return [tuple(row) for row in connection.execute(statement)]


def _check_ascending(connection: sa.Connection, source: SqlSource, bounds: tuple[Key, ...]) -> None:
    for bound in bounds:
        if len(bound) != len(source.key) or None in bound:
            raise ParameterError(
                f"split by range: the bound {bound!r} isn't a value for each column of the key "
                f"({', '.join(source.key)})",
                parameter="bounds",
                value=bound,
            )
    for bound, following in itertools.pairwise(bounds):
        low, high = (_one_row(connection, source, key) for key in (bound, following))
        ascends = greater(connection.dialect, list(high.c), list(low.c))
        if not connection.scalar(sa.select(sa.func.count()).select_from(low, high).where(ascends)):
            raise ParameterError(
                f"split by range: {following!r} isn't greater than {bound!r}, the bound before it: "
                "give bounds in ascending order",
                parameter="bounds",
                value=following,
            )


def _one_row(connection: sa.Connection, source: SqlSource, key: Key) -> sa.Subquery:
    """The key as a row that has the columns' own types and collations, taken from a union."""
    values = [sa.literal(stored_form(connection.dialect, v), sa.types.NullType()) for v in key]
    columns = list(source.relation(source.key).c)
    return sa.union_all(sa.select(*columns).where(sa.false()), sa.select(*values)).subquery()
