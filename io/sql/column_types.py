"""Types of SQL columns as Arrow types, and values of a database driver as Arrow arrays, strictly.

The type of a column is what the database declares. Where that leaves open how exact an amount is
(FLOAT, NUMERIC without a precision), the description of the source must say it: amounts are never
floats by accident.
"""

import datetime
import re
import uuid
from collections.abc import Callable, Sequence
from decimal import Context, Decimal

import pyarrow as pa

TIMESTAMP = pa.timestamp("us")
TIMESTAMP_UTC = pa.timestamp("us", "UTC")

_NAMES = {
    pa.int64(): "smallint, int2, integer, int, int4, bigint, int8, tinyint, mediumint",
    pa.string(): "text, varchar, character varying, char, character, bpchar, nvarchar, nchar, "
    "clob, uuid, name, citext, longtext, mediumtext",
    pa.date32(): "date",
    TIMESTAMP: "timestamp, timestamp without time zone, datetime",
    TIMESTAMP_UTC: "timestamptz, timestamp with time zone",
    pa.bool_(): "boolean, bool",
    pa.binary(): "bytea, blob, binary, varbinary, longblob",
}
_BY_NAME = {name: type_ for type_, names in _NAMES.items() for name in names.split(", ")}
_EXACT = {
    pa.int64(): int,
    pa.string(): str,
    pa.date32(): datetime.date,
    pa.bool_(): bool,
    pa.binary(): bytes,
    pa.float64(): float,
}
# A decimal number of up to 15 digits stored as a double comes back unchanged from `repr`.
_DIGITS_OF_A_DOUBLE = 15
_WIDE = Context(prec=76)
_MAX_SHOWN = 60


class UnfitValueError(ValueError):
    """A value that its column's type can't hold; the message says why.

    Attributes:
        row: row of the value, from 0.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def is_supported(type_: pa.DataType) -> bool:
    """Whether columns can be read as this type."""
    return type_ in _NAMES or type_ == pa.float64() or pa.types.is_decimal128(type_)


def declared_type(declared: str) -> pa.DataType | None:
    """The Arrow type for a type that a database declares, such as `numeric(18, 2)`.

    None if the declared type doesn't determine one.
    """
    arguments = re.search(r"\(([^)]*)\)", declared)
    name = " ".join(re.sub(r"\([^)]*\)", " ", declared).lower().split())
    if name in ("numeric", "decimal"):
        sizes = [int(size) for size in arguments[1].split(",")] if arguments else []
        precision, scale = (*sizes, 0)[:2] if sizes else (0, 0)
        # The standard's NUMERIC(10) has no decimals.
        fits = 0 <= scale <= precision and 1 <= precision <= 38
        return pa.decimal128(precision, scale) if fits else None
    return _BY_NAME.get(name)


def to_array(values: Sequence[object], type_: pa.DataType) -> pa.Array:
    """Values that a database driver returned, as an array.

    A value is accepted only if the type can hold it unchanged. Text is parsed (SQLite has neither
    decimals nor dates). A double becomes a decimal if that has at most 15 digits, which SQLite
    keeps exactly.

    Raises:
        UnfitValueError: a value that the type can't hold.
    """
    exact = Decimal if pa.types.is_decimal(type_) else _EXACT.get(type_)
    if set(map(type, values)) <= {exact, type(None)}:
        try:
            return pa.array(values, type_)
        except (pa.ArrowInvalid, OverflowError):
            pass  # some value doesn't fit: find out which
    convert = _converter(type_)
    converted: list[object] = []
    for row, value in enumerate(values):
        try:
            converted.append(None if value is None else convert(value, type_))
        except ValueError as error:
            raise UnfitValueError(row, str(error)) from None
    return pa.array(converted, type_)


def _converter(type_: pa.DataType) -> Callable[[object, pa.DataType], object]:
    if pa.types.is_decimal(type_):
        return _decimal
    if pa.types.is_timestamp(type_):
        return _timestamp
    return {
        pa.int64(): _integer,
        pa.string(): _text,
        pa.date32(): _date,
        pa.bool_(): _boolean,
        pa.binary(): _bytes,
        pa.float64(): _double,
    }[type_]


def _integer(value: object, type_: pa.DataType) -> int:
    number = _number(value, type_)
    if number != int(number) or not -(2**63) <= number < 2**63:
        raise _unfit(value, type_)
    return int(number)


def _decimal(value: object, type_: pa.DataType) -> Decimal:
    if isinstance(value, float):
        number = Decimal(repr(value))
        if not number.is_finite() or len(number.as_tuple().digits) > _DIGITS_OF_A_DOUBLE:
            raise ValueError(f"{value!r} is a double and not exact: store it as text")
    else:
        number = _number(value, type_)
    if number.copy_abs() >= 10 ** (type_.precision - type_.scale):
        raise ValueError(f"{_shown(value)} is too large for {type_}")
    rounded = number.quantize(Decimal((0, (1,), -type_.scale)), context=_WIDE)
    if rounded != number:
        raise ValueError(f"{_shown(value)} has more than {type_.scale} decimals")
    return rounded


def _number(value: object, type_: pa.DataType) -> Decimal:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,100}(\.[0-9]{1,100})?", value):
        return Decimal(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, Decimal) and value.is_finite():
        return value
    raise _unfit(value, type_)


def _text(value: object, type_: pa.DataType) -> str:
    if isinstance(value, str | uuid.UUID):
        return str(value)
    return f"{_number(value, type_):f}"


def _date(value: object, type_: pa.DataType) -> datetime.date:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        return datetime.date.fromisoformat(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    raise _unfit(value, type_)


def _timestamp(value: object, type_: pa.DataType) -> datetime.datetime:
    if isinstance(value, str) and re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:", value):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        if type_.tz is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone, which {type_} needs")
        if type_.tz is None and value.tzinfo is not None:
            raise ValueError(f"{value} has a time zone, which {type_} has not")
        return value
    raise _unfit(value, type_)


def _boolean(value: object, type_: pa.DataType) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise _unfit(value, type_)


def _bytes(value: object, type_: pa.DataType) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise _unfit(value, type_)


def _double(value: object, type_: pa.DataType) -> float:
    if isinstance(value, float):
        return value
    return float(_number(value, type_))


def _unfit(value: object, type_: pa.DataType) -> ValueError:
    return ValueError(f"{_shown(value)} is not a {type_}")


def _shown(value: object) -> str:
    text = f"{value:f}" if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
