"""Day counts, business days and conventions, against QuantLib's, on random dates."""

import numpy as np
import pytest
import QuantLib as ql

from ledgerbeam.rules.calendar.business_days import ANBIMA, business_calendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.terms.accrual import loan_fraction
from ledgerbeam.rules.terms.day_count import (
    DayCount,
    day_number_30e_360_isda_many,
    year_fraction_many,
)
from ledgerbeam.rules.terms.due_dates import MONTHLY, DueDates, Frequency

pytestmark = pytest.mark.slow

PERIODS = 100_000
SERIAL_OF_1970 = ql.Date(1, 1, 1970).serialNumber()

DAY_COUNTS = {
    # Between two dates, without a loan, these are the same.
    DayCount.THIRTY_360: (ql.Thirty360(ql.Thirty360.BondBasis), 360),
    DayCount.THIRTY_360_ISDA: (ql.Thirty360(ql.Thirty360.BondBasis), 360),
    DayCount.THIRTY_E_360: (ql.Thirty360(ql.Thirty360.European), 360),
    DayCount.ACT_360: (ql.Actual360(), 360),
    DayCount.ACT_364: (ql.Actual364(), 364),
    DayCount.ACT_365F: (ql.Actual365Fixed(), 365),
    DayCount.NL_365: (ql.Actual365Fixed(ql.Actual365Fixed.NoLeap), 365),
}
CONVENTIONS = {
    BusinessDayConvention.FOLLOWING: ql.Following,
    BusinessDayConvention.MODIFIED_FOLLOWING: ql.ModifiedFollowing,
    BusinessDayConvention.PRECEDING: ql.Preceding,
}
CALENDARS = {
    "XNYS": ql.UnitedStates(ql.UnitedStates.NYSE),
    "XFED": ql.UnitedStates(ql.UnitedStates.FederalReserve),
    "XECB": ql.TARGET(),
    "XLON": ql.UnitedKingdom(ql.UnitedKingdom.Exchange),
    ANBIMA: ql.Brazil(ql.Brazil.Settlement),
}


def random_periods(first: str, last: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Periods of any length and short ones, many of which begin or end on a month's last days."""
    draw = np.random.default_rng(seed)
    low, high = (int(np.datetime64(day, "D").astype(np.int64)) for day in (first, last))
    drawn = draw.integers(low, high, (2, PERIODS))
    near = draw.random(PERIODS) < 0.5
    drawn[1, near] = np.minimum(drawn[0, near] + draw.integers(0, 800, near.sum()), high)
    days = drawn.astype("datetime64[D]")
    at_end = draw.random(days.shape) < 0.4
    ends = (days.astype("datetime64[M]") + 1).astype("datetime64[D]") - draw.integers(
        1, 4, days.shape
    )
    days = np.clip(np.where(at_end, ends, days), np.datetime64(first), np.datetime64(last))
    return days.min(axis=0), days.max(axis=0)


def quantlib_dates(days: np.ndarray) -> list[ql.Date]:
    return [ql.Date(serial) for serial in (days.astype(np.int64) + SERIAL_OF_1970).tolist()]


@pytest.mark.parametrize("day_count", DAY_COUNTS)
def test_days_of_a_fixed_year(day_count: DayCount) -> None:
    """Whole days over a fixed denominator: exactly."""
    theirs, year = DAY_COUNTS[day_count]
    starts, ends = random_periods("1901-01-01", "2199-12-31", seed=1)
    ours = year_fraction_many(starts, ends, day_count)
    counted = list(map(theirs.dayCount, quantlib_dates(starts), quantlib_dates(ends)))
    assert (ours.numerators * year == np.array(counted) * ours.denominator).all()


def test_actual_actual() -> None:
    starts, ends = random_periods("1901-01-01", "2198-12-31", seed=2)
    ours = year_fraction_many(starts, ends, DayCount.ACT_ACT)
    theirs = ql.ActualActual(ql.ActualActual.ISDA)
    counted = list(map(theirs.yearFraction, quantlib_dates(starts), quantlib_dates(ends)))
    np.testing.assert_allclose(ours.numerators / ours.denominator, counted, rtol=1e-13, atol=1e-13)


def test_30e_360_isda_before_maturity() -> None:
    starts, ends = random_periods("1901-01-01", "2198-12-31", seed=8)
    ours = day_number_30e_360_isda_many(ends) - day_number_30e_360_isda_many(starts)
    theirs = ql.Thirty360(ql.Thirty360.ISDA)
    assert ours.tolist() == list(map(theirs.dayCount, *map(quantlib_dates, (starts, ends))))


def test_30e_360_isda_up_to_maturity() -> None:
    """Only ends are compared: a period that begins on the day of maturity is none of the loan."""
    starts, ends = random_periods("1901-01-01", "2198-12-31", seed=9)
    # Many of them on the last day of February.
    february = ends.astype("datetime64[Y]").astype("datetime64[M]") + 2
    is_february = np.arange(PERIODS) % 3 == 0
    ends = np.where(is_february, february.astype("datetime64[D]") - 1, ends)
    rows = np.flatnonzero(starts < ends)
    for start, end, first, last in zip(
        starts[rows].tolist(), ends[rows].tolist(),
        quantlib_dates(starts[rows]), quantlib_dates(ends[rows]),
        strict=True,
    ):  # fmt: skip
        due_dates = DueDates(MONTHLY, due_day=1, maturity=end)
        ours = loan_fraction(due_dates, DayCount.THIRTY_E_360_ISDA, start, end)
        assert ours * 360 == ql.Thirty360(ql.Thirty360.ISDA, last).dayCount(first, last)


@pytest.mark.parametrize("months", [1, 3, 6, 12])
def test_actual_actual_icma(months: int) -> None:
    """Parts of regular periods, and first periods of up to two and a half of them."""
    draw = np.random.default_rng(months)
    dues = draw.integers(0, 40_000, PERIODS // 5).astype("datetime64[D]")
    months_of, day = dues.astype("datetime64[M]"), draw.integers(0, 28, len(dues))
    dues = months_of.astype("datetime64[D]") + day
    begins = (months_of - months).astype("datetime64[D]") + day
    starts = dues - 1 - (draw.random(len(dues)) * months * 30 * 2.5).astype(int)
    # Up to the due date, or to a day before it.
    ends = np.where(draw.random(len(dues)) < 0.5, dues, np.maximum(starts + 1, dues - 20))
    theirs = ql.ActualActual(ql.ActualActual.ISMA).yearFraction
    counted = list(map(theirs, *map(quantlib_dates, (starts, ends, begins, dues))))
    ours = [
        float(
            loan_fraction(
                DueDates(Frequency(months, 0), due.day, first_due=due, interest_from=start),
                DayCount.ACT_ACT_ICMA, start, end,
            )
        )
        for due, start, end in zip(dues.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(ours, counted, rtol=1e-13, atol=1e-13)


def test_business_252() -> None:
    starts, ends = random_periods("2000-01-01", "2078-12-31", seed=3)
    ours = business_calendar(ANBIMA, 2000, 2078).business_days_between(starts, ends)
    theirs = ql.Business252(CALENDARS[ANBIMA])
    counted = list(map(theirs.dayCount, quantlib_dates(starts), quantlib_dates(ends)))
    assert ours.tolist() == counted


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("code", CALENDARS)
def test_dates_that_are_moved(code: str, convention: BusinessDayConvention) -> None:
    dates = random_periods("2000-01-10", "2026-12-20", seed=4)[0][: PERIODS // 5]
    ours = business_calendar(code, 2000, 2026).adjust(dates, convention)
    theirs, roll = CALENDARS[code], CONVENTIONS[convention]
    moved = [theirs.adjust(day, roll).serialNumber() for day in quantlib_dates(dates)]
    assert (ours.astype(np.int64) + SERIAL_OF_1970).tolist() == moved
