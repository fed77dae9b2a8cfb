"""Keys of rows and ranges of them, in the database's own order."""

import datetime
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

Key = tuple[Any, ...]
"""Values of the key's columns, as the database gives them."""

_COMPARE_ROWS = ("postgresql", "sqlite", "mysql", "mariadb")

_TO_TEXT: Mapping[type, tuple[str, Callable[[Any], str]]] = {
    Decimal: ("decimal", str),
    datetime.date: ("date", datetime.date.isoformat),
    datetime.datetime: ("timestamp", datetime.datetime.isoformat),
    uuid.UUID: ("uuid", str),
    bytes: ("bytes", bytes.hex),
}
_FROM_TEXT: Mapping[str, Callable[[str], Any]] = {
    "decimal": Decimal,
    "date": datetime.date.fromisoformat,
    "timestamp": datetime.datetime.fromisoformat,
    "uuid": uuid.UUID,
    "bytes": bytes.fromhex,
}


@dataclass(frozen=True)
class KeyRange:
    """The rows whose key is greater than `after` and at most `upto`.

    Attributes:
        after: None for no lower bound.
        upto: None for no upper bound.
    """

    after: Key | None = None
    upto: Key | None = None

    def to_json(self) -> str:
        """One line of JSON, from which `from_json` makes the same range."""
        return json.dumps({"after": _to_plain(self.after), "upto": _to_plain(self.upto)})

    @classmethod
    def from_json(cls, text: str) -> "KeyRange":
        """The range that `to_json` wrote."""
        plain = json.loads(text)
        return cls(_from_plain(plain["after"]), _from_plain(plain["upto"]))


def greater(
    dialect: sa.Dialect,
    left: Sequence[sa.ColumnElement[Any]],
    right: Sequence[sa.ColumnElement[Any]],
) -> sa.ColumnElement[bool]:
    """Whether one key is greater than another, compared column by column."""
    if len(left) == 1:
        return left[0] > right[0]
    if dialect.name in _COMPARE_ROWS:
        return sa.tuple_(*left) > sa.tuple_(*right)
    # The first condition is implied by the others; it lets the database search an index.
    pairs = list(zip(left, right, strict=True))
    return (left[0] >= right[0]) & sa.or_(
        *(
            sa.and_(*(a == b for a, b in pairs[:index]), pairs[index][0] > pairs[index][1])
            for index in range(len(pairs))
        )
    )


def at_most(
    dialect: sa.Dialect,
    left: Sequence[sa.ColumnElement[Any]],
    right: Sequence[sa.ColumnElement[Any]],
) -> sa.ColumnElement[bool]:
    """Whether one key is at most another."""
    if len(left) == 1:
        return left[0] <= right[0]
    if dialect.name in _COMPARE_ROWS:
        return sa.tuple_(*left) <= sa.tuple_(*right)
    return (left[0] <= right[0]) & ~greater(dialect, left, right)


def stored_form(dialect: sa.Dialect, value: Any) -> Any:
    """A key's value in the form that the database compares; SQLite has no dates or decimals."""
    if dialect.name == "sqlite":
        if isinstance(value, datetime.datetime):
            return value.isoformat(" ")
        if isinstance(value, datetime.date):
            return value.isoformat()
        if isinstance(value, Decimal | uuid.UUID):
            return str(value)
    return value


def _to_plain(key: Key | None) -> list[Any] | None:
    if key is None:
        return None
    plain: list[Any] = []
    for value in key:
        if type(value) in _TO_TEXT:
            kind, convert = _TO_TEXT[type(value)]
            plain.append({kind: convert(value)})
        elif isinstance(value, int | str | float):
            plain.append(value)
        else:
            raise TypeError(f"a key can't hold {value!r}")
    return plain


def _from_plain(plain: list[Any] | None) -> Key | None:
    if plain is None:
        return None
    return tuple(
        next(_FROM_TEXT[kind](text) for kind, text in value.items())
        if isinstance(value, dict)
        else value
        for value in plain
    )
