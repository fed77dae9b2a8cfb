"""Random loans from a fixed seed, and their schedules by the vectorised rule, as arrays."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.money import Rounding, decimals, units
from ledgerbeam.rules.schedules.schedule_many import schedule_many

LOANS = 100_000
FREQUENCIES = {
    "P1W": (7, 0),
    "P2W": (14, 0),
    "P0.5M": (0, 0.5),
    "P1M": (0, 1),
    "P3M": (0, 3),
    "P6M": (0, 6),
    "P1Y": (0, 12),
}
"""Days and months of each."""

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Dates = npt.NDArray[np.datetime64]
Strings = npt.NDArray[np.str_]


class Loans(NamedTuple):
    """Columns of `(loans,)`: principal in cents, the rate a year in millionths of a percent.

    `first_due` is NaT where the first period is a whole one; else `due_day` is its day of the month
    for frequencies of months, and everywhere else 0.
    """

    principal: Integers
    rate: Integers
    day_count: Strings
    disbursed_on: Dates
    first_due: Dates
    due_day: Integers
    frequency: Strings
    term: Integers
    method: Strings

    @property
    def yearly(self) -> Floats:
        """The rates as parts of 1."""
        return self.rate / 1e8

    def table(self) -> pa.Table:
        count = len(self.term)
        strings = {name: getattr(self, name) for name in ("day_count", "frequency", "method")}
        return pa.table(
            {
                "loan_id": np.arange(count).astype(str),
                "currency": np.full(count, "USD"),
                "principal": decimals(self.principal, pa.decimal128(18, 2)),
                "annual_rate_percent": decimals(self.rate, pa.decimal128(18, 6)),
                "disbursed_on": _dates(self.disbursed_on),
                "first_due": _dates(self.first_due),
                "due_day": pa.array(self.due_day, mask=self.due_day == 0),
                "term": self.term,
                **strings,
            }
        )


class Rows(NamedTuple):
    """All instalments, loan after loan: columns of `(instalments,)`, amounts in cents.

    `starts` has the row of each loan's first instalment.
    """

    loan: Integers
    number: Integers
    due: Integers
    principal: Integers
    interest: Integers
    payment: Integers
    balance: Integers
    starts: Integers

    @property
    def before(self) -> Integers:
        """The balance that each instalment finds."""
        return self.balance + self.principal


def draw_loans(
    day_counts: Mapping[str, Sequence[str]],
    seed: int,
    loans: int = LOANS,
    highest_term: int = 60,
    disbursed: tuple[int, int] = (1970, 2030),
    longest_years: int = 60,
    with_first_due: bool = True,
) -> Loans:
    """Level loans and equal parts, some after instalments of interest only.

    Args:
        day_counts: the frequencies that each of them is drawn with.
        seed: of the draws.
        loans: how many.
        highest_term: in instalments.
        disbursed: in the years from one to before another.
        longest_years: of a loan, about.
        with_first_due: whether a third of them have a first period of another length.
    """
    draw = np.random.default_rng(seed)
    pairs = [(day, each) for day, some in day_counts.items() for each in some]
    drawn = draw.integers(0, len(pairs), loans)
    day_count, frequency = np.array(pairs)[drawn].T
    years = np.array([FREQUENCIES[each][0] / 365 + FREQUENCIES[each][1] / 12 for _, each in pairs])
    years = years[drawn]
    longest = np.minimum(highest_term, longest_years // years)
    # Mostly short ones: QuantLib takes its time for each instalment.
    term = 1 + (draw.random(loans) ** 3 * longest).astype(np.int64)
    disbursed_on = _draw_days(draw, disbursed, loans)
    disbursed_on = np.where(frequency == "P0.5M", _up_to(disbursed_on, 13), disbursed_on)
    disbursed_on = np.where(day_count == "ACT/ACT ICMA", _up_to(disbursed_on, 28), disbursed_on)

    # Up to twice as long as the others, and long enough that it is one by business days, too.
    first_due = disbursed_on + 7 + (draw.random(loans) * years * 365 * 2).astype(int)
    is_odd = (draw.random(loans) < 1 / 3) & (term > 1) & (frequency != "P0.5M") & with_first_due
    skipped_end = (day_count == "ACT/ACT ICMA") & (_day(first_due) > 28)
    first_due = np.where(is_odd, first_due + 3 * skipped_end, np.datetime64("NaT"))
    by_month = is_odd & ~np.isin(frequency, ["P1W", "P2W"])

    # A level payment of high rates over many years is hardly more than the interest of a period,
    # and less than that of a long one.
    highest_rate = np.where(is_odd, 30_000_000, 300_000_000) / (term * years)
    skipped = (draw.random(loans) * term).astype(np.int64)
    method = np.array(["level", "level", "equal_principal", "interest_only:"])
    method = method[draw.integers(0, 4, loans)]
    method = np.where(method == "interest_only:", np.char.add(method, skipped.astype(str)), method)
    return Loans(
        principal=draw.integers(1_000_00, 1_000_000_00, loans),
        rate=draw.integers(0, np.minimum(30_000_000, highest_rate).astype(int)),
        day_count=day_count,
        disbursed_on=disbursed_on,
        first_due=first_due,
        due_day=np.where(by_month, _day(np.where(by_month, first_due, disbursed_on)), 0),
        frequency=frequency,
        term=term,
        method=method,
    )


def rows_of(
    loans: Loans,
    rounding: Rounding = Rounding.HALF_EVEN,
    calendar: BusinessCalendar | None = None,
    convention: BusinessDayConvention = BusinessDayConvention.NONE,
) -> Rows:
    """Their schedules; none is refused."""
    made = schedule_many(loans.table(), rounding, calendar, convention)
    assert not made.rejected, dict(list(made.rejected.items())[:3])
    table = made.instalments.combine_chunks()
    loan = np.repeat(np.arange(len(loans.term)), loans.term)
    principal, interest, payment, balance = (
        units(table.column(name), 2) for name in ("principal", "interest", "payment", "balance")
    )
    number = table.column("number").to_numpy().astype(np.int64)
    due = table.column("due_date").cast(pa.int32()).to_numpy().astype(np.int64)
    starts = np.cumsum(loans.term) - loans.term
    return Rows(loan, number, due, principal, interest, payment, balance, starts)


def _draw_days(draw: np.random.Generator, years: tuple[int, int], count: int) -> Dates:
    """Days of which a third are among the last three of a month."""
    first, end = (np.datetime64(f"{year}-01-01").astype(np.int64) for year in years)
    days = draw.integers(first, end, count).astype("datetime64[D]")
    last = (days.astype("datetime64[M]") + 1).astype("datetime64[D]") - draw.integers(1, 4, count)
    return np.where(draw.random(count) < 1 / 3, last, days)


def _up_to(days: Dates, highest: int) -> Dates:
    """The same days of the month, or that one."""
    return np.asarray(days - (_day(days) - highest).clip(min=0))


def _day(days: Dates) -> Integers:
    """Of the month."""
    into_month = days - days.astype("datetime64[M]").astype("datetime64[D]")
    return np.asarray(into_month.astype(np.int64) + 1)


def _dates(days: Dates) -> pa.Array:
    return pa.array(days.astype("datetime64[D]"), pa.date32())
