"""What is read of a database: a table or a query, its unique key, its columns and their types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import sqlalchemy as sa

from ledgerbeam.io.errors import InputError, ParameterError, SchemaError, UserError
from ledgerbeam.io.sql import column_types


@dataclass(frozen=True)
class SqlTable:
    """A table or view.

    Attributes:
        url: the database's URL, as SQLAlchemy takes it; references to secrets in it are resolved.
        table: its name, `SCHEMA.NAME` for another than the default schema.
        key: columns that identify a row; together unique and never null.
        columns: the columns to read, in this order; None for all.
        types: Arrow types for columns whose declared type doesn't say how to hold their values.
        where: SQL: which rows to read; empty for all.
        only: columns that are read, with the value that rows must have in them; the database may
            take others for the same, by its collation.
    """

    url: str = field(repr=False)
    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    where: str = ""
    only: tuple[tuple[str, str | int], ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    @property
    def condition(self) -> sa.ColumnElement[bool]:
        """Which rows are read."""
        return sa.and_(
            sa.true(),
            # Without a type of SQLAlchemy's: the database knows the type of the column.
            *(sa.column(n) == sa.literal(v, sa.types.NullType()) for n, v in self.only),
        )

    @property
    def name(self) -> str:
        """The source's name in messages."""
        return f"table {self.table}"

    def relation(self, columns: Sequence[str] = ()) -> sa.FromClause:
        """What stands after FROM in a query."""
        schema, _, name = self.table.rpartition(".")
        table = sa.table(name, *map(sa.column, columns), schema=schema or None)
        if not self.where:
            return table
        chosen: Sequence[Any] = list(table.c) or [sa.text("*")]
        condition = sa.text(self.where.replace(":", r"\:"))
        return sa.select(*chosen).select_from(table).where(condition).subquery("source")


@dataclass(frozen=True)
class SqlQuery:
    """The rows of a SELECT.

    Attributes:
        url: the database's URL, as SQLAlchemy takes it; references to secrets in it are resolved.
        query: a SELECT without ORDER BY and LIMIT, whose columns have different names.
        key: columns that identify a row; together unique and never null.
        columns: the columns to read, in this order; None for all.
        types: Arrow types for columns whose declared type doesn't say how to hold their values.
    """

    url: str = field(repr=False)
    query: str
    key: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    types: Mapping[str, pa.DataType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def name(self) -> str:
        """The source's name in messages."""
        return "the query"

    def relation(self, columns: Sequence[str] = ()) -> sa.FromClause:
        """What stands after FROM in a query."""
        # A colon would begin a parameter; the end of the line ends a comment.
        text = self.query.strip().rstrip(";").replace(":", r"\:") + "\n"
        return sa.text(text).columns(*map(sa.column, columns)).subquery("source")


SqlSource = SqlTable | SqlQuery


class SqlColumn(NamedTuple):
    """A column as it is read.

    Attributes:
        name: its name in the database and in Arrow.
        declared: its type as the database declares it, in lower case; empty if it has none.
        type: its Arrow type.
    """

    name: str
    declared: str
    type: pa.DataType


def read_columns(connection: sa.Connection, source: SqlSource) -> list[SqlColumn]:
    """The columns of a source, in the order in which they are read.

    Raises:
        UserError: a column is missing, or its declared type doesn't say how to hold its values.
    """
    declared = declared_types(connection, source)
    for kind, names in {
        "key": source.key,
        "columns": source.columns or (),
        "types": tuple(source.types),
    }.items():
        missing = [name for name in names if name not in declared]
        if missing:
            raise SchemaError(
                f"{source.name}: {kind} names {missing[0]!r}, and there is no such column: it has "
                f"{', '.join(declared)}",
                file=source.name,
                column=missing[0],
            )
    return [
        SqlColumn(name, declared[name], _arrow_type(source, name, declared[name]))
        for name in source.columns or declared
    ]


def refuse_null_keys(connection: sa.Connection, source: SqlSource) -> None:
    """Refuse a source with a row whose key has a null, because no range would contain it.

    Columns that are declared NOT NULL aren't checked.
    """
    nullable = set(source.key)
    if isinstance(source, SqlTable):
        schema, _, name = source.table.rpartition(".")
        described = sa.inspect(connection).get_columns(name, schema or None)
        nullable -= {column["name"] for column in described if not column["nullable"]}
    if not nullable:
        return
    relation = source.relation(source.key)
    is_null = sa.or_(*(relation.c[name].is_(None) for name in sorted(nullable)))
    found = connection.execute(sa.select(*relation.c).where(is_null).limit(1)).first()
    if found is not None:
        raise null_key(source, tuple(found))


def null_key(source: SqlSource, key: tuple[Any, ...]) -> UserError:
    """The error for a row without a whole key."""
    return InputError(
        f"{source.name}: the key ({', '.join(source.key)}) of a row is {key!r}: a key can't be "
        "null: choose columns that are never null, or leave such rows out by a query",
        file=source.name,
        value=key,
    )


def _check(source: SqlSource) -> None:
    if not source.key or len(set(source.key)) < len(source.key):
        raise ParameterError(
            f"{source.name}: key is {source.key!r}: name one or more unique columns",
            parameter="key",
            value=source.key,
        )
    left_out = [name for name in source.key if source.columns and name not in source.columns]
    if left_out:
        raise ParameterError(
            f"{source.name}: columns leave out {left_out[0]!r}, which is in key: add it",
            parameter="columns",
            value=source.columns,
        )
    for name, type_ in source.types.items():
        if not column_types.is_supported(type_):
            raise ParameterError(
                f"{source.name}: types gives {name!r} as {type_}, which can't be read: give int64, "
                "string, decimal128, date32, timestamp[us], timestamp[us, UTC], bool, binary or "
                "double",
                parameter="types",
                value=str(type_),
            )


def _arrow_type(source: SqlSource, name: str, declared: str) -> pa.DataType:
    of_database = column_types.declared_type(declared)
    type_ = source.types.get(name, of_database)
    if type_ is None:
        raise SchemaError(
            f"{source.name}: column {name!r} is {declared or 'of no declared type'}, which doesn't "
            f"say how to hold its values exactly: name its Arrow type in types, such as "
            f"{{{name!r}: pa.decimal128(18, 2)}}, or leave it out by columns",
            file=source.name,
            column=name,
        )
    if (type_ == pa.binary()) != (of_database == pa.binary()) and declared:
        raise SchemaError(
            f"{source.name}: column {name!r} is {declared}, and can't be read as {type_}: bytes "
            "are read as binary, and nothing else is",
            file=source.name,
            column=name,
        )
    return type_


def declared_types(connection: sa.Connection, source: SqlSource) -> dict[str, str]:
    """The type that the database declares for each column, by name, in the order of the source."""
    dialect = connection.dialect.name
    if dialect == "sqlite":
        return _sqlite_types(connection, source)
    if dialect != "postgresql" and isinstance(source, SqlTable):
        schema, _, name = source.table.rpartition(".")
        columns = sa.inspect(connection).get_columns(name, schema or None)
        return {
            column["name"]: column["type"].compile(connection.dialect).lower() for column in columns
        }
    statement = sa.select(sa.text("*")).select_from(source.relation()).limit(0)
    with connection.execute(statement) as result:
        description = result.cursor.description if result.cursor is not None else None
    assert description is not None
    _refuse_repeated(source, [column[0] for column in description])
    if dialect != "postgresql":
        return {column[0]: "" for column in description}
    types = sa.table(
        "pg_type",
        sa.column("oid"),
        sa.column("typname"),
        sa.column("typtype"),
        schema="pg_catalog",
    )
    oids = {column[1] for column in description}
    # The values of an enumeration are texts.
    declared = sa.case((types.c.typtype == "e", "text"), else_=types.c.typname)
    statement = sa.select(types.c.oid, declared.label("name")).where(types.c.oid.in_(oids))
    names = {row.oid: row.name for row in connection.execute(statement)}
    return {
        name: f"{names[oid]}({precision},{scale})" if precision is not None else names[oid]
        for name, oid, _, _, precision, scale, *_ in description
    }


def _sqlite_types(connection: sa.Connection, source: SqlSource) -> dict[str, str]:
    # Only a view shows the types of a query's columns; a temporary one disappears afterwards.
    select = sa.select(sa.text("*")).select_from(source.relation())
    text = select.compile(dialect=connection.dialect)
    connection.execute(sa.text("DROP VIEW IF EXISTS temp.ledgerbeam_source"))
    connection.exec_driver_sql(f"CREATE TEMP VIEW ledgerbeam_source AS {text}")
    rows = connection.exec_driver_sql("PRAGMA temp.table_info(ledgerbeam_source)").all()
    connection.exec_driver_sql("DROP VIEW temp.ledgerbeam_source")
    return {name: declared.lower() for _, name, declared, *_ in rows}


def _refuse_repeated(source: SqlSource, names: list[str]) -> None:
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise SchemaError(
            f"{source.name}: two columns are called {repeated[0]!r}: rename one by AS",
            file=source.name,
            column=repeated[0],
        )
