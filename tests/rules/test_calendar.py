"""Business days: known holidays, QuantLib's calendars, changes, and conventions, walked."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
import QuantLib as ql
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.rules.calendar.business_days import business_calendar
from ledgerbeam.rules.calendar.changes import CLOSED, OPEN, CalendarChange, calendar_changes
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention

FED = business_calendar("XFED", 2015, 2030)
FOLLOWING, MODIFIED, PRECEDING, NONE = BusinessDayConvention


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
    ("code", "published"),
    [
        ("XNYS", ql.UnitedStates(ql.UnitedStates.NYSE)),
        ("XFED", ql.UnitedStates(ql.UnitedStates.FederalReserve)),
        ("XECB", ql.TARGET()),
        ("ANBIMA", ql.Brazil(ql.Brazil.Settlement)),
        ("XLON", ql.UnitedKingdom(ql.UnitedKingdom.Exchange)),
    ],
)
def test_every_day_as_quantlib_has_it(code: str, published: ql.Calendar) -> None:
    calendar = business_calendar(code, 2000, 2026)
    every_day = np.arange(calendar.first, calendar.last + 1)
    first = date(2000, 1, 1)
    expected = [
        published.isBusinessDay(ql.Date.from_date(first + timedelta(number)))
        for number in range(len(every_day))
    ]
    differs = calendar.is_business_day(every_day) != expected
    assert every_day[differs].astype(str).tolist() == []


INDIAN_2024 = [  # weekdays without trading, by the exchanges' circulars
    "01-22", "01-26", "03-08", "03-25", "03-29", "04-11", "04-17", "05-01", "05-20", "06-17",
    "07-17", "08-15", "10-02", "11-01", "11-15", "11-20", "12-25",
]  # fmt: skip


@pytest.mark.parametrize("code", ["XNSE", "XBOM", "NSE", "BSE"])
def test_days_that_indian_exchanges_changed_at_short_notice(code: str) -> None:
    year = np.arange("2024-01-01", "2025-01-01", dtype="datetime64[D]")
    is_open = business_calendar(code, 2024, 2024).is_business_day(year)
    is_weekday = np.is_busday(year)
    assert year[is_open & ~is_weekday].astype(str).tolist() == [
        "2024-01-20", "2024-03-02", "2024-05-18",
    ]  # fmt: skip
    closed = year[~is_open & is_weekday].astype(str).tolist()
    assert closed == [f"2024-{day}" for day in INDIAN_2024]
    assert is_open.sum() == 248


def test_days_are_added_and_removed() -> None:
    changes = calendar_changes(
        pa.table(
            {
                "calendar": ["XNYS", "XNYS", "XFED", "US-CA", "NYSE", "XNYS"],
                "date": pa.array(
                    [date(2024, 6, 1), date(2024, 6, 3), date(2024, 6, 4), date(2024, 6, 5),
                     date(2024, 6, 6), date(2030, 6, 7)],
                    pa.date32(),
                ),
                "status": [OPEN, CLOSED, CLOSED, CLOSED, CLOSED, CLOSED],
                "reason": ["a test", None, "another calendar", "", "the same market", "not asked"],
            }
        )
    )  # fmt: skip
    week = np.arange("2024-06-01", "2024-06-08", dtype="datetime64[D]")
    plain = business_calendar("XNYS", 2024, 2024)
    changed = business_calendar("XNYS", 2024, 2024, changes)
    assert plain.is_business_day(week).tolist() == [False, False, True, True, True, True, True]
    assert changed.is_business_day(week).tolist() == [True, False, False, True, True, False, True]
    again = changed.with_changes([CalendarChange("XNYS", date(2024, 6, 3), OPEN)])
    assert again.is_business_day(week[2:3]).all()


def test_a_status_that_there_is_not() -> None:
    row = {"calendar": "XNSE", "date": date(2024, 6, 7), "status": "shut", "reason": None}
    with pytest.raises(ValueError, match="XNSE 2024-06-07: status 'shut' is neither open nor"):
        calendar_changes(pa.Table.from_pylist([row]))


def test_a_country_has_one_code() -> None:
    closed = [CalendarChange("USA", date(2024, 6, 3), CLOSED)]
    for code in ("US", "USA"):
        assert not business_calendar(code, 2024, 2024, closed).is_business_day(days("2024-06-03"))
    assert business_calendar("US-CA", 2024, 2024, closed).is_business_day(days("2024-06-03")).all()


def test_a_change_may_undo_a_known_one() -> None:
    undone = [CalendarChange("XNSE", date(2024, 5, 20), OPEN)]
    assert business_calendar("XNSE", 2024, 2024, undone).is_business_day(days("2024-05-20")).all()
    assert not business_calendar("XBOM", 2024, 2024, undone).is_business_day(days("2024-05-20"))


def test_a_change_of_no_calendar_is_not_passed_over() -> None:
    typo = [CalendarChange("XNZZ", date(2024, 5, 20), OPEN)]
    with pytest.raises(ValueError, match="no calendar of business days 'XNZZ'"):
        business_calendar("XNSE", 2024, 2024, typo)


BUS_252 = [  # of QuantLib's tests of business/252, in Brazil: start, end, days
    ("2002-02-01", "2002-02-04", 1),
    ("2002-02-04", "2003-05-16", 321),
    ("2003-05-16", "2003-12-17", 152),
    ("2003-12-17", "2004-12-17", 251),
    ("2004-12-17", "2005-12-19", 252),
    ("2005-12-19", "2006-01-02", 10),
    ("2006-03-17", "2006-05-15", 38),
    ("2007-06-28", "2009-09-16", 558),
    ("2009-09-16", "2016-07-26", 1724),
]


def test_business_days_between() -> None:
    brazil = business_calendar("ANBIMA", 2002, 2016)
    starts, ends, expected = (np.array(column) for column in zip(*BUS_252, strict=True))
    counted = brazil.business_days_between(days(*starts), days(*ends))
    assert counted.dtype == np.int64
    assert counted.tolist() == expected.tolist()
    for start, end, number in BUS_252:
        one = brazil.business_days_between(date.fromisoformat(start), date.fromisoformat(end))
        assert one == number
        assert type(one) is int


@given(st.tuples(*[st.dates(date(2015, 1, 1), date(2030, 12, 31))] * 2).map(sorted))
def test_business_days_between_against_a_plain_walk(period: list[date]) -> None:
    """The first day counts, the last one doesn't."""
    start, end = period
    whole = np.arange(np.datetime64(start), np.datetime64(end))
    assert FED.business_days_between(start, end) == FED.is_business_day(whole).sum()
    counted = FED.business_days_between(days(str(start)).reshape(1, 1), days(str(end)))
    assert counted.tolist() == [[FED.business_days_between(start, end)]]


def test_business_days_of_periods_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="ends on 2024-01-01, before it starts on 2024-01-02"):
        FED.business_days_between(date(2024, 1, 2), date(2024, 1, 1))
    with pytest.raises(ValueError, match="the calendar XFED knows"):
        FED.business_days_between(date(2024, 1, 2), date(2031, 1, 1))


def test_no_convention_moves_nothing_and_counts_from_nowhere() -> None:
    dates = days("2024-06-01", "2099-07-04")
    assert FED.adjust(dates, NONE).tolist() == dates.tolist()
    with pytest.raises(ValueError, match="not with none"):
        FED.add(days("2024-06-01"), 1, NONE)


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
    for code in ("NOWHERE", "US-QQ", "US-California"):
        with pytest.raises(ValueError, match=f"no calendar of business days '{code}'"):
            business_calendar(code, 2024, 2024)
    with pytest.raises(ValueError, match="the calendar XECB knows the years 1999 to "):
        business_calendar("XECB", 1990, 2024)
