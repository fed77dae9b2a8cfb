"""Day counts: published examples, and both forms of every definition held equal."""

from datetime import date
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.rules.terms.day_count import (
    BY_TWO_DATES,
    DENOMINATORS,
    DayCount,
    day_count_days,
    day_number_30_360,
    day_number_30_360_many,
    year_fraction,
    year_fraction_many,
)

# Of ISDA's "30/360 day count conventions" (December 2008), the column 30/360 Bond Basis.
BOND_BASIS = """
2006-08-20 2007-02-20 180
2007-02-20 2007-08-20 180
2007-08-20 2008-02-20 180
2008-02-20 2008-08-20 180
2006-08-31 2007-02-28 178
2007-02-28 2007-08-31 183
2007-08-31 2008-02-29 179
2008-02-29 2008-08-31 182
2006-01-31 2006-02-28 28
2006-01-30 2006-02-28 28
2006-02-28 2006-03-03 5
2006-02-14 2006-02-28 14
2006-09-30 2006-10-31 30
2006-10-31 2006-11-28 28
2007-08-31 2008-02-28 178
2008-02-28 2008-08-28 180
2008-02-28 2008-08-30 182
2008-02-28 2008-08-31 183
2007-02-26 2008-02-28 362
2007-02-26 2008-02-29 363
2008-02-29 2009-02-28 359
2008-02-28 2008-03-30 32
2008-02-28 2008-03-31 33
"""

dates = st.dates(date(1600, 1, 1))
near = st.tuples(dates, st.integers(0, 800)).map(
    lambda start: (start[0], date.fromordinal(min(start[0].toordinal() + start[1], 3652059)))
)
periods = st.tuples(dates, dates).map(lambda pair: (min(pair), max(pair))) | near
day_counts = st.sampled_from(sorted(BY_TWO_DATES))
OTHERS = sorted(set(DayCount) - BY_TWO_DATES)


@pytest.mark.parametrize("example", BOND_BASIS.strip().splitlines())
def test_isda_examples_of_30_360(example: str) -> None:
    start, end, days = example.split()
    period = date.fromisoformat(start), date.fromisoformat(end)
    for day_count in (DayCount.THIRTY_360, DayCount.THIRTY_360_ISDA):
        assert day_count_days(*period, day_count) == int(days)
        assert year_fraction(*period, day_count) == Fraction(int(days), 360)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        # ISDA, "EMU and market conventions: recent developments" (1998), section 4.
        ("2003-11-01", "2004-05-01", Fraction(61, 365) + Fraction(121, 366)),
        ("1999-02-01", "1999-07-01", Fraction(150, 365)),
        ("1999-07-01", "2000-07-01", Fraction(184, 365) + Fraction(182, 366)),
        ("2002-08-15", "2003-07-15", Fraction(334, 365)),
        ("1999-07-30", "2000-01-30", Fraction(155, 365) + Fraction(29, 366)),
        ("1899-12-31", "1901-01-01", Fraction(366, 365)),
        ("2000-01-01", "2001-01-01", Fraction(1)),
        ("2000-01-01", "2005-01-01", Fraction(5)),
    ],
)
def test_actual_actual_splits_by_leap_years(start: str, end: str, expected: Fraction) -> None:
    period = date.fromisoformat(start), date.fromisoformat(end)
    assert year_fraction(*period, DayCount.ACT_ACT) == expected


def test_actual_over_fixed_years() -> None:
    period = date(2024, 1, 31), date(2025, 1, 31)
    assert year_fraction(*period, DayCount.ACT_360) == Fraction(366, 360)
    assert year_fraction(*period, DayCount.ACT_365F) == Fraction(366, 365)
    assert year_fraction(*period, DayCount.ACT_364) == Fraction(366, 364)
    assert year_fraction(*period, DayCount.NL_365) == 1
    assert day_count_days(*period, DayCount.ACT_ACT) == 366


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        # 29 February has no day, and the 28th ends where it begins.
        ("2024-02-28", "2024-02-29", 0),
        ("2024-02-28", "2024-03-01", 1),
        ("2024-02-29", "2024-03-01", 1),
        ("2023-02-28", "2023-03-01", 1),
        ("2000-01-01", "2024-01-01", 24 * 365),
    ],
)
def test_no_leap_days(start: str, end: str, days: int) -> None:
    period = date.fromisoformat(start), date.fromisoformat(end)
    assert day_count_days(*period, DayCount.NL_365) == days


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        # A 31st is a 30th at either end; the last of February is no 30th.
        ("2006-08-31", "2007-02-28", 178),
        ("2007-02-28", "2007-08-31", 182),
        ("2006-09-30", "2006-10-31", 30),
        ("2006-10-31", "2006-11-28", 28),
        ("2008-02-29", "2009-02-28", 359),
        ("2008-02-28", "2008-03-31", 32),
    ],
)
def test_eurobond_basis(start: str, end: str, days: int) -> None:
    period = date.fromisoformat(start), date.fromisoformat(end)
    assert day_count_days(*period, DayCount.THIRTY_E_360) == days


@pytest.mark.parametrize("day_count", OTHERS)
def test_what_two_dates_are_not_enough_for(day_count: DayCount) -> None:
    period = date(2024, 1, 31), date(2024, 2, 29)
    for function in (year_fraction, day_count_days):
        with pytest.raises(ValueError, match=f"^{day_count} needs the period of a loan"):
            function(*period, day_count)
    start, end = np.array(period, "datetime64[D]")[:, None]
    with pytest.raises(ValueError, match=f"^{day_count} needs the period of a loan"):
        year_fraction_many(start, end, day_count)


def test_names() -> None:
    assert list(DayCount) == [
        "30/360", "ACT/360", "ACT/365F", "ACT/ACT", "30/360 ISDA", "30E/360", "30E/360 ISDA",
        "ACT/364", "ACT/365L", "NL/365", "ACT/ACT ICMA", "BUS/252",
    ]  # fmt: skip


@given(st.lists(periods, min_size=1, max_size=20), day_counts)
def test_both_forms_agree(drawn: list[tuple[date, date]], day_count: DayCount) -> None:
    starts, ends = np.array(drawn, "datetime64[D]").T
    numerators, denominator = year_fraction_many(starts, ends, day_count)
    assert numerators.dtype == np.int64
    assert denominator == DENOMINATORS[day_count]
    got = [Fraction(numerator, denominator) for numerator in numerators.tolist()]
    assert got == [year_fraction(start, end, day_count) for start, end in drawn]


@given(near, day_counts)
def test_many_periods_of_few_days(period: tuple[date, date], day_count: DayCount) -> None:
    """Here dates are looked up by day."""
    days = [
        date.fromordinal(ordinal)
        for ordinal in range(period[0].toordinal(), period[1].toordinal() + 1)
    ]
    starts = np.full(len(days), period[0], "datetime64[D]")
    numerators, denominator = year_fraction_many(starts, np.array(days, "datetime64[D]"), day_count)
    got = [Fraction(numerator, denominator) for numerator in numerators.tolist()]
    assert got == [year_fraction(period[0], day, day_count) for day in days]


@given(st.lists(st.tuples(dates, st.integers(1, 31)), min_size=1, max_size=20))
def test_days_of_months(drawn: list[tuple[date, int]]) -> None:
    days, due_day = (np.array(column) for column in zip(*drawn, strict=True))
    got = np.diff(day_number_30_360_many(days.astype("datetime64[D]"), due_day))
    assert got.tolist() == np.diff([day_number_30_360(*each) for each in drawn]).tolist()


@given(dates, st.integers(1, 31))
def test_dates_are_in_order_by_months_of_30_days(day: date, due_day: int) -> None:
    if day < date.max:
        later = date.fromordinal(day.toordinal() + 1)
        assert day_number_30_360(day, due_day) <= day_number_30_360(later, due_day)


@given(st.lists(dates, min_size=3, max_size=3).map(sorted))
def test_actual_day_counts_add_up(ordered: list[date]) -> None:
    first, middle, last = ordered
    for day_count in BY_TWO_DATES - {DayCount.THIRTY_360, DayCount.THIRTY_360_ISDA}:
        parts = year_fraction(first, middle, day_count) + year_fraction(middle, last, day_count)
        assert parts == year_fraction(first, last, day_count)


@pytest.mark.parametrize("day_count", sorted(BY_TWO_DATES))
def test_periods_that_end_before_they_start(day_count: DayCount) -> None:
    start, end = date(2024, 3, 1), date(2024, 2, 29)
    for function in (year_fraction, day_count_days):
        with pytest.raises(ValueError, match="ends on 2024-02-29, before it starts on 2024-03-01"):
            function(start, end, day_count)
    starts = np.array([end, start], "datetime64[D]")
    ends = starts[::-1]
    with pytest.raises(ValueError, match="ends on 2024-02-29, before it starts on 2024-03-01"):
        year_fraction_many(starts, ends, day_count)
