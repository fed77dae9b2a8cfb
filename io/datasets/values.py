"""Values from text: numbers, dates and empty values as files write them, by settings.

Nothing is guessed: text that doesn't match the settings is rejected with the reason.
"""

import datetime
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.io.datasets.dialect import character

ISO_DATE = "%Y-%m-%d"
Refuse = Callable[[npt.NDArray[np.int64], Callable[[int], str]], None]
"""Called with the numbers of rejected rows, and a function that gives the reason for a row."""

# Rounds any decimal128 exactly; the default context has 28 digits.
_WIDE = Context(prec=76)
_MAX_SHOWN = 60
_TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view())
# The two kinds of no-break space count as blanks too.
_BLANKS = " \u00a0\u202f"
_MONTHS = [
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
]
_DATE_PARTS: Mapping[str, str] = {
    "%Y": "(?P<Y>[0-9]{4})",
    "%y": "(?P<y>[0-9]{2})",
    "%m": "(?P<m>[0-9]{2})",
    "%-m": "(?P<m>[0-9]{1,2})",
    "%b": f"(?P<b>{'|'.join(month[:3] for month in _MONTHS)})",
    "%B": f"(?P<b>{'|'.join(_MONTHS)})",
    "%d": "(?P<d>[0-9]{2})",
    "%-d": "(?P<d>[0-9]{1,2})",
    "%H": "(?:[01][0-9]|2[0-3])",
    "%M": "[0-5][0-9]",
    "%S": "[0-5][0-9]",
    "%%": "%",
}


@functools.cache
def _date_pattern(format_: str) -> re.Pattern[str]:
    pattern = "".join(
        _DATE_PARTS.get(part, re.escape(part)) for part in re.split(r"(%-?.)", format_)
    )
    unknown = [p for p in re.findall(r"%-?.?", format_) if p not in _DATE_PARTS]
    groups = re.findall(r"\?P<(.)>", pattern)
    if (
        unknown
        or len(set(groups)) < len(groups)
        or sum(group in "Yy" for group in groups) != 1
        or sum(group in "mb" for group in groups) != 1
    ):
        wrong = f"{unknown[0]} is unknown" if unknown else "it needs one year and one month"
        raise ValueError(
            f"date_format={format_}: {wrong}: give a format such as %d-%b-%Y, of "
            f"{' '.join(_DATE_PARTS)}"
        )
    return re.compile(pattern, re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class ValueFormat:
    """How values are written as text.

    Attributes:
        date_format: format of dates, from `%Y %y %m %-m %b %B %d %-d %H %M %S %%` and literal text.
            Month names are English, in upper or lower case; without a day, it is the first of the
            month; a time of day is checked and ignored.
        decimal: the decimal mark.
        thousands: the mark between groups of digits, as in 1,234,567 or 1,00,000; `blank` stands
            for a blank.
        null: texts that stand for an empty value.
        trim: whether white space around values is dropped; otherwise such text is rejected.
    """

    date_format: str = ISO_DATE
    decimal: str = "."
    thousands: str = ""
    null: tuple[str, ...] = ()
    trim: bool = False

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a setting is invalid, or two contradict each other.
        """
        object.__setattr__(self, "decimal", character(self.decimal))
        object.__setattr__(self, "thousands", character(self.thousands))
        for name, value in (("decimal", self.decimal), ("thousands", self.thousands)):
            if (value or name == "decimal") and (
                len(value) != 1 or value.isalnum() or value in "-+\r\n"
            ):
                raise ValueError(f"{name}={value}: it must be one character, and no digit")
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both {self.decimal}")
        _date_pattern(self.date_format)

    @functools.cached_property
    def number(self) -> str:
        """Regular expression that matches all numbers of this format."""
        mark = re.escape(self.decimal)
        whole = "[0-9]+"
        if self.thousands:
            between = f"[{_BLANKS}]" if self.thousands == " " else re.escape(self.thousands)
            thousands = f"[1-9][0-9]{{0,2}}(?:{between}[0-9]{{3}})+"
            lakhs = f"[1-9][0-9]?(?:{between}[0-9]{{2}})+{between}[0-9]{{3}}"
            whole = f"(?:{whole}|{thousands}|{lakhs})"
        return f"^-?{whole}(?:{mark}[0-9]+)?$"

    @property
    def has_plain_numbers(self) -> bool:
        """Whether numbers are written as Python writes them."""
        return self.decimal == "." and not self.thousands

    def plain_number(self, text: str) -> str:
        """A number as Python writes it.

        Raises:
            ValueError: it isn't a number of this format.
        """
        if not re.fullmatch(self.number[1:-1], text):
            marks = f"decimal mark {self.decimal!r}"
            if self.thousands:
                marks += f", thousands {self.thousands!r}"
            raise ValueError(
                f"{shown(text)} is not a number" + ("" if self.has_plain_numbers else f" ({marks})")
            )
        for blank in _BLANKS if self.thousands == " " else self.thousands:
            text = text.replace(blank, "")
        return text.replace(self.decimal, ".")

    def plain_numbers(self, array: pa.Array) -> pa.Array | None:
        """`plain_number` of all texts; None if one of them isn't a number of this format."""
        if self.has_plain_numbers:
            return array
        if not pc.all(pc.match_substring_regex(array, self.number), min_count=0).as_py():
            return None
        for blank in _BLANKS if self.thousands == " " else self.thousands:
            array = pc.replace_substring(array, blank, "")
        return pc.replace_substring(array, self.decimal, ".")

    def localised(self, number: str) -> str:
        """A number that Python writes, as this format writes it."""
        return number.replace(".", self.decimal)

    def date(self, text: str) -> datetime.date:
        """The date that `text` stands for.

        Raises:
            ValueError: it isn't a date of this format.
        """
        found = _date_pattern(self.date_format).fullmatch(text)
        if found is not None:
            parts = found.groupdict()
            if "y" in parts:  # the century as in POSIX
                year = int(parts["y"]) + (1900 if int(parts["y"]) >= 69 else 2000)
            else:
                year = int(parts["Y"])
            name = parts.get("b")
            month = int(parts["m"]) if name is None else _month(name)
            try:
                return datetime.date(year, month, int(parts.get("d", "1")))
            except ValueError:
                pass
        spelled = "YYYY-MM-DD" if self.date_format == ISO_DATE else self.date_format
        raise ValueError(f"{shown(text)} is not a date ({spelled})")

    def cleaned(self, text: str, replacements: Mapping[str, str]) -> str | None:
        """A text trimmed and replaced as the settings say; None for a null text."""
        text = text.strip() if self.trim else text
        return None if text in self.null else replacements.get(text, text)


PLAIN = ValueFormat()


def clean(array: pa.Array, format_: ValueFormat, replacements: Mapping[str, str]) -> pa.Array:
    """Texts as `ValueFormat.cleaned` gives them.

    Args:
        array: strings, plain or dictionary-encoded.
        format_: whether texts are trimmed, and which stand for an empty value.
        replacements: values by the texts in the file that stand for them.
    """
    if not (format_.trim or format_.null or replacements):
        return array
    is_encoded = isinstance(array, pa.DictionaryArray)
    encoded = array if is_encoded else array.cast(pa.string()).dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    values = [None if text is None else format_.cleaned(text, replacements) for text in texts]
    present = dict.fromkeys(value for value in values if value is not None)
    codes: dict[str | None, int] = {value: code for code, value in enumerate(present)}
    missing = len(codes)
    of_text = np.array([*(codes.get(value, missing) for value in values), missing], np.int32)
    indices = of_text[encoded.indices.fill_null(len(texts)).to_numpy()]
    cleaned = pa.DictionaryArray.from_arrays(
        pa.array(indices, mask=indices == missing), pa.array(list(present), pa.string())
    )
    return cleaned if is_encoded else cleaned.dictionary_decode()


def padded(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Bool `(rows,)`: whether there is white space around a text.

    Args:
        array: an array of type string.
    """
    result = np.zeros(len(array), bool)
    _, offsets, data = array.buffers()
    if data is None or not data.size:
        return result
    bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    utf8_words = np.frombuffer(data, np.uint8)
    starts, ends = bounds[:-1], bounds[1:]
    rows = np.flatnonzero(ends > starts)
    first, last = utf8_words[starts[rows]], utf8_words[ends[rows] - 1]
    # Characters outside of ASCII may be white space too.
    rows = rows[(first <= ord(" ")) | (last <= ord(" ")) | (first >= 128) | (last >= 128)]
    if len(rows):
        texts = array.take(pa.array(rows))
        differ = pc.fill_null(pc.not_equal(texts, pc.utf8_trim_whitespace(texts)), False)
        result[rows] = differ.to_numpy(zero_copy_only=False)
    return result


def convert(
    array: pa.Array,
    type_: pa.DataType,
    format_: ValueFormat,
    missing: npt.NDArray[np.bool_],
    refuse: Refuse,
) -> pa.Array:
    """`array` in another type; a value that doesn't fit is rejected and becomes null.

    Args:
        array: texts, numbers or dates.
        type_: int64, decimal128 or date32.
        format_: how values are written as text.
        missing: bool `(rows,)`: empty values, which become null.
        refuse: called with the rows whose values don't fit.
    """
    if array.type == type_:
        return array
    if array.type not in _TEXT_TYPES:
        return _convert_each(array, type_, PLAIN, refuse)
    array = array.cast(pa.string())
    if missing.any():
        array = pc.if_else(pa.array(missing), None, array)
    if pa.types.is_date(type_) and format_.date_format != ISO_DATE:
        return _dates(array, format_, refuse)
    texts = array if pa.types.is_date(type_) else format_.plain_numbers(array)
    if texts is not None:
        plain = pc.match_substring_regex(texts, _castable(type_))
        if pc.all(plain, min_count=0).as_py():
            try:
                return texts.cast(type_)
            except pa.ArrowInvalid:
                pass  # some value doesn't fit: find out which
    return _convert_each(array, type_, format_, refuse)


def shown(text: str) -> str:
    """A text as messages show it: quoted, and shortened if it is too long."""
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


def parse(text: str, type_: pa.DataType, format_: ValueFormat) -> int | Decimal | datetime.date:
    """The value of a text.

    Raises:
        ValueError: it isn't a value of the type; the message says what is wrong.
    """
    if pa.types.is_date(type_):
        return format_.date(text)
    value = Decimal(format_.plain_number(text))
    if pa.types.is_decimal(type_):
        if value.copy_abs() >= 10 ** (type_.precision - type_.scale):
            raise ValueError(f"{shown(text)} is too large for {type_}")
        rounded = value.quantize(Decimal((0, (1,), -type_.scale)), context=_WIDE)
        if value != rounded:
            raise ValueError(f"{shown(text)} has more than {type_.scale} decimals")
        return rounded
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{shown(text)} is too large for a 64-bit integer")
    if value != int(value):
        raise ValueError(f"{shown(text)} is not a whole number")
    return int(value)


def _convert_each(
    array: pa.Array, type_: pa.DataType, format_: ValueFormat, refuse: Refuse
) -> pa.Array:
    if array.type not in _TEXT_TYPES:
        try:
            return array.cast(type_)
        except pa.ArrowInvalid:
            pass  # some value doesn't fit: find out which
    values: list[object] = []
    for row, value in enumerate(array.to_pylist()):
        try:
            values.append(None if value is None else parse(_text(value), type_, format_))
        except ValueError as error:
            values.append(None)
            refuse(np.array([row]), lambda _, reason=error: str(reason))  # type: ignore[misc]
    return pa.array(values, type_)


def _dates(array: pa.Array, format_: ValueFormat, refuse: Refuse) -> pa.Array:
    """The dates of texts. Each different text is parsed once: a file has few dates."""
    encoded = array.dictionary_encode()
    dates: list[datetime.date | None] = []
    reasons: dict[int, str] = {}
    for code, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            dates.append(format_.date(text))
        except ValueError as error:
            dates.append(None)
            reasons[code] = str(error)
    if reasons:
        codes = encoded.indices.fill_null(-1).to_numpy()
        wrong = np.flatnonzero(np.isin(codes, list(reasons)))
        refuse(wrong, lambda row: reasons[int(codes[row])])
    return pa.array(dates, pa.date32()).take(encoded.indices)


def _castable(type_: pa.DataType) -> str:
    """Regular expression of the texts that Arrow's own cast converts correctly."""
    if pa.types.is_decimal(type_):
        whole = rf"^-?[0-9]{{1,{max(type_.precision - type_.scale, 1)}}}"
        return rf"{whole}(\.[0-9]{{1,{type_.scale}}})?$" if type_.scale else f"{whole}$"
    # Arrow has a year 0000, Python doesn't.
    return r"^[12][0-9]{3}-[0-9]{2}-[0-9]{2}$" if pa.types.is_date(type_) else r"^-?[0-9]{1,18}$"


def _text(value: object) -> str:
    # `str` gives a small decimal an exponent: 0E-8.
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _month(name: str) -> int:
    return next(n for n, month in enumerate(_MONTHS, 1) if month.startswith(name.lower()))
