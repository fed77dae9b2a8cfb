"""Totals of an investor's remittance, and whether they reconcile with the loans."""

from collections.abc import Iterable
from typing import NamedTuple

from ledgerbeam.rules.loan import in_words
from ledgerbeam.rules.remittance import RemittanceLine

LINE_TOTALS = (
    "beginning_balance", "scheduled_principal", "curtailment", "payoff", "ending_balance",
    "interest", "principal", "guaranty_fee", "servicing_fee", "remittance",
)  # fmt: skip
"""The amounts of a line that are added up."""


class InvestorTotal(NamedTuple):
    """Totals of an investor's pool; amounts as those of `RemittanceLine`, `LINE_TOTALS`.

    Attributes:
        loans: how many have a line.
        delinquent: loans by the number of payments missed: 0, 1, 2, 3, and 4 or more.
        delinquent_balance: their ending balances.
    """

    investor_id: str
    pool_id: str
    currency: str
    loans: int
    amounts: dict[str, int]
    delinquent: tuple[int, ...]
    delinquent_balance: tuple[int, ...]


def totals(lines: Iterable[RemittanceLine]) -> list[InvestorTotal]:
    """Totals per investor and pool, ordered by them.

    Raises:
        ValueError: a pool has loans in two currencies.
    """
    by_pool: dict[tuple[str, str], list[RemittanceLine]] = {}
    for line in lines:
        by_pool.setdefault((line.investor_id, line.pool_id), []).append(line)
    result = []
    for (investor_id, pool_id), members in sorted(by_pool.items()):
        currencies = sorted({line.currency for line in members})
        if len(currencies) > 1:
            raise mixed_currencies(investor_id, pool_id, currencies)
        delinquent, balance = [0] * 5, [0] * 5
        for line in members:
            delinquent[min(line.missed_payments, 4)] += 1
            balance[min(line.missed_payments, 4)] += line.ending_balance
        amounts = {name: sum(getattr(line, name) for line in members) for name in LINE_TOTALS}
        result.append(
            InvestorTotal(
                investor_id,
                pool_id,
                currencies[0],
                len(members),
                amounts,
                tuple(delinquent),
                tuple(balance),
            )
        )
    return result


def mixed_currencies(investor_id: str, pool_id: str, currencies: list[str]) -> ValueError:
    """The error for a pool whose loans can't be added up."""
    return ValueError(
        f"pool {pool_id} of investor {investor_id} has loans in {' and '.join(currencies)}: "
        "amounts of different currencies can't be added"
    )


def imbalances(lines: Iterable[RemittanceLine], pools: Iterable[InvestorTotal]) -> list[str]:
    """What doesn't reconcile, in words; nothing if all does.

    For every pool: beginning less principal is ending, the remittance is interest and principal,
    and the delinquency buckets hold all loans. For all pools: the number of loans and each amount
    are those of the lines.
    """
    pools = [*pools]
    wrong = []
    for pool in pools:
        name, got = f"pool {pool.pool_id} of investor {pool.investor_id}", pool.amounts
        repaid = got["scheduled_principal"] + got["curtailment"] + got["payoff"]
        equations = (
            ("beginning less principal = ending", got["beginning_balance"] - repaid,
             got["ending_balance"]),
            ("interest + principal = remittance", got["interest"] + got["principal"],
             got["remittance"]),
            ("balances by delinquency = ending", sum(pool.delinquent_balance),
             got["ending_balance"]),
        )  # fmt: skip
        wrong += [
            f"{name}: {rule}: {in_words(left)} and {in_words(right)}"
            for rule, left, right in equations
            if left != right
        ]
        if sum(pool.delinquent) != pool.loans:
            wrong.append(
                f"{name}: {sum(pool.delinquent)} loans by delinquency, {pool.loans} in all"
            )
    lines = [*lines]
    count = sum(pool.loans for pool in pools)
    if count != len(lines):
        wrong.append(f"{len(lines)} loans have lines, {count} are in the totals")
    for name in LINE_TOTALS:
        by_loan = sum(getattr(line, name) for line in lines)
        by_pool = sum(pool.amounts[name] for pool in pools)
        if by_loan != by_pool:
            wrong.append(
                f"{name} of all loans is {in_words(by_loan)}, of all pools {in_words(by_pool)}"
            )
    return wrong
