"""Business days: calendars of the library `holidays`, conventions of the 2006 ISDA Definitions.

Which days are holidays where, and which weekends are whose, is the library's knowledge. numpy
does the counting, for one date or for millions.
"""

import datetime
from dataclasses import dataclass
from enum import StrEnum

import holidays
import numpy as np
import numpy.typing as npt

from ledgerbeam.rules.day_count import Dates


class BusinessDayConvention(StrEnum):
    """Where a date goes that isn't a business day: ISDA 2006, section 4.12, by numpy's names."""

    FOLLOWING = "following"
    """To the next business day."""
    MODIFIED_FOLLOWING = "modifiedfollowing"
    """To the next business day, unless that is in the next month: then to the one before."""
    PRECEDING = "preceding"
    """To the business day before."""


@dataclass(frozen=True)
class BusinessCalendar:
    """The business days of a place in some years.

    Attributes:
        code: whose they are.
        days: what numpy's `busday` functions take as `busdaycal`.
        first: the first day that is known.
        last: the last day that is known.
    """

    code: str
    days: np.busdaycalendar
    first: np.datetime64
    last: np.datetime64

    def is_business_day(self, dates: Dates) -> npt.NDArray[np.bool_]:
        """Which of `dates`, datetime64[D], are business days.

        Raises:
            ValueError: if a date is outside the calendar's years.
        """
        return np.is_busday(self._known(dates), busdaycal=self.days)

    def adjust(self, dates: Dates, convention: BusinessDayConvention) -> Dates:
        """The business days that `dates`, datetime64[D], are moved to.

        Raises:
            ValueError: if a date, or where it goes, is outside the calendar's years.
        """
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
            ValueError: if a date, or the result, is outside the calendar's years.
        """
        moved = np.busday_offset(
            self._known(dates), number, roll=convention.value, busdaycal=self.days
        )
        return self._known(moved)

    def _known(self, dates: Dates) -> Dates:
        if not np.all((dates >= self.first) & (dates <= self.last)):
            raise ValueError(
                f"the calendar {self.code} knows {self.first} to {self.last}, not all the dates "
                f"from {dates.min()} to {dates.max()}"
            )
        return dates


def business_calendar(code: str, first_year: int, last_year: int) -> BusinessCalendar:
    """The business days of a market or a country.

    Args:
        code: a market that `holidays` knows, mostly by its ISO 10383 code (`XFED` for the Federal
            Reserve, `XECB` for T2 of the Eurosystem, `XNYS` for the New York Stock Exchange), or
            a country or its part by ISO 3166 (`US`, `US-CA`).
        first_year: of the calendar.
        last_year: of the calendar, included.

    Raises:
        ValueError: if the code is unknown, or the library doesn't know some of the years.
    """
    years = range(first_year, last_year + 1)
    try:
        known = holidays.financial_holidays(code, years=years)
    except NotImplementedError:
        country, _, part = code.partition("-")
        try:
            known = holidays.country_holidays(country, part or None, years=years)
        except NotImplementedError as error:
            raise ValueError(f"no calendar of business days {code!r}: {error}") from error
    if first_year < known.start_year or last_year > known.end_year:
        raise ValueError(
            f"the calendar {code} knows the years {known.start_year} to {known.end_year}, "
            f"not all from {first_year} to {last_year}"
        )
    first, last = datetime.date(first_year, 1, 1), datetime.date(last_year, 12, 31)
    every_day = map(datetime.date.fromordinal, range(first.toordinal(), last.toordinal() + 1))
    # Weekends change over the years, and some of their days are worked.
    free = [day for day in every_day if not known.is_working_day(day)]
    days = np.busdaycalendar(weekmask="1111111", holidays=free)
    return BusinessCalendar(code, days, np.datetime64(first), np.datetime64(last))
