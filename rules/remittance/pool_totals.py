"""Totals of an investor's remittance, and whether they reconcile with the loans."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ledgerbeam.rules.closing.delinquency import BUCKETS, delinquency_bucket
from ledgerbeam.rules.currency import format_money
from ledgerbeam.rules.remittance.remit import RemittanceLine, RemittanceType

LINE_TOTALS = (
    "beginning_balance", "scheduled_principal", "curtailment", "payoff", "ending_balance",
    "actual_balance", "interest", "principal", "guaranty_fee", "servicing_fee", "remittance",
    "collected_interest",
)  # fmt: skip
"""The amounts of a line that are added up."""


class PoolTotal(NamedTuple):
    """Totals of an investor's pool; amounts as those of `RemittanceLine`, `LINE_TOTALS`.

    Attributes:
        loans: how many have a line.
        delinquent: loans in each of `delinquency.BUCKETS`.
        delinquent_balance: their ending balances, in minor units.
    """

    investor_id: str
    pool_id: str
    currency: str
    remittance_type: RemittanceType
    loans: int
    amounts: dict[str, int]
    delinquent: tuple[int, ...]
    delinquent_balance: tuple[int, ...]


def pool_totals(lines: Iterable[RemittanceLine]) -> list[PoolTotal]:
    """Totals per investor and pool, ordered by them.

    Raises:
        PoolCurrenciesError: a pool has loans in two currencies.
    """
    by_pool: dict[tuple[str, str], list[RemittanceLine]] = {}
    for line in lines:
        by_pool.setdefault((line.investor_id, line.pool_id), []).append(line)
    result = []
    for (investor_id, pool_id), members in sorted(by_pool.items()):
        currencies = sorted({line.currency for line in members})
        if len(currencies) > 1:
            raise PoolCurrenciesError(investor_id, pool_id, currencies)
        delinquent, balance = [0] * len(BUCKETS), [0] * len(BUCKETS)
        for line in members:
            bucket = delinquency_bucket(line.missed_payments)
            delinquent[bucket] += 1
            balance[bucket] += line.ending_balance
        amounts = {name: sum(getattr(line, name) for line in members) for name in LINE_TOTALS}
        result.append(
            PoolTotal(
                investor_id,
                pool_id,
                currencies[0],
                members[0].remittance_type,
                len(members),
                amounts,
                tuple(delinquent),
                tuple(balance),
            )
        )
    return result


class PoolCurrenciesError(ValueError):
    """The loans of a pool can't be added up, as they are in several currencies.

    Attributes:
        investor_id: who the pool belongs to.
        pool_id: the pool.
        currencies: codes of its loans' currencies, in alphabetical order.
    """

    def __init__(self, investor_id: str, pool_id: str, currencies: Sequence[str]) -> None:
        """Hold the pool and its currencies."""
        super().__init__(
            f"pool {pool_id} of investor {investor_id} has loans in {' and '.join(currencies)}: "
            "amounts of different currencies can't be added"
        )
        self.investor_id, self.pool_id = investor_id, pool_id
        self.currencies = tuple(currencies)


def pool_imbalances(pool: PoolTotal) -> list[str]:
    """What doesn't reconcile within a pool, in words; nothing if all does.

    Beginning less principal is ending, the remittance is interest and principal, the delinquency
    buckets hold all loans, and for actual/actual the interest that the book has for the month is
    what the investor, the guarantor and the servicer get of it.
    """
    name, got = f"pool {pool.pool_id} of investor {pool.investor_id}", pool.amounts
    is_collected = pool.remittance_type is RemittanceType.ACTUAL_ACTUAL
    repaid = got["scheduled_principal"] + got["curtailment"] + got["payoff"]
    equations = (
        ("beginning less principal = ending", got["beginning_balance"] - repaid,
         got["ending_balance"]),
        ("interest + principal = remittance", got["interest"] + got["principal"],
         got["remittance"]),
        ("balances by delinquency = ending", sum(pool.delinquent_balance),
         got["ending_balance"]),
        ("interest + fees = interest collected",
         got["interest"] + got["guaranty_fee"] + got["servicing_fee"] if is_collected else 0,
         got["collected_interest"] if is_collected else 0),
    )  # fmt: skip
    wrong = [
        f"{name}: {rule}: {format_money(left, pool.currency)} and "
        f"{format_money(right, pool.currency)}"
        for rule, left, right in equations
        if left != right
    ]
    if sum(pool.delinquent) != pool.loans:
        wrong.append(f"{name}: {sum(pool.delinquent)} loans by delinquency, {pool.loans} in all")
    return wrong


def sum_imbalances(loans: int, by_loan: Mapping[str, int], pools: Sequence[PoolTotal]) -> list[str]:
    """Where the pools add up to something else than their loans, in words; nothing if nowhere.

    Args:
        loans: how many have a line.
        by_loan: sums over the lines, by name and currency: `interest_USD`.
        pools: all of them.
    """
    wrong = []
    count = sum(pool.loans for pool in pools)
    if count != loans:
        wrong.append(f"{loans} loans have lines, {count} are in the totals")
    by_pool = Counter[str]()
    for pool in pools:
        by_pool.update({f"{name}_{pool.currency}": pool.amounts[name] for name in LINE_TOTALS})
    for total in dict.fromkeys([*by_loan, *by_pool]):
        if by_loan.get(total, 0) != by_pool[total]:
            name, _, currency = total.rpartition("_")
            of_loans, of_pools = (
                format_money(sums.get(total, 0), currency) for sums in (by_loan, by_pool)
            )
            wrong.append(f"{name} of all loans is {of_loans}, of all pools {of_pools}")
    return wrong
