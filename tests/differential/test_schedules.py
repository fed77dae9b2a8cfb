"""Schedules of 100,000 random loans against QuantLib, numpy-financial and pyxirr.

The libraries compute with floats, or don't round at all. Ours is in cents, so a difference may be
what rounding explains, and no more: each test says how much that is.
"""

import decimal
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy_financial as npf
import pytest
import pyxirr
import QuantLib as ql
from tests.differential.random_loans import FREQUENCIES, LOANS, Loans, Rows, draw_loans, rows_of
from tests.differential.test_days import CALENDARS, CONVENTIONS, SERIAL_OF_1970

from ledgerbeam.rules.calendar.business_days import (
    ANBIMA,
    BusinessCalendar,
    business_calendar,
)
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.terms.day_count import DayCount

pytestmark = pytest.mark.slow

FLOATS = 1e-5
"""What floats may lose, in cents."""

QUANTLIB = {
    DayCount.THIRTY_360_ISDA: ql.Thirty360(ql.Thirty360.BondBasis),
    DayCount.THIRTY_E_360: ql.Thirty360(ql.Thirty360.European),
    DayCount.ACT_360: ql.Actual360(),
    DayCount.ACT_364: ql.Actual364(),
    DayCount.ACT_365F: ql.Actual365Fixed(),
    DayCount.NL_365: ql.Actual365Fixed(ql.Actual365Fixed.NoLeap),
    DayCount.ACT_ACT: ql.ActualActual(ql.ActualActual.ISDA),
    DayCount.BUS_252: ql.Business252(CALENDARS[ANBIMA]),
}
"""Day counts that take two dates."""
MONTHS = ["P1M", "P3M", "P6M", "P1Y"]
ALL = list(FREQUENCIES)


class Dated(NamedTuple):
    """A loan's day of disbursement and its due dates.

    Attributes:
        is_whole: whether the first period is as long as the others.
    """

    dates: list[ql.Date]
    frequency: str
    is_whole: bool

    @property
    def periods(self) -> Iterator[tuple[ql.Date, ql.Date]]:
        return pairwise(self.dates)


class Quantlib:
    """Due dates and parts of a year of all instalments, by QuantLib."""

    def __init__(self, loans: Loans, calendar: ql.Calendar, convention: int) -> None:
        due: list[int] = []
        years: list[float] = []
        for day_count, first, first_due, frequency, term in zip(
            loans.day_count.tolist(),
            (loans.disbursed_on.astype(np.int64) + SERIAL_OF_1970).tolist(),
            loans.first_due.astype(object),
            loans.frequency.tolist(),
            loans.term.tolist(),
            strict=True,
        ):
            first_date = first_due and ql.Date.from_date(first_due)
            start = ql.Date(first)
            dates = _dates_of(start, first_date, frequency, term, calendar, convention)
            assert len(dates) == term + 1
            due += [day.serialNumber() - SERIAL_OF_1970 for day in dates[1:]]
            if calendar == ql.NullCalendar():
                is_whole = first_date is None or first_date - _tenor(frequency) == start
                loan = Dated(dates, frequency, is_whole)
                years += _YEARS[day_count](loan)
        self.due, self.years = np.array(due), np.array(years)


def _dates_of(
    start: ql.Date,
    first_due: ql.Date | None,
    frequency: str,
    term: int,
    calendar: ql.Calendar,
    convention: int,
) -> list[ql.Date]:
    """Twice a month are two schedules of whole months, 15 days apart."""
    if frequency == "P0.5M":
        half = [
            _dates_of(begin, None, "P1M", (term + 1) // 2, calendar, convention)
            for begin in (start, start + 15)
        ]
        return [day for pair in zip(*half, strict=True) for day in pair][: term + 1]
    tenor = _tenor(frequency)
    begin, periods = (start, term) if first_due is None else (first_due, term - 1)
    end = begin + ql.Period(tenor.length() * periods, tenor.units())
    rule = ql.DateGeneration.Forward
    given = () if first_due is None else (first_due,)
    return list(
        ql.Schedule(start, end, tenor, calendar, convention, convention, rule, False, *given)
    )


def _tenor(frequency: str) -> ql.Period:
    days, months = FREQUENCIES[frequency]
    return ql.Period(int(days or months), ql.Days if days else ql.Months)


def _by_two_dates(counter: ql.DayCounter) -> Callable[[Dated], list[float]]:
    def years(loan: Dated) -> list[float]:
        return [counter.yearFraction(*period) for period in loan.periods]

    return years


def _of_whole_months(loan: Dated) -> list[float]:
    """30/360: whole months of a loan have 30 days, whatever day they end on; others are ISDA's."""
    years = _by_two_dates(QUANTLIB[DayCount.THIRTY_360_ISDA])(loan)
    _, months = FREQUENCIES[loan.frequency]
    if not months:
        return years
    whole = [months / 12] * len(years)
    return whole if loan.is_whole else [years[0], *whole[1:]]


def _to_maturity(loan: Dated) -> list[float]:
    return _by_two_dates(ql.Thirty360(ql.Thirty360.ISDA, loan.dates[-1]))(loan)


def _of_reference_periods(loan: Dated) -> list[float]:
    """ACT/ACT ICMA; QuantLib has no half months, and every one is 1/24."""
    if loan.frequency == "P0.5M":
        return [1 / 24] * (len(loan.dates) - 1)
    fraction = ql.ActualActual(ql.ActualActual.ISMA).yearFraction
    regular = [loan.dates[1] - _tenor(loan.frequency), *loan.dates[1:]]
    return [
        fraction(begin, end, reference, end)
        for (begin, end), reference in zip(loan.periods, regular, strict=False)
    ]


def _of_long_years(loan: Dated) -> list[float]:
    """ACT/365L, which QuantLib doesn't have: by leap days as it knows them."""

    def is_long(begin: ql.Date, end: ql.Date) -> bool:
        if loan.frequency != "P1Y":
            return bool(ql.Date.isLeap(end.year()))
        return any(
            begin < ql.Date(29, 2, year) <= end
            for year in range(begin.year(), end.year() + 1)
            if ql.Date.isLeap(year)
        )

    return [(end - begin) / (365 + is_long(begin, end)) for begin, end in loan.periods]


_YEARS: dict[str, Callable[[Dated], list[float]]] = {
    **{day_count: _by_two_dates(counter) for day_count, counter in QUANTLIB.items()},
    DayCount.THIRTY_360: _of_whole_months,
    DayCount.THIRTY_E_360_ISDA: _to_maturity,
    DayCount.ACT_ACT_ICMA: _of_reference_periods,
    DayCount.ACT_365L: _of_long_years,
}
"""Parts of a year of a loan's periods."""


class Drawn:
    """Loans of many kinds, their schedules, and QuantLib's dates and parts of a year."""

    def __init__(self, loans: Loans, calendar: BusinessCalendar | None = None) -> None:
        self.loans = loans
        self.rows = rows_of(loans, calendar=calendar)
        self.quantlib = Quantlib(loans, ql.NullCalendar(), ql.Unadjusted)
        self.factors = self.quantlib.years * loans.yearly[self.rows.loan]
        self.skipped = np.array(
            [int(method.partition(":")[2] or 0) for method in loans.method.tolist()]
        )


@pytest.fixture(scope="module", params=["every day count", "BUS/252"])
def drawn(request: pytest.FixtureRequest) -> Drawn:
    """Those of business days lie within the calendar of Brazil."""
    if request.param == DayCount.BUS_252:
        loans = draw_loans(
            {DayCount.BUS_252: ALL}, seed=9, loans=LOANS // 20, disbursed=(2001, 2017)
        )
        return Drawn(loans, business_calendar(ANBIMA, 2000, 2078))
    frequencies: dict[str, Sequence[str]] = {
        day_count: ALL for day_count in DayCount if day_count is not DayCount.BUS_252
    }
    frequencies[DayCount.ACT_ACT_ICMA] = ["P0.5M", *MONTHS]
    return Drawn(draw_loans(frequencies, seed=5))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("code", [ANBIMA, "XNYS", "XECB"])
def test_due_dates_that_are_moved(code: str, convention: BusinessDayConvention) -> None:
    loans = draw_loans(
        {DayCount.ACT_360: [each for each in ALL if each != "P0.5M"]},
        seed=10, loans=LOANS // 20, disbursed=(2001, 2011), longest_years=12,
    )  # fmt: skip
    rows = rows_of(loans, calendar=business_calendar(code, 2000, 2026), convention=convention)
    theirs = Quantlib(loans, CALENDARS[code], CONVENTIONS[convention])
    assert rows.due.tolist() == theirs.due.tolist()


def test_due_dates(drawn: Drawn) -> None:
    assert drawn.rows.due.tolist() == drawn.quantlib.due.tolist()


def test_amounts_add_up(drawn: Drawn) -> None:
    rows, loans = drawn.rows, drawn.loans
    assert (rows.payment == rows.principal + rows.interest).all()
    assert (rows.before[rows.starts] == loans.principal).all()
    follows = rows.number > 1
    assert (rows.before[follows] == rows.balance[np.flatnonzero(follows) - 1]).all()
    last = rows.number == loans.term[rows.loan]
    assert (rows.balance[last] == 0).all()


def test_interest_of_every_instalment(drawn: Drawn) -> None:
    """Balance times rate times QuantLib's part of a year, rounded to a cent."""
    exact = drawn.rows.before * drawn.factors
    assert np.abs(drawn.rows.interest - exact).max() <= 0.5 + FLOATS


def test_level_payments(drawn: Drawn) -> None:
    """The payment whose present value by QuantLib's parts of a year is the principal."""
    rows, loans = drawn.rows, drawn.loans
    annuity = np.zeros(len(loans.term))
    for number in range(int(loans.term.max()), 0, -1):
        some = np.flatnonzero((loans.term >= number) & (drawn.skipped < number))
        at = rows.starts[some] + number - 1
        annuity[some] = (1 + annuity[some]) / (1 + drawn.factors[at])
    level = np.flatnonzero((loans.method != "equal_principal") & (loans.term - drawn.skipped > 1))
    paid = rows.payment[rows.starts[level] + drawn.skipped[level]]
    exact = loans.principal[level] / annuity[level]
    assert len(level) > len(loans.term) / 2
    assert np.abs(paid - exact).max() <= 0.5 + FLOATS


def test_equal_parts(drawn: Drawn) -> None:
    rows, loans = drawn.rows, drawn.loans
    is_part = (loans.method == "equal_principal")[rows.loan] & (rows.number < loans.term[rows.loan])
    exact = (loans.principal / loans.term)[rows.loan[is_part]]
    assert np.abs(rows.principal[is_part] - exact).max() <= 0.5 + FLOATS


class Regular:
    """Level loans whose periods are all of one length, so that the textbook's formulas hold."""

    def __init__(self) -> None:
        loans = draw_loans(
            {DayCount.THIRTY_360: MONTHS}, seed=6, highest_term=120, with_first_due=False
        )
        self.loans = loans._replace(
            method=np.full(len(loans.term), "level"), term=np.maximum(loans.term, 2)
        )
        self.rows: Rows = rows_of(self.loans)
        self.months = np.array([FREQUENCIES[each][1] for each in self.loans.frequency.tolist()])
        self.rate = self.loans.yearly * self.months / 12

    @property
    def payment(self) -> np.ndarray:
        """Of every instalment but the last."""
        return self.rows.payment[self.rows.starts]


@pytest.fixture(scope="module")
def regular() -> Regular:
    return Regular()


def test_payments_by_numpy_financial(regular: Regular) -> None:
    """In decimals of 50 digits, rounded half to even: exactly ours."""
    loans = regular.loans
    with decimal.localcontext(prec=50):
        rates = _decimals(loans.rate * regular.months, 12 * 10**8)
        exact = -npf.pmt(rates, loans.term.astype(object), _decimals(loans.principal))
        rounded = [int(each.to_integral_value(decimal.ROUND_HALF_EVEN)) for each in exact]
    assert regular.payment.tolist() == rounded


def test_interest_and_principal_by_numpy_financial(regular: Regular) -> None:
    """Of a random instalment of each loan: what its rounded predecessors explain.

    They put the balance off by half a cent of payment and half a cent of interest each, which
    earn interest.
    """
    loans, rows, rate = regular.loans, regular.rows, regular.rate
    number = 1 + (np.random.default_rng(7).random(len(loans.term)) * (loans.term - 1)).astype(int)
    at = rows.starts + number - 1
    with np.errstate(invalid="ignore"):
        grown = np.where(rate > 0, ((1 + rate) ** (number - 1) - 1) / rate, number - 1)
    allowed = rate * grown + 0.5 + FLOATS
    with decimal.localcontext(prec=50):
        rates = _decimals(loans.rate * regular.months, 12 * 10**8)
        given = rates, number.astype(object), loans.term.astype(object), _decimals(loans.principal)
        interest = -npf.ipmt(*given).astype(np.float64)
        principal = -npf.ppmt(*given).astype(np.float64)
    assert (np.abs(rows.interest[at] - interest) <= allowed).all()
    assert (np.abs(rows.principal[at] - principal) <= allowed + 0.5).all()


def test_payments_by_pyxirr(regular: Regular) -> None:
    loans = regular.loans
    payments = pyxirr.pmt(regular.rate, loans.term.astype(float), loans.principal.astype(float))
    exact = -np.array(payments, float)
    assert np.abs(regular.payment - exact).max() <= 0.5 + FLOATS


def test_the_internal_rate_of_return_is_the_loans_rate(regular: Regular) -> None:
    """All payments, discounted at the loan's rate, are the principal but for rounded interest.

    Half a cent each, discounted, by how fast the present value falls as the rate grows, is how far
    the internal rate of return may be off.
    """
    rows, rate = regular.rows, regular.rate
    discount = (1 + rate[rows.loan]) ** -rows.number
    rounding = np.bincount(rows.loan, 0.5 * discount)
    falls = np.bincount(rows.loan, rows.number * rows.payment * discount / (1 + rate[rows.loan]))
    flows = np.insert(rows.payment.astype(float), rows.starts, -regular.loans.principal)
    bounds = np.append(rows.starts + np.arange(len(rows.starts)), len(flows)).tolist()
    found = np.array(
        [
            pyxirr.irr(flows[start:end], guess=guess)
            for (start, end), guess in zip(pairwise(bounds), rate.tolist(), strict=True)
        ]
    )
    assert (np.abs(found - rate) <= 1.01 * rounding / falls + 1e-9).all()


def _decimals(whole: np.ndarray, of: int = 1) -> np.ndarray:
    return np.array([Decimal(each) / of for each in whole.tolist()], object)
