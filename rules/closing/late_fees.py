"""Late fees: which instalments have one, and how much.

One for each instalment that is unpaid at the end of its days of grace, in percent of that
instalment's principal and interest. What is missing only because fees were taken from the money
for it makes no instalment late: 12 CFR 1026.36(c)(2) forbids that, whatever the waterfall.
"""

import datetime
from collections.abc import Iterator

from ledgerbeam.rules.closing.delinquency import late_on
from ledgerbeam.rules.closing.payments import complete_instalment, instalment
from ledgerbeam.rules.loans.loan import RATE_UNITS, Policy, State, Terms
from ledgerbeam.rules.money import divide_rounded


def late_fees(
    terms: Terms, state: State, day: datetime.date, policy: Policy
) -> Iterator[tuple[datetime.date, int]]:
    """Due date and amount, in minor units, of the late fees to be charged at the close of `day`.

    One for each instalment that is unpaid so many days after its due date and has had none. It is
    computed on what that instalment was: with the payment in force then, or all that was owed if
    it was the last one.
    """
    if not (state.balance and policy.late_fee_rate):
        return
    due = next_late_fee(terms, state)
    if due > terms.maturity_date or late_on(terms, due, policy) > day:
        return
    unpaid = state.copy()
    open_until_due = 0
    while unpaid.balance and unpaid.next_due <= terms.maturity_date:
        part = instalment(terms, unpaid)
        if late_on(terms, part.due_date, policy) > day:
            return
        open_until_due += part.total
        if part.due_date >= due and open_until_due - state.suspense > state.fees_ahead:
            billed = part.interest + part.principal + unpaid.instalment_paid
            yield part.due_date, divide_rounded(billed * policy.late_fee_rate, RATE_UNITS)
        complete_instalment(terms, unpaid, part)


def next_late_fee(terms: Terms, state: State) -> datetime.date:
    """Due date of the next instalment that can have a late fee."""
    return max(state.next_due, terms.due_dates.after(state.late_fees_through))
