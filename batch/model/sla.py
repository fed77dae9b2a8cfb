"""Service levels: when a run must start and finish by, and whether it will.

Nothing here knows a clock: the caller passes the time, what is known of the run, and which
breaches it has already notified of.
"""

import datetime
from dataclasses import dataclass
from typing import NamedTuple
from zoneinfo import ZoneInfo

MINUTE = datetime.timedelta(minutes=1)
_DAY = datetime.timedelta(days=1)
_LAST = datetime.datetime.max.replace(tzinfo=datetime.UTC)


DayTime = datetime.time | datetime.timedelta


class Deadlines(NamedTuple):
    """Of one run, in UTC; None where there is none. A run is in time up to and including them."""

    start_by: datetime.datetime | None
    finish_by: datetime.datetime | None


@dataclass(frozen=True, kw_only=True)
class Sla:
    """When the runs of a workload must have started and finished.

        Sla(must_finish_by=timedelta(hours=30), zone="Asia/Kolkata")  # 06:00 of the next day

    Both are local times in `zone`: a time of the business date, or a span from its midnight. A span
    is counted on the local clock, so that 30 hours are 06:00 of the next day even if the clock
    changes in between. A time that the clock skips is moved by the length of the skip (02:30 is
    03:30). Of a time that comes twice, the first counts.

    Attributes:
        must_start_by: the latest start.
        must_finish_by: the latest end.
        zone: IANA name of the time zone, such as `Europe/Berlin`.

    Raises:
        ValueError: neither is given, they disagree, or one of the three isn't what it must be.
    """

    must_start_by: DayTime | None = None
    must_finish_by: DayTime | None = None
    zone: str

    def __post_init__(self) -> None:
        for name in ("must_start_by", "must_finish_by"):
            value = getattr(self, name)
            if isinstance(value, datetime.time) and value.tzinfo is not None:
                raise ValueError(f"{name}={value} has a time zone of its own: give it as zone")
            if isinstance(value, datetime.timedelta) and value < datetime.timedelta():
                raise ValueError(f"{name}={value} is before the business date: give 0 or more")
        if self.must_start_by is None and self.must_finish_by is None:
            raise ValueError("neither must_start_by nor must_finish_by is given: give one or both")
        if (
            self.must_start_by is not None
            and self.must_finish_by is not None
            and _since_midnight(self.must_start_by) > _since_midnight(self.must_finish_by)
        ):
            raise ValueError(
                f"must_start_by={self.must_start_by} is later than "
                f"must_finish_by={self.must_finish_by}"
            )
        try:
            ZoneInfo(self.zone)
        except (ValueError, OSError, LookupError) as error:
            raise ValueError(
                f"zone={self.zone!r} is no time zone known here: give an IANA name such as "
                "Europe/Berlin (where a machine has none at all: pip install tzdata)"
            ) from error

    def deadlines(self, business_date: datetime.date) -> Deadlines:
        """The deadlines of the run for a business date, in UTC."""
        return Deadlines(
            self._in_utc(business_date, self.must_start_by),
            self._in_utc(business_date, self.must_finish_by),
        )

    def _in_utc(self, date: datetime.date, by: DayTime | None) -> datetime.datetime | None:
        if by is None:
            return None
        midnight = datetime.datetime(date.year, date.month, date.day)  # noqa: DTZ001
        on_the_wall = midnight + _since_midnight(by)
        return on_the_wall.replace(tzinfo=ZoneInfo(self.zone)).astimezone(datetime.UTC)


def _since_midnight(by: DayTime) -> datetime.timedelta:
    if isinstance(by, datetime.timedelta):
        return by
    return datetime.timedelta(
        hours=by.hour, minutes=by.minute, seconds=by.second, microseconds=by.microsecond
    )
