"""Investor remittance: what the servicer of a loan owes its investor for a month.

By the three remittance types of the US agencies (ANSI X12 element 1408; Fannie Mae Servicing
Guide C-3-01):

- actual/actual: interest and principal as collected, which is what the book has;
- scheduled/actual: a month's interest whether collected or not, principal as collected;
- scheduled/scheduled: a month's interest and the scheduled principal, whether collected or not,
  and what is repaid ahead of schedule.

A month's interest, and what falls due in it, are those of the loan's own schedule: its day count,
its first due date, its last instalment (`scheduled_month`). Balances are of the whole loan;
interest, principal and fees are the investor's share of them. Amounts are integers of the minor
unit, rates integers of a millionth of a percent. `remit` is the rule for one loan, `remit_many` for
many loans.
"""

from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from ledgerbeam.rules.loans.loan import BASE_SCALE, RATE_SCALE, RATE_UNITS
from ledgerbeam.rules.money import divide_rounded


class RemittanceType(StrEnum):
    """What is remitted as collected, and what by schedule: interest first, then principal."""

    ACTUAL_ACTUAL = "A/A"
    SCHEDULED_ACTUAL = "S/A"
    SCHEDULED_SCHEDULED = "S/S"


class Investor(NamedTuple):
    """Who owns loans, and on what terms they are serviced.

    Attributes:
        servicing_fee_rate: a year, of the balance, in rate units; kept by the servicer.
        guaranty_fee_rate: likewise; due to the guarantor.
    """

    investor_id: str
    remittance_type: RemittanceType
    servicing_fee_rate: int
    guaranty_fee_rate: int


class LoanMonth(NamedTuple):
    """What a month has done to a loan; amounts in minor units, rates in rate units.

    Attributes:
        rate: the note rate of all the month's interest; -1 where it changed.
        participation: the investor's share, in rate units; 100,000,000 is all of the loan.
        actual_balance: unpaid principal at the end of the month before.
        actual_ending_balance: unpaid principal at the end of the month.
        scheduled_balance: for scheduled/scheduled, the balance that the investor has been paid
            down to at the end of the month before; not used otherwise.
        curtailment: principal repaid on top of instalments this month; negative if undone.
        payoff: principal repaid by a payoff this month; negative if undone.
        collected: interest that the book has for the month.
        collected_base: what it is the interest on; see `Entry.interest_base`.
        month_interest: a month's interest by schedule, on the balance at the end of the month
            before: the scheduled one for scheduled/scheduled, else the actual one.
        month_base: what it is the interest on.
        instalments: principal of the instalments that fall due in the month, by schedule and on
            the scheduled balance.
        matured: 1 in the month of the maturity date and in those after it, else 0.
    """

    loan_id: str
    investor_id: str
    pool_id: str
    currency: str
    rate: int
    participation: int
    actual_balance: int
    actual_ending_balance: int
    scheduled_balance: int = 0
    curtailment: int = 0
    payoff: int = 0
    collected: int = 0
    collected_base: int = 0
    month_interest: int = 0
    month_base: int = 0
    instalments: int = 0
    matured: int = 0
    missed_payments: int = 0


class RemittanceLine(NamedTuple):
    """What is owed for a loan and month, in minor units.

    Attributes:
        beginning_balance: of the whole loan: scheduled for scheduled/scheduled, else actual.
        scheduled_principal: by instalments. For the actual types that is the change of the balance
            less what was repaid ahead.
        curtailment: repaid on top of instalments.
        payoff: repaid by a payoff.
        ending_balance: what is left of the beginning balance.
        actual_balance: what the borrower still owes of the principal.
        interest: at the pass-through rate, to be remitted; as everything below, the share.
        principal: to be remitted.
        guaranty_fee: due to the guarantor.
        servicing_fee: what the servicer keeps of the interest at the note rate.
        remittance: interest and principal.
        collected_interest: the share of what the book has for the month: for actual/actual, what
            interest, guaranty fee and servicing fee are parts of.
    """

    loan_id: str
    investor_id: str
    pool_id: str
    currency: str
    remittance_type: RemittanceType
    beginning_balance: int
    scheduled_principal: int
    curtailment: int
    payoff: int
    ending_balance: int
    actual_balance: int
    interest: int
    principal: int
    guaranty_fee: int
    servicing_fee: int
    remittance: int
    collected_interest: int
    missed_payments: int


def pass_through_rate(rate: int, investor: Investor) -> int:
    """Note rate less servicing fee less guaranty fee (Fannie Mae Multifamily Guide, glossary).

    Fannie Mae's Investor Reporting Manual, section 5-02, has the same for adjustable rates: a new
    one whenever the note rate changes.

    Raises:
        ValueError: the fees are more than the note rate.
    """
    result = rate - investor.servicing_fee_rate - investor.guaranty_fee_rate
    if result < 0:
        raise ValueError(
            f"rate {_percent(rate)} is less than the fees of investor {investor.investor_id}: "
            f"{_percent(investor.servicing_fee_rate)} for servicing and "
            f"{_percent(investor.guaranty_fee_rate)} guaranty"
        )
    return result


def interest_at(base: int, rate: int) -> int:
    """Interest at a yearly rate, on what it is the interest on; rounded half to even.

    Args:
        base: as `Entry.interest_base`.
        rate: in rate units.
    """
    return divide_rounded(base * rate, RATE_UNITS * 10**BASE_SCALE)


def remit(month: LoanMonth, investor: Investor) -> RemittanceLine:
    """The remittance of a loan for a month.

    Interest is at the pass-through rate, on what the interest collected, or a month's interest by
    schedule, is the interest on. Where the note rate changed it is that interest less the fees. A
    month without a payment has no interest by actual/actual (Fannie Mae Investor Reporting Manual
    2-04); by the scheduled types it has a full month's, whether the borrower paid or not
    (Servicing Guide C-3-01), and in the month of a curtailment or payoff too (Multifamily Guide,
    "Amount of Security Monthly Remittance" and "Remitting Full Prepayment Payoff Amount").

    Principal is the balance of the month before less that of this month, actual or scheduled,
    times the investor's percentage (Investor Reporting Manual 2-04, "Calculating Monthly Principal
    Payments"). A loan that has no balance left has no scheduled one either: what an investor was
    advanced comes back to the servicer, and what is left is paid.

    Raises:
        ValueError: the month contradicts itself, or the fees are more than the note rate.
    """
    check_month(month, investor)
    by_schedule = month.instalments
    if investor.remittance_type is RemittanceType.SCHEDULED_SCHEDULED:
        beginning = month.scheduled_balance
        left = beginning - by_schedule
        ahead = min(month.curtailment, left)
        if month.matured:
            # By the maturity date all that is left is due: no balance remains after it.
            by_schedule = beginning - ahead
        payoff = 0 if month.actual_ending_balance else beginning - by_schedule - ahead
    else:
        beginning, payoff, ahead = month.actual_balance, month.payoff, month.curtailment
        by_schedule = beginning - month.actual_ending_balance - payoff - ahead
    ending = beginning - by_schedule - ahead - payoff

    gross, base = month.month_interest, month.month_base
    if investor.remittance_type is RemittanceType.ACTUAL_ACTUAL:
        gross, base = month.collected, month.collected_base
    guaranty = interest_at(base, investor.guaranty_fee_rate)
    if month.rate >= 0:
        passed_through = interest_at(base, pass_through_rate(month.rate, investor))
    else:
        passed_through = gross - guaranty - interest_at(base, investor.servicing_fee_rate)
    interest = investor_share(passed_through, month.participation)
    guaranty_fee = investor_share(guaranty, month.participation)
    principal = investor_share(beginning - ending, month.participation)
    return RemittanceLine(
        month.loan_id, month.investor_id, month.pool_id, month.currency, investor.remittance_type,
        beginning, by_schedule, ahead, payoff, ending, month.actual_ending_balance,
        interest, principal, guaranty_fee,
        servicing_fee=investor_share(gross, month.participation) - interest - guaranty_fee,
        remittance=interest + principal,
        collected_interest=investor_share(month.collected, month.participation),
        missed_payments=month.missed_payments,
    )  # fmt: skip


def investor_share(amount: int, participation: int) -> int:
    """The investor's part of an amount, rounded half to even."""
    return divide_rounded(amount * participation, RATE_UNITS)


def check_month(month: LoanMonth, investor: Investor) -> None:
    """Reject a month that contradicts itself, or whose scheduled balance is unknown.

    Raises:
        ValueError: a balance is negative, the participation is none, or a scheduled balance would
            have to be what it was before a payoff of an earlier month.
    """
    if min(month.actual_balance, month.actual_ending_balance, month.scheduled_balance) < 0:
        raise ValueError(f"loan {month.loan_id} has a negative balance")
    if not 0 <= month.participation <= RATE_UNITS:
        raise ValueError(
            f"participation {_percent(month.participation)} of loan {month.loan_id} is not from "
            "0% to 100%"
        )
    is_scheduled = investor.remittance_type is RemittanceType.SCHEDULED_SCHEDULED
    if is_scheduled and month.actual_ending_balance and not month.actual_balance:
        raise ValueError(
            f"loan {month.loan_id} was paid off in an earlier month, and that was taken back: its "
            "scheduled balance isn't known any more: give the loan as of the end of the month "
            "before, with the scheduled_balance that it is to have"
        )


def unknown_investor(loan_id: str, investor_id: str) -> ValueError:
    """The error for a loan whose investor isn't among those given."""
    return ValueError(f"investor {investor_id} of loan {loan_id} is unknown: no such investor_id")


def _percent(rate: int) -> str:
    return f"{Decimal(rate).scaleb(-RATE_SCALE).normalize():f}%"
