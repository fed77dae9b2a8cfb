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
import pyarrow as pa

from ledgerbeam.rules.day_count import Dates, mixed_year_fractions
from ledgerbeam.rules.loan_terms import LoanTerms, read_terms, too_many_digits
from ledgerbeam.rules.money import Integers, Rounding, decimals, mul_div, round_div
from ledgerbeam.rules.schedule import RATE_DECIMALS, level_payment_units, negative_amortisation

AMOUNT_DIGITS = 18
"""Digits of the amounts in a table of instalments."""
# Cells of a block, loans by instalments: enough that calls of numpy cost little beside the work,
# few enough that its dozen arrays take 100 MB.
_CELLS = 1 << 20


class Schedules(NamedTuple):
    """The schedules of a table of loans.

    Attributes:
        instalments: one row an instalment, in the order of the loans, as `instalments_schema`.
        refused: why a loan has no instalments, by its row in the table of loans.
    """

    instalments: pa.Table
    refused: dict[int, str]


class _Factors(NamedTuple):
    """Interest of each period on a balance of 1, as fractions.

    Attributes:
        numerators: int64 `(instalments, loans)`.
        denominators: int64 `(loans,)`.
    """

    numerators: Integers
    denominators: Integers


class _Amounts(NamedTuple):
    """Amounts of all instalments in minor units, int64 `(instalments, loans)` each."""

    principal: Integers
    interest: Integers
    payment: Integers
    balance: Integers


def instalments_schema(loans: pa.Schema) -> pa.Schema:
    """What a table of instalments looks like; amounts have the decimals of `principal`.

    Raises:
        ValueError: if those are more than 18.
    """
    scale = loans.field("principal").type.scale
    if scale > AMOUNT_DIGITS:
        raise ValueError(f"principal has {scale} decimals; the most are {AMOUNT_DIGITS}")
    amount = pa.decimal128(AMOUNT_DIGITS, scale)
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

    Raises:
        ValueError: if `principal` has more than 18 decimals.
    """
    schema = instalments_schema(loans.schema)
    amount, index_type = schema.field("principal").type, schema.field("loan_id").type.index_type
    terms, refused = read_terms(loans)
    rows = np.setdiff1d(np.arange(loans.num_rows), list(refused))
    loan_id = loans.column("loan_id").combine_chunks()
    if not isinstance(loan_id, pa.DictionaryArray):
        loan_id = loan_id.dictionary_encode()
    batches = []
    for block in _blocks(rows, terms.term):
        block = block[np.argsort(-terms.term[block], kind="stable")]
        some = terms.take(block)
        dates = _due_dates(some)
        amounts, fixed = _schedule(some, dates, rounding)
        reasons = _refusals(some, amounts, fixed, amount.scale)
        term = some.term.copy()
        term[list(reasons)] = 0
        row, columns = _columns(block, some._replace(term=term), dates, amounts, amount)
        indices = loan_id.indices.take(pa.array(row)).cast(index_type)
        ids = pa.DictionaryArray.from_arrays(indices, loan_id.dictionary)
        batches.append(pa.record_batch([ids, *columns], schema))
        refused |= {int(block[at]): reason for at, reason in reasons.items()}
    return Schedules(pa.Table.from_batches(batches, schema), dict(sorted(refused.items())))


def previous_balances(
    balance: Integers,
    payment: Integers,
    numerators: Integers,
    denominators: Integers,
    rounding: Rounding = Rounding.HALF_EVEN,
) -> Integers:
    """`previous_balance` of many loans in minor units, int64 `(loans,)`.

    Args:
        balance: after the period.
        payment: at its end.
        numerators: of the period factors.
        denominators: of the period factors.
        rounding: of the balances.
    """
    return mul_div(balance + payment, denominators, denominators + numerators, rounding)


def _blocks(rows: Integers, term: Integers) -> Iterator[Integers]:
    """Rows in turn, as many at once as fit in a block."""
    start = 0
    while start < len(rows):
        longest = np.maximum.accumulate(term[rows[start : start + _CELLS // 8]])
        cells = longest * np.arange(1, len(longest) + 1)
        size = max(1, int(np.searchsorted(cells, _CELLS, side="right")))
        yield rows[start : start + size]
        start += size


def _schedule(terms: LoanTerms, dates: Dates, rounding: Rounding) -> tuple[_Amounts, Integers]:
    """Amounts of all instalments, and the level payments or equal parts of principal."""
    parts, denominators = mixed_year_fractions(dates[:-1], dates[1:], terms.day_count)
    factors = _Factors(parts * terms.rate, denominators * (100 * 10**RATE_DECIMALS))
    # How many loans have an instalment of each number, and of one number more.
    active = np.searchsorted(-terms.term, -np.arange(1, len(dates) + 1), side="right")
    fixed = np.where(
        terms.level == 1,
        _level_payments(terms, factors, active, rounding),
        round_div(terms.principal, terms.term, rounding),
    )
    principal, interest, balance = _repay(terms, factors, active, fixed, rounding)
    return _Amounts(principal, interest, principal + interest, balance), fixed


def _refusals(terms: LoanTerms, amounts: _Amounts, fixed: Integers, scale: int) -> dict[int, str]:
    """Why loans of a block can't be scheduled after all, by their place in it."""
    largest = np.maximum(amounts.payment.max(axis=0), terms.principal)
    too_large = largest > (10**AMOUNT_DIGITS - 1) // 10 ** (scale - terms.places)
    reasons = dict.fromkeys(np.flatnonzero(too_large).tolist(), too_many_digits(scale))
    number = np.arange(1, len(amounts.interest) + 1)[:, None]
    repays = (number > terms.interest_only) & (number < terms.term) & (terms.level == 1)
    # Where `_repay` had to raise the payment.
    grows = repays & (amounts.payment > fixed)
    for at in np.flatnonzero(grows.any(axis=0)).tolist():
        first = int(grows[:, at].argmax())
        interest, payment = (
            Decimal(int(units)).scaleb(-int(terms.places[at]))
            for units in (amounts.interest[first, at], fixed[at])
        )
        reasons[at] = negative_amortisation(first + 1, interest, payment)
    return reasons


def _columns(
    rows: Integers, terms: LoanTerms, dates: Dates, amounts: _Amounts, amount: pa.Decimal128Type
) -> tuple[Integers, list[pa.Array]]:
    """Instalments in the order of rows, and then of numbers.

    Args:
        rows: of the loans in their table.
        terms: of the same loans; a term of 0 leaves a loan out.
        dates: due dates.
        amounts: in minor units.
        amount: type of the columns of amounts.

    Returns:
        The row of each instalment's loan, and the columns after `loan_id`.
    """
    in_order = np.argsort(rows)
    term = terms.term[in_order]
    loan = np.repeat(in_order, term)
    number = np.arange(len(loan)) - np.repeat(np.cumsum(term) - term, term)
    cells = number * len(rows) + loan
    to_scale = 10 ** (amount.scale - terms.places)
    columns = [
        pa.array((number + 1).astype(np.int32)),
        pa.array(dates[1:].astype(np.int32).ravel()[cells]).view(pa.date32()),
    ]
    for units in amounts:
        scaled = units * to_scale if (to_scale != 1).any() else units
        columns.append(decimals(scaled.ravel()[cells], amount))
    return rows[loan], columns


def _repay(
    terms: LoanTerms, factors: _Factors, active: Integers, fixed: Integers, rounding: Rounding
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
        repaid = np.minimum(fixed[:now] - due * terms.level[:now], left)
        # The balance stays within the principal, and thus within what int64 holds.
        repaid = np.maximum(repaid, left - terms.principal[:now])
        if k < some_interest_only:
            repaid[terms.interest_only[:now] > k] = 0
        repaid[later:] = left[later:]
        left -= repaid
        principal[k, :now], interest[k, :now], balance[k, :now] = repaid, due, left
    return principal, interest, balance


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


def _due_dates(terms: LoanTerms) -> Dates:
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
