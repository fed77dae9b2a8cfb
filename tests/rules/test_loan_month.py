"""An investor's month of a loan: examples by hand, and both forms of the rule held equal."""

import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.portfolios import FIRST, LAST_DAY, Loan, columns, day, loans, mortgage, table

from ledgerbeam.rules.loans.loan import Partials, Policy, Transaction
from ledgerbeam.rules.loans.read_book import Book
from ledgerbeam.rules.money import units
from ledgerbeam.rules.remittance.remit import Investor, RemittanceType
from ledgerbeam.rules.remittance.report_line import (
    Holding,
    MonthMoney,
    ReportLine,
    month_ends,
    report_line,
)
from ledgerbeam.rules.remittance.report_line_many import (
    HOLDING_SCHEMA,
    REPORT_SCHEMA,
    report_line_many,
)

ACTUAL, SCHEDULED_INTEREST, SCHEDULED = RemittanceType
INVESTORS = {str(type_): Investor(str(type_), type_, 250_000, 200_000) for type_ in RemittanceType}
FEBRUARY = datetime.date(2024, 2, 29)


def report(
    transactions: list[Transaction],
    through: datetime.date = FEBRUARY,
    type_: RemittanceType = ACTUAL,
    later: bool = True,
    **changes: Any,
) -> ReportLine:
    """Of 186,500.00 at 3.5%, its instalment of 841.96 and 158.04 due on 1 February."""
    terms, opening = mortgage(**changes)
    # Beside a loan that is opened a month later, so that months begin at different times.
    openings = [opening, mortgage(closed_through=datetime.date(2024, 1, 31))[1]][: 1 + later]
    expected = [
        report_line(
            terms,
            Holding(str(type_), "P1", 100_000_000, opening.balance),
            INVESTORS[str(type_)],
            opening,
            transactions,
            through,
            Policy(),
        )
        for opening in openings
    ]
    book = [Loan(terms, opening, transactions) for opening in openings]
    assert many(book, [type_] * 2, through, Policy(), 100_000_000) == [
        (*line.remittance, *line.money, line.rejections) for line in expected
    ]
    return expected[0]


def many(
    book: list[Loan],
    types: list[RemittanceType],
    through: datetime.date,
    policy: Policy,
    participation: int,
) -> list[tuple[Any, ...]]:
    """The lines of all loans by the vectorised rule."""
    book = book[: len(types)]
    holdings = [
        Holding(str(type_), "P1", participation, loan.opening.balance)._asdict()
        for loan, type_ in zip(book, types, strict=False)
    ]
    result = report_line_many(
        Book(*columns(book)), table(holdings, HOLDING_SCHEMA), INVESTORS, through, policy
    )
    assert result.schema.equals(REPORT_SCHEMA)
    values = [
        units(column, 2).tolist() if pa.types.is_decimal(column.type) else column.to_pylist()
        for column in result.columns
    ]
    return list(zip(*values, strict=True))


def payment(number: int, on: int, amount: int = 1_000_00, **others: Any) -> Transaction:
    values = {"kind": "payment", "effective_date": day(on), "posted_date": day(on), **others}
    return Transaction(number, amount=amount, **values)


def test_a_month_paid_on_time() -> None:
    line, money, _ = report([payment(1, 32)])
    # 186,500 * 3.5% / 12 = 543.96; 841.96 - 543.96 = 298.00.
    assert (line.beginning_balance, line.ending_balance) == (186_500_00, 186_202_00)
    assert line.scheduled_principal == 298_00
    # 186,500 * 3.05% / 12 = 474.0208.
    assert line.interest == 474_02
    assert money == MonthMoney(1_000_00, 0, 1_000_00, 0, 0, 0)


def test_money_of_other_months_is_told_apart() -> None:
    paid = [payment(1, 32), payment(2, 61), payment(3, 92)]
    _, money, _ = report(paid, datetime.date(2024, 3, 31))
    assert money == MonthMoney(1_000_00, 0, 1_000_00, 0, 0, other_months=2_000_00)


def test_what_is_taken_back_in_the_month_after_brings_its_interest_once() -> None:
    back = payment(2, 63, 0, kind="reversal", reverses=1)
    paid = [payment(1, 59), back, payment(3, 92, 3_000_00)]
    line, money, _ = report(paid, datetime.date(2024, 3, 31))
    assert (line.scheduled_principal, line.interest) == (-298_00, -474_02)
    assert money == MonthMoney(0, 1_000_00, -1_000_00, 0, 0, 4_000_00)
    # In April it is paid again, with those of March and April.
    line, _, _ = report(paid, datetime.date(2024, 4, 30))
    # (186,500 + 186,202 + 185,903.13) * 3.05% / 12 = 1,419.788.
    assert line.interest == 1_419_79


def test_what_was_undone_before_it_was_booked_is_not_lost() -> None:
    undone = [payment(1, 20), payment(2, 20, 0, kind="reversal", reverses=1)]
    _, money, _ = report(undone, datetime.date(2024, 1, 31), later=False)
    assert money == MonthMoney(1_000_00, 1_000_00, 0, 0, 0, 0)
    _, money, _ = report(undone)
    assert money == MonthMoney(0, 0, 0, 0, 0, other_months=1_000_00)


def test_a_payoff_has_its_interest_since_the_last_instalment() -> None:
    # On 11 February, 10 days after the instalment: 186,202 * 3.5% * 10 / 360 = 181.03.
    whole = [payment(1, 32), payment(2, 42, 186_383_03, kind="payoff")]
    line, money, _ = report(whole)
    assert (line.payoff, line.ending_balance) == (186_202_00, 0)
    # (186,500 / 12 + 186,202 / 36) * 3.05% = 631.7753; at the note rate 543.96 + 181.03.
    assert line.interest == 631_78
    assert line.interest + line.guaranty_fee + line.servicing_fee == 724_99
    assert (money.received, money.applied) == (187_383_03, 187_383_03)


def test_a_scheduled_balance_goes_on_without_payments() -> None:
    # Scheduled in January, February and March: 298.00, 298.87 and so on.
    line, _, _ = report([], datetime.date(2024, 2, 29), SCHEDULED)
    assert (line.beginning_balance, line.scheduled_principal) == (186_202_00, 298_87)
    assert line.missed_payments == 1


def test_foreign_money_is_nobodys() -> None:
    _, money, _ = report([payment(1, 32, currency="EUR"), payment(2, 33)])
    assert money == MonthMoney(1_000_00, 0, 1_000_00, 0, 0, 0)


def test_what_is_rejected_is_said() -> None:
    line = report([payment(7, 32, 5_00, kind="refund")])
    assert line.money == MonthMoney(5_00, 0, 0, 0, 5_00, 0)
    assert line.rejections is not None
    assert line.rejections.startswith("transaction 7: kind refund is none of payment,")


def test_there_is_no_month_before_the_opening() -> None:
    with pytest.raises(ValueError, match="closed through 2023-12-31, there is no month up to"):
        report([], FIRST)


def test_months_end_with_the_last_one_cut_short() -> None:
    assert list(month_ends(datetime.date(2023, 12, 31), datetime.date(2024, 3, 5))) == [
        datetime.date(2024, 1, 31), datetime.date(2024, 2, 29), datetime.date(2024, 3, 5),
    ]  # fmt: skip


POLICIES = st.builds(Policy, partials=st.sampled_from(Partials))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    book=st.lists(loans(), min_size=1, max_size=4),
    policy=POLICIES,
    days=st.integers(1, LAST_DAY),
    types=st.lists(st.sampled_from(list(RemittanceType)), min_size=4, max_size=4),
)
def test_many_loans_are_as_each_by_itself(
    book: list[Loan], policy: Policy, days: int, types: list[RemittanceType]
) -> None:
    through = day(days)
    book = [
        loan._replace(terms=loan.terms._replace(loan_id=f"L{number}"))
        for number, loan in enumerate(book)
    ]
    expected = []
    try:
        for loan, type_ in zip(book, types, strict=False):
            holding = Holding(str(type_), "P1", 90_000_000, loan.opening.balance)
            line = report_line(
                loan.terms, holding, INVESTORS[str(type_)], loan.opening, loan.transactions,
                through, policy,
            )  # fmt: skip
            money = line.money
            assert money.received == (
                money.applied + money.suspense + money.rejected + money.reversed
            )
            expected.append((*line.remittance, *money, line.rejections))
    except ValueError:
        with pytest.raises(ValueError, match=r"\w"):
            many(book, types, through, policy, 90_000_000)
    else:
        assert many(book, types, through, policy, 90_000_000) == expected
