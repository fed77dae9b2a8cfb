"""Parts of a year within a loan: published values, QuantLib, what adds up, many at once."""

from datetime import date, timedelta
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import QuantLib
from hypothesis import given
from hypothesis import strategies as st

from ledgerbeam.rules.calendar.business_days import business_calendar
from ledgerbeam.rules.terms.accrual import (
    Frequencies,
    loan_fraction,
    loan_fraction_many,
    payoff_fraction,
)
from ledgerbeam.rules.terms.day_count import DayCount, year_fraction
from ledgerbeam.rules.terms.due_dates import MONTHLY, DueDates, parse_frequency

FED = business_calendar("XFED", 2010, 2060)
ADDITIVE = [day_count for day_count in DayCount if day_count != DayCount.THIRTY_360_ISDA]


def loan(frequency: str, first_due: str, interest_from: str, due_day: int = 0) -> DueDates:
    first, begin = date.fromisoformat(first_due), date.fromisoformat(interest_from)
    return DueDates(parse_frequency(frequency), due_day or first.day, 0, first, begin)


def part(
    dates: DueDates, day_count: DayCount, start: str | None = None, end: str | None = None
) -> Fraction:
    begin = date.fromisoformat(start) if start else dates.interest_from
    until = date.fromisoformat(end) if end else dates.first_due
    assert begin is not None
    assert until is not None
    return loan_fraction(dates, day_count, begin, until, FED)


class TestPublished:
    @pytest.mark.parametrize(
        ("dates", "start", "end", "expected"),
        [
            # ISDA, "EMU and market conventions: recent developments" (1998), section 4: the
            # examples of the ISMA method.
            (("P6M", "2004-05-01", "2003-11-01"), None, None, Fraction(182, 182 * 2)),
            (("P1Y", "1999-07-01", "1999-02-01"), None, None, Fraction(150, 365)),
            (("P1Y", "1999-07-01", "1999-02-01"), "1999-07-01", "2000-07-01", Fraction(1)),
            (
                ("P6M", "2003-07-15", "2002-08-15"), None, None,
                Fraction(181, 181 * 2) + Fraction(153, 184 * 2),
            ),
            (("P6M", "2000-01-30", "1999-07-30"), None, None, Fraction(184, 184 * 2)),
            (("P6M", "2000-01-30", "1999-07-30"), "2000-01-30", "2000-06-30", Fraction(152, 364)),
        ],
    )  # fmt: skip
    def test_actual_actual_by_periods(
        self, dates: tuple[str, str, str], start: str | None, end: str | None, expected: Fraction
    ) -> None:
        assert part(loan(*dates), DayCount.ACT_ACT_ICMA, start, end) == expected

    @pytest.mark.parametrize(
        ("start", "end", "maturity", "days"),
        [
            # ISDA's "30/360 day count conventions" (December 2008), the column 30E/360 (ISDA).
            ("2006-08-31", "2007-02-28", None, 180),
            ("2007-02-28", "2007-08-31", None, 180),
            ("2007-08-31", "2008-02-29", "2008-02-29", 179),
            ("2008-02-29", "2008-08-31", None, 180),
            ("2006-02-28", "2007-02-28", None, 360),
            ("2006-01-31", "2006-02-28", "2006-02-28", 28),
        ],
    )
    def test_30e_360_isda(self, start: str, end: str, maturity: str | None, days: int) -> None:
        dates = loan("P1M", "2030-01-01", start)
        if maturity is not None:
            dates = dates._replace(maturity=date.fromisoformat(maturity))
        assert part(dates, DayCount.THIRTY_E_360_ISDA, start, end) == Fraction(days, 360)

    @pytest.mark.parametrize(
        ("dates", "expected"),
        [
            # ICMA rule 251.1(i): 366 where the period ends in a leap year, or, if periods are of
            # a year, holds 29 February.
            (("P6M", "2004-05-01", "2003-11-01"), Fraction(182, 366)),
            (("P6M", "2003-11-01", "2003-05-01"), Fraction(184, 365)),
            (("P1Y", "2024-03-01", "2023-03-01"), Fraction(366, 366)),
            (("P1Y", "2025-03-01", "2024-03-01"), Fraction(365, 365)),
            (("P1Y", "2024-02-28", "2023-02-28"), Fraction(365, 365)),
        ],
    )
    def test_actual_365_l(self, dates: tuple[str, str, str], expected: Fraction) -> None:
        assert part(loan(*dates), DayCount.ACT_365L) == expected

    def test_months_of_30_days(self) -> None:
        dates = DueDates(MONTHLY, due_day=31)
        ends = ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30", "2026-05-31"]
        for start, end in pairwise(ends):
            assert part(dates, DayCount.THIRTY_360, start, end) == Fraction(1, 12)
        # A period that isn't of whole months is ISDA's.
        assert part(loan("P31D", "2026-03-31", "2026-02-28"), DayCount.THIRTY_360) == Fraction(
            33, 360
        )
        assert part(loan("P1M", "2026-03-31", "2026-01-15"), DayCount.THIRTY_360) == Fraction(
            76, 360
        )

    def test_business_days(self) -> None:
        dates = loan("P1M", "2024-02-01", "2024-01-01")
        assert part(dates, DayCount.BUS_252) == Fraction(21, 252)
        with pytest.raises(ValueError, match="BUS/252 needs a calendar of business days"):
            loan_fraction(dates, DayCount.BUS_252, date(2024, 1, 1), date(2024, 2, 1))


@st.composite
def periods(draw: st.DrawFn) -> tuple[DueDates, list[date]]:
    """Due dates of a loan, and its first three periods."""
    begin = draw(st.dates(date(2012, 1, 1), date(2040, 1, 1)))
    first_due = begin + timedelta(draw(st.integers(1, 500)))
    frequency = draw(st.sampled_from(["P1M", "P3M", "P6M", "P1Y", "P0.5M", "P2W", "P31D"]))
    due_day = first_due.day
    if (first_due + timedelta(1)).day == 1:
        due_day = draw(st.integers(due_day, 31))
    interest_from = draw(st.sampled_from([None, begin]))
    dates = DueDates(parse_frequency(frequency), due_day, 0, first_due, interest_from)
    dues = [dates.before(first_due), first_due, dates.after(first_due)]
    dues.append(dates.after(dues[-1]))
    maturity = draw(st.sampled_from([None, dues[-1]]))
    return dates._replace(maturity=maturity), dues


class TestParts:
    @given(periods(), st.sampled_from(ADDITIVE), st.data())
    def test_add_up_within_a_period(
        self, drawn: tuple[DueDates, list[date]], day_count: DayCount, data: st.DataObject
    ) -> None:
        dates, dues = drawn
        if day_count == DayCount.ACT_ACT_ICMA and dates.frequency.days:
            day_count = DayCount.ACT_ACT
        at = data.draw(st.integers(0, 2))
        days = st.dates(dues[at], dues[at + 1])
        first, middle, last = sorted(data.draw(st.tuples(days, days, days)))
        parts = [
            loan_fraction(dates, day_count, *bounds, FED)
            for bounds in ((first, middle), (middle, last), (first, last))
        ]
        assert min(parts) >= 0
        assert parts[0] + parts[1] == parts[2]

    @given(periods(), st.sampled_from(DayCount))
    def test_no_days_are_no_part(
        self, drawn: tuple[DueDates, list[date]], day_count: DayCount
    ) -> None:
        dates, dues = drawn
        if day_count == DayCount.ACT_ACT_ICMA and dates.frequency.days:
            day_count = DayCount.ACT_ACT
        for day in dues:
            assert loan_fraction(dates, day_count, day, day, FED) == 0

    @pytest.mark.parametrize("day_count", DayCount)
    def test_periods_that_end_before_they_start(self, day_count: DayCount) -> None:
        with pytest.raises(ValueError, match="ends on 2024-02-01, before it starts on 2024-03-01"):
            part(loan("P1M", "2024-03-01", "2024-02-01"), day_count, "2024-03-01", "2024-02-01")

    def test_days_are_no_part_of_a_year(self) -> None:
        with pytest.raises(ValueError, match="needs due dates that are counted in months"):
            part(loan("P2W", "2024-03-01", "2024-02-01"), DayCount.ACT_ACT_ICMA)

    @given(periods())
    def test_two_dates_are_enough_for_others(self, drawn: tuple[DueDates, list[date]]) -> None:
        dates, dues = drawn
        for day_count in (DayCount.ACT_360, DayCount.NL_365, DayCount.THIRTY_E_360):
            got = loan_fraction(dates, day_count, dues[0], dues[2])
            assert got == year_fraction(dues[0], dues[2], day_count)


class TestPayoffs:
    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            # Whole months, and the days of a partial one over 365.
            ("2026-03-01", "2026-05-15", Fraction(2, 12) + Fraction(14, 365)),
            ("2026-03-01", "2026-05-01", Fraction(2, 12)),
            ("2026-03-01", "2026-03-31", Fraction(30, 365)),
            ("2026-03-10", "2026-03-31", Fraction(21, 365)),
            ("2026-03-01", "2026-03-01", Fraction(0)),
        ],
    )
    def test_partial_months_by_365(self, start: str, end: str, expected: Fraction) -> None:
        days = date.fromisoformat(start), date.fromisoformat(end)
        for day_count in (DayCount.THIRTY_360, DayCount.THIRTY_E_360):
            assert payoff_fraction(DueDates(MONTHLY, due_day=1), day_count, *days) == expected

    def test_day_counts_that_know_the_days(self) -> None:
        with pytest.raises(ValueError, match="ACT/360 counts a partial month to the day"):
            payoff_fraction(
                DueDates(MONTHLY, due_day=1), DayCount.ACT_360, date(2026, 3, 1), date(2026, 5, 1)
            )


class TestQuantLib:
    @given(periods(), st.integers(0, 2))
    def test_30e_360_isda(self, drawn: tuple[DueDates, list[date]], at: int) -> None:
        dates, dues = drawn
        start, end = (QuantLib.Date(day.day, day.month, day.year) for day in dues[at : at + 2])
        maturity = dates.maturity or date(2099, 1, 1)
        last = QuantLib.Date(maturity.day, maturity.month, maturity.year)
        expected = QuantLib.Thirty360(QuantLib.Thirty360.ISDA, last).dayCount(start, end)
        got = loan_fraction(dates, DayCount.THIRTY_E_360_ISDA, dues[at], dues[at + 1])
        assert got == Fraction(expected, 360)

    @given(st.dates(date(2012, 1, 1), date(2040, 1, 1)), st.integers(1, 12))
    def test_actual_actual_by_periods(self, begin: date, months: int) -> None:
        """A short first period of a year; QuantLib is given the whole one."""
        dates = loan("P1Y", "2041-01-15", "2040-06-01")._replace(interest_from=begin)
        due = dates.regular_after(begin)
        start, end, first, last = (
            QuantLib.Date(day.day, day.month, day.year)
            for day in (begin, due, dates.regular_before(due), due)
        )
        expected = QuantLib.ActualActual(QuantLib.ActualActual.ISMA).yearFraction(
            start, end, first, last
        )
        dates = dates._replace(first_due=due)
        got = loan_fraction(dates, DayCount.ACT_ACT_ICMA, begin, due)
        assert float(got) == pytest.approx(expected, abs=1e-12)


class TestMany:
    @given(st.lists(st.tuples(periods(), st.sampled_from(DayCount)), min_size=1, max_size=8))
    def test_whole_periods(self, drawn: list[tuple[tuple[DueDates, list[date]], DayCount]]) -> None:
        loans = []
        for (dates, dues), count in drawn:
            whole = dates._replace(interest_from=None, maturity=dues[-1])
            is_possible = not (count == DayCount.ACT_ACT_ICMA and dates.frequency.days)
            loans.append(
                (
                    whole,
                    [whole.before(dues[1]), *dues[1:]],
                    count if is_possible else DayCount.ACT_ACT,
                )
            )
        frequencies = np.array(
            [
                # The later one of two due days.
                (*dates.frequency[:2], max(dates.due_day, (dates.due_day + 15) * dates.frequency[2])
                 if dates.due_day <= 15 else dates.due_day)
                for dates, _, _ in loans
            ]
        ).T  # fmt: skip
        numerators, denominators = loan_fraction_many(
            np.array([dues for _, dues, _ in loans], "datetime64[D]").T,
            Frequencies(*frequencies),
            np.array([list(DayCount).index(count) for _, _, count in loans]),
            FED,
        )
        assert (numerators.dtype, numerators.shape) == (np.dtype(np.int64), (3, len(loans)))
        for at, (dates, dues, count) in enumerate(loans):
            got = [Fraction(number, int(denominators[at])) for number in numerators[:, at].tolist()]
            expected = [loan_fraction(dates, count, dues[k], dues[k + 1], FED) for k in range(3)]
            assert got == expected

    def test_a_calendar_is_needed(self) -> None:
        days = np.array([["2024-01-01"], ["2024-02-01"]], "datetime64[D]")
        ones = np.ones(1, np.int64)
        counts = np.array([list(DayCount).index(DayCount.BUS_252)])
        with pytest.raises(ValueError, match="BUS/252 needs a calendar of business days"):
            loan_fraction_many(days, Frequencies(ones, ones, ones), counts)
