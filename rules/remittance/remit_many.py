"""Investor remittance for many loans at once: the same lines and totals as one by one.

Tables of months and of lines have the fields of `LoanMonth` and `RemittanceLine` as columns:
amounts and rates are int64, in the units that they have there.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.arrays import Flags, Integers
from ledgerbeam.rules.closing.delinquency import BUCKETS, delinquency_bucket_many
from ledgerbeam.rules.currency import minor_units
from ledgerbeam.rules.loans.columns import AMOUNT, amounts_of, as_decimals, coded, with_places
from ledgerbeam.rules.loans.loan import BASE_SCALE, RATE_UNITS
from ledgerbeam.rules.money import multiply_divide_many
from ledgerbeam.rules.remittance.pool_totals import LINE_TOTALS, PoolCurrenciesError, PoolTotal
from ledgerbeam.rules.remittance.remit import (
    Investor,
    LoanMonth,
    RemittanceLine,
    RemittanceType,
    check_month,
    pass_through_rate,
    unknown_investor,
)

_NAMES = ("loan_id", "investor_id", "pool_id", "currency")
REMITTANCE_TYPES = tuple(RemittanceType)


def _schema(fields: tuple[str, ...]) -> pa.Schema:
    texts = (*_NAMES, "remittance_type")
    return pa.schema([(name, pa.string() if name in texts else pa.int64()) for name in fields])


MONTH_SCHEMA = _schema(LoanMonth._fields)
LINE_SCHEMA = _schema(RemittanceLine._fields)
PUBLISHED_SCHEMA = pa.schema(
    [field.with_type(AMOUNT) if field.name in LINE_TOTALS else field for field in LINE_SCHEMA]
)
"""Lines as they are published: amounts as decimals."""


def remit_many(months: pa.Table, investors: Mapping[str, Investor]) -> pa.Table:
    """`remit.remit` for every row.

    Args:
        months: columns of `MONTH_SCHEMA`, names also dictionary-encoded.
        investors: by their ids.

    Returns:
        A row of `LINE_SCHEMA` for every row, in the same order.

    Raises:
        ValueError: an investor is unknown, a month contradicts itself, or fees are more than the
            note rate. The error is that of the first such row.
    """
    month = {
        name: months.column(name).combine_chunks().to_numpy()
        for name in LoanMonth._fields
        if name not in _NAMES
    }
    of_investor = _investor_columns(months, investors)
    _check(months, month, of_investor, investors)
    lines = _remit(month, *of_investor)
    lines["missed_payments"] = month["missed_payments"]
    type_ = pa.array([*map(str, REMITTANCE_TYPES)]).take(pa.array(of_investor[0]))
    names = [months.column(name).cast(pa.string()) for name in _NAMES]
    amounts = [pa.array(lines[name]) for name in LINE_SCHEMA.names[len(_NAMES) + 1 :]]
    return pa.table([*names, type_, *amounts], schema=LINE_SCHEMA)


def published_lines(lines: pa.Table, places: Integers, scale: int = AMOUNT.scale) -> pa.Table:
    """Lines of `LINE_SCHEMA` as `PUBLISHED_SCHEMA` has them, amounts with `scale` decimals.

    Args:
        lines: in minor units.
        places: decimals of each line's currency.
        scale: decimals of the amounts.
    """
    schema = with_places(PUBLISHED_SCHEMA, scale)
    return pa.table(
        [
            as_decimals(lines.column(field.name).to_numpy(), places, field.type)
            if field.name in LINE_TOTALS
            else lines.column(field.name)
            for field in schema
        ],
        schema=schema,
    )


def pool_totals_many(lines: pa.Table) -> list[PoolTotal]:
    """`pool_totals.pool_totals` of lines as they are published.

    Args:
        lines: columns of `PUBLISHED_SCHEMA`, amounts of any number of decimals.

    Raises:
        ValueError: a pool has loans in two currencies.
    """
    places, _ = coded(lines, "currency", minor_units)
    columns = {name: amounts_of(lines.column(name), places, name) for name in LINE_TOTALS}
    bucket = delinquency_bucket_many(lines.column("missed_payments").combine_chunks().to_numpy())
    buckets = len(BUCKETS)
    keys = ("investor_id", "pool_id", "currency")
    encoded = [_encoded(lines.column(name)) for name in keys]
    group = np.zeros(lines.num_rows, np.int64)
    for column in encoded:
        group = group * len(column.dictionary) + column.indices.to_numpy()
    groups, members = np.unique(group, return_inverse=True)
    first = np.zeros(len(groups), np.int64)
    first[members[::-1]] = np.arange(lines.num_rows)[::-1]
    names = [[column[at].as_py() for column in encoded] for at in first.tolist()]
    order = sorted(range(len(groups)), key=lambda at: names[at])
    for one, other in itertools.pairwise(order):
        if names[one][:2] == names[other][:2]:
            investor_id, pool_id, _ = names[one]
            currencies = sorted(name[2] for name in names if name[:2] == names[one][:2])
            raise PoolCurrenciesError(investor_id, pool_id, currencies)
    sums = {name: _sums(members, values, len(groups)) for name, values in columns.items()}
    loans = np.bincount(members * buckets + bucket, minlength=buckets * len(groups))
    loans = loans.reshape(-1, buckets)
    balances = _sums(members * buckets + bucket, columns["ending_balance"], buckets * len(groups))
    return [
        PoolTotal(
            names[at][0],
            names[at][1],
            names[at][2],
            RemittanceType(lines.column("remittance_type")[int(first[at])].as_py()),
            int(loans[at].sum()),
            {name: values[at] for name, values in sums.items()},
            tuple(loans[at].tolist()),
            tuple(balances[buckets * at : buckets * (at + 1)]),
        )
        for at in order
    ]


def _investor_columns(
    months: pa.Table, investors: Mapping[str, Investor]
) -> tuple[Integers, Integers, Integers, Flags]:
    """Code of the remittance type, servicing and guaranty fee, and which are known."""
    column = _encoded(months.column("investor_id"))
    known = [investors.get(name) for name in column.dictionary.to_pylist()]
    codes = column.indices.to_numpy()
    return (
        np.array(
            [(each and REMITTANCE_TYPES.index(each.remittance_type)) or 0 for each in known],
            np.int64,
        )[codes],
        np.array([each.servicing_fee_rate if each else 0 for each in known], np.int64)[codes],
        np.array([each.guaranty_fee_rate if each else 0 for each in known], np.int64)[codes],
        np.array([each is not None for each in known], bool)[codes],
    )


def _check(
    months: pa.Table,
    month: Mapping[str, Integers],
    of_investor: tuple[Integers, Integers, Integers, Flags],
    investors: Mapping[str, Investor],
) -> None:
    """Find the first row that is wrong, and let the plain rule say what is wrong with it."""
    type_, servicing_fee, guaranty_fee, is_known = of_investor
    is_wrong = ~is_known | (month["participation"] > RATE_UNITS)
    balances = ("actual_balance", "actual_ending_balance", "scheduled_balance", "participation")
    for name in balances:
        is_wrong |= month[name] < 0
    is_wrong |= (
        (type_ == REMITTANCE_TYPES.index(RemittanceType.SCHEDULED_SCHEDULED))
        & (month["actual_balance"] == 0)
        & (month["actual_ending_balance"] > 0)
    )
    is_wrong |= (month["rate"] >= 0) & (month["rate"] < servicing_fee + guaranty_fee)
    if not is_wrong.any():
        return
    at = int(np.argmax(is_wrong))
    names = (months.column(name)[at].as_py() for name in _NAMES)
    row = LoanMonth(*names, *(int(month[name][at]) for name in LoanMonth._fields[len(_NAMES) :]))
    if row.investor_id not in investors:
        raise unknown_investor(row.loan_id, row.investor_id)
    check_month(row, investors[row.investor_id])
    pass_through_rate(row.rate, investors[row.investor_id])
    raise AssertionError(f"the plain rule finds nothing wrong with {row}")


def _remit(
    month: Mapping[str, Integers],
    type_: Integers,
    servicing_fee: Integers,
    guaranty_fee: Integers,
    _: Flags,
) -> dict[str, Integers]:
    is_scheduled = type_ == REMITTANCE_TYPES.index(RemittanceType.SCHEDULED_SCHEDULED)
    is_collected = type_ == REMITTANCE_TYPES.index(RemittanceType.ACTUAL_ACTUAL)
    is_over = month["actual_ending_balance"] == 0
    beginning = np.where(is_scheduled, month["scheduled_balance"], month["actual_balance"])
    left = beginning - month["instalments"]
    ahead = np.where(is_scheduled, np.minimum(month["curtailment"], left), month["curtailment"])
    scheduled = np.where(month["matured"] == 1, beginning - ahead, month["instalments"])
    rest = beginning - scheduled - ahead
    payoff = np.where(is_scheduled, np.where(is_over, rest, 0), month["payoff"])
    collected = beginning - month["actual_ending_balance"] - payoff - ahead
    by_schedule = np.where(is_scheduled, scheduled, collected)
    principal = by_schedule + ahead + payoff

    gross = np.where(is_collected, month["collected"], month["month_interest"])
    base = np.where(is_collected, month["collected_base"], month["month_base"])
    rate = month["rate"]
    guaranty = _interest_at(base, guaranty_fee)
    fees = guaranty + _interest_at(base, servicing_fee)
    at_one_rate = _interest_at(base, np.maximum(rate - servicing_fee - guaranty_fee, 0))
    passed_through = np.where(rate >= 0, at_one_rate, gross - fees)

    def shared(amount: Integers) -> Integers:
        return multiply_divide_many(amount, month["participation"], RATE_UNITS)

    interest, guaranty_share, principal_share = map(shared, (passed_through, guaranty, principal))
    return {
        "beginning_balance": beginning,
        "scheduled_principal": by_schedule,
        "curtailment": ahead,
        "payoff": payoff,
        "ending_balance": beginning - principal,
        "actual_balance": month["actual_ending_balance"],
        "interest": interest,
        "principal": principal_share,
        "guaranty_fee": guaranty_share,
        "servicing_fee": shared(gross) - interest - guaranty_share,
        "remittance": interest + principal_share,
        "collected_interest": shared(month["collected"]),
    }


def _interest_at(base: Integers, rate: Integers) -> Integers:
    """`remit.interest_at` of each."""
    return multiply_divide_many(base, rate, RATE_UNITS * 10**BASE_SCALE)


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return pc.dictionary_encode(column.cast(pa.string())).combine_chunks()


def _sums(groups: Integers, values: Integers, count: int) -> list[int]:
    """Sum of each group, as Python integers that can't overflow."""
    low, high = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(low, groups, values & 0xFFFFFFFF)
    np.add.at(high, groups, values >> 32)
    return [(above << 32) + below for above, below in zip(high.tolist(), low.tolist(), strict=True)]
