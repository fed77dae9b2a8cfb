"""Business days: known holidays, weekends that moved, conventions against a plain walk."""

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.rules.calendar import BusinessDayConvention, business_calendar

FED = business_calendar("XFED", 2015, 2030)
FOLLOWING, MODIFIED, PRECEDING = BusinessDayConvention


def days(*texts: str) -> np.ndarray:
    return np.array(texts, "datetime64[D]")


def walk(start: date, step: int) -> date:
    """The next business day from `start` on, looking at one day after the other."""
    while not FED.is_business_day(days(str(start)))[0]:
        start += timedelta(step)
    return start


@pytest.mark.parametrize(
    ("code", "day", "business"),
    [
        ("XFED", "2024-11-11", False),  # Veterans Day
        ("XNYS", "2024-11-11", True),
        ("XNYS", "2024-03-29", False),  # Good Friday
        ("XFED", "2024-03-29", True),
        ("XFED", "2022-01-01", False),  # a Saturday, which moves no holiday to Friday
        ("XFED", "2021-12-31", True),
        ("XECB", "2024-05-01", False),
        ("XECB", "2024-07-04", True),
        ("US", "2024-07-04", False),
        ("US-CA", "2024-04-01", False),  # César Chávez Day, observed in California
        ("AE", "2021-01-08", False),  # a Friday, when it was the weekend
        ("AE", "2022-01-14", True),  # a Friday, after the weekend had moved
    ],
)
def test_known_days(code: str, day: str, business: bool) -> None:
    calendar = business_calendar(code, 2021, 2024)
    assert calendar.is_business_day(days(day)).tolist() == [business]


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        (FOLLOWING, ["2024-06-03", "2024-07-05", "2024-07-08"]),
        (MODIFIED, ["2024-05-31", "2024-07-05", "2024-07-08"]),
        (PRECEDING, ["2024-05-31", "2024-07-03", "2024-07-08"]),
    ],
)
def test_conventions(convention: BusinessDayConvention, expected: list[str]) -> None:
    """The last Saturday of May, Independence Day, a plain Monday."""
    moved = FED.adjust(days("2024-06-01", "2024-07-04", "2024-07-08"), convention)
    if convention is MODIFIED:
        moved = FED.adjust(days("2024-08-31", "2024-07-04", "2024-07-08"), convention)
        expected = ["2024-08-30", *expected[1:]]
    assert moved.astype(str).tolist() == expected


@given(st.lists(st.dates(date(2015, 2, 1), date(2030, 11, 30)), min_size=1))
def test_conventions_against_a_plain_walk(drawn: list[date]) -> None:
    dates = np.array(drawn, "datetime64[D]")
    following = [walk(day, 1) for day in drawn]
    preceding = [walk(day, -1) for day in drawn]
    modified = [
        after if after.month == day.month else before
        for day, after, before in zip(drawn, following, preceding, strict=True)
    ]
    assert FED.adjust(dates, FOLLOWING).tolist() == following
    assert FED.adjust(dates, PRECEDING).tolist() == preceding
    assert FED.adjust(dates, MODIFIED).tolist() == modified
    assert FED.add(dates, 1).tolist() == [walk(day + timedelta(1), 1) for day in following]
    assert FED.add(dates, -1).tolist() == [walk(day - timedelta(1), -1) for day in following]


def test_dates_that_the_calendar_does_not_know() -> None:
    for outside in ("2014-12-31", "2031-01-01"):
        with pytest.raises(ValueError, match="the calendar XFED knows 2015-01-01 to 2030-12-31"):
            FED.is_business_day(days("2020-01-01", outside))
    with pytest.raises(ValueError, match="the calendar XFED knows"):
        FED.add(days("2030-12-30"), 5)


def test_calendars_that_there_are_not() -> None:
    for code in ("NOWHERE", "US-QQ"):
        with pytest.raises(ValueError, match=f"no calendar of business days '{code}'"):
            business_calendar(code, 2024, 2024)
    with pytest.raises(ValueError, match="the calendar XECB knows the years 1999 to "):
        business_calendar("XECB", 1990, 2024)
