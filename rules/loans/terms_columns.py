"""The terms of many loans in columns, from Arrow tables."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.arrays import Dates, Flags, Integers, Objects, array_of
from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.loans.columns import (
    AMOUNT,
    amounts_of,
    coded,
    dates_of,
    encoded,
    integers_of,
)
from ledgerbeam.rules.loans.loan import Terms
from ledgerbeam.rules.terms.day_count import BY_TWO_DATES, DAY_COUNTS, DayCount
from ledgerbeam.rules.terms.due_dates import MONTHLY, Frequency, month_later_many, parse_frequency
from ledgerbeam.rules.terms.repayment import (
    LEVEL,
    FirstPeriod,
    Method,
    parse_first_period,
    parse_method,
)

TERMS_SCHEMA = pa.schema(
    {
        "loan_id": pa.string(),
        "currency": pa.string(),
        "day_count": pa.string(),
        "origination_date": pa.date32(),
        "maturity_date": pa.date32(),
        "due_day": pa.int64(),
        "escrow_payment": AMOUNT,
        "frequency": pa.string(),
        "second_due_day": pa.int64(),
        "first_due": pa.date32(),
        "method": pa.string(),
        "first_period": pa.string(),
        "round_payment_to": AMOUNT,
    }
)
"""Columns of terms; those after `escrow_payment` may be missing or null: see `Terms`."""
_LEVEL = Method(level=True, interest_only=0)
_IN_COLUMNS = [DAY_COUNTS.index(day_count) for day_count in BY_TWO_DATES]
_THIRTY_360 = DAY_COUNTS.index(DayCount.THIRTY_360)


@dataclass(slots=True)
class TermsColumns:
    """`Terms` of many loans, one element a loan.

    Attributes:
        places: decimals of each loan's currency.
        day_count: code, see `DAY_COUNTS`.
        months: between instalments; 0 where days are counted or they come twice a month.
        days: likewise.
        first_due: not-a-time where there is none.
        others: for each loan the terms from `frequency` on, as `Terms` has them.
        is_usual: whether vectorised rules hold for these terms, once the first due date is past.
    """

    loan_id: pa.StringArray
    currency: Objects
    places: Integers
    day_count: Integers
    origination_date: Dates
    maturity_date: Dates
    due_day: Integers
    escrow_payment: Integers
    months: Integers
    days: Integers
    first_due: Dates
    others: Objects
    is_usual: Flags
    calendar: BusinessCalendar | None = None

    def __len__(self) -> int:
        return len(self.due_day)

    def row(self, at: int) -> Terms:
        """The terms of one loan."""
        return self.rows(np.array([at]))[0]

    def rows(self, at: Integers) -> list[Terms]:
        """The terms of some loans."""
        columns: tuple[list[Any], ...] = (
            self.loan_id.take(pa.array(at)).to_pylist(),
            self.currency[at].tolist(),
            [DAY_COUNTS[code] for code in self.day_count[at].tolist()],
            self.origination_date[at].tolist(),
            self.maturity_date[at].tolist(),
            self.due_day[at].tolist(),
            self.escrow_payment[at].tolist(),
            self.others[at].tolist(),
        )
        rows: list[list[Any]] = [
            [*values, *others, self.calendar] for *values, others in zip(*columns, strict=True)
        ]
        return [Terms(*row) for row in rows]

    def after(self, at: Integers, days: Dates) -> Dates:
        """The regular due date that follows each of these."""
        return self._moved(at, days, 1)

    def before(self, at: Integers, days: Dates) -> Dates:
        """The regular due date before each of these."""
        return self._moved(at, days, -1)

    def _moved(self, at: Integers, days: Dates, by: int) -> Dates:
        months = self.months[at]
        moved = month_later_many(days, self.due_day[at], by * months)
        if months.all():
            return moved
        return np.where(months > 0, moved, days + by * self.days[at])

    @classmethod
    def from_table(
        cls, table: pa.Table, calendar: BusinessCalendar | None = None
    ) -> "TermsColumns":
        """Columns of a table with those of `TERMS_SCHEMA`.

        Args:
            table: a row a loan.
            calendar: business days, for terms that need them.

        Raises:
            ValueError: an unknown day count, currency, frequency or method, a null, or a day that
                no month has.
        """
        day_count, _ = coded(table, "day_count", _day_count_code)
        due_day = integers_of(table.column("due_day"))
        if len(due_day) and not 1 <= due_day.min() <= due_day.max() <= 31:
            wrong = due_day[(due_day < 1) | (due_day > 31)][0]
            raise ValueError(f"due_day {wrong} is not from 1 to 31")
        places, _ = coded(table, "currency", minor_units)
        currencies = encoded(table.column("currency"))
        currency = np.array(currencies.dictionary.to_pylist(), object)[
            currencies.indices.to_numpy()
        ]
        codes, frequencies = coded(table, "frequency", parse_frequency, "P1M")
        months = np.array([each.months for each in frequencies], np.int64)[codes]
        days = np.array([each.days for each in frequencies], np.int64)[codes]
        escrow = amounts_of(table.column("escrow_payment"), places, "escrow_payment")
        others, is_level, first_due = _others(table, codes, frequencies, places)
        maturity = dates_of(table.column("maturity_date"))
        is_regular = _is_regular(maturity, first_due, due_day, months, days)
        is_counted = np.isin(day_count, _IN_COLUMNS) & ((months > 0) | (day_count != _THIRTY_360))
        return cls(
            array_of(table.column("loan_id").cast(pa.string())),
            currency,
            places,
            day_count,
            dates_of(table.column("origination_date")),
            maturity,
            due_day,
            escrow,
            months,
            days,
            first_due,
            others,
            is_level & is_regular & is_counted,
            calendar,
        )


def _day_count_code(text: str) -> int:
    try:
        return DAY_COUNTS.index(DayCount(text))
    except ValueError:
        raise ValueError(f"day_count {text} is none of {', '.join(DAY_COUNTS)}") from None


def _is_regular(
    maturity: Dates, first_due: Dates, due_day: Integers, months: Integers, days: Integers
) -> Flags:
    """Whether the maturity date is a due date like all others."""
    is_due = month_later_many(maturity, due_day, 0) == maturity
    if (months == 1).all():
        return np.asarray(is_due)
    has_first = ~np.isnat(first_due)
    apart = maturity.astype("datetime64[M]") - first_due.astype("datetime64[M]")
    is_due &= np.where(has_first, apart.astype(np.int64) % np.maximum(months, 1) == 0, months == 1)
    in_days = (maturity - first_due).astype(np.int64) % np.maximum(days, 1) == 0
    return np.where(months > 0, is_due, (days > 0) & has_first & in_days)


def _others(
    table: pa.Table, codes: Integers, frequencies: list[Frequency], places: Integers
) -> tuple[Objects, Flags, Dates]:
    """For each loan the terms from `frequency` on; which have level payments; first due dates."""
    rows = table.num_rows
    method, methods = coded(table, "method", parse_method, LEVEL)
    first_period, first_periods = coded(
        table, "first_period", parse_first_period, FirstPeriod.TO_THE_DAY
    )
    second, first_due, multiple = (
        table.column(name)
        if name in table.column_names
        else pa.chunked_array([pa.nulls(rows, TERMS_SCHEMA.field(name).type)])
        for name in ("second_due_day", "first_due", "round_payment_to")
    )
    is_level = np.array([each == _LEVEL for each in methods], bool)[method]
    has_more = ~is_level | ~np.array([each == MONTHLY for each in frequencies], bool)[codes]
    for column in (second, first_due, multiple):
        if column.null_count < rows:
            has_more |= ~column.is_null().to_numpy()
    others = np.empty(rows, object)
    others.fill((MONTHLY, 0, None, _LEVEL, FirstPeriod.TO_THE_DAY, 0))
    at = np.flatnonzero(has_more)
    if len(at):
        rounded = amounts_of(
            pc.fill_null(multiple.take(pa.array(at)), 0), places[at], "round_payment_to"
        )
        numbers = zip(
            at.tolist(),
            second.take(pa.array(at)).to_pylist(),
            first_due.take(pa.array(at)).to_pylist(),
            rounded.tolist(),
            strict=True,
        )
        for loan, second_day, first, round_to in numbers:
            others[loan] = (
                frequencies[codes[loan]], second_day or 0, first, methods[method[loan]],
                first_periods[first_period[loan]], round_to,
            )  # fmt: skip
    return others, is_level, dates_of(first_due)
