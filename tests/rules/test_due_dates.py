"""Due dates: frequencies, walks over them, and QuantLib's schedules."""

from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import pytest
import QuantLib
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.rules.terms.due_dates import (
    MONTHLY,
    SEMI_MONTHLY,
    DueDates,
    Frequency,
    half_month_days,
    month_later,
    month_later_many,
    parse_frequency,
)

days = st.dates(date(1950, 1, 1), date(2100, 1, 1))
due_days = st.integers(1, 31)
frequencies = st.sampled_from(["P1M", "P2M", "P3M", "P6M", "P1Y", "P0.5M", "P1W", "P2W", "P10D"])


@st.composite
def due_dates(draw: st.DrawFn) -> DueDates:
    frequency, first_due = parse_frequency(draw(frequencies)), draw(days)
    due_day, second = first_due.day, 0
    if not frequency.days and month_later(first_due, 31) == first_due:
        due_day = draw(st.integers(first_due.day, 31))
    if frequency.twice_a_month and draw(st.booleans()):
        second = draw(st.integers(1, 27).filter(lambda day: day != due_day))
    broken = draw(st.none() | st.integers(1, 100))
    interest_from = None if broken is None else first_due - timedelta(broken)
    return DueDates(frequency, due_day, second, first_due, interest_from)


class TestFrequencies:
    @pytest.mark.parametrize(
        ("text", "frequency"),
        [
            ("P1M", Frequency(1, 0)),
            ("P3M", Frequency(3, 0)),
            ("P1Y", Frequency(12, 0)),
            ("P2W", Frequency(0, 14)),
            ("P10D", Frequency(0, 10)),
            ("P0.5M", SEMI_MONTHLY),
            ("weekly", Frequency(0, 7)),
            ("biweekly", Frequency(0, 14)),
            ("semimonthly", SEMI_MONTHLY),
            ("monthly", MONTHLY),
            ("quarterly", Frequency(3, 0)),
            ("semiannual", Frequency(6, 0)),
            ("annual", Frequency(12, 0)),
        ],
    )
    def test_durations(self, text: str, frequency: Frequency) -> None:
        assert parse_frequency(text) == frequency
        assert parse_frequency(str(frequency)) == frequency

    @pytest.mark.parametrize(
        "text", ["", "1M", "P", "P0M", "P1M15D", "PT1M", "p1m", "P-1M", "P1.5M", "Monthly"]
    )
    def test_what_is_no_duration(self, text: str) -> None:
        with pytest.raises(ValueError, match="not a duration such as P1M or P2W"):
            parse_frequency(text)

    def test_two_days_of_a_month(self) -> None:
        assert [half_month_days(day) for day in (1, 15, 16, 31)] == [
            (1, 16), (15, 30), (1, 16), (16, 31),
        ]  # fmt: skip
        assert half_month_days(20, 5) == half_month_days(5, 20) == (5, 20)


class TestMonths:
    def test_month_ends_come_back(self) -> None:
        monthly = [month_later(date(2023, 12, 31), 31, k) for k in range(5)]
        assert [str(day) for day in monthly] == [
            "2023-12-31", "2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30",
        ]  # fmt: skip
        assert month_later(date(2024, 3, 31), 30, -1) == date(2024, 2, 29)

    @given(st.lists(st.tuples(days, due_days, st.integers(-50, 50)), min_size=1))
    def test_of_many(self, drawn: list[tuple[date, int, int]]) -> None:
        day, due_day, months = (np.array(column) for column in zip(*drawn, strict=True))
        got = month_later_many(np.array(day, "datetime64[D]"), due_day, months)
        assert got.tolist() == [month_later(*each) for each in drawn]


class TestWalks:
    @given(due_dates(), st.integers(-900, 900))
    def test_there_and_back(self, dates: DueDates, offset: int) -> None:
        assert dates.first_due is not None
        day = max(dates.first_due + timedelta(offset), dates.before(dates.first_due))
        after = dates.after(day)
        assert after > day
        assert dates.is_due(after)
        assert dates.before(after) <= day
        # Nothing is due in between.
        between = range(1, min((after - day).days, 40))
        assert not any(dates.is_due(day + timedelta(ahead)) for ahead in between)

    @given(due_dates())
    def test_the_first_period(self, dates: DueDates) -> None:
        first_due = dates.first_due
        assert first_due is not None
        assert dates.before(first_due) == dates.interest_from or dates.regular_before(first_due)
        assert dates.number(first_due) == 1
        assert dates.number(dates.after(first_due)) == 2

    @given(due_dates(), st.integers(1, 40))
    def test_behind_maturity_they_go_on(self, dates: DueDates, back: int) -> None:
        assert dates.first_due is not None
        due = dates.after(dates.after(dates.first_due))
        maturity = due - timedelta(min(back, (due - dates.first_due).days - 1))
        ending = DueDates(
            dates.frequency, dates.due_day, dates.second_due_day, dates.first_due, maturity=maturity
        )
        assert ending.is_due(maturity)
        assert ending.before(maturity + timedelta(1)) == maturity
        assert ending.after(due) == dates.after(due)

    def test_a_first_date_is_needed_to_count(self) -> None:
        with pytest.raises(ValueError, match="first_due is needed with a frequency of P14D"):
            DueDates(Frequency(0, 14), 1).after(date(2024, 1, 1))
        with pytest.raises(ValueError, match="first_due is needed with a frequency of P3M"):
            DueDates(Frequency(3, 0), 1).before(date(2024, 1, 1))
        with pytest.raises(ValueError, match="first_due is needed to count instalments"):
            DueDates(MONTHLY, 1).number(date(2024, 1, 1))

    @given(days, st.integers(1, 800), st.sampled_from(["P1M", "P3M", "P6M", "P1Y", "P2W", "P10D"]))
    def test_quantlib_has_the_same_dates(self, start: date, ahead: int, frequency: str) -> None:
        first_due = start + timedelta(ahead)
        dates = DueDates(parse_frequency(frequency), first_due.day, 0, first_due, start)
        dues = [first_due]
        while len(dues) < 24:
            dues.append(dates.after(dues[-1]))
        null, unadjusted = QuantLib.NullCalendar(), QuantLib.Unadjusted
        first, begin, end = (
            QuantLib.Date(day.day, day.month, day.year) for day in (first_due, start, dues[-1])
        )
        schedule = QuantLib.Schedule(
            begin, end, QuantLib.Period(frequency), null, unadjusted, unadjusted,
            QuantLib.DateGeneration.Forward, False, first,
        )  # fmt: skip
        assert [day.to_date() for day in schedule] == [start, *dues]
        assert all(dates.before(later) == earlier for earlier, later in pairwise([start, *dues]))
