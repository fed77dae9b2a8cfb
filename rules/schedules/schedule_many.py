"""Repayment schedules of many loans at once: tables of loans in, tables of instalments out.

The results are those of `schedule.schedule`, to the last digit. Amounts are int64 counts of minor
units, rates and parts of a year fractions of two int64. The loans of a block are sorted by falling
term, and instalment k of all of them is computed at once: those that have one are the first of the
block. Floats only guess, and every guess is proved or corrected by integers.
"""

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ledgerbeam.rules.arrays import Dates, Flags, Integers
from ledgerbeam.rules.calendar.business_days import BusinessCalendar
from ledgerbeam.rules.calendar.conventions import BusinessDayConvention
from ledgerbeam.rules.money import (
    AMOUNT_DIGITS,
    Rounding,
    decimals,
    divide_rounded,
    divide_rounded_many,
    multiply_divide_many,
)
from ledgerbeam.rules.schedules.loan_columns import (
    FIRST_PERIODS,
    LoanColumns,
    read_loans,
    too_many_digits,
)
from ledgerbeam.rules.schedules.schedule import RATE_DECIMALS, negative_amortisation
from ledgerbeam.rules.terms.accrual import loan_fraction, loan_fraction_many
from ledgerbeam.rules.terms.day_count import BY_TWO_DATES, DAY_COUNTS, year_fraction_many
from ledgerbeam.rules.terms.repayment import FirstPeriod, level_payment_units

_TO_THE_DAY, _UPFRONT = map(FIRST_PERIODS.index, (FirstPeriod.TO_THE_DAY, FirstPeriod.UPFRONT))
_RATE_UNITS = 100 * 10**RATE_DECIMALS
# Cells of a block, loans by instalments: enough that calls of numpy cost little beside the work,
# few enough that its dozen arrays take 100 MB.
_CELLS = 1 << 20


class Schedules(NamedTuple):
    """The schedules of a table of loans.

    Attributes:
        instalments: one row an instalment, in the order of the loans, as `instalments_schema`.
        rejected: why a loan has no instalments, by its row in the table of loans.
    """

    instalments: pa.Table
    rejected: dict[int, str]


class _Factors(NamedTuple):
    """Interest of each period on a balance of 1, as fractions.

    Attributes:
        numerators: what the payment covers, int64 `(instalments, loans)`.
        first: of the first period as it bears interest, int64 `(loans,)`.
        denominators: int64 `(loans,)`.
    """

    numerators: Integers
    first: Integers
    denominators: Integers


class _Amounts(NamedTuple):
    """Amounts of all instalments in minor units, int64 `(instalments + 1, loans)` each.

    Row 0 is for broken-period interest that is settled upfront.
    """

    principal: Integers
    interest: Integers
    payment: Integers
    balance: Integers


class _Block(NamedTuple):
    """Schedules of the loans of a block.

    Attributes:
        dates: due dates, datetime64[D] `(instalments + 1, loans)`; first the day of disbursement.
        amounts: of the instalments.
        fixed: level payments or equal parts of principal, `(loans,)`.
        extra: what is paid beside them in the first instalment, `(loans,)`.
        irregular: whether the first period is no whole one, `(loans,)`.
    """

    dates: Dates
    amounts: _Amounts
    fixed: Integers
    extra: Integers
    irregular: Flags


def instalments_schema(loans: pa.Schema, moved: bool = False) -> pa.Schema:
    """What a table of instalments looks like; amounts have the decimals of `principal`.

    Args:
        loans: of the table of loans.
        moved: whether due dates are moved to business days; those before are a column then.

    Raises:
        ValueError: if the decimals are more than 18.
    """
    scale = loans.field("principal").type.scale
    if scale > AMOUNT_DIGITS:
        raise ValueError(f"principal has {scale} decimals; the most are {AMOUNT_DIGITS}")
    amount = pa.decimal128(AMOUNT_DIGITS, scale)
    loan_id = loans.field("loan_id").type
    if not pa.types.is_dictionary(loan_id):
        loan_id = pa.dictionary(pa.int32(), loan_id)
    fields = [
        ("loan_id", loan_id),
        ("number", pa.int32()),
        ("due_date", pa.date32()),
        ("principal", amount),
        ("interest", amount),
        ("payment", amount),
        ("balance", amount),
    ]
    return pa.schema([*fields, ("unadjusted_due_date", pa.date32())] if moved else fields)


def schedule_many(
    loans: pa.Table,
    rounding: Rounding = Rounding.HALF_EVEN,
    calendar: BusinessCalendar | None = None,
    convention: BusinessDayConvention = BusinessDayConvention.NONE,
) -> Schedules:
    """All instalments of many loans.

    Args:
        loans: one row a loan with the columns of `Loan`: amounts and `annual_rate_percent`
            decimal128, dates date32, `term` and days of the month integers, the others strings,
            plain or dictionary-encoded. What `Loan` has a default for may be null, or missing.
        rounding: of level payments, of equal parts of principal and of interest.
        calendar: of business days, for `BUS/252` and for `convention`.
        convention: where due dates go that aren't business days; the column
            `unadjusted_due_date` has them as they were.

    Returns:
        The instalments of the loans that can be scheduled, and why the others can't.

    Raises:
        ValueError: if `principal` has more than 18 decimals, or there is no calendar for a
            convention.
    """
    if convention is not BusinessDayConvention.NONE and calendar is None:
        raise ValueError(f"the convention {convention} needs a calendar of business days")
    schema = instalments_schema(loans.schema, moved=convention is not BusinessDayConvention.NONE)
    amount, index_type = schema.field("principal").type, schema.field("loan_id").type.index_type
    terms, rejected = read_loans(loans, calendar, convention)
    rows = np.setdiff1d(np.arange(loans.num_rows), list(rejected))
    loan_id = loans.column("loan_id").combine_chunks()
    if not isinstance(loan_id, pa.DictionaryArray):
        loan_id = loan_id.dictionary_encode()
    batches = []
    for rows_of_block in _blocks(rows, terms.term):
        at = rows_of_block[np.argsort(-terms.term[rows_of_block], kind="stable")]
        some = terms.take(at)
        block = _schedule(some, rounding, calendar)
        reasons = _rejections(some, block, amount.scale)
        loan, number, columns = _columns(at, some, block, list(reasons), amount)
        if calendar is not None and convention is not BusinessDayConvention.NONE:
            number_column, due, *others = columns
            moved = _moved(due, number, calendar, convention)
            columns = [number_column, moved, *others, due]
        indices = loan_id.indices.take(pa.array(at[loan])).cast(index_type)
        ids = pa.DictionaryArray.from_arrays(indices, loan_id.dictionary)
        batches.append(pa.record_batch([ids, *columns], schema))
        rejected |= {int(at[loan]): reason for loan, reason in reasons.items()}
    return Schedules(pa.Table.from_batches(batches, schema), dict(sorted(rejected.items())))


def previous_balance_many(
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
    return multiply_divide_many(
        balance + payment, denominators, denominators + numerators, rounding
    )


def _blocks(rows: Integers, term: Integers) -> Iterator[Integers]:
    """Rows in turn, as many at once as fit in a block."""
    start = 0
    while start < len(rows):
        longest = np.maximum.accumulate(term[rows[start : start + _CELLS // 8]])
        cells = longest * np.arange(1, len(longest) + 1)
        size = max(1, int(np.searchsorted(cells, _CELLS, side="right")))
        yield rows[start : start + size]
        start += size


def _schedule(terms: LoanColumns, rounding: Rounding, calendar: BusinessCalendar | None) -> _Block:
    """The schedules of loans by falling term."""
    dates = terms.due_dates(np.arange(terms.term.max() + 1))
    disbursed_on = terms.disbursed_on.astype("datetime64[D]")
    irregular = dates[0] != disbursed_on
    factors = _factors(terms, dates, np.flatnonzero(irregular), calendar)
    # How many loans have an instalment of each number; 0 after the last.
    active = np.searchsorted(-terms.term, -np.arange(1, len(dates) + 1), side="right")
    fixed = np.where(
        terms.level == 1,
        _level_payments(terms, factors, active, rounding),
        _equal_parts(terms, rounding),
    )
    fixed = np.where(terms.payment > 0, terms.payment, fixed)
    upfront = np.flatnonzero(irregular & (terms.first_period == _UPFRONT))
    broken = _broken_interest(terms, dates, upfront, rounding, calendar)
    dates[0] = disbursed_on
    principal, interest, balance, extra = _repay(terms, factors, active, fixed, rounding)
    interest[0] = broken
    amounts = _Amounts(principal, interest, principal + interest, balance)
    return _Block(dates, amounts, fixed, extra, irregular)


def _factors(
    terms: LoanColumns, dates: Dates, irregular: Integers, calendar: BusinessCalendar | None
) -> _Factors:
    """Factors of all periods.

    Args:
        terms: of the loans.
        dates: due dates, first the one that would come before the first.
        irregular: loans whose first period is no whole one.
        calendar: for `BUS/252`.
    """
    parts, denominators = loan_fraction_many(dates, terms.frequencies(), terms.day_count, calendar)
    numerators = parts * terms.rate
    first = numerators[0].copy()
    irregular = irregular[terms.first_period[irregular] != _UPFRONT]
    disbursed_on = terms.disbursed_on.astype("datetime64[D]")
    for position in np.unique(terms.day_count[irregular]).tolist():
        loans = irregular[terms.day_count[irregular] == position]
        day_count = DAY_COUNTS[position]
        if day_count in BY_TWO_DATES:
            to_the_day = year_fraction_many(disbursed_on[loans], dates[1, loans], day_count)
            first[loans] = to_the_day.numerators * terms.rate[loans]
            continue
        for loan in loans.tolist():
            part = _part(terms, loan, dates, disbursed_on[loan], dates[1, loan], calendar)
            below = int(np.lcm(denominators[loan], part.denominator))
            numerators[:, loan] *= below // denominators[loan]
            first[loan] = part.numerator * (below // part.denominator) * terms.rate[loan]
            denominators[loan] = below
    numerators[0] = np.where(terms.first_period == _TO_THE_DAY, first, numerators[0])
    first = np.where(terms.first_period == _UPFRONT, numerators[0], first)
    return _Factors(numerators, first, denominators * _RATE_UNITS)


def _broken_interest(
    terms: LoanColumns,
    dates: Dates,
    upfront: Integers,
    rounding: Rounding,
    calendar: BusinessCalendar | None,
) -> Integers:
    """Interest of the days before the first whole period, in minor units, int64 `(loans,)`.

    Args:
        terms: of the loans.
        dates: due dates, first the one that would come before the first.
        upfront: loans that have such days, and settle them upfront.
        rounding: of the interest.
        calendar: for `BUS/252`.
    """
    broken = np.zeros(len(terms.term), np.int64)
    disbursed_on = terms.disbursed_on.astype("datetime64[D]")
    for loan in upfront.tolist():
        start, end = disbursed_on[loan], dates[0, loan]
        part = _part(terms, loan, dates, min(start, end), max(start, end), calendar)
        interest = part * int(terms.principal[loan]) * int(terms.rate[loan])
        above, below = interest.numerator, interest.denominator * _RATE_UNITS
        broken[loan] = divide_rounded(above if start < end else -above, below, rounding)
    return broken


def _part(
    terms: LoanColumns,
    loan: int,
    dates: Dates,
    start: np.datetime64,
    end: np.datetime64,
    calendar: BusinessCalendar | None,
) -> Fraction:
    """`loan_fraction` of one loan of a block."""
    days = [*dates[[1, -1], loan], start, end]
    first_due, maturity, first, last = np.array(days, "datetime64[D]").tolist()
    due_dates = terms.due_dates_of(loan, first_due, maturity)
    return loan_fraction(due_dates, DAY_COUNTS[terms.day_count[loan]], first, last, calendar)


def _rejections(terms: LoanColumns, block: _Block, scale: int) -> dict[int, str]:
    """Why loans of a block can't be scheduled after all, by their place in it."""
    _, interest, payment, _ = block.amounts
    largest = np.maximum(payment.max(axis=0), np.maximum(-payment[0], terms.principal))
    too_large = largest > (10**AMOUNT_DIGITS - 1) // 10 ** (scale - terms.places)
    reasons = dict.fromkeys(np.flatnonzero(too_large).tolist(), too_many_digits(scale))
    number = np.arange(len(interest))[:, None]
    repays = (number > terms.interest_only) & (number < terms.term) & (terms.level == 1)
    # Where `_repay` had to raise the payment.
    grows = repays & (payment > block.fixed)
    grows[0] = False
    grows[1] = repays[1] & (payment[1] - block.extra > block.fixed)
    for loan in np.flatnonzero(grows.any(axis=0)).tolist():
        first = int(grows[:, loan].argmax())
        covered = interest[first, loan] - (block.extra[loan] if first == 1 else 0)
        is_long = first == 1 and block.irregular[loan] and terms.first_period[loan] == _TO_THE_DAY
        due, fixed = (
            Decimal(int(units)).scaleb(-int(terms.places[loan]))
            for units in (covered, block.fixed[loan])
        )
        reasons[loan] = negative_amortisation(first, due, fixed, bool(is_long))
    return reasons


def _columns(
    rows: Integers,
    terms: LoanColumns,
    block: _Block,
    rejected: list[int],
    amount: pa.Decimal128Type,
) -> tuple[Integers, Integers, list[pa.Array]]:
    """Instalments in the order of rows, and then of numbers.

    Args:
        rows: of the loans in their table.
        terms: of the same loans.
        block: their schedules.
        rejected: loans of the block to leave out.
        amount: type of the columns of amounts.

    Returns:
        Place in the block and number of each instalment, and the columns after `loan_id`.
    """
    in_order = np.argsort(rows)
    has_broken = block.irregular & (terms.first_period == _UPFRONT)
    count = terms.term + has_broken
    count[rejected] = 0
    count = count[in_order]
    loan = np.repeat(in_order, count)
    before = np.cumsum(count) - count - ~has_broken[in_order]
    number = np.arange(len(loan)) - np.repeat(before, count)
    cells = number * len(rows) + loan
    to_scale = 10 ** (amount.scale - terms.places)
    columns = [
        pa.array(number.astype(np.int32)),
        pa.array(block.dates.astype(np.int32).ravel()[cells]).view(pa.date32()),
    ]
    for units in block.amounts:
        scaled = units * to_scale if (to_scale != 1).any() else units
        columns.append(decimals(scaled.ravel()[cells], amount))
    return loan, number, columns


def _moved(
    column: pa.Array,
    number: Integers,
    calendar: BusinessCalendar,
    convention: BusinessDayConvention,
) -> pa.Array:
    """Due dates on business days; what is settled on disbursement is not moved."""
    due = column.to_numpy(zero_copy_only=False)
    days, at = np.unique(due, return_inverse=True)
    moved = np.where(number > 0, calendar.adjust(days, convention)[at], due)
    return pa.array(moved, pa.date32())


def _repay(
    terms: LoanColumns, factors: _Factors, active: Integers, fixed: Integers, rounding: Rounding
) -> tuple[Integers, Integers, Integers, Integers]:
    """Principal, interest and balance of every instalment, int64 `(instalments + 1, loans)`.

    Args:
        terms: by falling term.
        factors: of each period and loan.
        active: how many loans have an instalment of each number.
        fixed: level payment or equal part of principal, `(loans,)`.
        rounding: of interest.

    Returns:
        These, of which row 0 has the balance alone, and the interest of the first period that is
        paid beside the level payment, `(loans,)`.
    """
    shape = len(factors.numerators) + 1, len(terms.term)
    principal, interest, balance = np.zeros((3, *shape), np.int64)
    owed = terms.principal.copy()
    balance[0] = owed
    beside = np.zeros_like(owed)
    if (factors.first != factors.numerators[0]).any():
        to_the_day, whole = (
            multiply_divide_many(owed, numerators, factors.denominators, rounding)
            for numerators in (factors.first, factors.numerators[0])
        )
        beside = to_the_day - whole
    some_interest_only = int(terms.interest_only.max())
    for k, (now, later) in enumerate(pairwise(active.tolist())):
        left = owed[:now]
        due = multiply_divide_many(
            left, factors.numerators[k, :now], factors.denominators[:now], rounding
        )
        repaid = np.minimum(fixed[:now] - due * terms.level[:now], left)
        # The balance stays within the principal, and thus within what int64 holds.
        repaid = np.maximum(repaid, left - terms.principal[:now])
        if k < some_interest_only:
            repaid[terms.interest_only[:now] > k] = 0
        repaid[later:] = left[later:]
        left -= repaid
        principal[k + 1, :now], interest[k + 1, :now], balance[k + 1, :now] = repaid, due, left
    interest[1] += beside
    return principal, interest, balance, beside


def _equal_parts(terms: LoanColumns, rounding: Rounding) -> Integers:
    """Equal parts of principal in minor units, int64 `(loans,)`: the same as `equal_part`."""
    parts = divide_rounded_many(terms.principal, terms.term, rounding)
    up = np.flatnonzero(terms.round_payment_to)
    multiple = terms.round_payment_to[up]
    at_least = -(-terms.principal[up] // terms.term[up])
    parts[up] = -(-at_least // multiple) * multiple
    return parts


def _level_payments(
    terms: LoanColumns, factors: _Factors, active: Integers, rounding: Rounding
) -> Integers:
    """Level payments in minor units, int64 `(loans,)`: the same as `level_payment`.

    The present value of payments of 1 is summed in float64, from the last period to the first.
    Everything is positive, so relative errors only add up: per period there are at most six
    roundings (numerator, denominator, their quotient, two sums, a quotient), and two more for the
    payment, each of at most 2**-53. The guess is thus within (6 * term + 2) * 2**-53 of its value.
    Twice that is allowed for, which covers the products of errors. A guess that is further than
    that from the middle between two integers rounds as the exact value does, and what is further
    from a multiple is rounded up to the same one. The others, one in millions but for ties, are
    computed exactly.
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
    unsure = np.abs(guess - np.floor(guess) - 0.5) <= error
    up = np.flatnonzero(terms.round_payment_to)
    if len(up):
        multiple = terms.round_payment_to[up]
        share = guess[up] / multiple
        payments[up] = np.ceil(share).astype(np.int64) * multiple
        unsure[up] = np.abs(share - np.rint(share)) <= error[up] / multiple
    for at in np.flatnonzero(unsure & (terms.payment == 0) & (terms.level == 1)):
        periods = factors.numerators[terms.interest_only[at] : terms.term[at], at].tolist()
        below = int(factors.denominators[at])
        payments[at] = level_payment_units(
            int(terms.principal[at]),
            [(above, below) for above in periods],
            rounding,
            int(terms.round_payment_to[at]),
        )
    return payments
