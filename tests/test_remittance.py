"""Investor remittance: examples by hand, and both forms of the rule held equal on anything."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.portfolios import table

from ledgerbeam.rules.remittance import (
    Investor,
    LoanMonth,
    RemittanceType,
    pass_through_rate,
    remit,
    share,
)
from ledgerbeam.rules.remittance_columns import (
    LINE_SCHEMA,
    MONTH_SCHEMA,
    remit_many,
    totals_many,
)
from ledgerbeam.rules.remittance_totals import LINE_TOTALS, imbalances, totals

ACTUAL, SCHEDULED_INTEREST, SCHEDULED = RemittanceType
EVERY_TYPE = pytest.mark.parametrize("type_", RemittanceType)


def investor(type_: RemittanceType) -> Investor:
    """0.25% for servicing and 0.20% guaranty: a pass-through rate of 3.05% on 3.5%."""
    return Investor("I1", type_, 250_000, 200_000)


def month(**changes: Any) -> LoanMonth:
    """187,500.00 at 3.5%, of which 841.96 were paid: 546.88 interest and 295.08 principal."""
    usual = {
        "rate": 3_500_000, "payment": 841_96, "participation": 100_000_000,
        "actual_balance": 187_500_00, "actual_ending_balance": 187_204_92,
        "scheduled_balance": 187_500_00, "instalments": 1,
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
    unpaid = month(instalments=0, actual_ending_balance=187_500_00)
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
    """Paid off ten days after the instalment of the month."""
    usual = {"payoff": 187_204_92, "payoff_days": 10, "actual_ending_balance": 0}
    return month(**{**usual, **changes})


def test_a_payoff_brings_interest_to_the_day_where_it_is_actual() -> None:
    line = remit(payoff(), investor(ACTUAL))
    # 187,204.92 * 3.05% * 10 / 365 = 156.4315…, after the instalment's 476.56.
    assert line.interest == 476_56 + 156_43
    assert (line.scheduled_principal, line.payoff) == (295_08, 187_204_92)
    assert (line.principal, line.ending_balance) == (187_500_00, 0)


@pytest.mark.parametrize("type_", [SCHEDULED_INTEREST, SCHEDULED])
def test_a_payoff_costs_a_full_month_where_interest_is_scheduled(type_: RemittanceType) -> None:
    line = remit(payoff(), investor(type_))
    assert (line.interest, line.principal, line.ending_balance) == (476_56, 187_500_00, 0)


def test_instalments_caught_up_bring_the_interest_of_each_month() -> None:
    # The second month's interest: 187,204.92 * 3.05% / 12 = 475.8125…; its principal is
    # 841.96 - 546.01 = 295.95 (187,204.92 * 3.5% / 12 = 546.0143…).
    both = month(instalments=2, actual_ending_balance=186_908_97)
    line = remit(both, investor(ACTUAL))
    assert line.interest == 476_56 + 475_81
    assert line.principal == 295_08 + 295_95
    # By schedule, interest advanced before isn't remitted again.
    assert remit(both, investor(SCHEDULED_INTEREST)).interest == 476_56


def test_a_delinquent_payoff_returns_the_principal_that_was_advanced() -> None:
    # Two instalments were advanced: the investor is owed the scheduled balance, not the actual.
    unpaid = payoff(
        actual_balance=187_500_00, scheduled_balance=186_908_97, instalments=0,
        payoff=187_500_00, payoff_months=3,
    )  # fmt: skip
    line = remit(unpaid, investor(SCHEDULED))
    assert (line.beginning_balance, line.principal) == (186_908_97, 186_908_97)


@EVERY_TYPE
def test_an_investor_gets_its_part_of_a_participation(type_: RemittanceType) -> None:
    line = remit(month(participation=90_000_000), investor(type_))
    # 90% of 476.56 is 428.904, of 295.08 is 265.572; of 31.25 is 28.125, to the even cent 28.12.
    assert (line.interest, line.principal, line.guaranty_fee) == (428_90, 265_57, 28_12)
    # 90% of 546.88 is 492.192: 492.19 - 428.90 - 28.12.
    assert line.servicing_fee == 35_17
    # Balances stay those of the loan.
    assert (line.beginning_balance, line.ending_balance) == (187_500_00, 187_204_92)


def test_the_last_scheduled_instalment_repays_what_is_left() -> None:
    line = remit(month(scheduled_balance=100_00), investor(SCHEDULED))
    assert (line.scheduled_principal, line.ending_balance) == (100_00, 0)
    line = remit(month(scheduled_balance=500_00, curtailment=900_00), investor(SCHEDULED))
    assert (line.principal, line.ending_balance) == (500_00, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 400_000}, "rate 0.4% is less than the fees of investor I1: 0.25% for servicing"),
        ({"participation": 100_000_001}, "participation 100.000001% of loan L1 is not from"),
        ({"actual_balance": -1}, "loan L1 has a negative balance"),
        ({"payoff_days": -1}, "loan L1 has a negative number"),
        ({"payoff": 1}, "loan L1 is paid off and has a balance of 187,204.92"),
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
        totals([remit(each, investor(ACTUAL)) for each in mixed])
    with pytest.raises(ValueError, match=message):
        totals_many(remit_many(months(mixed), {"I1": investor(ACTUAL)}))


def months(rows: list[LoanMonth]) -> pa.Table:
    return table([row._asdict() for row in rows], MONTH_SCHEMA)


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
    return LoanMonth(
        draw(st.sampled_from(["L1", "L2"])),
        draw(st.sampled_from(sorted(INVESTORS))),
        draw(st.sampled_from(["P1", "P2"])),
        "USD",
        draw(st.integers(500_000, 25_000_000)),
        draw(amounts),
        draw(st.sampled_from([100_000_000, 100_000_000, 90_000_000, 33_333_333, 0])),
        draw(amounts),
        0 if paid_off else draw(amounts),
        draw(amounts),
        draw(st.sampled_from([0, 0, 1_00, -1_00, 10**7])),
        draw(st.integers(0, 4)),
        draw(amounts) if paid_off else 0,
        draw(st.integers(0, 5)) if paid_off else 0,
        draw(st.integers(0, 30)) if paid_off else 0,
        draw(st.integers(0, 7)),
    )


@given(st.lists(any_month(), max_size=20))
@settings(max_examples=200, deadline=None)
def test_many_months_are_remitted_as_each_by_itself(rows: list[LoanMonth]) -> None:
    plain = [remit(row, INVESTORS[row.investor_id]) for row in rows]
    many = remit_many(months(rows), INVESTORS)
    assert many.schema == LINE_SCHEMA
    assert many == table([line._asdict() for line in plain], LINE_SCHEMA)
    assert totals_many(many) == totals(plain)


@given(st.lists(any_month(), max_size=20))
@settings(max_examples=100, deadline=None)
def test_totals_reconcile(rows: list[LoanMonth]) -> None:
    lines = [remit(row, INVESTORS[row.investor_id]) for row in rows]
    pools = totals(lines)
    assert imbalances(lines, pools) == []
    for line in lines:
        rate = next(row.rate for row in rows if row.loan_id == line.loan_id)
        assert pass_through_rate(rate, INVESTORS[line.investor_id]) >= 0


@given(st.lists(any_month(), min_size=1, max_size=5), st.sampled_from(LINE_TOTALS))
@settings(max_examples=50, deadline=None)
def test_a_cent_that_is_missing_is_named(rows: list[LoanMonth], name: str) -> None:
    lines = [remit(row, INVESTORS[row.investor_id]) for row in rows]
    pools = totals(lines)
    pools[0].amounts[name] -= 1
    assert any(name in each or "pool" in each for each in imbalances(lines, pools))
    assert imbalances(lines[1:], totals(lines))


@given(amounts, st.integers(0, 100_000_000))
def test_shares_of_two_investors_are_the_whole_to_a_cent(amount: int, part: int) -> None:
    both = share(amount, part) + share(amount, 100_000_000 - part)
    assert abs(both - amount) <= 1
