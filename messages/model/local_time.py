"""Moments by clocks and calendars of a place: 08:00 in Sydney, month's end at close.

Zone rules and calendars change while a message waits. So the local time is stored beside the
moment that it was taken for, and `ledgerbeam messages derive` takes it again after a change.
"""

import datetime
import functools
import zoneinfo
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, model_validator

from ledgerbeam.rules.calendar.conventions import BusinessDayConvention

if TYPE_CHECKING:
    from ledgerbeam.rules.calendar.business_days import BusinessCalendar


class Gap(StrEnum):
    """Where a time goes that clocks skip, when they are put forward."""

    LATER = "later"
    """As far behind the skip as it stood behind its beginning: 02:30 becomes 03:30."""
    EARLIER = "earlier"
    """By the clock before the skip: 02:30 becomes 01:30."""


class Overlap(StrEnum):
    """Which of two moments a time means that clocks show twice, when they are put back."""

    FIRST = "first"
    SECOND = "second"


class LocalTime(BaseModel):
    """A date and a time by the clocks of a zone.

        LocalTime(date=datetime.date(2027, 1, 31), time=datetime.time(8), zone="Australia/Sydney",
                  calendar="XASX", convention="preceding")

    Attributes:
        date: the day, before it is moved to a business day.
        time: by the zone's clocks.
        zone: a name of the IANA database, such as `Australia/Sydney`.
        calendar: whose business days count; None if every day does. See `business_calendar`.
        convention: where a day goes that is none; only with a calendar.
        gap: where a time goes that clocks skip.
        overlap: which of two moments is meant where clocks show a time twice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    date: datetime.date
    time: datetime.time
    zone: str
    calendar: str | None = None
    convention: BusinessDayConvention = BusinessDayConvention.FOLLOWING
    gap: Gap = Gap.LATER
    overlap: Overlap = Overlap.FIRST

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.time.tzinfo is not None:
            raise ValueError(f"time {self.time} has a zone of its own: name it by zone")
        try:
            zoneinfo.ZoneInfo(self.zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            raise ValueError(
                f"there is no time zone {self.zone!r}: give a name such as Australia/Sydney"
            ) from None
        return self

    def moment(self) -> datetime.datetime:
        """The moment in UTC, by the zone rules and calendars of today.

        Raises:
            ValueError: the calendar is unknown, or doesn't know the year.
        """
        date = self.date
        if self.calendar is not None:
            import numpy as np  # front ends, which compute no moments, do without it

            calendar = _calendar(self.calendar, date.year)
            moved = calendar.adjust(np.array([date], "datetime64[D]"), self.convention)
            date = moved[0].item()
        zone = zoneinfo.ZoneInfo(self.zone)
        naive = datetime.datetime.combine(date, self.time)
        first, second = (naive.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
        before, after = (moment.utcoffset() or datetime.timedelta() for moment in (first, second))
        # In a gap the offset before the skip, that of fold 0, gives the later moment.
        is_gap = before < after
        if is_gap:
            chosen = first if self.gap is Gap.LATER else second
        else:
            chosen = first if self.overlap is Overlap.FIRST else second
        return chosen.astimezone(datetime.UTC)


class Recurrence(BaseModel):
    """Times that come again; the consumer of one schedules the next.

        monthly = Recurrence(start=first, months=1)
        work.reschedule(monthly.after(work.due))

    Attributes:
        start: the first of them. Its day of the month holds for all: a recurrence that starts on
            January 31 goes to February 28, and to March 31.
        days: how many days lie between two of them; 0 if months do.
        months: how many months lie between two of them; 0 if days do.
        month_end: whether each is on the last day of its month.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: LocalTime
    days: int = 0
    months: int = 0
    month_end: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.days > 0) == (self.months > 0) or min(self.days, self.months) < 0:
            raise ValueError(f"days is {self.days} and months {self.months}: give one of them")
        if self.month_end and not self.months:
            raise ValueError("month_end goes with months")
        return self

    def occurrence(self, number: int) -> LocalTime:
        """The time of a number; 0 for the first."""
        start = self.start.date
        if self.days:
            date = start + number * datetime.timedelta(days=self.days)
        else:
            year, month = divmod(start.year * 12 + start.month - 1 + number * self.months, 12)
            following = datetime.date(year + month // 11, (month + 1) % 12 + 1, 1)
            last = (following - datetime.timedelta(days=1)).day
            date = datetime.date(year, month + 1, last if self.month_end else min(start.day, last))
        return self.start.model_copy(update={"date": date})

    def after(self, moment: datetime.datetime) -> LocalTime:
        """The first of the times that is later than a moment.

        None is left out and none comes twice, even if business days move some of them.

        Args:
            moment: with a time zone.
        """
        # A time is moved by less than a month, so that the search begins before it.
        days = (moment.date() - self.start.date).days - 40
        number = max(0, days // (self.days or 31 * self.months))
        while (found := self.occurrence(number)).moment() <= moment:
            number += 1
        return found


@functools.lru_cache(maxsize=256)
def _calendar(code: str, year: int) -> "BusinessCalendar":
    from ledgerbeam.rules.calendar.business_days import business_calendar

    # A day at either end of a year may be moved into the next or the last one.
    for first, last in ((year - 1, year + 1), (year, year)):
        try:
            return business_calendar(code, first, last)
        except ValueError as error:
            refused = error
    raise refused
