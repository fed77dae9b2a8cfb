"""Totals of an investor's remittance, and whether they reconcile with the loans."""

from collections.abc import Iterable, Mapping, Sequence
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

    For every pool what `pool_imbalances` says. For all pools: the number of loans and each amount
    are those of the lines.
    """
    lines, pools = [*lines], [*pools]
    by_loan = {name: sum(getattr(line, name) for line in lines) for name in LINE_TOTALS}
    return [
        *(problem for pool in pools for problem in pool_imbalances(pool)),
        *sum_imbalances(len(lines), by_loan, pools),
    ]


def pool_imbalances(pool: InvestorTotal) -> list[str]:
    """What doesn't reconcile within a pool.

    Beginning less principal is ending, the remittance is interest and principal, and the
    delinquency buckets hold all loans.
    """
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
    wrong = [
        f"{name}: {rule}: {in_words(left)} and {in_words(right)}"
        for rule, left, right in equations
        if left != right
    ]
    if sum(pool.delinquent) != pool.loans:
        wrong.append(f"{name}: {sum(pool.delinquent)} loans by delinquency, {pool.loans} in all")
    return wrong


def sum_imbalances(
    loans: int, by_loan: Mapping[str, int], pools: Sequence[InvestorTotal]
) -> list[str]:
    """Where the pools add up to something else than their loans.

    Args:
        loans: how many have a line.
        by_loan: sums over the lines, by the names of `LINE_TOTALS`.
        pools: all of them.
    """
    wrong = []
    count = sum(pool.loans for pool in pools)
    if count != loans:
        wrong.append(f"{loans} loans have lines, {count} are in the totals")
    for name in LINE_TOTALS:
        by_pool = sum(pool.amounts[name] for pool in pools)
        if by_loan[name] != by_pool:
            wrong.append(
                f"{name} of all loans is {in_words(by_loan[name])}, of all pools "
                f"{in_words(by_pool)}"
            )
    return wrong
