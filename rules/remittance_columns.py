"""Investor remittance for many loans at once: the same lines and totals as one by one.

Tables have the fields of `LoanMonth` and `RemittanceLine` as columns: amounts as decimals of two
places, rates and participation as percentages of six.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ledgerbeam.rules.book import AMOUNT, PERCENT
from ledgerbeam.rules.loan import RATE_UNITS
from ledgerbeam.rules.money import decimals, mul_div, units
from ledgerbeam.rules.remittance import (
    Investor,
    LoanMonth,
    RemittanceType,
    check,
    pass_through_rate,
    unknown_investor,
)
from ledgerbeam.rules.remittance_totals import LINE_TOTALS, InvestorTotal, mixed_currencies

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_NAMES = ("loan_id", "investor_id", "pool_id", "currency")
_COUNTS = ("instalments", "payoff_months", "payoff_days", "missed_payments")
TYPES = tuple(RemittanceType)

MONTH_SCHEMA = pa.schema(
    [
        (
            name,
            pa.string()
            if name in _NAMES
            else pa.int64()
            if name in _COUNTS
            else PERCENT
            if name in ("rate", "participation")
            else AMOUNT,
        )
        for name in LoanMonth._fields
    ]
)
LINE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in (*_NAMES, "remittance_type")),
        *((name, AMOUNT) for name in LINE_TOTALS),
        ("missed_payments", pa.int64()),
    ]
)


def remit_many(months: pa.Table, investors: Mapping[str, Investor]) -> pa.Table:
    """`remittance.remit` for every row.

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
        field.name: units(months.column(field.name), field.type.scale)
        if pa.types.is_decimal(field.type)
        else months.column(field.name).combine_chunks().to_numpy()
        for field in MONTH_SCHEMA
        if field.name not in _NAMES
    }
    of_investor = _investor_columns(months, investors)
    _check(months, month, of_investor, investors)
    lines = _remit(month, *of_investor)
    type_ = pa.array([*map(str, TYPES)]).take(pa.array(of_investor[0]))
    names = [months.column(name).cast(pa.string()) for name in _NAMES]
    amounts = [decimals(lines[name], AMOUNT) for name in LINE_TOTALS]
    return pa.table([*names, type_, *amounts, months.column("missed_payments")], schema=LINE_SCHEMA)


def totals_many(lines: pa.Table) -> list[InvestorTotal]:
    """`remittance_totals.totals` of a table of lines.

    Raises:
        ValueError: a pool has loans in two currencies.
    """
    columns = {name: units(lines.column(name), AMOUNT.scale) for name in LINE_TOTALS}
    bucket = np.minimum(lines.column("missed_payments").combine_chunks().to_numpy(), 4)
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
            raise mixed_currencies(investor_id, pool_id, currencies)
    sums = {name: _sums(members, values, len(groups)) for name, values in columns.items()}
    loans = np.bincount(members * 5 + bucket, minlength=5 * len(groups)).reshape(-1, 5)
    balances = _sums(members * 5 + bucket, columns["ending_balance"], 5 * len(groups))
    return [
        InvestorTotal(
            names[at][0],
            names[at][1],
            names[at][2],
            int(loans[at].sum()),
            {name: values[at] for name, values in sums.items()},
            tuple(loans[at].tolist()),
            tuple(balances[5 * at : 5 * at + 5]),
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
        np.array([(each and TYPES.index(each.remittance_type)) or 0 for each in known], np.int64)[
            codes
        ],
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
    _, servicing_fee, guaranty_fee, is_known = of_investor
    not_negative = (
        "actual_balance", "actual_ending_balance", "scheduled_balance", "participation",
        "instalments", "payoff", "payoff_months", "payoff_days",
    )  # fmt: skip
    is_wrong = ~is_known | (month["participation"] > RATE_UNITS)
    for name in not_negative:
        is_wrong |= month[name] < 0
    is_wrong |= (month["payoff"] > 0) & (month["actual_ending_balance"] > 0)
    is_wrong |= month["rate"] < servicing_fee + guaranty_fee
    if not is_wrong.any():
        return
    at = int(np.argmax(is_wrong))
    names = (months.column(name)[at].as_py() for name in _NAMES)
    row = LoanMonth(*names, *(int(month[name][at]) for name in LoanMonth._fields[len(_NAMES) :]))
    if row.investor_id not in investors:
        raise unknown_investor(row.loan_id, row.investor_id)
    check(row)
    pass_through_rate(row.rate, investors[row.investor_id])
    raise AssertionError(f"the plain rule finds nothing wrong with {row}")


def _remit(
    month: Mapping[str, Integers],
    type_: Integers,
    servicing_fee: Integers,
    guaranty_fee: Integers,
    _: Flags,
) -> dict[str, Integers]:
    rate, payoff, curtailment = month["rate"], month["payoff"], month["curtailment"]
    is_scheduled = type_ == TYPES.index(RemittanceType.SCHEDULED_SCHEDULED)
    is_collected = type_ == TYPES.index(RemittanceType.ACTUAL_ACTUAL)
    beginning = np.where(is_scheduled, month["scheduled_balance"], month["actual_balance"])
    repaid = np.maximum(0, month["payment"] - _month_interest(beginning, rate))
    by_schedule = np.minimum(beginning, repaid)
    left = beginning - by_schedule
    ahead = np.where(is_scheduled, np.minimum(curtailment, left), curtailment)
    paid_off = np.where(is_scheduled, np.where(payoff > 0, left - ahead, 0), payoff)
    collected = beginning - month["actual_ending_balance"] - paid_off - ahead
    by_schedule = np.where(is_scheduled, by_schedule, collected)
    principal = by_schedule + ahead + paid_off

    def interest_share(at_rate: Integers) -> Integers:
        interest = _month_interest(beginning, at_rate)
        at = np.flatnonzero(is_collected)
        interest[at] = _collected_interest({k: v[at] for k, v in month.items()}, at_rate[at])
        return mul_div(interest, month["participation"], RATE_UNITS)

    interest = interest_share(rate - servicing_fee - guaranty_fee)
    guaranty = interest_share(guaranty_fee)
    principal_share = mul_div(principal, month["participation"], RATE_UNITS)
    return {
        "beginning_balance": beginning,
        "scheduled_principal": by_schedule,
        "curtailment": ahead,
        "payoff": paid_off,
        "ending_balance": beginning - principal,
        "interest": interest,
        "principal": principal_share,
        "guaranty_fee": guaranty,
        "servicing_fee": interest_share(rate) - interest - guaranty,
        "remittance": interest + principal_share,
    }


def _month_interest(
    balance: Integers, rate: Integers, months: Integers | int = 1, days: Integers | int = 0
) -> Integers:
    twelfths = np.asarray(months) * 365 + np.asarray(days) * 12
    return mul_div(balance, rate * twelfths, 12 * 365 * RATE_UNITS)


def _collected_interest(month: Mapping[str, Integers], rate: Integers) -> Integers:
    balance = month["actual_balance"].copy()
    interest = _month_interest(month["payoff"], rate, month["payoff_months"], month["payoff_days"])
    at = np.flatnonzero(month["instalments"] > 0)
    number = 0
    while len(at):
        interest[at] += _month_interest(balance[at], rate[at])
        repaid = month["payment"][at] - _month_interest(balance[at], month["rate"][at])
        balance[at] = np.maximum(0, balance[at] - np.maximum(0, repaid))
        number += 1
        at = at[month["instalments"][at] > number]
    return interest


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return pc.dictionary_encode(column.cast(pa.string())).combine_chunks()


def _sums(groups: Integers, values: Integers, count: int) -> list[int]:
    """Sum of each group, as Python integers that can't overflow."""
    low, high = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(low, groups, values & 0xFFFFFFFF)
    np.add.at(high, groups, values >> 32)
    return [(above << 32) + below for above, below in zip(high.tolist(), low.tolist(), strict=True)]
