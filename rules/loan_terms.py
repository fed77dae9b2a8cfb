"""The terms of many loans as arrays of numbers, and why some of them can't be scheduled."""

import datetime
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.day_count import DayCount
from ledgerbeam.rules.money import Integers, minor_units, unscaled
from ledgerbeam.rules.schedule import (
    HIGHEST_RATE,
    LAST_YEAR,
    PRINCIPAL_DIGITS,
    RATE_DECIMALS,
    Loan,
    check_loan,
    longest_term,
    parse_day_count,
    parse_frequency,
    parse_method,
)

Booleans = npt.NDArray[np.bool_]

_DAY_COUNTS = list(DayCount)
_FIRST_DAY, _LAST_DAY = np.array(
    [datetime.date.min, datetime.date(LAST_YEAR, 12, 31)], "datetime64[D]"
).astype(np.int64)


class LoanTerms(NamedTuple):
    """Loans as numbers, int64 `(loans,)` each; those of a refused loan mean nothing.

    Attributes:
        principal: in minor units of the currency.
        places: decimals of the currency.
        rate: a year, in units of 10**-RATE_DECIMALS percent.
        day_count: position in `DayCount`.
        disbursed_on: days since 1970.
        months: between due dates; 0 where days are counted.
        days: between due dates; 0 where months are counted.
        term: instalments.
        level: 1 for level payments, 0 for equal parts of principal.
        interest_only: instalments without principal.
    """

    principal: Integers
    places: Integers
    rate: Integers
    day_count: Integers
    disbursed_on: Integers
    months: Integers
    days: Integers
    term: Integers
    level: Integers
    interest_only: Integers

    def take(self, rows: Integers) -> "LoanTerms":
        """The terms of some loans."""
        return LoanTerms(*(column[rows] for column in self))


def check_loans(loans: pa.Table) -> dict[int, str]:
    """Why loans can't be scheduled, by row: what `check_loan` says, or an id that isn't unique.

    Negative amortisation is not among the reasons: only a schedule shows it.

    Args:
        loans: as for `build_schedules`.
    """
    return read_terms(loans)[1]


def read_terms(loans: pa.Table) -> tuple[LoanTerms, dict[int, str]]:
    """The terms of loans, and why some are refused, by row.

    Args:
        loans: as for `build_schedules`.
    """
    places, has_places = _parsed(loans.column("currency"), _places, (0,))
    day_count, has_day_count = _parsed(loans.column("day_count"), _day_count, (0,))
    frequency, has_frequency = _parsed(loans.column("frequency"), _frequency, (1, 0, 0))
    method, has_method = _parsed(loans.column("method"), parse_method, (1, 0))
    principal, has_principal = _scaled(
        loans.column("principal"), places[0], 10**PRINCIPAL_DIGITS - 1
    )
    rate, has_rate = _scaled(
        loans.column("annual_rate_percent"),
        np.full(loans.num_rows, RATE_DECIMALS),
        HIGHEST_RATE * 10**RATE_DECIMALS,
    )
    disbursed_on, has_date = _integers(loans.column("disbursed_on").cast(pa.int32()))
    term, has_term = _integers(loans.column("term"))
    terms = LoanTerms(
        principal=principal,
        places=places[0],
        rate=rate,
        day_count=day_count[0],
        disbursed_on=disbursed_on,
        months=frequency[0],
        days=frequency[1],
        term=term,
        level=method[0],
        interest_only=method[1],
    )
    unique = _unique(loans.column("loan_id"))
    ok = has_places & has_day_count & has_frequency & has_method & has_principal & has_rate
    ok &= has_date & has_term & unique
    ok &= (terms.places <= loans.field("principal").type.scale) & (principal > 0)
    ok &= (disbursed_on >= _FIRST_DAY) & (disbursed_on <= _LAST_DAY)
    ok &= (term >= 1) & (term <= frequency[2]) & (terms.interest_only < term)
    return terms, _reasons(loans, np.flatnonzero(~ok), unique)


def too_many_digits(scale: int) -> str:
    """Why a loan is refused whose amounts a column of this scale can't hold."""
    return f"an amount needs more than 18 digits, {scale} of them decimals"


def _reasons(loans: pa.Table, rows: Integers, unique: Booleans) -> dict[int, str]:
    """Why the loans of these rows are refused."""
    refused = loans.select(Loan._fields).take(rows)
    # Python has no dates outside the years 1 to 9999.
    days = refused.column("disbursed_on").cast(pa.int32())
    known = pc.and_(pc.greater_equal(days, _FIRST_DAY), pc.less_equal(days, _LAST_DAY))
    days = pc.if_else(known, days, pa.scalar(_LAST_DAY + 1, pa.int32()))
    at = Loan._fields.index("disbursed_on")
    refused = refused.set_column(at, "disbursed_on", days.cast(pa.date32()))
    scale = loans.field("principal").type.scale
    reasons = {}
    for row, record in zip(rows.tolist(), refused.to_pylist(), strict=True):
        loan = Loan(**record)
        try:
            check_loan(loan)
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


def _unique(loan_id: pa.ChunkedArray) -> Booleans:
    """Which ids are neither null nor those of several loans."""
    at, valid = _integers(_encoded(loan_id).indices)
    return valid & (np.bincount(at[valid], minlength=at.max(initial=0) + 1)[at] == 1)


def _parsed(
    column: pa.ChunkedArray, parse: Callable[[str], Sequence[int]], otherwise: Sequence[int]
) -> tuple[Integers, Booleans]:
    """What texts stand for, int64 `(numbers, rows)`, and which have been understood.

    Every distinct text is parsed once; those that aren't understood stand for `otherwise`.
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
            understood.append(text is not None)
    at = encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy()
    return np.array(numbers, np.int64).T[:, at], np.array(understood)[at]


def _scaled(column: pa.ChunkedArray, scale: Integers, most: int) -> tuple[Integers, Booleans]:
    """Decimals as whole numbers of 10**-scale, and which of them are such, from 0 to `most`."""
    whole, ok = unscaled(column)
    shift = column.type.scale - scale
    down, up = 10 ** np.clip(shift, 0, 18), 10 ** np.clip(-shift, 0, 18)
    whole, rest = np.divmod(whole, down)
    ok &= (rest == 0) & (whole >= 0) & (whole <= most // up)
    return np.where(ok, whole, 0) * up, ok


def _integers(column: pa.Array | pa.ChunkedArray) -> tuple[Integers, Booleans]:
    """Integers, 0 for nulls, and which aren't null."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return column.cast(pa.int64()).fill_null(0).to_numpy(), valid


def _places(text: str) -> tuple[int]:
    return (minor_units(text),)


def _day_count(text: str) -> tuple[int]:
    return (_DAY_COUNTS.index(parse_day_count(text)),)


def _frequency(text: str) -> tuple[int, int, int]:
    frequency = parse_frequency(text)
    return (*frequency, longest_term(frequency))
