"""Investor remittance: what the servicer of a loan owes its investor for a month.

By the three remittance types of the US agencies (ANSI X12 element 1408; Fannie Mae Servicing
Guide C-3-01):

- actual/actual: interest and principal as collected;
- scheduled/actual: a month's interest whether collected or not, principal as collected;
- scheduled/scheduled: a month's interest and the scheduled principal, whether collected or not,
  and what is repaid ahead of schedule.

Balances are of the whole loan; interest, principal and fees are the investor's share of them.
Amounts are integers of the minor unit, rates integers of a millionth of a percent, a month is
30 days of 360. The rule stands here for one loan; `remittance_columns` has it for many loans.
"""

from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from ledgerbeam.rules.loan import RATE_SCALE, RATE_UNITS, in_words
from ledgerbeam.rules.money import div_exactly


class RemittanceType(StrEnum):
    """What is remitted as collected, and what by schedule: interest first, then principal."""

    ACTUAL_ACTUAL = "A/A"
    SCHEDULED_ACTUAL = "S/A"
    SCHEDULED_SCHEDULED = "S/S"


class Investor(NamedTuple):
    """Who owns loans, and on what terms they are serviced.

    Attributes:
        servicing_fee_rate: a year, of the balance, kept by the servicer.
        guaranty_fee_rate: a year, of the balance, due to the guarantor.
    """

    investor_id: str
    remittance_type: RemittanceType
    servicing_fee_rate: int
    guaranty_fee_rate: int


class LoanMonth(NamedTuple):
    """What a month has done to a loan.

    Attributes:
        rate: the note rate that the month's interest is computed at.
        payment: principal and interest of an instalment.
        participation: the investor's share, in rate units; 100,000,000 is all of the loan.
        actual_balance: unpaid principal at the end of the month before.
        actual_ending_balance: unpaid principal at the end of the month.
        scheduled_balance: for scheduled/scheduled, the balance that the investor has been paid
            down to at the end of the month before; not used otherwise.
        curtailment: principal repaid on top of instalments this month; negative if undone.
        instalments: how many were collected this month.
        payoff: principal repaid by a payoff this month; the loan has none left.
        payoff_months: whole months of interest in a payoff, since the last paid instalment.
        payoff_days: the days of interest beyond them.
    """

    loan_id: str
    investor_id: str
    pool_id: str
    currency: str
    rate: int
    payment: int
    participation: int
    actual_balance: int
    actual_ending_balance: int
    scheduled_balance: int = 0
    curtailment: int = 0
    instalments: int = 0
    payoff: int = 0
    payoff_months: int = 0
    payoff_days: int = 0
    missed_payments: int = 0


class RemittanceLine(NamedTuple):
    """What is owed for a loan and month.

    Attributes:
        beginning_balance: of the whole loan: scheduled for scheduled/scheduled, else actual.
        scheduled_principal: by instalments. For the actual types that is the change of the balance
            less what was repaid ahead.
        curtailment: repaid on top of instalments.
        payoff: repaid by a payoff.
        ending_balance: what is left of the beginning balance.
        interest: at the pass-through rate, to be remitted; as everything below, the share.
        principal: to be remitted.
        guaranty_fee: due to the guarantor.
        servicing_fee: what the servicer keeps of the interest at the note rate.
        remittance: interest and principal.
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
    interest: int
    principal: int
    guaranty_fee: int
    servicing_fee: int
    remittance: int
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


def month_interest(balance: int, rate: int, months: int = 1, days: int = 0) -> int:
    """Interest for whole months of a 360-day year, and days of a 365-day year.

    That is how a payoff's interest is computed (Fannie Mae Servicing Guide F-1-09).
    """
    return div_exactly(balance * rate * (months * 365 + days * 12), 12 * 365 * RATE_UNITS)


def collected_interest(month: LoanMonth, rate: int) -> int:
    """Interest at `rate` of what was collected in the month: actual/actual.

    One month of interest for each instalment, on the actual balance before it, and a payoff's
    interest from the last paid instalment to the day of the payoff. A month without a payment has
    none. Fannie Mae Investor Reporting Manual 2-04, "Reporting a Payment, Curtailment or No
    Payment" and "Reporting a Payoff to Fannie Mae"; Servicing Guide F-1-09.
    """
    balance, interest = month.actual_balance, 0
    for _ in range(month.instalments):
        interest += month_interest(balance, rate)
        repaid = month.payment - month_interest(balance, month.rate)
        balance = max(0, balance - max(0, repaid))
    return interest + month_interest(month.payoff, rate, month.payoff_months, month.payoff_days)


def scheduled_interest(balance: int, rate: int) -> int:
    """Interest at `rate` by schedule: a full month's on the balance of the month before.

    The actual balance for scheduled/actual, the scheduled one for scheduled/scheduled; whether the
    borrower paid or not (Fannie Mae Servicing Guide C-3-01), and in the month of a curtailment or
    payoff too (Multifamily Guide, "Amount of Security Monthly Remittance" and "Remitting Full
    Prepayment Payoff Amount").
    """
    return month_interest(balance, rate)


def scheduled_principal(month: LoanMonth) -> int:
    """Principal of the month's instalment by schedule: payment less interest at the note rate."""
    repaid = month.payment - month_interest(month.scheduled_balance, month.rate)
    return min(month.scheduled_balance, max(0, repaid))


def remit(month: LoanMonth, investor: Investor) -> RemittanceLine:
    """The remittance of a loan for a month.

    Principal is the balance of the month before less that of this month, actual or scheduled,
    times the investor's percentage (Fannie Mae Investor Reporting Manual 2-04, "Calculating
    Monthly Principal Payments"). A payoff pays all of the balance, so that what an investor with a
    scheduled balance was advanced comes back to the servicer.

    Raises:
        ValueError: the month contradicts itself, or the fees are more than the note rate.
    """
    check(month)
    is_scheduled = investor.remittance_type is RemittanceType.SCHEDULED_SCHEDULED
    passed_through = pass_through_rate(month.rate, investor)
    if is_scheduled:
        beginning = month.scheduled_balance
        by_schedule = scheduled_principal(month)
        left = beginning - by_schedule
        ahead = min(month.curtailment, left)
        payoff = left - ahead if month.payoff else 0
    else:
        beginning, payoff, ahead = month.actual_balance, month.payoff, month.curtailment
        by_schedule = beginning - month.actual_ending_balance - payoff - ahead
    ending = beginning - by_schedule - ahead - payoff

    def interest_at(rate: int) -> int:
        if investor.remittance_type is RemittanceType.ACTUAL_ACTUAL:
            return collected_interest(month, rate)
        return scheduled_interest(beginning, rate)

    interest = share(interest_at(passed_through), month.participation)
    guaranty_fee = share(interest_at(investor.guaranty_fee_rate), month.participation)
    principal = share(beginning - ending, month.participation)
    return RemittanceLine(
        month.loan_id, month.investor_id, month.pool_id, month.currency, investor.remittance_type,
        beginning, by_schedule, ahead, payoff, ending,
        interest, principal, guaranty_fee,
        servicing_fee=share(interest_at(month.rate), month.participation) - interest - guaranty_fee,
        remittance=interest + principal,
        missed_payments=month.missed_payments,
    )  # fmt: skip


def share(amount: int, participation: int) -> int:
    """The investor's part of an amount, rounded half to even."""
    return div_exactly(amount * participation, RATE_UNITS)


def check(month: LoanMonth) -> None:
    """Refuse what no month can be.

    Raises:
        ValueError: a balance is negative, the participation is none, or a payoff leaves something.
    """
    if min(month.actual_balance, month.actual_ending_balance, month.scheduled_balance) < 0:
        raise ValueError(f"loan {month.loan_id} has a negative balance")
    if not 0 <= month.participation <= RATE_UNITS:
        raise ValueError(
            f"participation {_percent(month.participation)} of loan {month.loan_id} is not from "
            "0% to 100%"
        )
    if min(month.instalments, month.payoff, month.payoff_months, month.payoff_days) < 0:
        raise ValueError(f"loan {month.loan_id} has a negative number of instalments or payoff")
    if month.payoff and month.actual_ending_balance:
        raise ValueError(
            f"loan {month.loan_id} is paid off and has a balance of "
            f"{in_words(month.actual_ending_balance)}"
        )


def unknown_investor(loan_id: str, investor_id: str) -> ValueError:
    """The error for a loan whose investor isn't among those given."""
    return ValueError(f"investor {investor_id} of loan {loan_id} is unknown: no such investor_id")


def _percent(rate: int) -> str:
    return f"{Decimal(rate).scaleb(-RATE_SCALE).normalize():f}%"
