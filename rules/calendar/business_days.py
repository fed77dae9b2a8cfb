"""Business days: calendars of the library `holidays`, conventions of the 2006 ISDA Definitions.

Which days are holidays where, and which weekends are whose, is the library's knowledge. What it
can't know, days opened and closed at short notice, is in `ledgerbeam.rules.calendar.changes` and in
files of the same format. numpy does the counting, for one date or for millions.
"""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ledgerbeam.rules.arrays import Dates, Flags, Integers
from ledgerbeam.rules.calendar.changes import KNOWN_CHANGES, OPEN, CalendarChange
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention

if TYPE_CHECKING:
    import holidays

ANBIMA = "ANBIMA"
"""Banking days of Brazil, which BUS/252 counts: `BVMF`, and the days only the exchange is closed.

`BR`, the country's public holidays, lacks Carnival and Corpus Christi.
"""


@dataclass(frozen=True)
class BusinessCalendar:
    """The business days of a place in some years.

    Attributes:
        code: the market or country, as `business_calendar` takes it.
        days: the same as numpy's `busday` functions take it, as `busdaycal`.
        first: the first day that is known.
        last: the last day that is known.
    """

    code: str
    days: np.busdaycalendar
    first: np.datetime64
    last: np.datetime64

    def is_business_day(self, dates: Dates) -> Flags:
        """Which of `dates`, datetime64[D] of any shape, are business days: bool of that shape.

        Raises:
            ValueError: if a date is outside the calendar's years.
        """
        return np.is_busday(self._known(dates), busdaycal=self.days)

    def adjust(self, dates: Dates, convention: BusinessDayConvention) -> Dates:
        """The business days that `dates`, datetime64[D], are moved to.

        Raises:
            ValueError: if a date, or where it goes, is outside the calendar's years; never with
                `NONE`, which asks nothing of the calendar.
        """
        if convention is BusinessDayConvention.NONE:
            return dates
        return self.add(dates, 0, convention)

    def add(
        self,
        dates: Dates,
        number: int,
        convention: BusinessDayConvention = BusinessDayConvention.FOLLOWING,
    ) -> Dates:
        """`number` business days after `dates`, datetime64[D]; before them if it is negative.

        Args:
            dates: to start from.
            number: of business days.
            convention: where a start goes that isn't a business day, before counting.

        Raises:
            ValueError: if a date, or the result, is outside the calendar's years, or the
                convention is `NONE`, so that there is no day to count from.
        """
        if convention is BusinessDayConvention.NONE:
            raise ValueError("business days are added with a convention, not with none")
        roll: Any = convention.value  # numpy's stubs want the three literals
        moved = np.busday_offset(self._known(dates), number, roll=roll, busdaycal=self.days)
        return self._known(moved)

    @overload
    def business_days_between(self, starts: datetime.date, ends: datetime.date) -> int: ...

    @overload
    def business_days_between(self, starts: Dates, ends: Dates) -> Integers: ...

    def business_days_between(
        self, starts: datetime.date | Dates, ends: datetime.date | Dates
    ) -> int | Integers:
        """Business days from starts on, up to ends and without them: what BUS/252 counts.

        Args:
            starts: a date, or datetime64[D] of any shape.
            ends: likewise, of the same shape, none before its start.

        Returns:
            A number for two dates, int64 of their shape for arrays.

        Raises:
            ValueError: if a period ends before it starts, or a date is outside the calendar's
                years.
        """
        first, last = (np.asarray(dates, "datetime64[D]") for dates in (starts, ends))
        if not np.all(first <= last):
            at = np.argmax(np.ravel(first > last))
            raise ValueError(
                f"a period ends on {last.ravel()[at]}, before it starts on {first.ravel()[at]}"
            )
        counted = np.busday_count(self._known(first), self._known(last), busdaycal=self.days)
        if isinstance(starts, datetime.date):
            return int(counted)
        return np.asarray(counted, np.int64)

    def with_changes(self, changes: Iterable[CalendarChange]) -> "BusinessCalendar":
        """This calendar with days opened and closed.

        Args:
            changes: of any calendars and years; those of other calendars are ignored. Of two
                changes of the same day the later one holds.

        Raises:
            ValueError: if a change names an unknown calendar.
        """
        free = set(self.days.holidays.tolist())
        codes: dict[str, str] = {}
        for change in changes:
            if change.calendar not in codes:
                codes[change.calendar] = _code(change.calendar, _holidays(change.calendar))
            if codes[change.calendar] != self.code:
                continue
            if change.status == OPEN:
                free.discard(change.date)
            elif self.first <= np.datetime64(change.date) <= self.last:
                free.add(change.date)
        return replace(self, days=_every_day_but(free))

    def _known(self, dates: Dates) -> Dates:
        if not np.all((dates >= self.first) & (dates <= self.last)):
            raise ValueError(
                f"the calendar {self.code} knows {self.first} to {self.last}, not all the dates "
                f"from {dates.min()} to {dates.max()}"
            )
        return dates


def business_calendar(
    code: str, first_year: int, last_year: int, changes: Iterable[CalendarChange] = ()
) -> BusinessCalendar:
    """The business days of a market or a country, with `KNOWN_CHANGES`.

    Args:
        code: a market that `holidays` knows, mostly by its ISO 10383 code (`XFED` for the Federal
            Reserve, `XECB` for T2 of the Eurosystem, `XNYS` for the New York Stock Exchange), a
            country or its part by ISO 3166 (`US`, `US-CA`), or `ANBIMA`.
        first_year: of the calendar.
        last_year: of the calendar, included.
        changes: on top of the known ones; see `with_changes`.

    Raises:
        ValueError: if the code is unknown, or the library doesn't know some of the years.
    """
    known = _holidays(code, range(first_year, last_year + 1))
    if first_year < known.start_year or last_year > known.end_year:
        raise ValueError(
            f"the calendar {code} knows the years {known.start_year} to {known.end_year}, "
            f"not all from {first_year} to {last_year}"
        )
    first, last = datetime.date(first_year, 1, 1), datetime.date(last_year, 12, 31)
    every_day = map(datetime.date.fromordinal, range(first.toordinal(), last.toordinal() + 1))
    # Weekends change over the years, and some of their days are worked.
    free = {day for day in every_day if not known.is_working_day(day)}
    calendar = BusinessCalendar(
        _code(code, known), _every_day_but(free), np.datetime64(first), np.datetime64(last)
    )
    return calendar.with_changes([*KNOWN_CHANGES, *changes])


def known_years(code: str) -> range:
    """The years for which a calendar of business days is known.

    Args:
        code: as for `business_calendar`.

    Raises:
        ValueError: if the code is unknown.
    """
    known = _holidays(code)
    return range(known.start_year, known.end_year + 1)


def _holidays(code: str, years: range = range(0)) -> "holidays.HolidayBase":
    # The library takes a quarter of the time that numpy and Arrow take to be imported.
    import holidays

    try:
        known = holidays.financial_holidays("BVMF" if code == ANBIMA else code, years=years)
    except NotImplementedError:
        country, _, part = code.partition("-")
        try:
            known = holidays.country_holidays(country, part or None, years=years)
        except NotImplementedError as error:
            raise ValueError(f"no calendar of business days {code!r}: {error}") from error
        if part and part not in known.subdivisions:
            # The library knows names and old codes, too: a change of one would miss the other.
            raise ValueError(
                f"no calendar of business days {code!r}: {part} is no ISO 3166 code of {country}"
            ) from None
        return known
    if code == ANBIMA:
        for day in [day for day in known if day.month == 12 and day.day != 25]:
            del known[day]
    return known


def _code(code: str, known: "holidays.HolidayBase") -> str:
    """One code for what has several, such as XNSE for NSE and US for USA."""
    if code == ANBIMA:
        return code
    market: str | None = getattr(known, "market", None)
    return market or "-".join(filter(None, (known.country, known.subdiv)))


def _every_day_but(free: set[datetime.date]) -> np.busdaycalendar:
    return np.busdaycalendar(weekmask="1111111", holidays=sorted(free))
