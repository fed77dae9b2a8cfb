"""Investor remittance: examples by hand, and both forms of the rule held equal on anything."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledgerbeam.rules.remittance.pool_totals import (
    LINE_TOTALS,
    PoolTotal,
    pool_imbalances,
    pool_totals,
    sum_imbalances,
)
from ledgerbeam.rules.remittance.remit import (
    Investor,
    LoanMonth,
    RemittanceLine,
    RemittanceType,
    interest_at,
    investor_share,
    remit,
)
from ledgerbeam.rules.remittance.remit_many import (
    LINE_SCHEMA,
    MONTH_SCHEMA,
    pool_totals_many,
    published_lines,
    remit_many,
)

ACTUAL, SCHEDULED_INTEREST, SCHEDULED = RemittanceType
EVERY_TYPE = pytest.mark.parametrize("type_", RemittanceType)


def investor(type_: RemittanceType) -> Investor:
    """0.25% for servicing and 0.20% guaranty: a pass-through rate of 3.05% on 3.5%."""
    return Investor("I1", type_, 250_000, 200_000)


def month(**changes: Any) -> LoanMonth:
    """187,500.00 at 3.5%, of which 841.96 were paid: 546.88 interest and 295.08 principal.

    The interest is on a twelfth of the balance, 15,625.00.
    """
    usual = {
        "rate": 3_500_000, "participation": 100_000_000,
        "actual_balance": 187_500_00, "actual_ending_balance": 187_204_92,
        "scheduled_balance": 187_500_00, "instalments": 295_08,
        "collected": 546_88, "collected_base": 15_625_00_0000,
        "month_interest": 546_88, "month_base": 15_625_00_0000,
    }  # fmt: skip
    return LoanMonth("L1", "I1", "P1", "USD", **{**usual, **changes})


@EVERY_TYPE
def test_a_month_paid_on_time_is_the_same_by_all_types(type_: RemittanceType) -> None:
    line = remit(month(), investor(type_))
    # 187,500 * 3.05% / 12 = 476.5625, to the even cent 476.56.
    assert line.interest == 476_56
    # 187,500 * 0.20% / 12 = 31.25; the servicer keeps 546.88 - 476.56 - 31.25 = 39.07.
    assert (line.guaranty_fee, line.servicing_fee) == (31_25, 39_07)
    # 841.96 - 187,500 * 3.5% / 12 (546.875, to the even cent 546.88) = 295.08.
    assert (line.principal, line.scheduled_principal) == (295_08, 295_08)
    assert (line.beginning_balance, line.ending_balance) == (187_500_00, 187_204_92)
    assert line.remittance == 771_64
    assert line.collected_interest == 546_88 == line.interest + 31_25 + 39_07


@pytest.mark.parametrize(
    ("type_", "interest", "principal", "ending"),
    [
        (ACTUAL, 0, 0, 187_500_00),
        (SCHEDULED_INTEREST, 476_56, 0, 187_500_00),
        (SCHEDULED, 476_56, 295_08, 187_204_92),
    ],
)
def test_without_a_payment_the_servicer_advances_what_is_scheduled(
    type_: RemittanceType, interest: int, principal: int, ending: int
) -> None:
    unpaid = month(actual_ending_balance=187_500_00, collected=0, collected_base=0)
    line = remit(unpaid, investor(type_))
    assert (line.interest, line.principal, line.ending_balance) == (interest, principal, ending)


@EVERY_TYPE
def test_a_curtailment_is_passed_on(type_: RemittanceType) -> None:
    # On top of the 295.08, 1,000.00: the balance goes down by 1,295.08.
    curtailed = month(curtailment=1_000_00, actual_ending_balance=186_204_92)
    line = remit(curtailed, investor(type_))
    assert (line.scheduled_principal, line.curtailment) == (295_08, 1_000_00)
    assert (line.principal, line.ending_balance) == (1_295_08, 186_204_92)
    # The interest is on the balance of the month before, in full.
    assert line.interest == 476_56


def payoff(**changes: Any) -> LoanMonth:
    """Paid off ten days after the instalment of the month: 182.00 on 187,204.92 / 36."""
    usual = {
        "payoff": 187_204_92, "actual_ending_balance": 0,
        "collected": 546_88 + 182_00, "collected_base": 15_625_00_0000 + 5_200_13_6667,
    }  # fmt: skip
    return month(**{**usual, **changes})


def test_a_payoff_brings_interest_to_the_day_where_it_is_actual() -> None:
    line = remit(payoff(), investor(ACTUAL))
    # 20,825.136667 * 3.05% = 635.1666…, of the 728.88 that the borrower paid.
    assert line.interest == 635_17
    assert line.interest + line.guaranty_fee + line.servicing_fee == 728_88
    assert (line.scheduled_principal, line.payoff) == (295_08, 187_204_92)
    assert (line.principal, line.ending_balance) == (187_500_00, 0)


@pytest.mark.parametrize("type_", [SCHEDULED_INTEREST, SCHEDULED])
def test_a_payoff_costs_a_full_month_where_interest_is_scheduled(type_: RemittanceType) -> None:
    line = remit(payoff(), investor(type_))
    assert (line.interest, line.principal, line.ending_balance) == (476_56, 187_500_00, 0)


def test_what_is_taken_back_is_negative() -> None:
    back = month(
        actual_balance=187_204_92, actual_ending_balance=187_500_00, collected=-546_88,
        collected_base=-15_625_00_0000,
    )  # fmt: skip
    line = remit(back, investor(ACTUAL))
    assert (line.interest, line.principal, line.remittance) == (-476_56, -295_08, -771_64)
    assert (line.guaranty_fee, line.servicing_fee) == (-31_25, -39_07)


def test_interest_at_two_rates_is_what_was_collected_less_the_fees() -> None:
    # A month at 3.5% and one at 4%: 546.88 + 624.02 on 15,625.00 and 15,600.41.
    both = month(rate=-1, collected=1_170_90, collected_base=31_225_41_0000)
    line = remit(both, investor(ACTUAL))
    # 31,225.41 * 0.20% = 62.45, * 0.25% = 78.06.
    assert (line.guaranty_fee, line.servicing_fee) == (62_45, 78_06)
    assert line.interest == 1_170_90 - 62_45 - 78_06


def test_a_payoff_taken_back_later_leaves_no_scheduled_balance_to_go_on_from() -> None:
    back = month(actual_balance=0, actual_ending_balance=187_204_92, payoff=-187_204_92)
    assert remit(back, investor(ACTUAL)).principal == -187_204_92
    message = "loan L1 was paid off in an earlier month, and that was taken back"
    with pytest.raises(ValueError, match=message):
        remit(back, investor(SCHEDULED))
    with pytest.raises(ValueError, match=message):
        remit_many(months([month(), back]), {"I1": investor(SCHEDULED)})


def test_a_delinquent_payoff_returns_the_principal_that_was_advanced() -> None:
    # Two instalments were advanced: the investor is owed the scheduled balance, not the actual.
    unpaid = payoff(
        actual_balance=187_500_00, scheduled_balance=186_908_97, instalments=0, payoff=187_500_00
    )
    line = remit(unpaid, investor(SCHEDULED))
    assert (line.beginning_balance, line.principal) == (186_908_97, 186_908_97)


def test_a_curtailment_that_is_taken_back_at_the_end_is_due_at_once() -> None:
    back = month(
        scheduled_balance=100_00, instalments=100_00, curtailment=-40_00, matured=1,
        actual_ending_balance=140_00,
    )  # fmt: skip
    line = remit(back, investor(SCHEDULED))
    assert (line.scheduled_principal, line.curtailment, line.ending_balance) == (140_00, -40_00, 0)


def test_a_loan_that_is_paid_up_early_leaves_no_scheduled_balance() -> None:
    # The borrower paid the last two instalments at once, and no payoff.
    last = month(actual_balance=500_00, actual_ending_balance=0, scheduled_balance=500_00)
    line = remit(last, investor(SCHEDULED))
    assert (line.scheduled_principal, line.payoff, line.ending_balance) == (295_08, 204_92, 0)


@EVERY_TYPE
def test_an_investor_gets_its_part_of_a_participation(type_: RemittanceType) -> None:
    line = remit(month(participation=90_000_000), investor(type_))
    # 90% of 476.56 is 428.904, of 295.08 is 265.572; of 31.25 is 28.125, to the even cent 28.12.
    assert (line.interest, line.principal, line.guaranty_fee) == (428_90, 265_57, 28_12)
    # 90% of 546.88 is 492.192: 492.19 - 428.90 - 28.12.
    assert line.servicing_fee == 35_17
    # Balances stay those of the loan.
    assert (line.beginning_balance, line.ending_balance) == (187_500_00, 187_204_92)


def test_a_curtailment_of_more_than_is_left_repays_what_is_left() -> None:
    line = remit(month(scheduled_balance=500_00, curtailment=900_00), investor(SCHEDULED))
    assert (line.principal, line.ending_balance) == (500_00, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 400_000}, "rate 0.4% is less than the fees of investor I1: 0.25% for servicing"),
        ({"participation": 100_000_001}, "participation 100.000001% of loan L1 is not from"),
        ({"actual_balance": -1}, "loan L1 has a negative balance"),
    ],
)
def test_months_that_cannot_be_are_refused(changes: dict[str, int], message: str) -> None:
    wrong, good = month(**changes), month()
    with pytest.raises(ValueError, match=message):
        remit(wrong, investor(ACTUAL))
    with pytest.raises(ValueError, match=message):
        remit_many(months([good, wrong]), {"I1": investor(ACTUAL)})


def test_unknown_investors_are_refused() -> None:
    with pytest.raises(ValueError, match="investor I1 of loan L1 is unknown"):
        remit_many(months([month()]), {"I2": investor(ACTUAL)})


def test_pools_of_two_currencies_are_refused() -> None:
    mixed = [month(), month()._replace(currency="EUR")]
    message = "pool P1 of investor I1 has loans in EUR and USD"
    with pytest.raises(ValueError, match=message):
        pool_totals([remit(each, investor(ACTUAL)) for each in mixed])
    with pytest.raises(ValueError, match=message):
        pool_totals_many(published(remit_many(months(mixed), {"I1": investor(ACTUAL)})))


def months(rows: list[LoanMonth]) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows], MONTH_SCHEMA)


def published(lines: pa.Table) -> pa.Table:
    return published_lines(lines, np.full(lines.num_rows, 2))


INVESTORS = {
    f"I{number}": Investor(f"I{number}", type_, servicing, guaranty)
    for number, (type_, servicing, guaranty) in enumerate(
        [(ACTUAL, 250_000, 0), (SCHEDULED_INTEREST, 250_000, 187_500), (SCHEDULED, 0, 200_000)]
    )
}
amounts = st.integers(0, 10**6) | st.integers(0, 10**12)


@st.composite
def any_month(draw: st.DrawFn) -> LoanMonth:
    paid_off = draw(st.sampled_from([False, False, True]))
    base, collected_base = draw(amounts), draw(st.integers(-(10**12), 10**12))
    rate = draw(st.integers(500_000, 25_000_000))
    return LoanMonth(
        draw(st.sampled_from(["L1", "L2"])),
        draw(st.sampled_from(sorted(INVESTORS))),
        draw(st.sampled_from(["P1", "P2"])),
        "USD",
        rate if draw(st.booleans()) else -1,
        draw(st.sampled_from([100_000_000, 100_000_000, 90_000_000, 33_333_333, 0])),
        draw(st.integers(1, 10**12)),
        0 if paid_off else draw(amounts),
        draw(amounts),
        draw(st.sampled_from([0, 0, 1_00, -1_00, 10**7])),
        draw(amounts) if paid_off else 0,
        interest_at(collected_base, rate),
        collected_base,
        interest_at(base, rate),
        base,
        draw(st.integers(-1_000, 10**6)),
        draw(st.sampled_from([0, 0, 1])),
        draw(st.integers(0, 7)),
    )


@given(st.lists(any_month(), max_size=20))
@settings(max_examples=200, deadline=None)
def test_many_months_are_remitted_as_each_by_itself(rows: list[LoanMonth]) -> None:
    plain = [remit(row, INVESTORS[row.investor_id]) for row in rows]
    many = remit_many(months(rows), INVESTORS)
    assert many.schema == LINE_SCHEMA
    assert many.to_pylist() == [line._asdict() for line in plain]
    assert pool_totals_many(published(many)) == pool_totals(plain)


def imbalances(lines: list[RemittanceLine], pools: list[PoolTotal]) -> list[str]:
    by_loan = Counter[str]()
    for line in lines:
        by_loan.update({f"{name}_{line.currency}": getattr(line, name) for name in LINE_TOTALS})
    of_pools = [problem for pool in pools for problem in pool_imbalances(pool)]
    return of_pools + sum_imbalances(len(lines), by_loan, pools)


@given(st.lists(any_month(), max_size=20))
@settings(max_examples=100, deadline=None)
def test_totals_reconcile(rows: list[LoanMonth]) -> None:
    lines = [remit(row, INVESTORS[row.investor_id]) for row in rows]
    pools = pool_totals(lines)
    assert imbalances(lines, pools) == []
    for line in lines:
        if line.remittance_type is ACTUAL:
            parts = line.interest + line.guaranty_fee + line.servicing_fee
            assert parts == line.collected_interest


@given(st.lists(any_month(), min_size=1, max_size=5), st.sampled_from(LINE_TOTALS))
@settings(max_examples=50, deadline=None)
def test_a_cent_that_is_missing_is_named(rows: list[LoanMonth], name: str) -> None:
    lines = [remit(row, INVESTORS[row.investor_id]) for row in rows]
    pools = pool_totals(lines)
    pools[0].amounts[name] -= 1
    assert any(name in each or "pool" in each for each in imbalances(lines, pools))
    assert imbalances(lines[1:], pool_totals(lines))


@given(amounts, st.integers(0, 100_000_000))
def test_shares_of_two_investors_are_the_whole_to_a_cent(amount: int, part: int) -> None:
    both = investor_share(amount, part) + investor_share(amount, 100_000_000 - part)
    assert abs(both - amount) <= 1
