"""The terms of many loans as arrays of numbers, and why some of them can't be scheduled."""

import datetime
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.arrays import Dates, Flags, Integers
from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.money import unscaled
from ledgerbeam.rules.schedules.schedule import (
    CALENDAR_MARGIN,
    FIRST_YEAR,
    LAST_YEAR,
    MAX_PRINCIPAL_DIGITS,
    MAX_RATE,
    MAX_YEARS,
    RATE_DECIMALS,
    Loan,
    check_loan,
    max_term,
    parse_day_count,
)
from ledgerbeam.rules.terms.accrual import Frequencies
from ledgerbeam.rules.terms.day_count import DAY_COUNTS, DayCount
from ledgerbeam.rules.terms.due_dates import DueDates, Frequency, parse_frequency
from ledgerbeam.rules.terms.repayment import FirstPeriod, parse_first_period, parse_method

FIRST_PERIODS = list(FirstPeriod)
_ICMA, _BUS_252 = map(DAY_COUNTS.index, (DayCount.ACT_ACT_ICMA, DayCount.BUS_252))
_FIRST_DAY, _LAST_DAY = np.array(
    [datetime.date(FIRST_YEAR, 1, 1), datetime.date(LAST_YEAR, 12, 31)], "datetime64[D]"
).astype(np.int64)
_MAX_UNITS = 10**MAX_PRINCIPAL_DIGITS - 1


class LoanColumns(NamedTuple):
    """Loans as numbers, int64 `(loans,)` each; those of a rejected loan mean nothing.

    Attributes:
        principal: in minor units of the currency.
        places: decimals of the currency.
        rate: a year, in units of 10**-RATE_DECIMALS percent.
        day_count: position in `DayCount`.
        disbursed_on: days since 1970.
        months: between due dates; 0 where days are counted, or due dates come twice a month.
        days: between due dates; 0 where months are counted, or due dates come twice a month.
        before_first: the due date that would come before the first one: months since 1970, days
            where days are counted, half-months where due dates come twice a month.
        due_day: day of the month on which instalments fall due, the later one of two.
        other_due_day: the earlier one of two; else 0.
        first_period: position in `FirstPeriod`.
        term: instalments.
        level: 1 for level payments, 0 for equal parts of principal.
        interest_only: instalments without principal.
        payment: in minor units; 0 for the one that repays the loan.
        round_payment_to: in minor units; 0 for none.
    """

    principal: Integers
    places: Integers
    rate: Integers
    day_count: Integers
    disbursed_on: Integers
    months: Integers
    days: Integers
    before_first: Integers
    due_day: Integers
    other_due_day: Integers
    first_period: Integers
    term: Integers
    level: Integers
    interest_only: Integers
    payment: Integers
    round_payment_to: Integers

    def take(self, rows: Integers) -> "LoanColumns":
        """The terms of some loans."""
        return LoanColumns(*(column[rows] for column in self))

    def frequencies(self) -> Frequencies:
        """The time between due dates."""
        return Frequencies(self.months, self.days, self.due_day)

    def due_dates(self, number: Integers) -> Dates:
        """Due dates of these numbers, datetime64[D] `(numbers, loans)`.

        Number 0 is the one that would come before the first; after the last one of each loan it
        is repeated.

        Args:
            number: int64 `(numbers,)`, not negative.
        """
        numbers: Integers = np.minimum(number[:, None], self.term)
        if self.months.all():
            month = self.before_first + numbers * self.months
            return _days_of_months(month, self.due_day).astype("datetime64[D]")
        days = self.before_first + numbers * self.days
        monthly = np.flatnonzero(self.months)
        if len(monthly):
            month = self.before_first[monthly] + numbers[:, monthly] * self.months[monthly]
            days[:, monthly] = _days_of_months(month, self.due_day[monthly])
        halves = np.flatnonzero((self.months == 0) & (self.days == 0))
        if len(halves):
            month, is_later = np.divmod(self.before_first[halves] + numbers[:, halves], 2)
            day = np.where(is_later, self.due_day[halves], self.other_due_day[halves])
            days[:, halves] = _days_of_months(month, day)
        return days.astype("datetime64[D]")

    def due_dates_of(
        self, loan: int, first_due: datetime.date, maturity: datetime.date
    ) -> DueDates:
        """The due dates of one loan, whose first period bears interest from disbursement on."""
        months, days = int(self.months[loan]), int(self.days[loan])
        upfront = FIRST_PERIODS[self.first_period[loan]] is FirstPeriod.UPFRONT
        return DueDates(
            frequency=Frequency(months, days, twice_a_month=not (months or days)),
            due_day=int(self.due_day[loan]),
            second_due_day=int(self.other_due_day[loan]),
            first_due=first_due,
            interest_from=None
            if upfront
            else self.disbursed_on[loan].astype("datetime64[D]").item(),
            maturity=maturity,
        )


def check_loan_many(
    loans: pa.Table,
    calendar: BusinessCalendar | None = None,
    convention: BusinessDayConvention = BusinessDayConvention.NONE,
) -> dict[int, str]:
    """Why loans can't be scheduled, by row: what `check_loan` says, or an id that isn't unique.

    Negative amortisation is not among the reasons: only a schedule shows it.

    Args:
        loans: as for `schedule_many`.
        calendar: as for `schedule_many`.
        convention: as for `schedule_many`.
    """
    return read_loans(loans, calendar, convention)[1]


def read_loans(
    loans: pa.Table,
    calendar: BusinessCalendar | None = None,
    convention: BusinessDayConvention = BusinessDayConvention.NONE,
) -> tuple[LoanColumns, dict[int, str]]:
    """The terms of loans, and why some are rejected, by row.

    Args:
        loans: as for `schedule_many`.
        calendar: as for `schedule_many`.
        convention: as for `schedule_many`.
    """
    loans = _with_all_columns(loans)
    places, has_places = _parsed(loans.column("currency"), _places, (0,))
    day_count, has_day_count = _parsed(loans.column("day_count"), _day_count, (0,))
    frequency, has_frequency = _parsed(loans.column("frequency"), _frequency, (1, 0, 0))
    method, has_method = _parsed(loans.column("method"), parse_method, (1, 0))
    first_period, has_first_period = _parsed(
        loans.column("first_period"), _first_period, (0,), optional=True
    )
    principal, has_principal = _scaled(loans.column("principal"), places[0], _MAX_UNITS)
    rate, has_rate = _scaled(
        loans.column("annual_rate_percent"),
        np.full(loans.num_rows, RATE_DECIMALS),
        MAX_RATE * 10**RATE_DECIMALS,
    )
    term, has_term = _integers(loans.column("term"))
    disbursed_on, has_date = _integers(loans.column("disbursed_on").cast(pa.int32()))
    months, days, longest = frequency
    due, due_ok = _first_due(loans, disbursed_on, months, days)
    payment, payment_ok = _payments(loans, places[0])
    terms = LoanColumns(
        principal=principal,
        places=places[0],
        rate=rate,
        day_count=day_count[0],
        disbursed_on=disbursed_on,
        months=months,
        days=days,
        before_first=due.before_first,
        due_day=due.due_day,
        other_due_day=due.other_due_day,
        first_period=first_period[0],
        term=term,
        level=method[0],
        interest_only=method[1],
        payment=payment[0],
        round_payment_to=payment[1],
    )
    unique = _unique(loans.column("loan_id"))
    ok = has_places & has_day_count & has_frequency & has_method & has_principal & has_rate
    ok &= has_date & has_term & has_first_period & unique & due_ok & payment_ok
    ok &= (terms.places <= loans.field("principal").type.scale) & (principal > 0)
    ok &= (disbursed_on >= _FIRST_DAY) & (disbursed_on <= _LAST_DAY)
    ok &= (term >= 1) & (term <= longest) & (terms.interest_only < term)
    ok &= (terms.day_count != _ICMA) | (days == 0)
    _check_calendar(terms, ok, calendar, convention)
    return terms, _reasons(loans, np.flatnonzero(~ok), unique, calendar, convention)


def too_many_digits(scale: int) -> str:
    """Why a loan is rejected whose amounts a column of this scale can't hold."""
    return f"an amount needs more than 18 digits, {scale} of them decimals"


_OPTIONAL_TYPES = {
    "first_due": pa.date32(),
    "due_day": pa.int64(),
    "second_due_day": pa.int64(),
    "first_period": pa.string(),
    "payment": pa.decimal128(18, 2),
    "round_payment_to": pa.decimal128(18, 2),
}


def _with_all_columns(loans: pa.Table) -> pa.Table:
    """The loans with all columns of `Loan`; those that are missing are null."""
    for name, kind in _OPTIONAL_TYPES.items():
        if name not in loans.column_names:
            loans = loans.append_column(name, pa.nulls(loans.num_rows, kind))
    return loans


class _Due(NamedTuple):
    """Attributes of `LoanColumns`."""

    before_first: Integers
    due_day: Integers
    other_due_day: Integers


def _first_due(
    loans: pa.Table, disbursed_on: Integers, months: Integers, days: Integers
) -> tuple[_Due, Flags]:
    """When loans begin to fall due, and which of them say so without contradiction."""
    (first_due, is_own), (due_day, has_due_day), (second, has_second) = (
        _integers(loans.column(name).cast(kind))
        for name, kind in (
            ("first_due", pa.int32()),
            ("due_day", pa.int64()),
            ("second_due_day", pa.int64()),
        )
    )
    halves = (months == 0) & (days == 0)
    ok = ~is_own | (
        (first_due > disbursed_on)
        & (first_due >= _FIRST_DAY)
        & (first_due <= _LAST_DAY)
        & (_years(first_due) <= _years(disbursed_on) + MAX_YEARS)
    )
    ok &= ~has_due_day | (days == 0) & (due_day >= 1) & (due_day <= 31)
    ok &= ~has_second | halves & (second >= 1) & (second <= 31)

    first = np.where(is_own, first_due, disbursed_on)
    month, day, is_last = _days_taken_apart(first)
    implied = np.where(is_last, np.maximum(day, _days_taken_apart(disbursed_on)[1]), day)
    due_day = np.where(has_due_day, due_day, implied)
    ok &= (day == due_day) | is_last & (day < due_day)
    ok &= ~has_second | (np.minimum(second, 28) != np.minimum(due_day, 28))

    second = np.where(has_second, second, np.where(due_day <= 15, due_day + 15, due_day - 15))
    later = np.where(halves, np.maximum(due_day, second), due_day)
    other = np.where(halves, np.minimum(due_day, second), 0)
    before_first = np.where(
        halves,
        2 * month + (due_day == later) - is_own,
        np.where(days > 0, first - days * is_own, month - months * is_own),
    )
    return _Due(before_first, later, other), ok


def _days_taken_apart(days: Integers) -> tuple[Integers, Integers, Flags]:
    """Days since 1970 as months since then and days of the month, and which are its last."""
    dates = days.astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    day = (dates - months.astype("datetime64[D]")).astype(np.int64) + 1
    return months.astype(np.int64), day, months != (dates + 1).astype("datetime64[M]")


def _days_of_months(month: Integers, due_day: Integers) -> Integers:
    """Days since 1970 of a due day of months since 1970, or of their last day."""
    base = month.min()
    every_month = np.arange(base, month.max() + 2).astype("datetime64[M]")
    begins = every_month.astype("datetime64[D]").astype(np.int64)
    month = month - base
    return np.minimum(begins[month] + (due_day - 1), begins[month + 1] - 1)


def _years(days: Integers) -> Integers:
    return days.astype("datetime64[D]").astype("datetime64[Y]").astype(np.int64)


def _payments(loans: pa.Table, places: Integers) -> tuple[tuple[Integers, Integers], Flags]:
    """Payments that loans name and what others are rounded up to, 0 for none; which make sense."""
    amounts, ok = [], np.ones(loans.num_rows, bool)
    for name in ("payment", "round_payment_to"):
        column = loans.column(name)
        amount, valid = _scaled(column, places, _MAX_UNITS)
        ok &= ~column.is_valid().to_numpy(zero_copy_only=False) | valid & (amount > 0)
        amounts.append(amount)
    payment, multiple = amounts
    ok &= payment % np.maximum(multiple, 1) == 0
    return (payment, multiple), ok


def _check_calendar(
    terms: LoanColumns,
    ok: Flags,
    calendar: BusinessCalendar | None,
    convention: BusinessDayConvention,
) -> None:
    """Takes loans out of `ok` whose days the calendar doesn't know, or that lack one."""
    if calendar is None:
        ok &= terms.day_count != _BUS_252
        return
    rows = np.flatnonzero(
        ok if convention is not BusinessDayConvention.NONE else ok & (terms.day_count == _BUS_252)
    )
    if len(rows):
        some = terms.take(rows)
        last = some.due_dates(np.array([some.term.max()]))[0]
        ok[rows] = (
            some.disbursed_on.astype("datetime64[D]") - CALENDAR_MARGIN >= calendar.first
        ) & (last + CALENDAR_MARGIN <= calendar.last)


def _reasons(
    loans: pa.Table,
    rows: Integers,
    unique: Flags,
    calendar: BusinessCalendar | None,
    convention: BusinessDayConvention,
) -> dict[int, str]:
    """Why the loans of these rows are rejected."""
    rejected = loans.select(Loan._fields).take(rows)
    # Python has no dates outside the years 1 to 9999.
    for name in ("disbursed_on", "first_due"):
        days = rejected.column(name).cast(pa.int32())
        known = pc.and_(pc.greater_equal(days, _FIRST_DAY), pc.less_equal(days, _LAST_DAY))
        days = pc.if_else(known, days, pa.scalar(_LAST_DAY + 1, pa.int32()))
        rejected = rejected.set_column(Loan._fields.index(name), name, days.cast(pa.date32()))
    scale = loans.field("principal").type.scale
    reasons = {}
    for row, record in zip(rows.tolist(), rejected.to_pylist(), strict=True):
        loan = Loan(**record)
        try:
            check_loan(loan, calendar, convention)
        except ValueError as error:
            reasons[row] = str(error)
        else:
            places = minor_units(loan.currency)
            if not unique[row]:
                reasons[row] = f"loan_id {loan.loan_id} is that of another loan, too"
            elif places > scale:
                reasons[row] = f"{loan.currency} has {places} decimals, principal only {scale}"
            else:
                reasons[row] = too_many_digits(scale)
    return reasons


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    array = column.combine_chunks()
    return array if isinstance(array, pa.DictionaryArray) else array.dictionary_encode()


def _unique(loan_id: pa.ChunkedArray) -> Flags:
    """Which ids are neither null nor those of several loans."""
    at, valid = _integers(_encoded(loan_id).indices)
    return valid & (np.bincount(at[valid], minlength=at.max(initial=0) + 1)[at] == 1)


def _parsed(
    column: pa.ChunkedArray,
    parse: Callable[[str], Sequence[int]],
    otherwise: Sequence[int],
    optional: bool = False,
) -> tuple[Integers, Flags]:
    """What texts stand for, int64 `(numbers, rows)`, and which have been understood.

    Every distinct text is parsed once; those that aren't understood stand for `otherwise`, and so
    do nulls, which are understood where the column is optional.
    """
    encoded = _encoded(column)
    numbers, understood = [], []
    # Nulls are at position -1.
    for text in [*encoded.dictionary.to_pylist(), None]:
        try:
            numbers.append(otherwise if text is None else parse(text))
        except ValueError:
            numbers.append(otherwise)
            understood.append(False)
        else:
            understood.append(optional or text is not None)
    at = encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy()
    return np.array(numbers, np.int64).T[:, at], np.array(understood)[at]


def _scaled(column: pa.ChunkedArray, scale: Integers, most: int) -> tuple[Integers, Flags]:
    """Decimals as whole numbers of 10**-scale, and which of them are such, from 0 to `most`."""
    whole, ok = unscaled(column)
    shift = column.type.scale - scale
    down, up = 10 ** np.clip(shift, 0, 18), 10 ** np.clip(-shift, 0, 18)
    whole, rest = np.divmod(whole, down)
    ok &= (rest == 0) & (whole >= 0) & (whole <= most // up)
    return np.where(ok, whole, 0) * up, ok


def _integers(column: pa.Array | pa.ChunkedArray) -> tuple[Integers, Flags]:
    """Integers, 0 for nulls, and which aren't null."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return column.cast(pa.int64()).fill_null(0).to_numpy(), valid


def _places(text: str) -> tuple[int]:
    return (minor_units(text),)


def _day_count(text: str) -> tuple[int]:
    return (DAY_COUNTS.index(parse_day_count(text)),)


def _frequency(text: str) -> tuple[int, int, int]:
    frequency = parse_frequency(text)
    return (frequency.months, frequency.days, max_term(frequency))


def _first_period(text: str) -> tuple[int]:
    return (FIRST_PERIODS.index(parse_first_period(text)),)
