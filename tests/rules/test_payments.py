"""Payment application, by hand: 186,500.00 at 3.5%, instalments of 1,000.00 on the first.

841.96 of an instalment are principal and interest, 158.04 escrow. The instalment of 1 January
2024 is paid; February's has 186,500.00 * 3.5% / 12 = 543.96 of interest and 298.00 of principal.
"""

import dataclasses
import datetime
from decimal import Decimal
from typing import Any

import pytest
from tests.support.portfolios import FIRST, Loan, columns, mortgage

from ledgerbeam.rules.closing.close import close
from ledgerbeam.rules.closing.close_many import close_many
from ledgerbeam.rules.closing.payments import allocate, instalment, payoff_amount, rejection_reason
from ledgerbeam.rules.loans.loan import (
    Bucket,
    Entry,
    EntryKind,
    Partials,
    Policy,
    RateChange,
    State,
    Transaction,
    in_minor_units,
)

Date = datetime.date
NO_FEES = Policy(late_fee_rate=0)
INTEREST, PRINCIPAL, ESCROW, FEES, CURTAILMENT = Bucket


def date(month: int, day: int) -> datetime.date:
    return Date(2024, month, day)


def payment(number: int, on: datetime.date, amount: int, **changes: Any) -> Transaction:
    usual = Transaction(number, "payment", on, on, amount)
    return usual._replace(**changes)


def run(
    transactions: list[Transaction],
    through: datetime.date,
    policy: Policy = NO_FEES,
    **changes: Any,
) -> tuple[State, list[Entry]]:
    terms, opening = mortgage(**changes)
    state, entries = close(terms, opening, opening, transactions, through, policy)
    return state, [entry for entry in entries if entry.kind is not EntryKind.ACCRUAL]


def buckets(entry: Entry) -> tuple[int, ...]:
    """Interest, principal, escrow, fees, curtailment, suspense."""
    return entry[5:11]


def test_the_next_instalment_follows_from_the_balance() -> None:
    terms, state = mortgage()
    assert instalment(terms, state)[:4] == (date(2, 1), 543_96, 298_00, 158_04)


def test_an_instalment_goes_to_interest_principal_and_escrow() -> None:
    state, [entry] = run([payment(1, date(2, 1), 1_000_00)], date(2, 1))
    assert buckets(entry) == (543_96, 298_00, 158_04, 0, 0, 0)
    assert (state.balance, state.escrow, state.next_due) == (186_202_00, 158_04, date(3, 1))


def test_paying_late_or_ahead_costs_the_same_interest() -> None:
    for on in (date(1, 1), date(1, 20), date(2, 29)):
        _, [entry] = run([payment(1, on, 1_000_00)], date(2, 29))
        assert buckets(entry) == (543_96, 298_00, 158_04, 0, 0, 0)


def test_two_instalments_due_are_paid_oldest_first_and_the_rest_is_held() -> None:
    # March's interest: 186,202.00 * 3.5% / 12 = 543.089…; its principal 841.96 - 543.09.
    state, [entry] = run([payment(1, date(4, 5), 2_700_00)], date(4, 5))
    assert buckets(entry) == (543_96 + 543_09, 298_00 + 298_87, 2 * 158_04, 0, 0, 700_00)
    # April's is due and not covered.
    assert (state.next_due, state.suspense) == (date(4, 1), 700_00)


def test_partial_payments_are_held_until_they_make_an_instalment() -> None:
    parts = [payment(1, date(2, 1), 400_00), payment(2, date(2, 9), 500_00)]
    state, entries = run(parts, date(2, 10))
    assert [buckets(entry) for entry in entries] == [
        (0, 0, 0, 0, 0, 400_00), (0, 0, 0, 0, 0, 500_00),
    ]  # fmt: skip
    assert (state.suspense, state.balance) == (900_00, 186_500_00)
    state, entries = run([*parts, payment(3, date(2, 12), 100_00)], date(2, 12))
    assert buckets(entries[-1]) == (543_96, 298_00, 158_04, 0, 0, -900_00)
    assert state.suspense == 0


def test_a_part_of_the_next_instalment_is_held_and_not_a_curtailment() -> None:
    state, [entry] = run([payment(1, date(1, 20), 400_00)], date(1, 31))
    assert buckets(entry) == (0, 0, 0, 0, 0, 400_00)
    assert (state.suspense, state.next_due) == (400_00, date(2, 1))


@pytest.mark.parametrize(
    ("amount", "curtailment", "suspense"),
    [(2_325_29, 325_29, 0), (2_325_30, 0, 325_30), (2_325_31, 0, 325_31)],
)
def test_what_would_pay_off_the_loan_is_held(amount: int, curtailment: int, suspense: int) -> None:
    # Of 2,000.00, February's instalment repays 836.13 and March's 838.57: 325.30 are left.
    transactions = [payment(1, date(2, 1), amount)]
    state, [entry] = run(transactions, date(2, 1), balance=2_000_00)
    assert buckets(entry) == (5_83 + 3_39, 1_674_70, 2 * 158_04, 0, curtailment, suspense)
    terms, opening, rows = columns([Loan(*mortgage(balance=2_000_00), transactions)])
    many = close_many(terms, opening, opening, rows, date(2, 1), NO_FEES)
    assert many.by_plain_function == 0
    assert many.states.row(0) == state


def test_suspense_is_released_at_the_close_of_the_due_date_that_it_covers() -> None:
    # What was held before the book began; nothing is paid on 1 February.
    state, [entry] = run([], date(2, 1), suspense=1_100_00)
    assert (entry.kind, entry.effective_date) == (EntryKind.SUSPENSE_RELEASE, date(2, 1))
    assert buckets(entry) == (543_96, 298_00, 158_04, 0, 100_00, -1_100_00)
    assert (state.suspense, state.balance) == (0, 186_102_00)
    assert run([], date(1, 31), suspense=1_100_00)[1] == []


def test_what_is_left_reduces_the_principal_from_its_day_on() -> None:
    state, [entry] = run([payment(1, date(2, 1), 1_250_00)], date(2, 1))
    assert buckets(entry) == (543_96, 298_00, 158_04, 0, 250_00, 0)
    assert state.balance == 185_952_00
    # The next interest is on what is left: 185,952.00 * 3.5% / 12 = 542.36.
    assert instalment(mortgage()[0], state).interest == 542_36


def test_a_curtailment_between_due_dates_saves_interest_from_its_day() -> None:
    curtailment = payment(1, date(1, 16), 6_500_00, kind="curtailment")
    state, [entry] = run([curtailment], date(1, 31))
    assert buckets(entry) == (0, 0, 0, 0, 6_500_00, 0)
    # 15 days on 186,500.00: 271.979…, brought forward as 271.98; 15 on 180,000.00: 262.50.
    assert state.brought == 271_98
    assert instalment(mortgage()[0], state).interest == 271_98 + 262_50


def test_a_curtailment_of_a_loan_that_is_behind_pays_instalments() -> None:
    _, [entry] = run([payment(1, date(2, 5), 1_000_00, kind="curtailment")], date(2, 5))
    assert buckets(entry) == (543_96, 298_00, 158_04, 0, 0, 0)


def test_money_for_a_period_that_has_not_begun_is_a_curtailment() -> None:
    state, entries = run(
        [payment(1, date(1, 10), 1_000_00), payment(2, date(1, 12), 1_000_00)], date(1, 12)
    )
    # February is paid on the 10th; March's period begins on 1 February.
    assert buckets(entries[1]) == (0, 0, 0, 0, 1_000_00, 0)
    assert state.next_due == date(3, 1)


@pytest.mark.parametrize(
    ("waterfall", "amount", "expected"),
    [
        # Fees of 42.10 come after the instalment, then curtailment.
        (tuple(Bucket), 1_050_00, (543_96, 298_00, 158_04, 42_10, 7_90, 0)),
        (tuple(Bucket), 1_010_00, (543_96, 298_00, 158_04, 10_00, 0, 0)),
        # Curtailment first leaves nothing for fees.
        (
            (INTEREST, PRINCIPAL, ESCROW, CURTAILMENT, FEES),
            1_050_00,
            (543_96, 298_00, 158_04, 0, 50_00, 0),
        ),
        # Fees first: they are taken with the instalment, which what covers it is credited to.
        (
            (FEES, INTEREST, PRINCIPAL, ESCROW, CURTAILMENT),
            1_050_00,
            (543_96, 298_00, 158_04, 42_10, 7_90, 0),
        ),
        (
            (FEES, INTEREST, PRINCIPAL, ESCROW, CURTAILMENT),
            1_010_00,
            (543_96, 298_00, 158_04, 10_00, 0, 0),
        ),
        ((FEES, INTEREST, PRINCIPAL, ESCROW, CURTAILMENT), 990_00, (0, 0, 0, 0, 0, 990_00)),
        # Without curtailment, the rest is held.
        ((INTEREST, PRINCIPAL, ESCROW), 1_050_00, (543_96, 298_00, 158_04, 0, 0, 50_00)),
    ],
)
def test_the_waterfall_is_configured(
    waterfall: tuple[Bucket, ...], amount: int, expected: tuple[int, ...]
) -> None:
    policy = Policy(waterfall, late_fee_rate=0)
    _, [entry] = run([payment(1, date(2, 1), amount)], date(2, 1), policy, fees=42_10)
    assert buckets(entry) == expected


@pytest.mark.parametrize(
    ("waterfall", "first", "second"),
    [
        ((INTEREST, PRINCIPAL, ESCROW), (543_96, 56_04, 0), (0, 241_96, 158_04)),
        # Instruments dated before March 1999 have deposits first.
        ((ESCROW, INTEREST, PRINCIPAL), (441_96, 0, 158_04), (102_00, 298_00, 0)),
        ((PRINCIPAL, INTEREST, ESCROW), (302_00, 298_00, 0), (241_96, 0, 158_04)),
    ],
)
def test_partial_payments_may_be_applied_in_the_order_of_the_waterfall(
    waterfall: tuple[Bucket, ...], first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    policy = Policy(waterfall, Partials.APPLY, late_fee_rate=0)
    parts = [payment(1, date(2, 3), 600_00), payment(2, date(2, 20), 400_00)]
    state, entries = run(parts, date(2, 20), policy)
    assert [buckets(entry)[:3] for entry in entries] == [first, second]
    # In the end it is the same.
    assert (state.balance, state.next_due, state.suspense) == (186_202_00, date(3, 1), 0)


def test_pouring_fills_buckets_in_order() -> None:
    demands = {INTEREST: 5, PRINCIPAL: 7, ESCROW: 3}
    assert allocate(9, demands, (ESCROW, PRINCIPAL, INTEREST)) == {
        ESCROW: 3,
        PRINCIPAL: 6,
        INTEREST: 0,
    }


def test_a_payoff_takes_interest_to_the_day_and_returns_the_rest_to_suspense() -> None:
    terms, opening = mortgage(fees=42_10)
    # 1 to 16 January is 15 days of 360: 186,500.00 * 3.5% * 15 / 360 = 271.98.
    assert payoff_amount(terms, opening, date(1, 16)) == 186_500_00 + 271_98 + 42_10
    payoff = payment(1, date(1, 16), 186_900_00, kind="payoff")
    state, [entry] = run([payoff], date(1, 20), fees=42_10)
    assert buckets(entry) == (271_98, 186_500_00, 0, 42_10, 0, 85_92)
    assert (state.balance, state.accrued, state.fees, state.days_past_due) == (0, 0, 0, 0)


def test_a_payoff_that_is_behind_takes_interest_from_the_last_paid_instalment() -> None:
    # 1 January to 11 March: 70 days of 360 on 186,500.00 = 1,269.236….
    payoff = payment(1, date(3, 11), 187_769_24, kind="payoff")
    _, [entry] = run([payoff], date(3, 11))
    assert buckets(entry) == (1_269_24, 186_500_00, 0, 0, 0, 0)


def test_what_cannot_be_applied_is_rejected_with_its_reason() -> None:
    short = payment(1, date(1, 16), 186_771_97, kind="payoff")
    _, [entry] = run([short], date(1, 16))
    assert (entry.kind, entry.rejected) == (EntryKind.REJECTED, 186_771_97)
    assert entry.reason == "payoff of 186,771.97 USD is short of 186,771.98 USD"
    much = payment(1, date(1, 16), 186_500_00, kind="curtailment")
    assert run([much], date(1, 16))[1][0].reason == (
        "curtailment of 186,500.00 USD is not less than the balance of 186,500.00 USD: "
        "that takes a payoff"
    )
    paid = [payment(1, date(1, 16), 190_000_00, kind="payoff"), payment(2, date(2, 1), 1)]
    assert run(paid, date(2, 1))[1][1].reason == "the loan is paid off"


def test_a_reversal_is_a_new_entry_and_undoes_what_followed_from_it() -> None:
    paid = [payment(1, date(2, 1), 1_000_00), payment(2, date(3, 1), 1_000_00)]
    back = payment(3, date(3, 10), 0, kind="reversal", reverses=1)
    before, _ = run(paid, date(3, 9))
    state, entries = run([*paid, back], date(3, 10))
    assert [(entry.kind, entry.transaction_id, entry.posted_date) for entry in entries] == [
        (EntryKind.PAYMENT, 1, date(2, 1)),
        (EntryKind.PAYMENT, 2, date(3, 1)),
        (EntryKind.REVERSAL, 1, date(3, 10)),
        (EntryKind.REVERSAL, 2, date(3, 10)),
        (EntryKind.PAYMENT, 2, date(3, 10)),
    ]
    assert buckets(entries[2]) == (-543_96, -298_00, -158_04, 0, 0, 0)
    # The money of 1 March now pays February.
    assert buckets(entries[4]) == (543_96, 298_00, 158_04, 0, 0, 0)
    assert entries[4].effective_date == date(3, 1)
    assert (before.next_due, state.next_due) == (date(4, 1), date(3, 1))
    assert state.balance == 186_202_00


def test_a_back_dated_payment_counts_as_of_its_day() -> None:
    late = payment(1, date(2, 10), 1_000_00, posted_date=date(2, 20))
    unpaid, [fee] = run([late], date(2, 19), Policy())
    assert (fee.kind, fee.amount, unpaid.fees) == (EntryKind.LATE_FEE, 42_10, 42_10)
    state, entries = run([late], date(2, 20), Policy())
    # It was there within the days of grace: the late fee is taken back.
    assert [(entry.kind, entry.reverses, entry.amount) for entry in entries] == [
        (EntryKind.LATE_FEE, None, 42_10),
        (EntryKind.REVERSAL, EntryKind.LATE_FEE, -42_10),
        (EntryKind.PAYMENT, None, 1_000_00),
    ]
    assert (state.fees, state.balance, state.next_due) == (0, 186_202_00, date(3, 1))


def test_a_rate_changes_the_interest_of_its_days_and_the_payments_after_it() -> None:
    change = Transaction(1, "rate_change", date(1, 16), date(1, 3), rate=4_500_000, payment=950_00)
    terms, _ = mortgage()
    state, [entry] = run([change], date(1, 31))
    assert (entry.kind, entry.effective_date, entry.amount) == (
        EntryKind.RATE_CHANGE, date(1, 16), 0,
    )  # fmt: skip
    assert state.rate_changes == (RateChange(date(1, 16), 4_500_000, 950_00),)
    # 15 days at 3.5% and 15 at 4.5%: 186,500.00 * 8% * 15 / 360 = 621.67, rounded once.
    assert instalment(terms, state)[1:3] == (621_67, 328_33)
    state, _ = run([change, payment(2, date(2, 1), 1_108_04)], date(2, 1))
    assert (state.rate, state.payment, state.rate_changes) == (4_500_000, 950_00, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "gift"}, "kind gift is none of payment, curtailment, payoff, reversal,"),
        (
            {"effective_date": Date(2019, 12, 31)},
            "effective_date 2019-12-31 is before the loan's origination 2020-01-01",
        ),
        (
            {"effective_date": FIRST},
            "effective_date 2023-12-31 is not after 2023-12-31, when the loan was boarded",
        ),
        ({"currency": "EUR"}, "currency EUR is not the loan's USD"),
        ({"amount": -1}, "amount -0.01 USD is not positive"),
        ({"kind": "reversal", "amount": 0}, "a reversal names no transaction"),
        (
            {"kind": "reversal", "reverses": 1},
            "a reversal has an amount of 1,000.00 USD: it takes none",
        ),
        ({"kind": "rate_change", "amount": 0}, "a rate_change lacks its rate or payment"),
        (
            {
                "kind": "rate_change",
                "amount": 0,
                "rate": 1,
                "payment": 1,
                "posted_date": date(2, 2),
            },
            "rate_change effective 2024-02-01 is in the past: it was posted on 2024-02-02",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    wrong = payment(1, date(2, 1), 1_000_00)._replace(**changes)
    said = rejection_reason(mortgage()[0], FIRST, wrong)
    assert said is not None
    assert said.startswith(reason)
    _, [entry] = run([wrong], date(3, 1))
    assert (entry.kind, entry.reason, entry.rejected) == (EntryKind.REJECTED, said, wrong.amount)


@pytest.mark.parametrize("other", [9, 1, 2])
def test_reversals_of_nothing_are_rejected(other: int) -> None:
    back = Transaction(1, "reversal", date(2, 1), date(2, 1), reverses=other)
    again = Transaction(2, "reversal", date(2, 1), date(2, 1), reverses=1)
    _, entries = run([back, again], date(2, 1))
    assert [entry.kind for entry in entries] == [EntryKind.REJECTED] * 2
    assert f"transaction {other} can't be reversed" in (entries[0].reason or "")


def test_a_payment_is_reversed_only_once() -> None:
    entries = run(
        [
            payment(1, date(2, 1), 1_000_00),
            Transaction(2, "reversal", date(2, 3), date(2, 3), reverses=1),
            Transaction(3, "reversal", date(2, 4), date(2, 4), reverses=1),
        ],
        date(2, 4),
    )[1]
    assert [entry.kind for entry in entries] == [
        EntryKind.PAYMENT, EntryKind.REVERSAL, EntryKind.REJECTED,
    ]  # fmt: skip


def test_the_last_instalment_repays_what_is_left() -> None:
    state, [entry] = run(
        [payment(1, date(2, 1), 600_00)], date(3, 1),
        balance=440_00, maturity_date=date(2, 1),
    )  # fmt: skip
    # 440.00 * 3.5% / 12 = 1.28.
    assert buckets(entry) == (1_28, 440_00, 158_04, 0, 0, 68)
    assert (state.balance, state.accrued) == (0, 0)


def test_states_given_are_not_changed() -> None:
    terms, opening = mortgage()
    before = dataclasses.replace(opening)
    close(terms, opening, opening, [payment(1, date(2, 1), 1_000_00)], date(3, 1), Policy())
    assert opening == before


def test_amounts_have_the_decimals_of_their_currency() -> None:
    assert in_minor_units(Decimal("12.5"), 2) == 12_50
    assert in_minor_units(Decimal("12.500"), 2) == 12_50
    with pytest.raises(ValueError, match=r"amount 12\.345 has 3 decimals, not at most 2"):
        in_minor_units(Decimal("12.345"), 2)
    with pytest.raises(ValueError, match=r"principal 1\.1 is not a decimal"):
        in_minor_units(1.1, 2, "principal")  # type: ignore[arg-type]
