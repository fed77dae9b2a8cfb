"""Dates as people give them: `YYYY-MM-DD`, and on a command line three words.

A number that is read as seconds since 1970, or `20261120`, is a mistake and never a date: a run
for another day than was meant would succeed.
"""

import datetime
import re
from typing import Any
from zoneinfo import ZoneInfo

from pydantic_core import CoreSchema, PydanticCustomError, core_schema

DATE_WORDS = ("today", "yesterday", "last-business-day")
"""What a command line takes in place of a date."""

_FORM = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAY = datetime.timedelta(days=1)


def read_date(value: object) -> datetime.date:
    """A date that is given as `YYYY-MM-DD`, or as a date.

    Raises:
        ValueError: it is anything else, or no day of the calendar.
    """
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    if isinstance(value, str) and _FORM.fullmatch(value):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            raise PydanticCustomError(
                "date_parsing", "there is no such day: give a date as YYYY-MM-DD"
            ) from None
    raise PydanticCustomError("date_parsing", "give a date as YYYY-MM-DD, such as 2026-11-20")


def with_strict_dates(schema: CoreSchema) -> CoreSchema:
    """The schema of a model whose fields of dates take what `read_date` does, also in lists.

    A model that is the type of a field stays as it is where it is used by itself.
    """
    strict: CoreSchema = _strict(schema)
    return strict


def _strict(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(_strict(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    # Metadata and defaults hold values, and no schemas; of a mapping of fields they are names.
    values = {"metadata", "default"} if isinstance(schema.get("type"), str) else set()
    strict: Any = {key: value if key in values else _strict(value) for key, value in schema.items()}
    if schema.get("type") != "date":
        return strict
    return core_schema.no_info_before_validator_function(read_date, strict)


def date_of_word(
    word: str, now: datetime.datetime, zone: str = "UTC", calendar: str = ""
) -> datetime.date:
    """The date that a word of `DATE_WORDS` stands for.

    Args:
        word: `last-business-day` is the last one before today.
        now: the present time in UTC.
        zone: IANA name of the time zone whose today it is.
        calendar: code of the business days, as `business_calendar` takes it; if it is empty,
            business days are Mondays to Fridays.

    Raises:
        ValueError: the calendar is unknown, or doesn't know the year.
    """
    today = now.astimezone(ZoneInfo(zone)).date()
    if word == "today":
        return today
    if word == "yesterday":
        return today - _DAY
    # A command without dates, or with another word, does without numpy.
    import numpy as np

    from ledgerbeam.rules.calendar.business_days import business_calendar

    days = np.busdaycalendar("1111100")
    if calendar:
        days = business_calendar(calendar, today.year - 1, today.year).days
    found = np.busday_offset(today, -1, roll="forward", busdaycal=days)
    return datetime.date.fromisoformat(str(found))
