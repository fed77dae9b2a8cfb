"""Loans to schedule: examples, any that Hypothesis draws, and schedules by each of both forms."""

from collections.abc import Callable, Sequence
from datetime import date, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import strategies as st

from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.money import Rounding
from ledgerbeam.rules.schedules.schedule import Loan, ScheduledInstalment, schedule
from ledgerbeam.rules.schedules.schedule_many import schedule_many
from ledgerbeam.rules.terms.day_count import DayCount
from ledgerbeam.rules.terms.due_dates import month_later, parse_frequency
from ledgerbeam.rules.terms.repayment import FirstPeriod

LOAN = Loan(
    loan_id="L1",
    currency="USD",
    principal=Decimal("187500.00"),
    annual_rate_percent=Decimal("3.50"),
    day_count="30/360",
    disbursed_on=date(2024, 1, 1),
    frequency="P1M",
    term=360,
    method="level",
)
SMALL = LOAN._replace(principal=Decimal("100.00"), annual_rate_percent=Decimal(12), term=6)


def table(loans: Sequence[Loan], scale: int = 4) -> pa.Table:
    """The loans with all strings but `loan_id` dictionary-encoded, as contracts have them."""
    few = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
        {
            "loan_id": pa.string(),
            "currency": few,
            "principal": pa.decimal128(38, scale),
            "annual_rate_percent": pa.decimal128(12, 7),
            "day_count": few,
            "disbursed_on": pa.date32(),
            "frequency": few,
            "term": pa.int64(),
            "method": few,
            "first_due": pa.date32(),
            "due_day": pa.int64(),
            "second_due_day": pa.int64(),
            "first_period": few,
            "payment": pa.decimal128(38, scale),
            "round_payment_to": pa.decimal128(38, scale),
        }
    )
    return pa.Table.from_pylist([loan._asdict() for loan in loans], schema)


def each_by_itself(
    loans: Sequence[Loan],
    rounding: Rounding,
    calendar: BusinessCalendar | None = None,
    convention: BusinessDayConvention = BusinessDayConvention.NONE,
) -> tuple[list[tuple[object, ...]], dict[int, str]]:
    """What `schedule_many` must give, by the plain rule."""
    instalments: list[tuple[object, ...]] = []
    refused = {}
    is_moved = convention is not BusinessDayConvention.NONE
    columns = len(ScheduledInstalment._fields) if is_moved else -1
    for row, loan in enumerate(loans):
        try:
            made = schedule(loan, rounding, calendar, convention)
        except ValueError as error:
            refused[row] = str(error)
        else:
            instalments += [(loan.loan_id, *instalment[:columns]) for instalment in made]
    return instalments, refused


def rows(instalments: pa.Table) -> list[tuple[object, ...]]:
    instalments.validate(full=True)
    return [tuple(row.values()) for row in instalments.to_pylist()]


def built(loan: Loan) -> list[ScheduledInstalment]:
    schedules = schedule_many(table([loan]))
    assert not schedules.rejected
    return [ScheduledInstalment(*row[1:]) for row in rows(schedules.instalments)]  # type: ignore[arg-type]


Rule = Callable[[Loan], list[ScheduledInstalment]]
BOTH = pytest.mark.parametrize("rule", [schedule, built])


WITHOUT_CALENDAR = tuple(day_count for day_count in DayCount if day_count != DayCount.BUS_252)
FREQUENCIES = ["P1M", "P2W", "P3M", "P1W", "P1Y", "P10D", "P0.5M", "monthly", "semiannual"]


@st.composite
def loans(
    draw: st.DrawFn,
    longest: int = 60,
    day_counts: Sequence[str] = WITHOUT_CALENDAR,
    years: tuple[int, int] = (1950, 2100),
) -> Loan:
    """Loans that can be scheduled, but for negative amortisation."""
    currency = draw(st.sampled_from(["USD", "JPY", "KWD"]))
    places = minor_units(currency)
    day_count = draw(st.sampled_from(day_counts))
    frequency = draw(st.sampled_from(FREQUENCIES))
    if day_count == DayCount.ACT_ACT_ICMA and parse_frequency(frequency).days:
        frequency = "P6M"
    term = draw(st.integers(1, 4) | st.integers(1, longest))
    skipped = draw(st.integers(0, term - 1))
    units = draw(st.integers(1, 10**4) | st.integers(1, 10**12))
    disbursed_on = draw(month_ends(*years) | st.dates(date(years[0], 1, 1), date(years[1], 1, 1)))
    first_due = draw(st.none() | later_dates(disbursed_on))
    second_due_day = None
    if frequency == "P0.5M" and first_due is not None and draw(st.booleans()):
        second_due_day = draw(st.integers(1, 27).filter(lambda day: day != first_due.day))
    first, due_day = first_due or disbursed_on, None
    if not parse_frequency(frequency).days and first == month_later(first, 31):
        due_day = draw(st.none() | st.integers(first.day, 31))
    rounded = draw(st.none() | st.integers(1, 500) | st.integers(1, units))
    payment = draw(st.none() | st.integers(1, 10 * units // term + 1)) if rounded is None else None
    return Loan(
        loan_id="",
        currency=currency,
        principal=Decimal(units).scaleb(-places),
        annual_rate_percent=draw(
            st.just(Decimal(0)) | st.decimals(0, 30, places=3) | st.decimals(0, 1000, places=6)
        ),
        day_count=day_count,
        disbursed_on=disbursed_on,
        frequency=frequency,
        term=term,
        method=draw(st.sampled_from(["level", "equal_principal", f"interest_only:{skipped}"])),
        first_due=first_due,
        due_day=due_day,
        second_due_day=second_due_day,
        first_period=draw(st.none() | st.sampled_from(FirstPeriod)),
        payment=None if payment is None else Decimal(payment).scaleb(-places),
        round_payment_to=None if rounded is None else Decimal(rounded).scaleb(-places),
    )


def month_ends(first: int, last: int) -> st.SearchStrategy[date]:
    return st.builds(
        lambda year, month, back: date(year, month, 1) - timedelta(back),
        st.integers(first + 1, last),
        st.integers(1, 12),
        st.integers(1, 4),
    )


def later_dates(day: date) -> st.SearchStrategy[date]:
    return st.integers(1, 800).map(lambda days: day + timedelta(days)) | st.builds(
        lambda months, back: month_later(day, 31, months) + timedelta(1 - back),
        st.integers(1, 15),
        st.integers(0, 3),
    )


def named(drawn: Sequence[Loan]) -> list[Loan]:
    return [loan._replace(loan_id=f"L{row}") for row, loan in enumerate(drawn)]
