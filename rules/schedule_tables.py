"""Repayment schedules of many loans at once: tables of loans in, tables of instalments out.

The results are those of `ledgerbeam.rules.schedule`, to the last digit. Amounts are int64 counts
of minor units, rates and parts of a year fractions of two int64. The loans of a block are sorted
by falling term, and instalment k of all of them is computed at once: those that have one are the
first of the block. Floats only guess, and every guess is proved or corrected by integers.
"""

from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ledgerbeam.rules.day_count import mixed_year_fractions
from ledgerbeam.rules.loan_terms import LoanTerms, read_terms, too_many_digits
from ledgerbeam.rules.money import Integers, Rounding, decimals, mul_div, round_div
from ledgerbeam.rules.schedule import RATE_DECIMALS, level_payment_units, negative_amortisation

AMOUNT_DIGITS = 18
"""Digits of the amounts in a table of instalments."""
# Cells of a block, loans by instalments: its arrays stay in the processor's cache.
_CELLS = 1 << 18


class Schedules(NamedTuple):
    """The schedules of a table of loans.

    Attributes:
        instalments: one row an instalment, in the order of the loans, as `instalments_schema`.
        refused: why a loan has no instalments, by its row in the table of loans.
    """

    instalments: pa.Table
    refused: dict[int, str]


def instalments_schema(loans: pa.Schema) -> pa.Schema:
    """What a table of instalments looks like; amounts have the decimals of `principal`."""
    amount = pa.decimal128(AMOUNT_DIGITS, loans.field("principal").type.scale)
    loan_id = loans.field("loan_id").type
    if not pa.types.is_dictionary(loan_id):
        loan_id = pa.dictionary(pa.int32(), loan_id)
    return pa.schema(
        [
            ("loan_id", loan_id),
            ("number", pa.int32()),
            ("due_date", pa.date32()),
            ("principal", amount),
            ("interest", amount),
            ("payment", amount),
            ("balance", amount),
        ]
    )


def build_schedules(loans: pa.Table, rounding: Rounding = Rounding.HALF_EVEN) -> Schedules:
    """All instalments of many loans.

    Args:
        loans: one row a loan with the columns of `Loan`: `principal` and `annual_rate_percent`
            decimal128, `disbursed_on` date32, `term` an integer, the others strings, plain or
            dictionary-encoded.
        rounding: of level payments, of equal parts of principal and of interest.

    Returns:
        The instalments of the loans that can be scheduled, and why the others can't.
    """
    schema = instalments_schema(loans.schema)
    terms, refused = read_terms(loans)
    rows = np.setdiff1d(np.arange(loans.num_rows), list(refused))
    loan_id = loans.column("loan_id").combine_chunks()
    if not isinstance(loan_id, pa.DictionaryArray):
        loan_id = loan_id.dictionary_encode()
    batches = []
    for block in _blocks(rows, terms.term):
        columns, loan, refused_here = _schedule_block(terms.take(block), schema, rounding)
        refused |= {int(block[at]): reason for at, reason in refused_here.items()}
        ids = loan_id.indices.take(pa.array(block[loan]))
        ids = pa.DictionaryArray.from_arrays(
            ids.cast(schema.field(0).type.index_type), loan_id.dictionary
        )
        batches.append(pa.record_batch([ids, *columns], schema))
    return Schedules(pa.Table.from_batches(batches, schema), refused)


def _blocks(rows: Integers, term: Integers) -> Iterator[Integers]:
    """Rows in turn, as many at once as fit in a block."""
    start = 0
    while start < len(rows):
        longest = np.maximum.accumulate(term[rows[start : start + _CELLS // 8]])
        cells = longest * np.arange(1, len(longest) + 1)
        size = max(1, int(np.searchsorted(cells, _CELLS, side="right")))
        yield rows[start : start + size]
        start += size


def _schedule_block(
    terms: LoanTerms, schema: pa.Schema, rounding: Rounding
) -> tuple[list[pa.Array], Integers, dict[int, str]]:
    """Columns of the instalments but for `loan_id`, each one's loan, and why loans are refused."""
    falling = np.argsort(-terms.term, kind="stable")
    terms = terms.take(falling)
    dates = _due_dates(terms)
    parts, denominators = mixed_year_fractions(dates[:-1], dates[1:], terms.day_count)
    factors = _Factors(parts * terms.rate, denominators * (100 * 10**RATE_DECIMALS))
    numbers = np.arange(1, len(parts) + 1)
    # How many loans have an instalment of each number, and one number more.
    active = np.searchsorted(-terms.term, [*-numbers, -len(numbers) - 1], side="right")
    fixed = np.where(
        terms.level == 1,
        _level_payments(terms, factors, active, rounding),
        round_div(terms.principal, terms.term, rounding),
    )
    principal, interest, balance = _repay(terms, factors, active, fixed, rounding)
    payment = principal + interest

    refused = {}
    number = numbers[:, None]
    repays = (number > terms.interest_only) & (number < terms.term) & (terms.level == 1)
    grows = (interest > fixed) & repays
    for at in np.flatnonzero(grows.any(axis=0)).tolist():
        first = int(grows[:, at].argmax())
        refused[int(falling[at])] = negative_amortisation(
            first + 1,
            _amount(interest[first, at], terms.places[at]),
            _amount(fixed[at], terms.places[at]),
        )
    amount = schema.field("principal").type
    to_scale = 10 ** (amount.scale - terms.places)
    largest = np.maximum(payment.max(axis=0), terms.principal)
    for at in np.flatnonzero(largest > (10**AMOUNT_DIGITS - 1) // to_scale).tolist():
        refused.setdefault(int(falling[at]), too_many_digits(amount.scale))

    # Row by row: an instalment's loan in the order of the block, its number, its cell.
    size = np.where(np.isin(falling, list(refused)), 0, terms.term)
    place = np.argsort(falling)
    size = size[place]
    loan = np.repeat(np.arange(len(size)), size)
    instalment = np.arange(len(loan)) - np.repeat(np.cumsum(size) - size, size)
    cells = instalment * len(size) + place[loan]
    if (to_scale != 1).any():
        principal, interest, payment, balance = (
            values * to_scale for values in (principal, interest, payment, balance)
        )
    columns = [
        pa.array((instalment + 1).astype(np.int32)),
        pa.array(dates[1:].astype(np.int32).ravel()[cells]).view(pa.date32()),
        *(
            decimals(values.ravel()[cells], amount)
            for values in (principal, interest, payment, balance)
        ),
    ]
    return columns, loan, refused


def _repay(
    terms: LoanTerms, factors: "_Factors", active: Integers, fixed: Integers, rounding: Rounding
) -> tuple[Integers, Integers, Integers]:
    """Principal, interest and balance of every instalment, int64 `(instalments, loans)`.

    Args:
        terms: by falling term.
        factors: of each period and loan.
        active: how many loans have an instalment of each number.
        fixed: level payment or equal part of principal, `(loans,)`.
        rounding: of interest.
    """
    principal, interest, balance = np.zeros((3, *factors.numerators.shape), np.int64)
    owed = terms.principal.copy()
    some_interest_only = int(terms.interest_only.max())
    for k, (now, later) in enumerate(pairwise(active.tolist())):
        left = owed[:now]
        due = mul_div(left, factors.numerators[k, :now], factors.denominators[:now], rounding)
        repaid = np.clip(fixed[:now] - due * terms.level[:now], 0, left)
        if k < some_interest_only:
            repaid[terms.interest_only[:now] > k] = 0
        repaid[later:] = left[later:]
        left -= repaid
        principal[k, :now], interest[k, :now], balance[k, :now] = repaid, due, left
    return principal, interest, balance


class _Factors(NamedTuple):
    """Interest of each period on a balance of 1, as fractions.

    Attributes:
        numerators: int64 `(instalments, loans)`.
        denominators: int64 `(loans,)`.
    """

    numerators: Integers
    denominators: Integers


def _level_payments(
    terms: LoanTerms, factors: _Factors, active: Integers, rounding: Rounding
) -> Integers:
    """Level payments in minor units, int64 `(loans,)`: the same as `level_payment`.

    The present value of payments of 1 is summed in float64, from the last period to the first.
    Everything is positive, so relative errors only add up: per period there are at most six
    roundings (numerator, denominator, their quotient, two sums, a quotient), and two more for the
    payment, each of at most 2**-53. The guess is thus within (6 * term + 2) * 2**-53 of its value.
    Twice that is allowed for, which covers the products of errors. A guess that is further than
    that from the middle between two integers rounds as the exact value does. The others, one in
    millions but for ties, are computed exactly.
    """
    annuity = np.zeros(len(terms.term))
    skip = int(terms.interest_only.max())
    for k in range(len(factors.numerators) - 1, -1, -1):
        now = active[k]
        later = annuity[:now]
        earlier = (1 + later) / (1 + factors.numerators[k, :now] / factors.denominators[:now])
        annuity[:now] = (
            np.where(terms.interest_only[:now] > k, later, earlier) if k < skip else earlier
        )
    guess = terms.principal / annuity
    error = guess * (12 * terms.term + 4) * 2.0**-53
    payments = np.rint(guess).astype(np.int64)
    for at in np.flatnonzero(np.abs(guess - np.floor(guess) - 0.5) <= error):
        periods = factors.numerators[terms.interest_only[at] : terms.term[at], at].tolist()
        below = int(factors.denominators[at])
        payments[at] = level_payment_units(
            int(terms.principal[at]), [(above, below) for above in periods], rounding
        )
    return payments


def _due_dates(terms: LoanTerms) -> npt.NDArray[np.datetime64]:
    """Due dates, datetime64[D] `(instalments + 1, loans)`; first the day of disbursement."""
    number = np.minimum(np.arange(terms.term.max() + 1)[:, None], terms.term)
    days = terms.disbursed_on + number * terms.days
    monthly = np.flatnonzero(terms.months)
    if len(monthly):
        disbursed_on = terms.disbursed_on[monthly].astype("datetime64[D]")
        first_month = disbursed_on.astype("datetime64[M]")
        day_of_month = (disbursed_on - first_month.astype("datetime64[D]")).astype(np.int64)
        month = first_month.astype(np.int64) + number[:, monthly] * terms.months[monthly]
        base = month.min()
        every_month = np.arange(base, month.max() + 2).astype("datetime64[M]")
        begins = every_month.astype("datetime64[D]").astype(np.int64)
        month -= base
        days[:, monthly] = np.minimum(begins[month] + day_of_month, begins[month + 1] - 1)
    return days.astype("datetime64[D]")


def _amount(units: np.int64, places: np.int64) -> Decimal:
    return Decimal(int(units)).scaleb(-int(places))
