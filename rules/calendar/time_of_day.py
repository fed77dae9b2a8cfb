"""Times of a day as numbers that sort: a plain form for one text, and one for columns."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.arrays import Integers

UNREADABLE = -1

_FORM = (
    r"^(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2}[T ])?"
    r"(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9])"
    r"(?P<point>\.(?P<fraction>[0-9]{1,9}))?$"
)
_UNITS = (("hour", 3_600 * 10**9), ("minute", 60 * 10**9), ("second", 10**9))


def time_of_day(text: str) -> int:
    """Nanoseconds since midnight of `[YYYY-MM-DD ]HH:MM:SS[.fraction]`; `UNREADABLE` for others."""
    found = re.fullmatch(_FORM, text)
    if found is None:
        return UNREADABLE
    fraction = (found["fraction"] or "").ljust(9, "0")
    return sum(int(found[name]) * unit for name, unit in _UNITS) + int(fraction)


def time_of_day_many(times: pa.ChunkedArray) -> Integers:
    """int64 `(rows,)`: `time_of_day` of each; `UNREADABLE` for null and for what is no time.

    Args:
        times: text, times, or timestamps, which count by the clock of their own zone.
    """
    type_ = times.type
    if pa.types.is_timestamp(type_) and type_.tz is not None:
        times = pc.local_timestamp(times)
    if pa.types.is_timestamp(type_) or pa.types.is_time(type_):
        if pa.types.is_timestamp(type_):
            times = times.cast(pa.time64("ns" if type_.unit == "ns" else "us"))
        nanoseconds = times.cast(pa.time64("ns")).cast(pa.int64())
        return np.asarray(nanoseconds.fill_null(UNREADABLE).to_numpy())
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        return np.full(len(times), UNREADABLE)
    parts = pc.extract_regex(times, _FORM)
    fractions = pc.utf8_rpad(pc.struct_field(parts, "fraction"), 9, "0")
    total = fractions.cast(pa.int64()).fill_null(UNREADABLE).to_numpy().copy()
    readable = total != UNREADABLE
    for name, unit in _UNITS:
        values = pc.struct_field(parts, name).cast(pa.int64()).fill_null(0).to_numpy()
        total[readable] += values[readable] * unit
    return np.asarray(total)
