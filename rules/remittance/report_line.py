"""An investor's month of a loan: from its transactions to the line of the remittance report.

The loan is closed day by day, month after month, from its opening to the day of the report. What
a month has done to it is the difference of its states and the entries made:

- interest, curtailment and payoff are what the entries say, those taken back included: what is
  taken back in a later month is negative there;
- the scheduled balance is what the month before left of it, and what falls due on it is that of
  the loan's own schedule (`scheduled_month`).

The money received in a month is where its entries put it: received = applied + suspense +
rejected + reversed. A transaction is received on the day of its first entry.

`report_line` is the rule for one loan, `report_line_many` for many loans.
"""

import calendar
import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ledgerbeam.rules.closing.close import MONEY_STEPS, close, money_received, note_delinquency
from ledgerbeam.rules.loans.loan import (
    Entry,
    EntryKind,
    Policy,
    RateChange,
    State,
    Step,
    Terms,
    Transaction,
    TransactionKind,
    is_charge,
)
from ledgerbeam.rules.remittance.remit import (
    Investor,
    LoanMonth,
    RemittanceLine,
    RemittanceType,
    remit,
)
from ledgerbeam.rules.remittance.scheduled_month import first_due_of, rates_of, scheduled_month
from ledgerbeam.rules.terms.due_dates import month_later


class Holding(NamedTuple):
    """An investor's part in a loan.

    Attributes:
        participation: in rate units; 100,000,000 is all of the loan.
        scheduled_balance: that the investor has been paid down to when the loan is opened.
    """

    investor_id: str
    pool_id: str
    participation: int
    scheduled_balance: int


class MonthMoney(NamedTuple):
    """Money received in a month, in minor units of the loan's currency.

    Attributes:
        received: amounts of the transactions booked.
        reversed: amounts of transactions undone, whenever they were booked.
        applied: to interest, principal, escrow and fees; less what is taken back, as below.
        suspense: more held than at the end of the month before.
        rejected: to be returned.
        other_months: amounts of the loan's transactions that were booked before, or will be.
    """

    received: int
    reversed: int
    applied: int
    suspense: int
    rejected: int
    other_months: int


class ReportLine(NamedTuple):
    """A loan in the report.

    Attributes:
        remittance: to the investor.
        money: received.
        rejections: which transactions were rejected in the month, and why; None if none was.
    """

    remittance: RemittanceLine
    money: MonthMoney
    rejections: str | None


def report_line(
    terms: Terms,
    holding: Holding,
    investor: Investor,
    opening: State,
    transactions: Sequence[Transaction],
    business_date: datetime.date,
    policy: Policy,
) -> ReportLine:
    """The line of the month of the business date, up to that day.

    Args:
        terms: of the loan.
        holding: the investor's part in it.
        investor: who has it.
        opening: the loan's state at the end of an earlier month.
        transactions: all since then.
        business_date: what is posted later doesn't count.
        policy: how the book is run.

    Raises:
        ValueError: there is no month between opening and business date, two transactions have one
            id, one isn't booked anywhere, or there is no remittance (see `remit.remit`).
    """
    state, made, line = opening, list[Entry](), None
    booked_before = set[int | None]()
    scheduled = holding.scheduled_balance
    for end in month_ends(opening.closed_through, business_date):
        booked_before |= {entry.transaction_id for entry in made}
        before = state
        state, made = close(terms, opening, before, transactions, end, book_policy(policy))
        if Step.DELINQUENCY in policy.steps:
            note_delinquency(terms, state, end, policy)
        ids = {entry.transaction_id for entry in made if entry.kind is EntryKind.RATE_CHANGE}
        changes = changes_of(each for each in transactions if each.transaction_id in ids)
        month = loan_month(
            terms, holding, investor, opening, before, state, made, changes, scheduled, end
        )
        line = remit(month, investor)
        scheduled = line.ending_balance
    if line is None:
        raise nothing_to_report(opening.closed_through, business_date)
    # What was posted before the opening counts in the first month.
    since = datetime.date.min if before is opening else before.closed_through
    money = month_money(terms, transactions, made, booked_before, since, business_date)
    rejected = [e for e in made if e.kind is EntryKind.REJECTED]
    reasons = rejections_of((entry.transaction_id, entry.reason) for entry in rejected)
    return ReportLine(line, money, reasons)


def month_ends(after: datetime.date, through: datetime.date) -> Iterator[datetime.date]:
    """The ends of the months after a day; the last one ends on the day `through`."""
    day = after
    while day < through:
        day += datetime.timedelta(1)
        last = day.replace(day=calendar.monthrange(day.year, day.month)[1])
        day = min(last, through)
        yield day


def book_policy(policy: Policy) -> Policy:
    """The policy less the steps that move no money, which a month can do without."""
    steps = tuple(step for step in policy.steps if step in MONEY_STEPS)
    return policy._replace(steps=steps)


def changes_of(transactions: Iterable[Transaction]) -> list[RateChange]:
    """Changes of the rate, in the order in which they come into force."""
    return [
        RateChange(each.effective_date, each.rate or 0, each.payment or 0)
        for each in sorted(transactions, key=lambda each: (each.effective_date, each[0]))
    ]


def loan_month(
    terms: Terms,
    holding: Holding,
    investor: Investor,
    opening: State,
    before: State,
    after: State,
    entries: Sequence[Entry],
    changes: Sequence[RateChange],
    scheduled_balance: int,
    month: datetime.date,
) -> LoanMonth:
    """What a month has done to a loan.

    Args:
        terms: of the loan.
        holding: the investor's part in it.
        investor: who has it.
        opening: the state in which the book took the loan over.
        before: the state at the end of the month before.
        after: the state at the end of the month.
        entries: made in between.
        changes: of the rate that came into force in between.
        scheduled_balance: at the end of the month before.
        month: any day of it.
    """
    is_scheduled = investor.remittance_type is RemittanceType.SCHEDULED_SCHEDULED
    rates = rates_of(before, changes, before.closed_through)
    first_due = first_due_of(terms, opening)
    balance = scheduled_balance if is_scheduled else before.balance
    by_schedule = scheduled_month(terms, first_due, rates, balance, month)
    money = [entry for entry in entries if not is_charge(entry)]
    is_one_rate = not rates.changes and after.rate == before.rate == rates.rate
    return LoanMonth(
        terms.loan_id,
        holding.investor_id,
        holding.pool_id,
        terms.currency,
        rate=rates.rate if is_one_rate else -1,
        participation=holding.participation,
        actual_balance=before.balance,
        actual_ending_balance=after.balance,
        scheduled_balance=scheduled_balance,
        curtailment=sum(entry.curtailment for entry in entries),
        payoff=sum(e.principal for e in entries if EntryKind.PAYOFF in (e.kind, e.reverses)),
        collected=sum(entry.interest for entry in money),
        collected_base=sum(entry.interest_base for entry in money),
        month_interest=by_schedule.due.interest,
        month_base=by_schedule.due.base,
        instalments=by_schedule.principal if is_scheduled else 0,
        matured=int(month_later(month, 31, 0) >= terms.maturity_date),
        missed_payments=after.missed_payments,
    )


def month_money(
    terms: Terms,
    transactions: Sequence[Transaction],
    entries: Sequence[Entry],
    booked_before: set[int | None],
    since: datetime.date,
    business_date: datetime.date,
) -> MonthMoney:
    """Where the money of a month is; that in another currency than the loan's is left out.

    Args:
        terms: of the loan.
        transactions: all of the loan.
        entries: made in the month.
        booked_before: ids of transactions that have entries of earlier months.
        since: the end of the month before; long ago where the month is the first of the book.
        business_date: the month's last day.

    Raises:
        ValueError: a transaction of the past has no entry.
    """
    own = {each.transaction_id: each for each in transactions if each.currency == terms.currency}
    rejected_ids = {e.transaction_id for e in entries if e.kind is EntryKind.REJECTED}
    # Reversals that undo something have no entry of their own.
    reversals = [
        each
        for each in transactions
        if each.kind == TransactionKind.REVERSAL
        and each.posted_date <= business_date
        and each.transaction_id not in rejected_ids | booked_before
    ]
    undone = [each.reverses for each in reversals if each.posted_date > since]
    booked_before |= {each.reverses for each in reversals if each.posted_date <= since}
    booked = {entry.transaction_id for entry in entries} | set(undone)
    received = other_months = 0
    for number, each in own.items():
        if number in booked_before or number not in booked:
            other_months += each.amount
        else:
            received += each.amount
        is_due = max(each.posted_date, each.effective_date) <= business_date
        if each.amount and is_due and number not in booked | booked_before:
            raise not_booked(number)
    in_currency = [e for e in entries if e.transaction_id is None or e.transaction_id in own]
    sums = money_received(in_currency)
    return MonthMoney(
        received=received,
        reversed=sum(own[number].amount for number in undone if number in own),
        applied=sums.applied,
        suspense=sums.suspense,
        rejected=sums.rejected,
        other_months=other_months,
    )


def rejections_of(entries: Iterable[tuple[int | None, str | None]]) -> str | None:
    """Ids and reasons of rejected transactions in words; None where there are none."""
    return "; ".join(f"transaction {number}: {reason}" for number, reason in entries) or None


def not_booked(transaction_id: int) -> ValueError:
    """The error for a transaction that is lost."""
    return ValueError(f"transaction {transaction_id} is neither applied nor rejected")


def nothing_to_report(closed_through: datetime.date, business_date: datetime.date) -> ValueError:
    """The error for a loan that has no month before the business date."""
    return ValueError(f"closed through {closed_through}, there is no month up to {business_date}")
