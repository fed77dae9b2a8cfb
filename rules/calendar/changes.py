"""Days on which a market opened or closed against its calendar.

Calendars are computed, or announced a year ahead. Elections, mourning and sessions on a Saturday
come on top, some of them announced days before. `KNOWN_CHANGES` are those that the library
`holidays` doesn't have; users' own come from a table.
"""

import datetime
from typing import NamedTuple

import pyarrow as pa

OPEN, CLOSED = "open", "closed"


class CalendarChange(NamedTuple):
    """A day that is not what the calendar says.

    Attributes:
        calendar: whose; a code of `business_calendar`.
        date: the day.
        status: `open` for a business day, `closed` for none.
        reason: for people.
    """

    calendar: str
    date: datetime.date
    status: str
    reason: str | None = None


def calendar_changes(table: pa.Table) -> tuple[CalendarChange, ...]:
    """Changes of calendars, from a table.

    Args:
        table: with the columns `calendar` (a code of `business_calendar`), `date` (date32),
            `status` (`open` or `closed`) and `reason` (text for people, or null).

    Raises:
        ValueError: if a status is neither `open` nor `closed`.
    """
    changes = [CalendarChange(**row) for row in table.select(CalendarChange._fields).to_pylist()]
    for change in changes:
        if change.status not in (OPEN, CLOSED):
            raise ValueError(
                f"{change.calendar} {change.date}: status {change.status!r} is neither {OPEN} "
                f"nor {CLOSED}"
            )
    return tuple(changes)


# Sessions of an hour on the evening of Diwali are not here: the day stays closed.
_INDIA = (
    ("2019-04-29", CLOSED, "parliamentary election in Mumbai"),
    ("2019-10-21", CLOSED, "election of the assembly of Maharashtra"),
    ("2020-02-01", OPEN, "Union Budget, a Saturday"),
    ("2023-06-28", OPEN, "Bakri Id moved to the next day"),
    ("2023-06-29", CLOSED, "Bakri Id moved from the day before"),
    ("2024-01-20", OPEN, "a Saturday, full session"),
    ("2024-01-22", CLOSED, "consecration in Ayodhya"),
    ("2024-03-02", OPEN, "a Saturday, sessions on the disaster recovery site"),
    ("2024-05-18", OPEN, "a Saturday, sessions on the disaster recovery site"),
    ("2024-05-20", CLOSED, "parliamentary election in Mumbai"),
    ("2024-11-20", CLOSED, "election of the assembly of Maharashtra"),
    ("2025-02-01", OPEN, "Union Budget, a Saturday"),
    ("2026-01-15", CLOSED, "municipal elections in Maharashtra"),
    ("2026-02-01", OPEN, "Union Budget, a Sunday"),
)

KNOWN_CHANGES = tuple(
    CalendarChange(market, datetime.date.fromisoformat(day), status, reason)
    for market in ("XNSE", "XBOM")
    for day, status, reason in _INDIA
)
"""Of the National Stock Exchange of India and of BSE, by their circulars, from 2019 on."""
