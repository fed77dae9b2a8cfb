"""An investor's month of a loan: from its transactions to the line of the remittance report.

The loan is closed day by day, month after month, from its opening to the day of the report. What
a month has done to it is the difference of its states and the entries made:

- rate and payment are those in force at the close of the month before;
- curtailment and payoff are what the entries say, those taken back included;
- instalments collected are those by which the oldest unpaid one moved on. An instalment counts
  once: one that is taken back in a later month and paid again brings no interest again;
- the scheduled balance is what the month before left of it.

The money received in a month is where its entries put it: received = applied + suspense +
rejected + reversed. A transaction is received on the day of its first entry.

The rule stands here for one loan; `loan_month_columns` has it for many loans.
"""

import calendar
import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ledgerbeam.rules import close_of_day
from ledgerbeam.rules.delinquency import missed_payments
from ledgerbeam.rules.loan import (
    DelinquencyMethod,
    Entry,
    EntryKind,
    Policy,
    State,
    Terms,
    Transaction,
    TransactionKind,
    month_later,
)
from ledgerbeam.rules.remittance import Investor, LoanMonth, RemittanceLine, remit


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


class Money(NamedTuple):
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
    money: Money
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
            id, one isn't booked anywhere, or there is no remittance (see `remittance.remit`).
    """
    state, made, line = opening, list[Entry](), None
    booked_before = set[int | None]()
    scheduled, reported_due = holding.scheduled_balance, opening.next_due
    for end in month_ends(opening.closed_through, business_date):
        booked_before |= {entry.transaction_id for entry in made}
        before = state
        state, made = close_of_day.close(terms, opening, before, transactions, end, policy)
        month = loan_month(terms, holding, before, state, made, scheduled, reported_due)
        line = remit(month, investor)
        scheduled, reported_due = line.ending_balance, max(reported_due, state.next_due)
    if line is None:
        raise nothing_to_report(opening.closed_through, business_date)
    # What was posted before the book was begun counts in its first month.
    since = datetime.date.min if before is opening else before.closed_through
    money = money_of(terms, transactions, made, booked_before, since, business_date)
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


def loan_month(
    terms: Terms,
    holding: Holding,
    before: State,
    after: State,
    entries: Sequence[Entry],
    scheduled_balance: int,
    reported_due: datetime.date,
) -> LoanMonth:
    """What a month has done to a loan.

    Args:
        terms: of the loan.
        holding: the investor's part in it.
        before: the state at the end of the month before.
        after: the state at the end of the month.
        entries: made in between.
        scheduled_balance: at the end of the month before.
        reported_due: the first instalment whose interest hasn't been reported yet.
    """
    rate, payment = before.rate, before.payment
    for change in before.rate_changes:
        if change.effective_date <= before.closed_through:
            rate, payment = change.rate, change.payment
    payoff = sum(e.principal for e in entries if EntryKind.PAYOFF in (e.kind, e.reverses))
    months = days = 0
    if payoff > 0 and not after.balance:
        paid_off_on = max(e.effective_date for e in entries if e.kind is EntryKind.PAYOFF)
        months, days = since_instalment(after.next_due, terms.due_day, paid_off_on)
    else:
        payoff = 0
    return LoanMonth(
        terms.loan_id,
        holding.investor_id,
        holding.pool_id,
        terms.currency,
        rate=rate,
        payment=payment,
        participation=holding.participation,
        actual_balance=before.balance,
        actual_ending_balance=after.balance,
        scheduled_balance=scheduled_balance,
        curtailment=sum(entry.curtailment for entry in entries),
        instalments=max(0, _month(after.next_due) - _month(reported_due)),
        payoff=payoff,
        payoff_months=months,
        payoff_days=days,
        missed_payments=after.missed_payments,
    )


def since_instalment(next_due: datetime.date, due_day: int, day: datetime.date) -> tuple[int, int]:
    """Whole months, and the days beyond them, from the last paid instalment to a day."""
    paid = month_later(next_due, due_day, -1)
    months = missed_payments(paid, due_day, day, DelinquencyMethod.OTS)
    return months, max(0, (day - month_later(paid, due_day, months)).days)


def money_of(
    terms: Terms,
    transactions: Sequence[Transaction],
    entries: Sequence[Entry],
    booked_before: set[int | None],
    since: datetime.date,
    business_date: datetime.date,
) -> Money:
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
    refused = {e.transaction_id for e in entries if e.kind is EntryKind.REJECTED}
    # Reversals that undo something have no entry of their own.
    reversals = [
        each
        for each in transactions
        if each.kind == TransactionKind.REVERSAL
        and each.posted_date <= business_date
        and each.transaction_id not in refused | booked_before
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
    sums = close_of_day.received(in_currency)
    return Money(
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


def _month(day: datetime.date) -> int:
    return day.year * 12 + day.month
